"""What is too strong, unsafe or missing about one upstream user of ours, by the server's own word.

Only looks: every question is a SELECT. Names are qualified, as in gateway/catalog.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from gateway.model import Connection
from gateway.upstream import Upstream
from policy.masks import MaskKind
from policy.model import Action, Demand, Effect, ObjectKind, ObjectName
from policy.rules import Policy

# What our tests run on.
_OLDEST, _NEWEST = 15, 18
_LOOPBACK = ("127.", "::1", "/", "localhost")
_SHOWN = 10  # names in a sentence

Row = tuple[str | None, ...]


class Severity(StrEnum):
    """`error`: the gateway's promises rest on it. `warning`: too much, or what must fail. `note`: good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, with what to do about it."""

    severity: Severity
    text: str
    cure: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found of one user, and which relations it may not use in a way that the policy lets somebody."""

    findings: tuple[Finding, ...]
    lacks: frozenset[tuple[Action, str]]


async def examine(connection: Connection, upstream: Upstream, policy: Policy, clients: int) -> Examination:
    """Look at everything; `clients` is how many the wire door lets in. Raises UpstreamError, UpstreamLostError."""
    user = connection.user
    findings = [
        *_attributes(user, (await upstream.probe(_ATTRIBUTES))[0]),
        *_memberships(user, await upstream.probe(_MEMBERSHIPS)),
        *_belongings(user, (await upstream.probe(_BELONGINGS))[0]),
        *_transport(connection, (await upstream.probe(_TRANSPORT))[0][0] == "t"),
        *_server((await upstream.probe(_SERVER))[0], clients),
        *_logging({str(k): str(v) for k, v in await upstream.probe(_SETTINGS)}, policy),
        *_languages((await upstream.probe(_LANGUAGES))[0][0]),
    ]
    order = list(Severity)
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Examination(tuple(findings), _lacks(await upstream.probe(_PRIVILEGES), policy, connection.name))


def missing(connection: Connection, examinations: list[Examination]) -> Iterator[Finding]:
    """What the policy lets somebody do, and none of the connection's users may."""
    lacking = frozenset.intersection(*(examination.lacks for examination in examinations))
    for action in _USES:
        names = sorted(name for lacked, name in lacking if lacked is action)
        if names:
            verb = action.value.upper()
            yield Finding(
                Severity.NOTE,
                f"the policy lets people {verb} {_listed(names)}, and no user of `{connection.name}` may: "
                "PostgreSQL will refuse such statements",
                f"GRANT {verb} ON {names[0]} TO {connection.user}, or take it out of the policy.",
            )


_ATTRIBUTES = """
SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication,
       rolvaliduntil < pg_catalog.now() + interval '14 days', rolvaliduntil::pg_catalog.text, rolconnlimit
  FROM pg_catalog.pg_roles WHERE rolname = current_user"""

# What each attribute would let a statement do that slipped past the policy, or a bug of ours.
_TOO_STRONG = (
    (Severity.ERROR, "SUPERUSER", "no grant, row-level security or read-only setting of PostgreSQL holds it"),
    (Severity.ERROR, "CREATEROLE", "it can make and change other users"),
    (Severity.WARNING, "CREATEDB", "it can make databases that nobody watches"),
    (Severity.ERROR, "BYPASSRLS", "row-level security does not hold it"),
    (Severity.ERROR, "REPLICATION", "it can read the whole cluster as a replica"),
)


def _attributes(user: str, row: Row) -> Iterator[Finding]:
    for has, (severity, name, why) in zip(row, _TOO_STRONG, strict=False):
        if has == "t":
            yield Finding(severity, f"`{user}` has {name}: {why}", f'ALTER ROLE "{user}" NO{name};')
    if row[5] == "t":
        yield Finding(
            Severity.WARNING,
            f"the password of `{user}` is good until {row[6]} only: then nobody can connect",
            f"ALTER ROLE \"{user}\" VALID UNTIL 'infinity', or a new date.",
        )
    if row[7] not in (None, "-1"):
        yield Finding(
            Severity.NOTE,
            f"`{user}` may have {row[7]} connections: each session of the wire door needs one, and the gateway a few",
            "Set `wire.limits.connections` below it.",
        )


