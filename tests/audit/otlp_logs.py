"""OTLP's JSON encoding read by OpenTelemetry's own protobuf definitions; its trace ids are hexadecimal."""

from __future__ import annotations

import base64
import json
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest


def decoded(text: str) -> ExportLogsServiceRequest:
    """The request; unknown fields and wrong types are errors."""
    told = json.loads(text, object_hook=_with_bytes)
    request = ExportLogsServiceRequest()
    json_format.ParseDict(told, request)
    return request


def _with_bytes(told: dict[str, Any]) -> dict[str, Any]:
    for name in ("traceId", "spanId"):
        if name in told:
            told[name] = base64.b64encode(bytes.fromhex(told[name])).decode()
    return told
