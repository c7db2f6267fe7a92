"""Every way to say a masked column, at both doors, and every kind of one: `python -m tests.conformance.masked_matrix`.

On the embedded PostgreSQL or, where PG_BIN names one, on that. The oracle looks for the raw values, also backwards, in
hexadecimal and in base64: in all bytes that the agent gets, in what is stored, and in the outcomes of the audit. The
masked column must be what it was. Exit 1 with what leaked.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.pq import ExecStatus

from tests.doors.mcp_calls import client, text
from tests.stack import Stack, running_stack, use_policy

AGENT = "devin"


@dataclass(frozen=True)
class Kind:
    """A masked column: its type, its value as SQL, the mask, and what tells the value."""

    name: str
    type: str
    value: str
    mask: str
    told_by: str


KINDS = (
    Kind("partial", "text", "'rawsecret-x'", "{partial: {keep_last: 1}}", "rawsecret"),
    Kind("hash", "varchar(40)", "'rawsecret-y'", "hash", "rawsecret"),
    Kind("path", "jsonb", '\'{"k": "rawsecret", "o": 1}\'', "redact", "rawsecret"),
    Kind("list", "text[]", "'{rawsecret,b}'", "redact", "rawsecret"),
    Kind("number", "integer", "424242717", "{range: {size: 1000000}}", "424242717"),
    Kind("exact", "numeric(12, 2)", "4242427.17", "{range: {size: 1000000}}", "4242427"),
    Kind("day", "date", "'1977-07-17'", "{truncate: decade}", "07-17"),
    Kind("moment", "timestamptz", "'1977-07-17 17:27:37+00'", "{truncate: year}", "27:37"),
    Kind("token", "uuid", "'deadbeef-7171-4242-8181-717171717171'", "hash", "deadbeef"),
    Kind("blob", "bytea", "'rawsecret'", "hash", "rawsecret"),
    Kind("large", "bigint", "4242427171717", "hash", "4242427171717"),
    Kind("domain", "secret_text", "'rawsecret'", "null", "rawsecret"),
)
POLICY = """
rules: [{{name: all, effect: allow, actions: ['*']}}]
masks:
  - {{columns: [public.t.v{path}, public.part.v{path}], with: {mask}}}
