"""Policy cases: tables of statements with what a policy should say to them, and the differences where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from policy.document import Document, parse_document, validate
from policy.engine import decide
from policy.model import Circumstances, Facts, Principal, PrincipalKind
from policy.rules import Policy


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrincipalFile(_Model):
    """Who asks; the name in `principals` is the subject."""

    kind: PrincipalKind = PrincipalKind.HUMAN
    groups: list[str] = []
    email: str | None = None
    on_behalf_of: str | None = None


class CaseFile(_Model):
    """One statement, and what should become of it; what is left out is not compared."""

    note: str = ""
    sql: str
    who: str | None = Field(None, description="one of `principals`; left out: the file's")
    decision: Literal["allow", "approve", "deny"]
    reasons: list[str] | None = Field(None, description="codes of the deciding reasons, each at least once")
    rules: list[str] | None = Field(None, description="names of the deciding rules")
    masked: list[str] | None = Field(None, description="the columns that are masked")
    rewritten: str | None = Field(None, description="the text that runs")
    detects: list[str] | None = Field(None, description="the kinds that are looked for in what it delivers")
    rows: Annotated[int, Field(ge=0)] | None = Field(None, description="rows that the statement changes")
    at: AwareDatetime | None = Field(None, description="when it is asked")
    door: Literal["mcp", "wire"] | None = None
    address: str | None = Field(None, description="the client's")
    client: str | None = Field(None, description="what the client calls itself")
    search_path: list[str] | None = None


class CasesFile(_Model):
    """A table of cases."""

    policy: str | None = Field(None, description="the policy file, relative to this one; left out: the configured one")
    who: str | None = None
    principals: dict[str, PrincipalFile]
    cases: Annotated[list[CaseFile], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Case:
    """One case, with its place in the file."""

    file: CaseFile
    principal: Principal
    line: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What was said of `what`, what is, and why."""

    what: str
    expected: str
    actual: str
    why: str = ""


def read_cases(text: str, source: str) -> tuple[str | None, list[Case]]:
    """The policy that a file names, and its cases. Raises DocumentError with file, line, column and the cure."""
    document = parse_document(text, source)
    file = validate(CasesFile, document)
    principals = {
        name: Principal(name, "", who.kind, frozenset(who.groups), who.email, on_behalf_of=who.on_behalf_of)
        for name, who in file.principals.items()
    }
    cases = []
    for index, case in enumerate(file.cases):
        path = ("cases", index)
        name = case.who or file.who
        if name not in principals:
            raise _nobody(document, path, name, sorted(principals))
        cases.append(Case(case, principals[name], document.locate(path)[0]))
    return file.policy, cases


def run_case(case: Case, policy: Policy, facts: Facts) -> list[Difference]:
    """Where the policy says something else than the case; `facts` are the connection's."""
    file = case.file
    circumstances = Circumstances(file.rows, file.at, file.door, file.address, file.client)
    path = tuple(file.search_path) if file.search_path is not None else facts.search_path
    asked = replace(facts, circumstances=circumstances, search_path=path)
    verdict = decide(policy, case.principal, asked, file.sql.encode()).verdict
    deciding = [reason for reason in verdict.reasons if reason.effect is verdict.effect]
    why = "; ".join(dict.fromkeys(reason.text for reason in deciding))
    found = {
        "decision": str(verdict.effect),
        "reasons": _listed({reason.code for reason in deciding}),
        "rules": _listed({reason.rule.rpartition(" (")[0] for reason in deciding if reason.rule}),
        "masked": _listed({str(column) for column in verdict.rewrite.masked} if verdict.rewrite else set()),
        "rewritten": verdict.rewrite.shown if verdict.rewrite else "",
        "detects": _listed(
            set(verdict.rewrite.detection.kinds) if verdict.rewrite and verdict.rewrite.detection else set()
        ),
    }
    return [
        Difference(what, said, found[what], why if what == "decision" else "")
        for what, said in _expected(file)
        if said != found[what]
    ]


def _expected(file: CaseFile) -> Iterator[tuple[str, str]]:
    yield "decision", file.decision
    for what, names in (
        ("reasons", file.reasons),
        ("rules", file.rules),
        ("masked", file.masked),
        ("detects", file.detects),
    ):
        if names is not None:
            yield what, _listed(set(names))
    if file.rewritten is not None:
        yield "rewritten", file.rewritten


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _nobody(document: Document, path: tuple[str | int, ...], name: str | None, known: list[str]) -> Exception:
    if name is None:
        return document.error(path, "the case does not say who asks", "add `who` to it, or to the file")
    return document.error(
        (*path, "who"), f"`{name}` is none of `principals`", f"known are {', '.join(known) or 'none'}"
    )
