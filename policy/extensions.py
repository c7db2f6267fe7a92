"""Curated knowledge of the extensions that PostgreSQL ships with (contrib), and of pgvector: by name, per function.

An extension's own functions are harmless where the extension is listed as `PURE`, the function is compiled (so that
only a superuser can have made it), and it is not volatile or listed as harmless. What others do with
text, files or sessions is refused, whatever a rule says, as it is of built-in functions.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from policy.catalog import Function, Volatility

_COMPILED: Final = frozenset(("c", "internal"))


class Volatile(NamedTuple):
    """An extension's volatile functions: those that touch nothing that others see, and those that need a rule."""

    harmless: frozenset[str] = frozenset()
    needs_a_rule: frozenset[str] = frozenset()


# Types, operators and functions that compute from their arguments alone. Reviewed with PostgreSQL 15 and 18;
# a test fails where a server's version has a volatile function that is in neither list.
PURE: Final[dict[str, Volatile]] = {
    "citext": Volatile(),
    "cube": Volatile(),
    "fuzzystrmatch": Volatile(),
    "hstore": Volatile(),
    "intarray": Volatile(),
    "isn": Volatile(needs_a_rule=frozenset(("isn_weak",))),  # sets how the session reads numbers
    "ltree": Volatile(),
    "pg_trgm": Volatile(needs_a_rule=frozenset(("set_limit",))),  # a SET
    "pgcrypto": Volatile(
        frozenset(
            (
                "gen_random_bytes", "gen_random_uuid", "gen_salt", "pgp_pub_encrypt", "pgp_pub_encrypt_bytea",
                "pgp_sym_encrypt", "pgp_sym_encrypt_bytea",
            )
        )
    ),
    "seg": Volatile(),
    "unaccent": Volatile(needs_a_rule=frozenset(("unaccent_init", "unaccent_lexize"))),  # the server calls them
    # uuid_generate_v1 tells the server's network address.
    "uuid-ossp": Volatile(frozenset(("uuid_generate_v1mc", "uuid_generate_v4")), frozenset(("uuid_generate_v1",))),
    "vector": Volatile(
        needs_a_rule=frozenset(
            (
                "hnsw_bit_support", "hnsw_halfvec_support", "hnsw_sparsevec_support", "hnswhandler",
                "ivfflat_bit_support", "ivfflat_halfvec_support", "ivfflathandler",
            )
        )
    ),
}  # fmt: skip

_RUNS_SQL: Final = "runs SQL given as text, which cannot be analysed"
_FILES: Final = "reads the server's files or memory"
_REFUSED: Final = {
    "dblink": "opens a database session of its own",
    "adminpack": _FILES,
    "amcheck": _FILES,
    "pageinspect": _FILES,
    "pg_buffercache": _FILES,
    "pg_freespacemap": _FILES,
    "pg_logicalinspect": _FILES,
    "pg_prewarm": _FILES,
    "pg_stat_statements": "shows the statements of others",
    "pg_surgery": _FILES,
    "pg_visibility": _FILES,
    "pg_walinspect": _FILES,
    "pgrowlocks": _FILES,
    "pgstattuple": _FILES,
}
_REFUSED_FUNCTIONS: Final = {
    ("tablefunc", "crosstab"): _RUNS_SQL,
    ("tablefunc", "connectby"): _RUNS_SQL,
    ("xml2", "xpath_table"): _RUNS_SQL,
    ("xml2", "xslt_process"): _FILES,
}


def is_pure(function: Function) -> bool:
    """Whether it is an extension's function that computes from its arguments, and nothing else."""
    known = PURE.get(function.extension)
    if known is None or function.language not in _COMPILED:
        return False
    if function.volatility is Volatility.VOLATILE:
        return function.name in known.harmless
    return True


def refusal_of_extension(function: Function) -> str | None:
    """Why a function of an extension is never called (ends "it …"), or None."""
    if reason := _REFUSED.get(function.extension):
        return reason
    for (extension, prefix), reason in _REFUSED_FUNCTIONS.items():
        if function.extension == extension and function.name.startswith(prefix):
            return reason
    return None
