"""Exports: OCSF events held to the published schema, OTLP to its protobuf, and no text where texts are left out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from audit import export, ocsf, otlp
from audit.entry import Draft, Kind
from audit.errors import AuditUnavailable
from audit.export import Exported, Place
from audit.store import Item, Store
from tests.audit.otlp_logs import decoded

PRINCIPAL = {"subject": "devin", "kind": "agent", "groups": ["ai-agents"], "email": "d@x.org", "on_behalf_of": "ada"}
CLIENT = {"name": "psql", "version": "17", "address": "127.0.0.1:47652"}
SECRET = "a word that somebody said"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def intent(statement: str, *demands: str, effect: str = "allow", **body: object) -> Item:
    told = {
        "door": "wire",
        "text": f"SELECT '{SECRET}'",
        "rewritten": SECRET,
        "sha256": "ab" * 32,
        "parameters": [SECRET, None],
        "principal": PRINCIPAL,
        "client": CLIENT,
        "request": {"reason": SECRET, "traceparent": f"00-{TRACE}-{SPAN}-01"},
        "verdict": {"effect": effect, "rules": ["a-rule"], "reasons": [SECRET]},
        "demands": list(demands),
        "policy": "cd" * 32,
        "search_path": ["public"],
    }
    return Item(Draft(Kind.INTENT, "se-1", "devin", "shop", told | body, statement))


def outcome(statement: str, status: str = "completed", **body: object) -> Item:
    told = {"status": status, "tag": "SELECT 1", "rows": 1, "size": 9, "duration_ms": 1.6}
    told |= {"sqlstate": None, "message": SECRET, "masked": ["public.customers.ssn"], "filtered": []}
    return Item(Draft(Kind.OUTCOME, "se-1", "devin", "shop", told | body, statement))


SESSION = {
    "door": "wire",
    "client": CLIENT,
    "issuer": "https://login.example.com",
    "token": "t",
    "principal": PRINCIPAL,
}
BODIES: Mapping[str, Mapping[str, object]] = {
    Kind.SESSION_OPENED: SESSION | {"expires": "2026-11-26T03:01:20+00:00"},
    Kind.SESSION_CLOSED: {"reason": SECRET},
    Kind.SESSION_REFUSED: {"reason": SECRET, "sqlstate": "28000", "door": "mcp", "client": {"name": None}},
    Kind.APPROVAL_REQUESTED: {"approval": "apr-1", "statement": SECRET, "parameters": [SECRET], "reasons": [SECRET]},
    Kind.APPROVAL_VOTED: {"approval": "apr-1", "voter": PRINCIPAL | {"kind": "human"}, "comment": SECRET},
    Kind.AUDIT_READ: {"how": "search", "query": {"text": SECRET, "words": SECRET, "limit": 3}, "found": 3},
    Kind.POLICY_REJECTED: {"source": "policy.yaml", "error": SECRET},
    Kind.INVARIANT_VIOLATED: {"detail": SECRET},
    Kind.CHECKPOINT_FAILED: {"reason": SECRET},
}


STATEMENTS = [
    (intent("st-1", "select public.customers"), outcome("st-1")),
    (intent("st-2", "delete public.a", "select public.b"), outcome("st-2", "failed", sqlstate="23503")),
    (intent("st-3", effect="deny"), outcome("st-3", "refused", sqlstate="42501", duration_ms=None)),
    (intent("st-4", "drop public.a", effect="approve"), outcome("st-4", "pending")),
    (intent("st-5", "insert public.a", client={"address": "[::1]:80"}), outcome("st-5", "unknown")),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statements, and one entry of every other kind."""
    path = tmp_path_factory.mktemp("export") / "audit.db"
    kinds = [kind for kind in Kind if kind not in (Kind.INTENT, Kind.OUTCOME, Kind.RECORDING_SHREDDED)]
    with contextlib.closing(Store.open(path)) as store:
        for kind in kinds:
            system = kind.startswith(("process.", "policy.", "key.", "checkpoint.", "session.refused"))
            who = None if system else "devin"
            store.append(
                [[Item(Draft(kind, who and "se-1", who, who and "shop", BODIES.get(kind, {"instance": "i"})))]]
            )
        for pair in STATEMENTS:
            store.append([pair])
    return path


@cache
def schema() -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(ocsf.VERSION))


@cache
def validator(class_uid: int, profiles: tuple[str, ...]) -> Draft202012Validator:
    return Draft202012Validator(
        schema().get_class_schema(schema().lookup_class_name_from_uid(class_uid), list(profiles))
    )


def events(path: Path, *, without_texts: bool = False) -> Iterator[dict[str, Any]]:
    for entry in export.entries(path):
        if (told := ocsf.event(entry.without_texts() if without_texts else entry)) is not None:
            yield told


@pytest.mark.parametrize("without_texts", [False, True])
def test_every_event_is_valid_by_the_published_schema(path: Path, without_texts: bool) -> None:
    found = list(events(path, without_texts=without_texts))
    assert len(found) == len(list(export.entries(path))) - 5  # the intents, which their outcomes tell with
    for event in found:
        check = validator(event["class_uid"], tuple(event["metadata"].get("profiles", ())))
        assert [error.message for error in check.iter_errors(event)] == [], event["metadata"]["event_code"]
        named = schema().schema.schema["classes"][schema().lookup_class_name_from_uid(event["class_uid"])]
        assert str(event["activity_id"]) in named["attributes"]["activity_id"]["enum"]


