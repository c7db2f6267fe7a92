"""What our commands ask a running gateway over HTTP: one way to ask, and one to say what is wrong with the answer."""

from __future__ import annotations

from typing import Any

import httpx2

from gateway.errors import AuthenticationError, CountersignError

_SECONDS = 15.0


def base_of(url: str) -> str:
    """The gateway's address, whether or not the MCP door's was given."""
    return url.removesuffix("/").removesuffix("/mcp")


def ask(method: str, where: str, *, lacks: str, cure: str, token: str | None = None, **sent: Any) -> httpx2.Response:
    """The answer, which is JSON whatever its status. `sent` is httpx2's. Raises CountersignError: no `lacks` there."""
    headers = {"Authorization": f"Bearer {token}"} if token else None
    try:
        answer = httpx2.request(method, where, headers=headers, timeout=_SECONDS, **sent)
        answer.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise CountersignError(
            f"no {lacks} could be had from {where}: {str(error) or type(error).__name__}", cure=cure
        ) from None
    return answer


def granted(answer: httpx2.Response) -> dict[str, Any]:
    """What a gateway says that let us in. Raises AuthenticationError with what one says that did not."""
    told: dict[str, Any] = answer.json()
    if answer.status_code != 200:
        raise AuthenticationError(str(told.get("error_description", f"the gateway answered {answer.status_code}")))
    return told