"""
# `t` is the table, `v` the masked column; `n` is not masked, and `g` is generated from `v`.
READS = (
    "SELECT v FROM t",
    "SELECT * FROM t",
    "TABLE t",
    "SELECT t FROM t",
    "SELECT t.* FROM t",
    "SELECT (t).v FROM t",
    "SELECT v(t) FROM t",
    "SELECT x.a FROM t x(b, c, a)",
    "SELECT x FROM t x(b, c, a)",
    "SELECT g FROM t",
    "SELECT v::text FROM ONLY t",
    "SELECT max(v::text), min(v::text) FROM t",
    "SELECT array_agg(v) FROM t",
    "SELECT string_agg(v::text, ',' ORDER BY v::text) FROM t",
    "SELECT row_to_json(t) FROM t",
    "SELECT any_value(t) FROM t",
    "SELECT to_jsonb(t.*) FROM t",
    "SELECT jsonb_agg(t) FROM t",
    "SELECT t::text FROM t",
    "SELECT ROW(t.*)::t FROM t",
    "SELECT jsonb_populate_record(t, '{\"n\": 1}') FROM t",
    "SELECT t.to_jsonb FROM t",
    "SELECT (t.*).v FROM t",
    "SELECT encode(convert_to(v::text, 'UTF8'), 'hex') FROM t",
    "SELECT reverse(v::text) FROM t",
    "SELECT v || '' FROM t",
    "SELECT encode(convert_to(v::text, 'UTF8'), 'base64') FROM t",
    "SELECT concat(v, n), format('%s', t) FROM t",
    "SELECT v::text::int FROM t",
    "SELECT v::text::regclass FROM t",
    "SELECT v::text::date FROM t",
    "SELECT (v::text || 'x')::numeric FROM t",
    "SELECT 1 / (length(v::text) - length(v::text)) FROM t",
    "SELECT coalesce(v, v), nullif(v, v), greatest(v, v) FROM t",
    "SELECT CASE WHEN v IS NULL THEN v ELSE v END FROM t",
    "SELECT DISTINCT ON (v) * FROM t ORDER BY v",
    "SELECT v, count(*) FROM t GROUP BY 1 ORDER BY 1",
    "SELECT v, grouping(v) FROM t GROUP BY ROLLUP (v)",
    "SELECT first_value(v) OVER (ORDER BY v) FROM t",
    "SELECT mode() WITHIN GROUP (ORDER BY v) FROM t",
    "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY v) FROM t",
    "SELECT a.v FROM t a JOIN t b USING (v)",
    "SELECT * FROM t a NATURAL JOIN t b",
    "SELECT j FROM (t a JOIN t b USING (v)) AS j",
    "SELECT x.v FROM t a, LATERAL (SELECT a.*) x",
    "SELECT v FROM t UNION SELECT v FROM t",
    "(SELECT v FROM t) EXCEPT ALL TABLE r",
    "WITH x AS MATERIALIZED (SELECT * FROM t) SELECT v FROM x",
    "SELECT (SELECT v FROM t LIMIT 1), ARRAY(SELECT v FROM t)",
    "WITH RECURSIVE r (i, v) AS (SELECT 1, v FROM t UNION ALL SELECT i + 1, v FROM r WHERE i < 3) SELECT * FROM r",
    "SELECT * FROM ROWS FROM (jsonb_each_text((SELECT to_jsonb(t) FROM t))) e",
    "SELECT v FROM seen",
    "SELECT * FROM seen",
    "SELECT s FROM seen s",
    "SELECT * FROM computed",
    "SELECT v FROM part",
    "SELECT p::text FROM part p",
    "TABLE kept",
    "COPY t TO STDOUT",
    "COPY t (v) TO STDOUT (FORMAT csv, HEADER)",
    "COPY (TABLE t) TO STDOUT (FORMAT binary)",
    "EXPLAIN VERBOSE SELECT v FROM t",
    "EXPLAIN ANALYZE SELECT v FROM t WHERE v IS NOT NULL",
    "SELECT v FROM t FOR UPDATE",
    "SELECT v FROM t TABLESAMPLE system (100)",
    "SELECT most_common_vals FROM pg_stats",
    "SELECT v FROM t WHERE v::text LIKE 'raw%'",
    "SELECT set_config('application_name', v::text, false) FROM t",
    "SELECT xmlforest(v) FROM t",
    "SELECT JSON_OBJECT('a': v), JSON_ARRAYAGG(t) FROM t",
    "SELECT JSON_VALUE(to_jsonb(t), '$.v') FROM t",
    "SELECT j.* FROM t, JSON_TABLE(to_jsonb(t), '$' COLUMNS (v text PATH '$.v')) j",
    "SELECT attmissingval FROM pg_attribute",
    "SELECT to_tsvector('simple', v::text) FROM t",
    "SELECT record_out(t) FROM t",
    "SELECT query_to_xml('TABLE t', true, true, '')",
)
WRITES = (
    "UPDATE t SET n = n RETURNING v",
    "UPDATE t SET n = n RETURNING *",
    "UPDATE t SET n = n RETURNING t",
    "UPDATE t SET n = n RETURNING g",
    "UPDATE t SET n = n RETURNING old.v",
    "DELETE FROM t WHERE v IS NOT NULL",
    "DELETE FROM t x WHERE x::text LIKE '%raw%'",
    "UPDATE t SET v = NULL",
    "UPDATE t SET n = length(v::text)",
    "INSERT INTO r SELECT * FROM t",
    "INSERT INTO r (w) SELECT v::text FROM t",
    "UPDATE r SET w = t.v::text FROM t",
    "UPDATE r SET w = (SELECT max(v::text) FROM t)",
    "INSERT INTO t (n) VALUES (1) RETURNING (SELECT v FROM t LIMIT 1)",
    "MERGE INTO t USING r ON true WHEN MATCHED THEN UPDATE SET n = length(t.v::text)",
    "MERGE INTO r USING t ON true WHEN NOT MATCHED THEN INSERT (w) VALUES (t.v::text)",
    "CREATE TABLE stolen AS SELECT v FROM t",
    "SELECT v INTO stolen FROM t",
    "CREATE VIEW stolen AS SELECT v FROM t",
    "ALTER TABLE t RENAME v TO w",
    "ALTER TABLE t RENAME TO stolen",
    "CREATE INDEX ON t ((v::text))",
    "ALTER TABLE t ADD COLUMN w text GENERATED ALWAYS AS (v::text) STORED",
    "ALTER TABLE t ALTER v TYPE text USING v::text",
    "ALTER TABLE t ADD CHECK (v IS NULL)",
    "CREATE MATERIALIZED VIEW stolen AS TABLE t",
    "CREATE FUNCTION stolen() RETURNS text LANGUAGE sql AS 'SELECT max(v::text) FROM t'",
    "CREATE TABLE stolen () INHERITS (t)",
    "CREATE TRIGGER stolen BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION"
    " tsvector_update_trigger('f', 'pg_catalog.simple', 'v')",
)
STATEMENTS = [*READS, *WRITES]
# The tables of one kind, in place of those of the one before.
TABLES = """
DROP TABLE IF EXISTS t, r, part, stolen CASCADE;
DROP DOMAIN IF EXISTS secret_text; CREATE DOMAIN secret_text AS text;
CREATE TABLE t (id integer PRIMARY KEY, n integer, v {type}, f tsvector,
  g boolean GENERATED ALWAYS AS (v = {value}) STORED);
