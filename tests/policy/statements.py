"""A grammar of statements that read the sample shop, as Hypothesis strategies; many chase masked values.

Every query yields text columns named `c1`, `c2` …, so that queries nest anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

CUSTOMERS = ("id", "name", "email", "ssn", "card", "notes", "created_at")
CONTACTS = ("id", "name", "email")
TICKETS = ("id", "customer_id", "subject", "body", "status", "created_at")

_SPELLINGS = ("customers", "public.customers", "ONLY customers", '"customers"', 'U&"c\\0075stomers"', "customers *")
_MARK = "ǂ"
_DEPTH = 3


@dataclass(frozen=True)
class _Source:
    """What stands in FROM: an alias and the columns that it has."""

    alias: str
    columns: tuple[str, ...]


_Scope = tuple[_Source, ...]


@dataclass(frozen=True)
class _Writer:
    """One statement in the making. `draw` is Hypothesis's; `names` counts aliases and CTEs."""

    draw: Callable[[st.SearchStrategy[int]], int]
    names: list[str]

    def one(self, *options: Callable[[], str]) -> str:
        """The text that one of these writes; Hypothesis shrinks towards the first."""
        return options[self.draw(st.integers(0, len(options) - 1))]()

    def word(self, *options: str) -> str:
        """One of these."""
        return options[self.draw(st.integers(0, len(options) - 1))]

    def source_of(self, scope: _Scope) -> _Source:
        """One of what is in scope."""
        return scope[self.draw(st.integers(0, len(scope) - 1))]

    def fresh(self) -> str:
        """A name that the statement has not used yet."""
        self.names.append(f"x{len(self.names) + 1}")
        return self.names[-1]

    # -- values ---------------------------------------------------------------------------------------

    def value(self, scope: _Scope, depth: int) -> str:
        """An expression of type text."""
        if depth <= 0:
            return self.column(scope)
        deeper = depth - 1
        return self.one(
            lambda: self.column(scope),
            lambda: self.whole_row(scope),
            lambda: self.computed(scope, deeper),
            lambda: f"(CASE WHEN {self.condition(scope, deeper)} THEN {self.value(scope, deeper)} ELSE 'no' END)",
            lambda: f"({self.value(scope, deeper)} || {self.value(scope, deeper)})",
            lambda: f"(SELECT c1 FROM ({self.query(1, deeper, scope, ())}) {self.fresh()} LIMIT 1)",
            lambda: f"(ARRAY({self.query(1, deeper, scope, ())}))::text",
            lambda: f"(SELECT {self.aggregate(scope, deeper)})",
        )

    def column(self, scope: _Scope) -> str:
        """A column's text, in one of the notations that PostgreSQL reads as one."""
        source = self.source_of(scope)
        preferred = [c for c in source.columns if c in ("card", "notes", "email", "c1", "c2")] or [*source.columns]
        alias, column = source.alias, self.word(*preferred, *source.columns)
        return self.one(
            lambda: f"{alias}.{column}::text",
            lambda: f"({alias}).{column}::text",
            lambda: f"{column}({alias})::text",
            lambda: f"CAST({alias}.{column} AS varchar(40))",
            lambda: f"(to_jsonb({alias}) ->> '{column}')",
            lambda: f"({alias}.to_jsonb ->> '{column}')",
        )

    def whole_row(self, scope: _Scope) -> str:
        """All columns of something, as text."""
        alias = self.source_of(scope).alias
        return self.word(
            f"{alias}::text", f"to_jsonb({alias})::text", f"row_to_json({alias}.*)::text", f"ROW({alias}.*)::text",
            f"({alias}.to_json)::text", f"concat({alias}.*)", f"json_build_object('a', {alias})::text",
            f"format('%s', {alias})", f"ARRAY[{alias}]::text",
        )  # fmt: skip

    def computed(self, scope: _Scope, depth: int) -> str:
        """What functions make of a value."""
        inner = self.value(scope, depth)
        return self.word(
            f"reverse({inner})", f"md5({inner})", f"substr({inner}, 1, 2)", f"right({inner}, 3)",
            f"length({inner})::text", f"encode(convert_to({inner}, 'UTF8'), 'hex')", f"coalesce({inner}, 'none')",
            f"ascii({inner})::text", f"split_part({inner}, '-', 1)", f"nullif({inner}, 'x')",
            f"({inner}) COLLATE \"C\"", f"quote_literal({inner})",
            f"array_to_string(regexp_split_to_array({inner}, ''), '.')", f"({inner} < 'm')::text",
            f"hashtext({inner})::text", f"greatest({inner}, 'b')",
        )  # fmt: skip

    def aggregate(self, scope: _Scope, depth: int) -> str:
        """An aggregate, as text."""
        inner = self.value(scope, 0)
        alias = self.source_of(scope).alias
        return self.one(
            lambda: f"max({inner})",
            lambda: f"string_agg({inner}, ',' ORDER BY {self.value(scope, 0)})",
            lambda: f"count(DISTINCT {inner})::text",
            lambda: f"(array_agg({inner}))::text",
            lambda: f"json_agg({alias})::text",
            lambda: f"count(*) FILTER (WHERE {self.condition(scope, depth)})::text",
            lambda: f"(percentile_disc(0.5) WITHIN GROUP (ORDER BY {inner}))",
            lambda: f"bool_or({self.condition(scope, depth)})::text",
        )

    def window(self, scope: _Scope) -> str:
        """A window function, as text."""
        over = f"(ORDER BY {self.value(scope, 0)} ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)"
        inner = self.value(scope, 0)
        return self.word(
            f"first_value({inner}) OVER {over}", f"(rank() OVER {over})::text",
            f"lag({inner}) OVER (PARTITION BY {self.value(scope, 0)} ORDER BY {inner})", f"max({inner}) OVER {over}",
        )  # fmt: skip

    def condition(self, scope: _Scope, depth: int) -> str:
        """A boolean expression."""
        inner = self.value(scope, depth - 1)
        return self.one(
            lambda: f"{inner} IS NOT NULL",
            lambda: f"{inner} LIKE '%{_MARK}%'",
            lambda: f"{inner} < {self.value(scope, 0)}",
            lambda: f"length({inner}) > 4",
            lambda: f"{inner} ~ '{_MARK}{{3}}'",
            lambda: f"EXISTS ({self.query(1, depth - 1, scope, ())})",
            lambda: f"{inner} IN ({self.query(1, depth - 1, scope, ())})",
            lambda: f"{self.source_of(scope).alias} IS NOT NULL",
        )

    # -- what stands in FROM --------------------------------------------------------------------------

    def table(self, ctes: _Scope) -> tuple[str, _Source]:
        """A relation or a common table expression under an alias."""
        alias = self.fresh()
        which = self.draw(st.integers(0, 7 if ctes else 5))
        if which > 5:
            cte = self.source_of(ctes)
            return f"{cte.alias} AS {alias}", _Source(alias, cte.columns)
        if which == 5:
            return f"customer_contacts {alias}", _Source(alias, CONTACTS)
        if which == 4:
            return f"tickets AS {alias}", _Source(alias, TICKETS)
        name = self.word(*_SPELLINGS)
        if which == 3:
            renamed = tuple(f"r{n}" for n in range(len(CUSTOMERS)))
            return f"{name} AS {alias}({', '.join(renamed)})", _Source(alias, renamed)
        if which == 2:
            return f"(SELECT customers.* FROM customers) {alias}", _Source(alias, CUSTOMERS)
        return f"{name} {alias}", _Source(alias, CUSTOMERS)

    def sources(self, depth: int, outer: _Scope, ctes: _Scope) -> tuple[str, _Scope]:
        """A FROM list and what it brings into scope."""
        first, left = self.table(ctes)
        kind = self.draw(st.integers(0, 7 if depth > 0 else 3))
        if kind <= 2:
            return first, (left,)
        if kind == 3:
            alias = self.fresh()
            return f"{first}, LATERAL jsonb_each_text(to_jsonb({left.alias})) {alias}(k, v)", (
                left, _Source(alias, ("k", "v")),
            )  # fmt: skip
        if kind == 4:
            alias = self.fresh()
            inner = self.query(2, depth - 1, (*outer, left), ctes)
            return f"{first} LEFT JOIN LATERAL ({inner}) {alias} ON true", (left, _Source(alias, ("c1", "c2")))
        if kind == 5:
            alias = self.fresh()
            return f"({self.query(2, depth - 1, outer, ctes)}) AS {alias}(c1, c2)", (_Source(alias, ("c1", "c2")),)
        second, right = self.table(ctes)
        shared = [column for column in left.columns if column in right.columns]
        if kind == 6 and shared:
            if self.word("using", "natural") == "natural":
                return f"{first} NATURAL {self.word('', 'LEFT ', 'FULL ')}JOIN {second}", (left, right)
            return f"{first} JOIN {second} USING ({self.word(*shared)})", (left, right)
        return f"{first} {self.word('', 'LEFT ')}JOIN {second} ON {self.condition((left, right), 0)}", (left, right)

    # -- queries --------------------------------------------------------------------------------------

    def query(self, width: int, depth: int, outer: _Scope, ctes: _Scope) -> str:
        """A query of this many text columns; those of `outer` are in reach."""
        if depth <= 0:
            return self.select(width, 0, outer, ctes)
        return self.one(
            lambda: self.select(width, depth, outer, ctes),
            lambda: self.grouped(width, depth, outer, ctes),
            lambda: self.windowed(width, depth, outer, ctes),
            lambda: self.combined(width, depth, outer, ctes),
            lambda: self.with_cte(width, depth, outer, ctes),
            lambda: self.recursive(width, depth, outer, ctes),
            lambda: self.values(width, depth, outer, ctes),
        )

    def select(self, width: int, depth: int, outer: _Scope, ctes: _Scope) -> str:
        """SELECT … FROM …, perhaps with a condition and an order."""
        source, scope = self.sources(depth, outer, ctes)
        reach = (*scope, *scope, *outer)
        where = self.one(lambda: "", lambda: f" WHERE {self.condition(reach, depth)}")
        order = self.one(lambda: "", lambda: f" ORDER BY {self.value(scope, 0)}", lambda: " ORDER BY 1 DESC LIMIT 3")
        return f"SELECT {self.listed(width, lambda: self.value(reach, depth))} FROM {source}{where}{order}"

    def grouped(self, width: int, depth: int, outer: _Scope, ctes: _Scope) -> str:
        """Aggregates by groups."""
        source, scope = self.sources(depth - 1, outer, ctes)
        by = self.column(scope)
        having = self.one(lambda: "", lambda: f" HAVING max({self.column(scope)}) IS NOT NULL")
        listed = self.listed(width, lambda: self.aggregate(scope, 0))
        return f"SELECT {listed} FROM {source} GROUP BY {self.word(by, f'ROLLUP ({by})')}{having}"

    def windowed(self, width: int, depth: int, outer: _Scope, ctes: _Scope) -> str:
        """Window functions."""
        source, scope = self.sources(depth - 1, outer, ctes)
        return f"SELECT {self.listed(width, lambda: self.window(scope))} FROM {source}"

    def combined(self, width: int, depth: int, outer: _Scope, ctes: _Scope) -> str:
        """A set operation."""
        operator = self.word("UNION", "UNION ALL", "INTERSECT", "EXCEPT")
        left, right = (self.query(width, depth - 1, outer, ctes) for _ in range(2))
        return f"({left}) {operator} ({right})"

    def with_cte(self, width: int, depth: int, outer: _Scope, ctes: _Scope) -> str:
        """A common table expression, sometimes under the name of a table."""
        name = self.word(self.fresh(), "customers", "tickets")
        inner = self.query(2, depth - 1, outer, ctes)
        alias = self.fresh()
        listed = self.listed(width, lambda: self.value((_Source(alias, ("c1", "c2")), *outer), 1))
        body = f"SELECT {listed} FROM {name} {alias}"
        if name.startswith("x") and self.word("once", "again") == "again":
            body = self.query(width, depth - 1, outer, (*ctes, _Source(name, ("c1", "c2"))))
        return f"WITH {name}(c1, c2) AS {self.word('', 'MATERIALIZED ', 'NOT MATERIALIZED ')}({inner}) {body}"

    def recursive(self, width: int, depth: int, outer: _Scope, ctes: _Scope) -> str:
        """A recursive common table expression of two rounds."""
        name, alias = self.fresh(), self.fresh()
        start = self.query(1, depth - 1, outer, ctes)
        source, scope = self.sources(0, (), ())
        step = (
            f"SELECT n + 1, ({self.value((*scope, _Source(name, ('c1',))), 0)})::text FROM {name}, {source} WHERE n < 2"
        )
        listed = self.listed(width, lambda: self.value((_Source(alias, ("c1",)),), 1))
        return (
            f"WITH RECURSIVE {name}(n, c1) AS (SELECT 1, c1::text FROM ({start}) {self.fresh()} UNION {step}) "
            f"SELECT {listed} FROM {name} AS {alias}"
        )

    def values(self, width: int, depth: int, outer: _Scope, ctes: _Scope) -> str:
        """VALUES of scalar subqueries."""
        alias = self.fresh()
        columns = ", ".join(f"c{n + 1}" for n in range(width))
        row = ", ".join(f"(({self.query(1, depth - 1, outer, ctes)}) LIMIT 1)" for _ in range(width))
        return f"SELECT * FROM (VALUES ({row})) {alias}({columns})"

    def listed(self, width: int, write: Callable[[], str]) -> str:
        """A select list."""
        return ", ".join(f"{write()} AS c{n + 1}" for n in range(width))

    # -- statements -----------------------------------------------------------------------------------

    def statement(self) -> str:
        """A statement that reads."""
        return self.one(
            lambda: self.query(2, _DEPTH, (), ()),
            lambda: self.query(1, _DEPTH - 1, (), ()),
            lambda: (
                f"COPY ({self.query(2, _DEPTH - 1, (), ())}) TO STDOUT {self.word('', 'WITH (FORMAT csv)')}".rstrip()
            ),
            lambda: f"DECLARE held CURSOR FOR {self.query(2, _DEPTH - 1, (), ())}",
            lambda: self.plain(),
        )

    def plain(self) -> str:
        """Shapes that name all columns at once."""
        source, scope = self.sources(1, (), ())
        name, alias = self.word(*_SPELLINGS[:2]), scope[0].alias
        return self.word(
            f"SELECT * FROM {source}", f"SELECT {alias}.* FROM {source}", f"SELECT {alias} FROM {source}",
            "TABLE customers", "TABLE ONLY public.customers", f"COPY {name} TO STDOUT",
            f"COPY {name} (id, card, notes) TO STDOUT WITH (FORMAT csv, HEADER)",
            f"EXPLAIN (VERBOSE, COSTS off) SELECT * FROM {source}",
            f"SELECT * FROM (TABLE customers) {self.fresh()} ORDER BY card, notes, email",
            f"SELECT {alias} FROM {source} FOR UPDATE",
        )  # fmt: skip


@st.composite
def readings(draw: st.DrawFn) -> str:
    """A statement that reads."""
    return _Writer(draw, []).statement()


def mutated(texts: st.SearchStrategy[str], tokens: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Texts with a few places cut out, doubled or overwritten: by words of SQL, or by any bytes."""

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        text = draw(texts).encode()
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, len(text)))
            end = min(len(text), start + draw(st.integers(0, 12)))
            piece = draw(st.one_of(st.sampled_from([t.encode() for t in tokens]), st.binary(max_size=4)))
            text = text[:start] + piece + text[draw(st.sampled_from([start, end])) :]
        return text

    return build()
