"""What was prepared, decided anew: it may mean or show something else by now. Sans-IO."""

from __future__ import annotations

from gateway.drafts import denial
from policy.catalog import Catalog
from policy.model import Decision
from wire.session import Description, Portal, Prepared
from wire.texts import forward_one


def renewed(prepared: Prepared, decision: Decision) -> Prepared | None:
    """What to prepare in place of a statement whose rewrite a new policy changes; None where it is good as it is.

    Only under the catalog that it was prepared under: then its columns are what the client was told. A deny changes
    nothing here, it is the Execute's to tell.
    """
    rewrite, before = decision.verdict.rewrite, prepared.decision
    if rewrite is None or decision.catalog != before.catalog or rewrite.sql == prepared.text.sql:
        return None
    types = Description(parameters=prepared.description.parameters)
    return Prepared(prepared.name, forward_one(prepared.text.client, rewrite), decision, prepared.types, types)


def recheck(
    decision: Decision, portal: Portal, search_path: tuple[str, ...], catalog: Catalog, *, in_parts: bool
) -> Decision:
    """The decision of this moment on a portal's text, denied where PostgreSQL would run what was prepared before it.

    `in_parts`: its rows are counted, but the client asks for a part of them only.
    """
    rewrite, before = decision.verdict.rewrite, portal.prepared.decision.analysis
    changed = rewrite is not None and rewrite.sql != portal.prepared.text.sql
    if before is not None and decision.analysis is not None:
        changed = changed or decision.analysis.means_other(before, catalog)
    if changed or portal.search_path != search_path:
        decision = denial(
            decision,
            "statement.outdated",
            "what this prepared statement means or may show has changed since it was prepared",
            "Prepare it again.",
        )
    if in_parts:
        decision = denial(
            decision,
            "statement.counted",
            "the rows of this statement are counted, so its result cannot be fetched in parts",
            "Fetch all of it at once.",
        )
    return decision