INSERT INTO t (id, n, v) VALUES (1, 1, {value});
CREATE TABLE r (w text); INSERT INTO r VALUES ('none');
CREATE VIEW seen AS SELECT v, n FROM t; CREATE VIEW computed AS SELECT v::text || '' AS w, to_jsonb(t) AS j FROM t;
CREATE MATERIALIZED VIEW kept AS SELECT v, n FROM t;
CREATE TABLE part (id integer, v {type}) PARTITION BY LIST (id);
CREATE TABLE part_1 PARTITION OF part DEFAULT; INSERT INTO part VALUES (1, {value});
CREATE TABLE ready_{name} ();
DO $$ DECLARE one regclass; BEGIN
  FOR one IN SELECT oid FROM pg_class WHERE relkind IN ('r', 'v', 'm', 'p') AND relnamespace = 'public'::regnamespace
  LOOP EXECUTE format('ALTER TABLE %s OWNER TO shop_owner', one); END LOOP; END $$;
"""


def holds(got: bytes, kind: Kind) -> bool:
    """Whether it tells the value."""
    raw = kind.told_by.encode()
    forms = (raw, raw[::-1], raw.hex().encode(), base64.b64encode(raw)[: len(raw) // 3 * 4])
    return any(form.lower() in got.lower() for form in forms)


def over_the_wire(stack: Stack, sql: str) -> tuple[bool, bytes]:
    """Whether it succeeded, and every byte of what came."""
    with psycopg.connect(stack.wire_dsn(AGENT), autocommit=True) as connection:
        notices: list[str] = []
        connection.add_notice_handler(lambda one: notices.append(f"{one.message_primary} {one.message_detail}"))
        try:
            if sql.startswith("COPY"):
                with connection.cursor().copy(sql.encode()) as copy:
                    return True, b"".join(bytes(chunk) for chunk in copy)
            got = []
            for binary in (False, True):
                result = connection.cursor(binary=binary).execute(sql.encode()).pgresult
                assert result is not None
                values = [result.get_value(r, c) or b"" for r in range(result.ntuples) for c in range(result.nfields)]
                got += values
                if result.status is ExecStatus.COMMAND_OK:
                    break
            return True, b"\n".join([*got, *(one.encode() for one in notices)])
        except psycopg.Error as error:
            diagnosis = error.diag
            fields = (diagnosis.message_primary, diagnosis.message_detail, diagnosis.message_hint, diagnosis.context)
            return False, "\n".join(filter(None, fields)).encode()


async def over_mcp(stack: Stack, statements: list[str]) -> list[bytes]:
    """What came of each, as one client."""
    async with client(stack, AGENT) as mcp:
        answers = [await mcp.call_tool("query", {"sql": sql}) for sql in statements]
    return [f"{text(answer)} {answer.structured_content}".encode() for answer in answers]


def run(stack: Stack, folder: Path) -> list[str]:
    """What leaked, or was changed."""
    found, ran = [], 0
    for kind in KINDS:
        policy = folder / f"{kind.name}.yaml"
        policy.write_text(POLICY.format(path=".k" if kind.name == "path" else "", mask=kind.mask))
        stack.direct(TABLES.format(name=kind.name, type=kind.type, value=kind.value))
        over_the_wire(stack, f"SELECT FROM ready_{kind.name}")  # a name that is not known has the catalog asked again
        use_policy(stack, policy)
        assert holds(str(stack.direct("SELECT v::text FROM t")).encode(), kind), "the oracle is blind"
        answers = asyncio.run(over_mcp(stack, STATEMENTS))
        for sql, answer in zip(STATEMENTS, answers, strict=True):
            succeeded, got = over_the_wire(stack, sql)
            ran += succeeded
            found += [f"mcp: {sql}\n    {answer[:300]!r}"] if holds(answer, kind) else []
            found += [f"wire: {sql}\n    {got[:300]!r}"] if holds(got, kind) else []
        if stack.direct(f"SELECT v = {kind.value} FROM t WHERE id = 1") != [(True,)]:
            found.append(f"the masked column of kind {kind.name} was changed")
        found += [f"stored: {row}" for row in stack.direct("SELECT w FROM r") if holds(str(row).encode(), kind)]
        for entry in stack.audit("SELECT seq, body FROM entries WHERE kind = 'outcome'"):
            found += [f"entry {entry['seq']}: {entry['body'][:300]}"] if holds(entry["body"].encode(), kind) else []
    print(f"{len(KINDS) * len(STATEMENTS)} statements at each door, {ran} allowed and run, {len(found)} leaks")
    return found


def main() -> int:
    """Run it on one server."""
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "state") as stack:
        found = run(stack, Path(folder))
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