def test_a_statement_is_one_event_with_who_what_verdict_and_what_came_of_it(path: Path) -> None:
    told = {event["query_info"]["uid"]: event for event in events(path) if event["class_uid"] == 6005}
    first = told["st-1"]
    assert first["actor"]["user"]["name"] == "devin"
    assert first["actor"]["user"]["type"] == "Service"
    assert first["table"] == {"name": "public.customers"}
    assert first["src_endpoint"] == {"ip": "127.0.0.1", "port": 47652, "name": "psql"}
    assert first["query_info"]["query_string"] == f"SELECT '{SECRET}'"
    assert first["unmapped"]["on_behalf_of"] == "ada"
    assert {
        name: (e["activity_name"], e["status_id"], e["action_id"], e["severity_id"], e.get("status_code"))
        for name, e in told.items()
    } == {
        "st-1": ("Query", 1, 1, 1, None),
        "st-2": ("Delete", 2, 1, 1, "23503"),
        "st-3": ("SELECT 1", 2, 2, 3, "42501"),
        "st-4": ("drop", 99, 99, 1, None),
        "st-5": ("Write", 0, 1, 3, None),
    }
    assert told["st-5"]["src_endpoint"] == {"ip": "::1", "port": 80, "name": "unknown"}


def test_records_decode_as_otlp_and_join_the_agents_trace(path: Path) -> None:
    exported = list(export.entries(path))
    [resource] = decoded(json.dumps(otlp.request(exported))).resource_logs
    records = resource.scope_logs[0].log_records
    assert [record.event_name for record in records] == [f"countersign.{entry.kind}" for entry in exported]
    one = next(record for record in records if record.event_name == "countersign.intent")
    ended = next(record for record in records if record.event_name == "countersign.outcome")
    for record in (one, ended):
        assert (record.trace_id.hex(), record.span_id.hex(), record.flags) == (TRACE, SPAN, 1)
    named = {attribute.key: attribute.value for attribute in one.attributes}
    assert named["db.query.text"].string_value == f"SELECT '{SECRET}'"
    assert named["client.port"].int_value == 47652
    assert [value.string_value for value in named["user.roles"].array_value.values] == ["ai-agents"]
    body = {pair.key: pair.value for pair in one.body.kvlist_value.values}
    assert body.keys() == json.loads(next(e.body for e in exported if e.kind == Kind.INTENT)).keys()
    assert {record.severity_text for record in records} == {"INFO", "WARN", "ERROR"}


@pytest.mark.parametrize("parent", ["", "00-xyz", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", None, 7])
def test_what_is_no_trace_context_is_no_trace(parent: object) -> None:
    body = json.dumps({"request": {"traceparent": parent}})
    entry = Exported(1, "2026-11-24T10:00:00.000000Z", "intent", None, None, None, None, "", "", body, None)
    assert "traceId" not in json.dumps(otlp.request([entry]))


def test_numbers_survive_the_encoding() -> None:
    body = json.dumps({"a": True, "b": 2**63 - 1, "c": 2**70, "d": 0.5, "e": None, "f": [1, {"g": "h"}]})
    entry = Exported(1, "2026-11-24T10:00:00.000001Z", "new.kind", None, None, None, None, "", "", body, None)
    [record] = decoded(json.dumps(otlp.request([entry]))).resource_logs[0].scope_logs[0].log_records
    assert record.time_unix_nano % 1_000_000_000 == 1000
    told = {pair.key: pair.value for pair in record.body.kvlist_value.values}
    assert (told["a"].bool_value, told["b"].int_value, told["c"].double_value) == (True, 2**63 - 1, 2.0**70)
    assert told["e"].WhichOneof("value") is None


@pytest.mark.parametrize("how", ["jsonl", "ocsf", "otlp"])
def test_without_texts_nothing_that_anybody_said_leaves(path: Path, how: str) -> None:
    for entry in export.entries(path):
        if entry.kind == Kind.INTENT:
            assert SECRET in entry.body
        left = entry.without_texts()
        told = {
            "jsonl": export.line(left),
            "ocsf": json.dumps(ocsf.event(left)),
            "otlp": json.dumps(otlp.request([left])),
        }
        assert SECRET not in told[how]
        assert entry.hash in told[how] or (how, entry.kind) == ("ocsf", Kind.INTENT)


def test_what_a_later_version_records_is_left_out_until_it_is_named(path: Path) -> None:
    body = json.dumps({"status": "completed", "poem": SECRET, "verdict": {"effect": "allow", "poem": SECRET}})
    entry = Exported(1, "2026-11-24T10:00:00.000000Z", "outcome", None, None, None, None, "", "", body, None)
    assert json.loads(entry.without_texts().body) == {"status": "completed", "verdict": {"effect": "allow"}}


def test_an_export_goes_on_only_where_the_store_still_holds_the_same(path: Path) -> None:
    third = next(export.entries(path, 2))
    place = Place.parse(Place(third.seq, third.hash).text)
    export.check_place(path, place)
    for other in (Place(3, "00" * 32), Place(4000, third.hash)):
        with pytest.raises(AuditUnavailable, match="rolled back"):
            export.check_place(path, other)