# A superuser is a member of everything by pg_has_role: its first finding says enough.
_MEMBERSHIPS = """
SELECT r.rolname, r.rolsuper OR r.rolcreaterole OR r.rolbypassrls OR r.rolreplication
  FROM pg_catalog.pg_roles r
 WHERE r.rolname <> current_user AND pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')
   AND NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
 ORDER BY 1"""

_OF_THE_SERVER = frozenset(("pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"))


def _memberships(user: str, rows: list[Row]) -> Iterator[Finding]:
    for name, strong in rows:
        if name in _OF_THE_SERVER:
            severity, why = Severity.ERROR, "it reaches the server's files or programs"
        elif strong == "t":
            severity, why = Severity.ERROR, "it can become a role with attributes that no gateway's user should have"
        elif name is not None and name.startswith("pg_"):
            severity, why = Severity.WARNING, "one of PostgreSQL's own roles, which give more than tables"
        else:
            continue
        yield Finding(severity, f"`{user}` is a member of `{name}`: {why}", f'REVOKE "{name}" FROM "{user}";')


_BELONGINGS = """
SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE pg_catalog.pg_get_userbyid(c.relowner) = current_user AND n.nspname !~ '^pg_'
           AND c.relkind IN ('r', 'p', 'v', 'm', 'f')),
       (SELECT pg_catalog.pg_get_userbyid(datdba) = current_user FROM pg_catalog.pg_database
         WHERE datname = pg_catalog.current_database()),
       (SELECT pg_catalog.string_agg(nspname, ', ') FROM pg_catalog.pg_namespace
         WHERE nspname !~ '^pg_' AND pg_catalog.has_schema_privilege(oid, 'CREATE'))"""


def _belongings(user: str, row: Row) -> Iterator[Finding]:
    relations, database, schemas = row
    if relations not in (None, "0"):
        yield Finding(
            Severity.WARNING,
            f"`{user}` owns {relations} relations: an owner may drop, alter and grant whatever PostgreSQL was told",
            "Let another role own them, and grant what is needed.",
        )
    if database == "t":
        yield Finding(Severity.WARNING, f"`{user}` owns the database", "ALTER DATABASE … OWNER TO another role.")
    if schemas:
        yield Finding(
            Severity.NOTE,
            f"`{user}` may create objects in {schemas}",
            "REVOKE CREATE ON SCHEMA … where the policy lets nobody create.",
        )


_TRANSPORT = "SELECT coalesce((SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()), false)"


def _transport(connection: Connection, encrypted: bool) -> Iterator[Finding]:
    if connection.host.startswith(_LOOPBACK):
        return
    if not encrypted:
        yield Finding(
            Severity.ERROR,
            f"statements and rows go to {connection.host} in clear (sslmode is `{connection.sslmode}`)",
            "Set `sslmode: verify-full`.",
        )
    elif connection.sslmode not in ("verify-ca", "verify-full"):
        yield Finding(
            Severity.WARNING,
            f"nobody checks that {connection.host} is the server it says (sslmode is `{connection.sslmode}`)",
            "Set `sslmode: verify-full`, with `sslrootcert` where its authority is your own.",
        )


_SERVER = """
SELECT pg_catalog.current_setting('server_version_num')::int / 10000, pg_catalog.pg_is_in_recovery(),
       pg_catalog.current_setting('default_transaction_read_only'), pg_catalog.current_setting('server_encoding'),
       pg_catalog.current_setting('max_connections')::int
       - pg_catalog.current_setting('superuser_reserved_connections')::int"""


