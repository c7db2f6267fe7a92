"""Posts log records to an OpenTelemetry collector (OTLP/HTTP, JSON): in order, repeated while it cannot take them."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import httpx2

from gateway.errors import ConfigurationError, CountersignError
from server.witnesses import is_private

log = logging.getLogger(__name__)

# Seconds before each further attempt; then it is given up, or (`patient`) tried as often as the last.
_PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)
_TIMEOUT_SECONDS = 30.0
_LONGEST_PAUSE = 3600.0  # whatever the collector asks for
# What the specification lets be repeated; all else would be refused again.
_LATER = frozenset((429, 502, 503, 504))


class CollectorError(CountersignError):
    """The collector did not take the records."""


class Collector:
    """Where log records go. `url` is the collector's address, without `/v1/logs`."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        patient: bool,
        pauses: Sequence[float] = _PAUSES,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        if not is_private(url):
            raise ConfigurationError(
                f"`{url}` would send the audit in the clear", cure="Give an https address, or http on this machine."
            )
        self._url = f"{url.rstrip('/')}/v1/logs"
        self._http = httpx2.Client(headers=dict(headers), timeout=_TIMEOUT_SECONDS, follow_redirects=False)
        self._patient = patient
        self._pauses = pauses
        self._wait = wait

    def close(self) -> None:
        """Let the connection go."""
        self._http.close()

    def send(self, request: Mapping[str, Any]) -> None:
        """Hand over one ExportLogsServiceRequest. Raises CollectorError."""
        content = json.dumps(request, ensure_ascii=False).encode()
        pauses = itertools.chain(self._pauses, itertools.repeat(self._pauses[-1]) if self._patient else ())
        while True:
            why, later = self._post(content)
            if why is None:
                return
            pause = next(pauses, None)
            if later is None or pause is None:
                raise CollectorError(
                    f"the collector `{self._url}` did not take the records: {why}",
                    cure="Nothing is lost: with `--state` the next export goes on from there.",
                )
            log.warning("the collector `%s` did not take the records, they are sent again: %s", self._url, why)
            self._wait(max(pause, later))

    def _post(self, content: bytes) -> tuple[str | None, float | None]:
        """One attempt: why it failed, if it did, and after how many seconds another makes sense, if ever."""
        try:
            answer = self._http.post(self._url, content=content, headers={"Content-Type": "application/json"})
        except httpx2.InvalidURL as error:
            return str(error), None
        except httpx2.HTTPError as error:
            return str(error) or type(error).__name__, 0.0
        if not answer.is_success:
            asked = answer.headers.get("retry-after", "")
            later = (
                (min(float(asked), _LONGEST_PAUSE) if asked.isdigit() else 0.0)
                if answer.status_code in _LATER
                else None
            )
            return f"it answered {answer.status_code}", later
        if rejected := _rejected(answer):
            log.error("the collector `%s` took the request but not all records: %s", self._url, rejected)
        return None, None


def headers_from(text: str) -> dict[str, str]:
    """What OTEL_EXPORTER_OTLP_HEADERS says: `name=value,name=value`, percent-encoded. Raises ConfigurationError."""
    named: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, found, value = part.partition("=")
        if not found or not name.strip():
            raise ConfigurationError(
                "OTEL_EXPORTER_OTLP_HEADERS cannot be read", cure="Write it as `name=value,name=value`."
            )
        named[unquote(name.strip())] = unquote(value.strip())
    return named


def _rejected(answer: httpx2.Response) -> str | None:
    """What the collector says of records that it will never take: they must not be sent again."""
    try:
        partial = answer.json().get("partialSuccess") or {}
        count = int(partial.get("rejectedLogRecords") or 0)
    except (ValueError, AttributeError, TypeError):
        return None
    return f"{count} rejected: {partial.get('errorMessage') or 'it does not say why'}" if count else None
