"""The objects of a schema as they are, with the SQL that makes, drops and sets each: two of them make a difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from gateway.upstream import Upstream

_INVENTORY = resources.files("gateway").joinpath("inventory.sql").read_text(encoding="utf-8")
_CHANGES_AT_MOST = 200


@dataclass(frozen=True, slots=True)
class Thing:
    """One object as it is: what is said of it, and the SQL that makes, drops and sets it; see inventory.sql."""

    said: str
    group: str
    of: str | None = None
    type: str | None = None
    make: str | None = None
    drop: str | None = None
    set: str | None = None


Inventory = Mapping[tuple[str, str], Thing]


async def inventory(upstream: Upstream) -> Inventory:
    """The objects by (kind, name), as this transaction sees them; names in definitions are written out in full."""
    [(path,)] = await upstream.probe("SHOW search_path")
    await upstream.probe("SET LOCAL search_path TO ''")
    rows = await upstream.probe(_INVENTORY)
    await upstream.probe("SET LOCAL search_path TO " + (path or "''"))
    return {
        (kind or "", name or ""): Thing(said or "", group or "", of, *sql) for kind, name, group, of, said, *sql in rows
    }


def changes(before: Inventory, after: Inventory) -> list[dict[str, str | None]]:
    """What is new, gone or different, by kind and name; at most 200."""
    found: list[dict[str, str | None]] = []
    for kind, name in sorted(before.keys() | after.keys()):
        old, new = before.get((kind, name)), after.get((kind, name))
        was, now = old.said if old else None, new.said if new else None
        if was != now:
            what = "created" if old is None else "dropped" if new is None else "changed"
            found.append({"what": what, "kind": kind, "name": name, "before": was, "after": now})
    return found[:_CHANGES_AT_MOST]