def _server(row: Row, clients: int) -> Iterator[Finding]:
    version, recovering, read_only, encoding, connections = row
    if not _OLDEST <= int(version or 0) <= _NEWEST:
        yield Finding(
            Severity.WARNING,
            f"the server is PostgreSQL {version}, and the gateway is tested with {_OLDEST} to {_NEWEST}",
            "Use one of these.",
        )
    if recovering == "t" or read_only == "on":
        yield Finding(
            Severity.WARNING,
            "the server takes no writes: each that the policy allows will fail with 25006",
            "Name the primary in `hosts`, with `target_session_attrs: read-write`.",
        )
    if encoding != "UTF8":
        yield Finding(
            Severity.WARNING,
            f"the database's encoding is {encoding}: characters that it does not have fail, and SQL_ASCII checks none",
            "Use a database in UTF8.",
        )
    if int(connections or 0) < clients:
        yield Finding(
            Severity.NOTE,
            f"the server takes {connections} connections, and the wire door lets in {clients} clients: the last fail",
            "Lower `wire.limits.connections`, or raise `max_connections`.",
        )


_SETTINGS = """
SELECT name, setting FROM pg_catalog.pg_settings
 WHERE name IN ('log_statement', 'log_min_duration_statement', 'log_min_duration_sample', 'log_min_error_statement',
                'log_transaction_sample_rate', 'auto_explain.log_min_duration', 'password_encryption')"""

# Each setting's value with which the texts of statements do not go to the log.
_SILENT = {
    "log_statement": ("none",),
    "log_min_duration_statement": ("-1",),
    "log_min_duration_sample": ("-1",),
    "log_transaction_sample_rate": ("0",),
    "log_min_error_statement": ("panic", "fatal", "log"),
    "auto_explain.log_min_duration": ("-1",),
}


def _logging(settings: dict[str, str], policy: Policy) -> Iterator[Finding]:
    if any(mask.kind is MaskKind.HASH for mask in policy.masks):
        loud = [name for name, silent in _SILENT.items() if name in settings and settings[name] not in silent]
        if loud:
            yield Finding(
                Severity.WARNING,
                "the policy has `hash` masks, whose key stands in the text that runs, and the server's log may hold "
                f"it ({', '.join(f'{name} = {settings[name]}' for name in loud)})",
                "Keep the log from people who may not see the raw values, or ALTER ROLE … SET these for this user.",
            )
    if settings.get("password_encryption") == "md5":
        yield Finding(
            Severity.NOTE,
            "new passwords are kept as MD5, with which the gateway does not log in",
            "Set `password_encryption` to `scram-sha-256`.",
        )


_LANGUAGES = """
SELECT pg_catalog.string_agg(lanname, ', ') FROM pg_catalog.pg_language
 WHERE lanname NOT IN ('internal', 'c', 'sql', 'plpgsql')"""


def _languages(names: str | None) -> Iterator[Finding]:
    if names:
        yield Finding(
            Severity.NOTE,
            f"the database has the languages {names}: sessions are not used again, as their variables outlive a reset",
            "Drop what is not used; else connects take a little longer.",
        )


_PRIVILEGES = """
SELECT c.oid, n.nspname, c.relname, pg_catalog.has_any_column_privilege(c.oid, 'SELECT'),
       pg_catalog.has_any_column_privilege(c.oid, 'INSERT'), pg_catalog.has_any_column_privilege(c.oid, 'UPDATE'),
       pg_catalog.has_table_privilege(c.oid, 'DELETE')
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"""

_USES = (Action.SELECT, Action.INSERT, Action.UPDATE, Action.DELETE)


def _lacks(rows: list[Row], policy: Policy, connection: str) -> frozenset[tuple[Action, str]]:
    rules = [
        rule
        for rule in policy.rules
        if rule.effect is not Effect.DENY
        and (not rule.connections or any(p.matches((connection,)) for p in rule.connections))
    ]
    found = set()
    for oid, schema, name, *may in rows:
        relation = ObjectName(ObjectKind.RELATION, schema, str(name))
        for action, granted in zip(_USES, may, strict=True):
            if granted != "t" and any(rule.covers(Demand(action, relation, int(oid or 0))) for rule in rules):
                found.add((action, str(relation)))
    return frozenset(found)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + more
