"""Which settings a client may change: an allow-list of those that cannot change what a verdict meant."""

from __future__ import annotations

from typing import Final

_ALLOWED: Final[frozenset[str]] = frozenset(
    (
        # How values are written out. `client_encoding` is handled apart: only UTF8.
        "datestyle", "intervalstyle", "timezone", "bytea_output", "extra_float_digits", "xmlbinary",
        "xmloption", "lc_messages", "lc_monetary", "lc_numeric", "lc_time", "client_min_messages",
        "application_name",
        # What a statement may use before it is stopped.
        "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout",
        "work_mem", "hash_mem_multiplier", "temp_buffers", "maintenance_work_mem",
        "max_parallel_workers_per_gather", "max_parallel_maintenance_workers",
        # How the planner works: the result stays the same.
        "enable_async_append", "enable_bitmapscan", "enable_gathermerge", "enable_hashagg",
        "enable_hashjoin", "enable_incremental_sort", "enable_indexonlyscan", "enable_indexscan",
        "enable_material", "enable_memoize", "enable_mergejoin", "enable_nestloop",
        "enable_parallel_append", "enable_parallel_hash", "enable_partition_pruning",
        "enable_partitionwise_aggregate", "enable_partitionwise_join", "enable_presorted_aggregate",
        "enable_seqscan", "enable_sort", "enable_tidscan", "constraint_exclusion", "cursor_tuple_fraction",
        "default_statistics_target", "from_collapse_limit", "join_collapse_limit", "geqo",
        "geqo_threshold", "jit", "jit_above_cost", "plan_cache_mode", "random_page_cost", "seq_page_cost",
        "cpu_tuple_cost", "effective_cache_size", "effective_io_concurrency",
        # Where unqualified names are looked up: the gateway asks the server again afterwards.
        "search_path",
        # Transactions.
        "transaction_isolation", "default_transaction_isolation", "transaction_deferrable",
        "default_transaction_deferrable", "synchronous_commit",
        # Words and forms of full-text search and GIN.
        "default_text_search_config", "gin_fuzzy_search_limit", "array_nulls",
        # As pg_dump sets them. `row_security` off makes an error of what it would filter, and shows nothing more.
        "row_security", "synchronize_seqscans", "restrict_nonsystem_relation_kind",
    )
)  # fmt: skip

_REFUSED: Final = {
    "role": "the gateway's user must stay who it is",
    "session_authorization": "the gateway's user must stay who it is",
    "standard_conforming_strings": "it changes how text is read after it was analysed",
    "backslash_quote": "it changes how text is read after it was analysed",
    "escape_string_warning": "it changes how text is read after it was analysed",
    "session_replication_role": "it switches triggers and foreign keys off",
    "default_transaction_read_only": "the gateway sets it",
    "transaction_read_only": "the gateway sets it",
    "transform_null_equals": "it changes what a condition means after it was analysed",
    "check_function_bodies": "it changes what a definition is checked for",
}


def refusal_of_setting(name: str) -> str | None:
    """Why a client may not SET this, or None if it may. Names are case-insensitive."""
    folded = name.lower()
    if folded in _ALLOWED:
        return None
    return _REFUSED.get(folded, "it is not on the list of harmless settings")


def allowed_settings() -> tuple[str, ...]:
    """The settings that clients may change, sorted."""
    return tuple(sorted(_ALLOWED))
