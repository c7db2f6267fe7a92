"""How PostgreSQL writes values of a type in binary, as far as text in them must be found. Values only.

A form is told by the type's send function (`pg_proc.prosrc` of `pg_type.typsend`), so that enums, arrays, domains
and extensions' types are known as PostgreSQL's own are.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Form(StrEnum):
    """What the bytes of a binary value are."""

    TEXT = "text"
    VERSIONED = "a version byte and text"  # jsonb, jsonpath
    INTEGER = "a 64-bit integer"
    NUMERIC = "a numeric"
    ARRAY = "an array"  # names its elements' type
    RECORD = "a record"  # names its fields' types
    RANGE = "a range"
    MULTIRANGE = "a multirange"
    PLAIN = "nothing that can hold text"
    UNKNOWN = "not known"


_SENT: Final[Mapping[Form, str]] = {
    Form.TEXT: (
        "textsend varcharsend bpcharsend namesend charsend unknownsend cstring_send enum_send json_send xml_send"
        " pg_node_tree_send"
    ),
    Form.VERSIONED: "jsonb_send jsonpath_send",
    Form.INTEGER: "int8send",
    Form.NUMERIC: "numeric_send",
    Form.ARRAY: "array_send anyarray_send",
    Form.RECORD: "record_send",
    Form.RANGE: "range_send",
    Form.MULTIRANGE: "multirange_send",
    # Numbers of fewer than 13 digits or of no exact ones, moments, places, addresses, bytes.
    Form.PLAIN: (
        "boolsend int2send int4send oidsend float4send float8send cash_send date_send time_send timetz_send"
        " timestamp_send timestamptz_send interval_send uuid_send byteasend bit_send varbit_send inet_send cidr_send"
        " macaddr_send macaddr8_send point_send lseg_send path_send box_send poly_send line_send circle_send"
        " tidsend xidsend xid8send cidsend pg_lsn_send pg_snapshot_send txid_snapshot_send int2vectorsend oidvectorsend"
        " regprocsend regproceduresend regopersend regoperatorsend regclasssend regtypesend regcollationsend"
        " regconfigsend regdictionarysend regrolesend regnamespacesend regdatabasesend void_send"
    ),
}
_FORMS: Final = {function: form for form, functions in _SENT.items() for function in functions.split()}


def form_of(send: str) -> Form:
    """The form of values that this function sends."""
    return _FORMS.get(send, Form.UNKNOWN)
