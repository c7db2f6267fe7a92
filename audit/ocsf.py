"""Entries as events of the Open Cybersecurity Schema Framework, version 1.8.0 (schema.ocsf.io). Sans-IO.

A statement is one Datastore Activity, made of its outcome and its intent: every intent gets an outcome. A session is an
Authentication; everything else that is done to the gateway or the audit is an API Activity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from audit.entry import Kind
from audit.export import Exported

VERSION = "1.8.0"

_DATASTORE, _AUTHENTICATION, _API = (6, 6005), (3, 3002), (6, 6003)  # (category_uid, class_uid)
_OTHER = 99
_PRODUCT = {"name": "Countersign", "vendor_name": "Countersign"}

_INFORMATIONAL, _MEDIUM, _HIGH, _CRITICAL = 1, 3, 4, 5
_SUCCESS, _FAILURE = 1, 2
_STATUS = {
    "completed": (_SUCCESS, _INFORMATIONAL),
    "failed": (_FAILURE, _INFORMATIONAL),
    "cancelled": (_FAILURE, _INFORMATIONAL),
    "refused": (_FAILURE, _MEDIUM),
    "unknown": (0, _MEDIUM),
}
# (action_id, disposition_id): allowed, denied and blocked, or other and delayed.
_VERDICT = {"allow": (1, 1), "deny": (2, 2), "approve": (_OTHER, 14)}

# What a statement demands, as an activity of a datastore; of several, the first here that it demands.
_STATEMENT_ACTIVITY = {
    "delete": (7, "Delete"),
    "truncate": (7, "Delete"),
    "update": (2, "Update"),
    "merge": (2, "Update"),
    "insert": (5, "Write"),
    "select": (4, "Query"),
}
_SESSION_ACTIVITY = {Kind.SESSION_OPENED: (1, "Logon"), Kind.SESSION_REFUSED: (1, "Logon")}
_CREATE, _READ, _UPDATE, _DELETE = (1, "Create"), (2, "Read"), (3, "Update"), (4, "Delete")
_API_ACTIVITY: Mapping[str, tuple[int, str]] = {
    Kind.APPROVAL_REQUESTED: _CREATE,
    Kind.KEY_CREATED: _CREATE,
    Kind.AUDIT_READ: _READ,
    Kind.POLICY_LOADED: _UPDATE,
    Kind.KEY_ROTATED: _UPDATE,
    Kind.RECORDING_SHREDDED: _DELETE,
}
_API_SEVERITY: Mapping[str, int] = {
    Kind.INVARIANT_VIOLATED: _CRITICAL,
    Kind.APPROVAL_BROKEN_GLASS: _HIGH,
    Kind.CHECKPOINT_FAILED: _HIGH,
    Kind.POLICY_REJECTED: _MEDIUM,
}

Event = dict[str, Any]


def event(entry: Exported) -> Event | None:
    """The event; None for an intent, which its outcome tells with."""
    body: Mapping[str, Any] = json.loads(entry.body)
    match entry.kind:
        case Kind.INTENT:
            return None
        case Kind.OUTCOME:
            return _statement(entry, body, json.loads(entry.intent) if entry.intent is not None else {})
        case Kind.SESSION_OPENED | Kind.SESSION_REFUSED | Kind.SESSION_CLOSED:
            return _session(entry, body)
    return _affair(entry, body)


def _statement(entry: Exported, body: Mapping[str, Any], intent: Mapping[str, Any]) -> Event:
    status = str(body.get("status", "unknown"))
    status_id, severity = _STATUS.get(status, (_OTHER, _INFORMATIONAL))
    verdict = intent.get("verdict", {})
    action, disposition = _VERDICT.get(verdict.get("effect", ""), (0, 0))
    demands = [str(demand) for demand in intent.get("demands", ())]
    duration = body.get("duration_ms")
    told = {
        "actor": _actor(entry, intent.get("principal")),
        "src_endpoint": _endpoint(intent.get("client")),
        "database": {"name": entry.connection or "unknown", "type_id": 1, "type": "Relational"},
        **_table(demands),
        **_query(entry, body, intent),
        "status": status,
        "status_id": status_id,
        "status_code": body.get("sqlstate"),
        "status_detail": body.get("message"),
        "duration": None if duration is None else round(duration),
        "action_id": action,
        "disposition_id": disposition,
        "policy": {"uid": intent["policy"], "name": "countersign"} if intent.get("policy") else None,
        "firewall_rule": {"name": rules[0]} if (rules := verdict.get("rules")) else None,
        "unmapped": {
            **{key: body.get(key) for key in ("tag", "rows", "size", "masked", "filtered", "detected", "digest")},
            **{key: intent.get(key) for key in ("door", "request", "sha256", "approval", "rehearsal")},
            "demands": demands,
            "verdict": verdict or None,
            "on_behalf_of": (intent.get("principal") or {}).get("on_behalf_of"),
        },
    }
    first = next((known for word, known in _STATEMENT_ACTIVITY.items() if _demands(demands, word)), None)
    activity = first or (_OTHER, demands[0].split(" ")[0] if demands else str(body.get("tag") or "statement"))
    return _event(entry, _DATASTORE, activity, severity, told, correlation=entry.statement, controlled=True)


def _demands(demands: list[str], action: str) -> bool:
    return any(demand.startswith(f"{action} ") for demand in demands)


def _table(demands: list[str]) -> Event:
    """The one relation that the statement is about, where it is about one."""
    named = {name for action, _, name in (demand.partition(" ") for demand in demands) if action in _STATEMENT_ACTIVITY}
    return {"table": {"name": named.pop()}} if len(named) == 1 else {}


def _query(entry: Exported, body: Mapping[str, Any], intent: Mapping[str, Any]) -> Event:
    if "text" not in intent:
        return {}  # left out; its digest is below `unmapped`
    info = {"uid": entry.statement, "query_string": intent["text"], "bytes": body.get("size")}
    return {"query_info": _given(info)}


def _session(entry: Exported, body: Mapping[str, Any]) -> Event:
    refused = entry.kind == Kind.SESSION_REFUSED
    told = {
        "user": _user(entry, body.get("principal")),
        "session": _given({"uid": entry.session, "issuer": body.get("issuer")}) if entry.session else None,
        "service": {"name": f"{body['door']} door" if "door" in body else "gateway"},
        "src_endpoint": _endpoint(body.get("client")),
        "status": "refused" if refused else "ok",
        "status_id": _FAILURE if refused else _SUCCESS,
        "status_code": body.get("sqlstate"),
        "status_detail": body.get("reason"),
        "unmapped": {
            **{key: body.get(key) for key in ("expires", "token")},
            "connection": entry.connection,
            "on_behalf_of": (body.get("principal") or {}).get("on_behalf_of"),
        },
    }
    severity = _MEDIUM if refused else _INFORMATIONAL
    activity = _SESSION_ACTIVITY.get(Kind(entry.kind), (2, "Logoff"))
    return _event(entry, _AUTHENTICATION, activity, severity, told, correlation=entry.session)


def _affair(entry: Exported, body: Mapping[str, Any]) -> Event:
    kind = entry.kind
    activity = _API_ACTIVITY.get(kind) or (_UPDATE if kind.startswith("approval.") else (_OTHER, kind))
    failed = kind.endswith((".failed", ".rejected", ".violated")) or "refused" in body
    told = {
        "actor": _actor(entry, body.get("principal") or body.get("voter")),
        "src_endpoint": {"name": "countersign"},
        "api": {"operation": kind, "service": {"name": "countersign"}},
        "status": "failed" if failed else "ok",
        "status_id": _FAILURE if failed else _SUCCESS,
        "status_detail": body.get("reason") or body.get("refused") or body.get("detail") or body.get("error"),
        "unmapped": {**body, "connection": entry.connection, "session": entry.session},
    }
    severity = _API_SEVERITY.get(kind, _INFORMATIONAL)
    return _event(entry, _API, activity, severity, told, correlation=body.get("approval") or entry.statement)


def _event(
    entry: Exported,
    class_: tuple[int, int],
    activity: tuple[int, str],
    severity: int,
    told: Mapping[str, Any],
    *,
    correlation: str | None,
    controlled: bool = False,
) -> Event:
    """The event with what all have. `controlled`: it says what became of it (the profile `security_control`)."""
    metadata = {
        "version": VERSION,
        "product": _PRODUCT,
        "log_name": "audit",
        "event_code": entry.kind,
        "uid": entry.hash,
        "sequence": entry.seq,
        "correlation_uid": correlation,
        "original_time": entry.time,
        "profiles": ["security_control"] if controlled else None,
    }
    (category_uid, class_uid), (activity_id, activity_name) = class_, activity
    return _given(
        {
            "category_uid": category_uid,
            "class_uid": class_uid,
            "activity_id": activity_id,
            "activity_name": activity_name,
            "type_uid": class_uid * 100 + activity_id,
            "severity_id": severity,
            "time": round(datetime.fromisoformat(entry.time).timestamp() * 1000),
            "metadata": _given(metadata),
            **told,
            "unmapped": _given(told["unmapped"]),
        }
    )


def _actor(entry: Exported, principal: Mapping[str, Any] | None) -> Event:
    if entry.subject is None and principal is None:
        return {"app_name": "countersign"}
    session = {"session": {"uid": entry.session}} if entry.session else {}
    return {"user": _user(entry, principal), **session}


def _user(entry: Exported, principal: Mapping[str, Any] | None) -> Event:
    if principal is None:
        return {"name": entry.subject or "unknown"}
    kind = principal.get("kind")
    return _given(
        {
            "name": entry.subject or principal.get("subject"),
            "uid": principal.get("subject"),
            "email_addr": principal.get("email"),
            "groups": [{"name": group} for group in principal.get("groups") or ()] or None,
            "type_id": 4 if kind == "agent" else 1,
            "type": "Service" if kind == "agent" else "User",
        }
    )


def _endpoint(client: Mapping[str, Any] | None) -> Event:
    """Where a client spoke from: `host:port`, or nothing known but its name."""
    host, _, port = str((client or {}).get("address") or "").rpartition(":")
    at = {"ip": host.strip("[]"), "port": int(port)} if host and port.isdigit() else {}
    return {**at, "name": (client or {}).get("name") or "unknown"}


def _given(told: Mapping[str, Any]) -> Event:
    """Without what there is not: the schema knows no null."""
    return {key: value for key, value in told.items() if value is not None}
