"""Curated knowledge of PostgreSQL's own functions and catalogs: which are harmless, which are never for clients.

A built-in function is harmless when it is not volatile and not refused here, or volatile and listed here
as harmless. Every other volatile one is refused: a server that has a function which we do not know does
not get it called.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from policy.catalog import Function, Volatility
from policy.extensions import is_pure

# Objects below it come with the server (access/transam.h, FirstNormalObjectId).
FIRST_USER_OID = 16384
SYSTEM_SCHEMAS = frozenset(("pg_catalog", "information_schema"))

# Refused by exact name, with the reason as the end of a sentence: "it …".
_REFUSED: Final[dict[str, tuple[str, ...]]] = {
    # Text in an argument becomes SQL: no parse tree shows what it reads.
    "runs SQL given as text, which cannot be analysed": (
        "query_to_xml", "query_to_xmlschema", "query_to_xml_and_xmlschema",
        "cursor_to_xml", "cursor_to_xmlschema",
        "table_to_xml", "table_to_xmlschema", "table_to_xml_and_xmlschema",
        "schema_to_xml", "schema_to_xmlschema", "schema_to_xml_and_xmlschema",
        "database_to_xml", "database_to_xmlschema", "database_to_xml_and_xmlschema",
        "ts_stat", "ts_rewrite", "currtid2",
    ),
    # With a constant name it is read as SET (policy/session.py).
    "changes settings behind the policy; use SET": ("set_config",),
    "blocks without doing work": ("pg_sleep", "pg_sleep_for", "pg_sleep_until"),
    "acts on other sessions": ("pg_terminate_backend", "pg_cancel_backend", "pg_log_backend_memory_contexts"),
    "reads files of the server": (
        "pg_stat_file", "pg_current_logfile", "pg_hba_file_rules", "pg_ident_file_mappings",
        "pg_show_all_file_settings", "pg_config", "pg_available_wal_summaries", "pg_wal_summary_contents",
    ),
    "shows the server's memory": (
        "pg_get_backend_memory_contexts", "pg_get_shmem_allocations", "pg_get_shmem_allocations_numa",
        "pg_get_loaded_modules", "pg_get_aios", "pg_get_multixact_members", "pg_get_wal_summarizer_state",
        "pg_show_replication_origin_status",
    ),
    # They take a type by its OID: domains among them run their checks.
    "makes a value of a type that it names by number, whose code nobody has looked at": (
        "domain_in", "domain_recv", "array_in", "array_recv", "record_in", "record_recv", "range_in",
        "range_recv", "multirange_in", "multirange_recv",
    ),
    "is called by the server alone": (
        "amvalidate", "bernoulli", "system", "brinhandler", "bthandler", "ginhandler", "gisthandler", "hashhandler",
        "spghandler", "heap_tableam_handler", "dsnowball_init", "dsnowball_lexize", "unique_key_recheck",
        "plpgsql_call_handler", "plpgsql_inline_handler", "plpgsql_validator", "fmgr_sql_validator",
        "fmgr_c_validator", "fmgr_internal_validator", "pg_isolation_test_session_is_blocked",
        "pg_stop_making_pinned_objects",
    ),
    # Most common values and histograms are raw data; texts of running statements belong to others.
    "shows samples of data or the statements of others": (
        "pg_mcv_list_items", "current_query", "pg_prepared_statement", "pg_cursor",
    ),
    "writes to the system catalogs": ("pg_import_system_collations", "pg_nextoid", "pg_extension_config_dump"),
    "shares this transaction's view of the data with other sessions": ("pg_export_snapshot",),
    "reads or writes large objects": ("loread", "lowrite"),
}  # fmt: skip

_REFUSED_PREFIXES: Final[dict[str, tuple[str, ...]]] = {
    "is called by the server alone": ("RI_FKey_",),
    "reads files of the server": ("pg_read_", "pg_ls_"),
    "reads or writes large objects": ("lo_",),
    "opens a database session of its own": ("dblink",),
    "takes locks that no statement shows": ("pg_advisory", "pg_try_advisory"),
    "reads the server's statistics": (
        "pg_stat_get_", "pg_stat_have_", "pg_stat_reset", "pg_stat_clear", "pg_stat_force",
    ),
    "is part of the server's administration": (
        "pg_reload_conf", "pg_rotate_logfile", "pg_promote", "pg_switch_wal", "pg_wal_replay", "pg_backup_",
        "pg_create_", "pg_drop_", "pg_copy_", "pg_logical_", "pg_replication_", "pg_sync_", "pg_control_",
        "pg_restore_", "pg_clear_", "pg_log_standby_snapshot", "binary_upgrade_", "brin_summarize", "brin_desummarize",
        "gin_clean",
    ),
}  # fmt: skip

_HARMLESS_VOLATILE: Final[frozenset[str]] = frozenset().union(
    # The clock and random numbers: no state that anybody else sees.
    ("clock_timestamp", "timeofday", "random", "random_normal", "setseed"),
    ("gen_random_uuid", "uuidv4", "uuidv7", "array_sample", "array_shuffle"),
    # Locks that nobody here can have taken: poolers and drivers release them before reuse.
    ("pg_advisory_unlock_all",),
    # What this session has drawn from sequences; drawing (nextval, setval) needs a rule.
    ("currval", "lastval", "pg_sequence_last_value"),
    # Sizes, as `\dt+` and `\l+` of psql show them.
    ("pg_relation_size", "pg_table_size", "pg_indexes_size", "pg_total_relation_size"),
    ("pg_database_size", "pg_tablespace_size"),
    # Structure and state of the server, as drivers and monitoring ask for it.
    ("pg_partition_tree", "pg_partition_ancestors", "pg_is_in_recovery", "pg_jit_available"),
    ("pg_collation_actual_version", "pg_database_collation_actual_version", "pg_blocking_pids"),
    ("pg_notification_queue_usage", "pg_xact_status", "txid_status", "pg_last_committed_xact"),
    ("pg_xact_commit_timestamp", "pg_current_wal_lsn", "pg_last_wal_receive_lsn"),
    ("pg_last_wal_replay_lsn", "pg_last_xact_replay_timestamp", "pg_is_wal_replay_paused"),
    ("pg_current_wal_flush_lsn", "pg_current_wal_insert_lsn", "pg_get_wal_replay_pause_state"),
    ("pg_get_wal_resource_managers", "pg_get_wait_events", "pg_xact_commit_timestamp_origin"),
    # What pg_locks and pg_prepared_xacts show, without statements or data.
    ("pg_lock_status", "pg_prepared_xact", "pg_safe_snapshot_blocking_pids"),
    ("pg_get_sequence_data",),
    # Triggers that PostgreSQL brings along: they change nothing but the row at hand.
    ("suppress_redundant_updates_trigger", "tsvector_update_trigger", "tsvector_update_trigger_column"),
)

# Harmless for reading, but they change rows or wake others: a rule must say so.
NEEDS_A_RULE: Final = frozenset(("nextval", "setval", "pg_notify"))

# They read a text as a value of the type that another text names: any type that has code may run it.
NAMES_A_TYPE: Final = frozenset(("pg_input_is_valid", "pg_input_error_info"))

_REASON_BY_NAME: Final = {name: reason for reason, names in _REFUSED.items() for name in names}
_REASON_BY_PREFIX: Final = tuple(
    (prefix, reason) for reason, prefixes in _REFUSED_PREFIXES.items() for prefix in prefixes
)

# Catalog relations that no client reads, with the reason.
_REFUSED_CATALOGS: Final[dict[str, tuple[str, ...]]] = {
    "it holds credentials": (
        "pg_authid", "pg_shadow", "pg_user_mapping", "user_mapping_options", "_pg_user_mappings",
    ),
    "it holds raw data": ("pg_largeobject", "pg_statistic_ext_data"),
    "it shows the server's files or memory": (
        "pg_hba_file_rules", "pg_ident_file_mappings", "pg_file_settings", "pg_config",
        "pg_shmem_allocations", "pg_shmem_allocations_numa", "pg_backend_memory_contexts", "pg_aios",
    ),
}  # fmt: skip
# Catalogs, by OID, with a column that holds values of user tables: it shows none that are masked.
PG_CLASS: Final = 1259
HELD_COLUMNS: Final = {PG_CLASS: "relpartbound", 1249: "attmissingval"}  # 1249: pg_attribute
TELLS_BOUNDS: Final = "pg_get_partition_constraintdef"

# Catalog relations with one column that no client reads, and why.
SECRET_COLUMNS: Final = {
    "pg_user_mappings": ("umoptions", "it holds credentials"),
    "pg_subscription": ("subconninfo", "it holds credentials"),
    "pg_prepared_statements": ("statement", "it shows rewritten statements"),
    "pg_cursors": ("statement", "it shows rewritten statements"),
}

_CATALOG_REASON: Final = {name: reason for reason, names in _REFUSED_CATALOGS.items() for name in names}
_STATISTICS_REASON: Final = "it holds samples of data or shows the activity of others"


@lru_cache(maxsize=8192)  # there are some 3,000 names, and each is asked about with every statement
def refusal_of_function(name: str) -> str | None:
    """Why the built-in function of this name is never called (ends "it …"), or None."""
    if reason := _REASON_BY_NAME.get(name):
        return reason
    for prefix, reason in _REASON_BY_PREFIX:
        if name.startswith(prefix) and name not in _HARMLESS_VOLATILE:
            return reason
    return None


def is_harmless_volatile(name: str) -> bool:
    """Whether this volatile built-in function is known to touch nothing that others see."""
    return name in _HARMLESS_VOLATILE


def is_builtin(function: Function) -> bool:
    """Whether a function comes with the server."""
    return function.schema in SYSTEM_SCHEMAS and function.oid < FIRST_USER_OID


def is_risky(function: Function) -> bool:
    """Whether calling it may do more than compute: volatile, and not known to be harmless."""
    if function.volatility is not Volatility.VOLATILE or is_pure(function):
        return False
    return not (is_builtin(function) and is_harmless_volatile(function.name))


def is_harmless(function: Function) -> bool:
    """Whether it may be called without asking any rule."""
    return is_pure(function) or (
        is_builtin(function)
        and not is_risky(function)
        and function.name not in NEEDS_A_RULE
        and refusal_of_function(function.name) is None
    )


def refusal_of_catalog(name: str) -> str | None:
    """Why the catalog relation of this name is never read, or None.

    `pg_statistic_ext` holds definitions only, and psql's `\\d` reads it; all other statistics are refused.
    """
    if reason := _CATALOG_REASON.get(name):
        return reason
    if name.startswith(("pg_stat_", "pg_statio_", "pg_stats", "pg_statistic")) and name != "pg_statistic_ext":
        return _STATISTICS_REASON
    return None
