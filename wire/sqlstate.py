"""The SQLSTATEs that the wire door itself sends, and which one each of our reasons gets. Sans-IO.

Source: PostgreSQL documentation, appendix "PostgreSQL Error Codes".
"""

from __future__ import annotations

from collections.abc import Mapping

CONNECTION_FAILURE = "08006"
PROTOCOL_VIOLATION = "08P01"
FEATURE_NOT_SUPPORTED = "0A000"
INVALID_PARAMETER_VALUE = "22023"
INVALID_AUTHORIZATION = "28000"
INVALID_PASSWORD = "28P01"  # noqa: S105 - a SQLSTATE
INVALID_SQL_STATEMENT_NAME = "26000"
INVALID_CURSOR_NAME = "34000"
INSUFFICIENT_PRIVILEGE = "42501"
SYNTAX_ERROR = "42601"
RESERVED_NAME = "42939"
DUPLICATE_PREPARED_STATEMENT = "42P05"
UNDEFINED_TABLE = "42P01"
UNDEFINED_FUNCTION = "42883"
TOO_MANY_CONNECTIONS = "53300"
PROGRAM_LIMIT_EXCEEDED = "54000"
STATEMENT_TOO_COMPLEX = "54001"
QUERY_CANCELED = "57014"
ADMIN_SHUTDOWN = "57P01"
IDLE_SESSION_TIMEOUT = "57P05"
IDLE_IN_TRANSACTION_TIMEOUT = "25P03"
CANNOT_CONNECT_NOW = "57P03"
NOTICE = "01000"
INTERNAL_ERROR = "XX000"
DATA_CORRUPTED = "XX001"

# Reasons for which PostgreSQL itself would have failed: clients branch on these codes.
_OF_REASON: Mapping[str, str] = {
    "syntax": SYNTAX_ERROR,
    "statement.several": SYNTAX_ERROR,
    "relation.unknown": UNDEFINED_TABLE,
    "function.unknown": UNDEFINED_FUNCTION,
    "text.long": PROGRAM_LIMIT_EXCEEDED,
    "text.large": PROGRAM_LIMIT_EXCEEDED,
    "text.deep": STATEMENT_TOO_COMPLEX,
    "text.comments": STATEMENT_TOO_COMPLEX,
    "text.operators": STATEMENT_TOO_COMPLEX,
}


def of_reason(code: str) -> str:
    """The SQLSTATE for a deny with this reason code; 42501 for all that is policy."""
    return _OF_REASON.get(code, INSUFFICIENT_PRIVILEGE)
