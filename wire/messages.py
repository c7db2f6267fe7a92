"""All messages by direction and type byte: the two tables that the codec decodes by. Sans-IO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from wire import backend, copy, frontend

FrontendMessage = (
    frontend.AuthenticationResponse
    | frontend.Query
    | frontend.Parse
    | frontend.Bind
    | frontend.Describe
    | frontend.Execute
    | frontend.Close
    | frontend.Flush
    | frontend.Sync
    | frontend.FunctionCall
    | frontend.Terminate
    | copy.CopyData
    | copy.CopyDone
    | copy.CopyFail
)

BackendMessage = (
    backend.Authentication
    | backend.BackendKeyData
    | backend.ParameterStatus
    | backend.NegotiateProtocolVersion
    | backend.ReadyForQuery
    | backend.ErrorResponse
    | backend.NoticeResponse
    | backend.RowDescription
    | backend.ParameterDescription
    | backend.DataRow
    | backend.CommandComplete
    | backend.NotificationResponse
    | backend.ParseComplete
    | backend.BindComplete
    | backend.CloseComplete
    | backend.EmptyQueryResponse
    | backend.NoData
    | backend.PortalSuspended
    | copy.CopyInResponse
    | copy.CopyOutResponse
    | copy.CopyData
    | copy.CopyDone
)


class FrontendDecode(Protocol):
    """Makes a message of a body. Raises ProtocolError."""

    def __call__(self, body: bytes) -> FrontendMessage:
        """Decode."""
        ...


class BackendDecode(Protocol):
    """Makes a message of a body. Raises ProtocolError."""

    def __call__(self, body: bytes) -> BackendMessage:
        """Decode."""
        ...


# CopyData is not in the tables: the codec hands its runs on as they are.
FRONTEND: Mapping[int, FrontendDecode] = {
    ord(kind.TAG): kind.decode
    for kind in (
        frontend.AuthenticationResponse,
        frontend.Query,
        frontend.Parse,
        frontend.Bind,
        frontend.Describe,
        frontend.Execute,
        frontend.Close,
        frontend.Flush,
        frontend.Sync,
        frontend.FunctionCall,
        frontend.Terminate,
        copy.CopyDone,
        copy.CopyFail,
    )
}

BACKEND: Mapping[int, BackendDecode] = {
    ord(kind.TAG): kind.decode
    for kind in (
        backend.Authentication,
        backend.BackendKeyData,
        backend.ParameterStatus,
        backend.NegotiateProtocolVersion,
        backend.ReadyForQuery,
        backend.ErrorResponse,
        backend.NoticeResponse,
        backend.RowDescription,
        backend.ParameterDescription,
        backend.DataRow,
        backend.CommandComplete,
        backend.NotificationResponse,
        backend.ParseComplete,
        backend.BindComplete,
        backend.CloseComplete,
        backend.EmptyQueryResponse,
        backend.NoData,
        backend.PortalSuspended,
        copy.CopyInResponse,
        copy.CopyOutResponse,
        copy.CopyDone,
    )
}
