"""Entries as OpenTelemetry log records, in the JSON encoding of OTLP (opentelemetry.io/docs/specs/otlp). Sans-IO.

One entry, one record: the body is the entry's, whole; attributes have the names of OpenTelemetry's semantic
conventions where there are such, else begin with `countersign.`. A statement's records are part of the trace in which
its agent called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from audit.entry import Kind
from audit.export import Exported

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INFO, _WARN, _ERROR = (9, "INFO"), (13, "WARN"), (17, "ERROR")
_SEVERITY: Mapping[str, tuple[int, str]] = {
    Kind.SESSION_REFUSED: _WARN,
    Kind.POLICY_REJECTED: _WARN,
    Kind.APPROVAL_BROKEN_GLASS: _WARN,
    Kind.CHECKPOINT_FAILED: _ERROR,
    Kind.WEBHOOK_FAILED: _WARN,
    Kind.INVARIANT_VIOLATED: _ERROR,
}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


def request(entries: Sequence[Exported]) -> dict[str, Any]:
    """An ExportLogsServiceRequest with these entries; in a file, one a line."""
    return {
        "resourceLogs": [
            {
                "resource": {"attributes": _attributes({"service.name": "countersign"})},
                "scopeLogs": [{"scope": {"name": "countersign.audit"}, "logRecords": [*map(_record, entries)]}],
            }
        ]
    }


def _record(entry: Exported) -> dict[str, Any]:
    body: Mapping[str, Any] = json.loads(entry.body)
    number, text = _severity(entry.kind, body)
    nanoseconds = str((datetime.fromisoformat(entry.time) - _EPOCH) // _EPOCH.resolution * 1000)
    return {
        "timeUnixNano": nanoseconds,
        "observedTimeUnixNano": nanoseconds,
        "severityNumber": number,
        "severityText": text,
        "eventName": f"countersign.{entry.kind}",
        "body": _value(body),
        "attributes": _attributes(_named(entry, body)),
        **_trace(body if entry.intent is None else json.loads(entry.intent)),
    }


def _named(entry: Exported, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is looked for, by name; what is not there is None."""
    principal, client = body.get("principal") or {}, body.get("client") or {}
    host, _, port = str(client.get("address") or "").rpartition(":")
    statement = entry.kind in (Kind.INTENT, Kind.OUTCOME)
    return {
        "countersign.seq": entry.seq,
        "countersign.hash": entry.hash,
        "countersign.statement": entry.statement or body.get("statement_id"),
        "countersign.approval": body.get("approval"),
        "countersign.door": body.get("door"),
        "countersign.verdict": (body.get("verdict") or {}).get("effect"),
        "countersign.status": body.get("status"),
        "countersign.on_behalf_of": principal.get("on_behalf_of"),
        "session.id": entry.session,
        "user.id": entry.subject,
        "user.email": principal.get("email"),
        "user.roles": principal.get("groups") or None,
        "client.address": host.strip("[]") or None,
        "client.port": int(port) if host and port.isdigit() else None,
        "db.system.name": "postgresql" if statement else None,
        "db.namespace": entry.connection,
        "db.query.text": body.get("text") if entry.kind == Kind.INTENT else None,
        "db.response.status_code": body.get("sqlstate"),
        "db.response.returned_rows": body.get("rows"),
    }


def _severity(kind: str, body: Mapping[str, Any]) -> tuple[int, str]:
    if kind == Kind.OUTCOME:
        return {"refused": _WARN, "failed": _WARN, "unknown": _ERROR}.get(str(body.get("status")), _INFO)
    return _SEVERITY.get(kind, _INFO)


def _trace(body: Mapping[str, Any]) -> dict[str, Any]:
    """W3C Trace Context, if the client sent a valid one; its ids are hexadecimal in this encoding."""
    match = _TRACEPARENT.fullmatch(str((body.get("request") or {}).get("traceparent") or ""))
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return {}
    return {"traceId": match[1], "spanId": match[2], "flags": int(match[3], 16)}


def _attributes(named: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in named.items() if value is not None]


def _value(value: object) -> dict[str, Any]:
    """An AnyValue; 64-bit integers are texts in this encoding."""
    match value:
        case None:
            return {}
        case bool():
            return {"boolValue": value}
        case int() if -(2**63) <= value < 2**63:
            return {"intValue": str(value)}
        case int() | float():
            return {"doubleValue": float(value)}
        case str():
            return {"stringValue": value}
        case list() | tuple():
            return {"arrayValue": {"values": [*map(_value, value)]}}
        case Mapping():
            return {"kvlistValue": {"values": [{"key": str(key), "value": _value(one)} for key, one in value.items()]}}
    raise TypeError(f"a body is JSON, and `{type(value).__name__}` is not")
