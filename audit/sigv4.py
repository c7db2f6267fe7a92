"""Requests signed for S3 and what speaks like it: AWS Signature Version 4. Sans-IO."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks; `session` is the token of temporary ones."""

    key_id: str
    secret: str = field(repr=False)
    session: str | None = field(default=None, repr=False)


def target(path: str, query: Mapping[str, str]) -> str:
    """A path and query as they are both sent and signed."""
    asked = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))
    return quote(path, safe="/") + (f"?{asked}" if asked else "")


def signed(
    method: str,
    host: str,
    sent: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    credentials: Credentials,
    region: str,
    now: datetime,
) -> dict[str, str]:
    """These headers and those that sign the request. `sent` is what `target` made; `now` is in UTC."""
    time = now.strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    all_ = {"host": host, "x-amz-date": time, "x-amz-content-sha256": digest}
    all_ |= {name.lower(): value.strip() for name, value in headers.items()}
    if credentials.session is not None:
        all_["x-amz-security-token"] = credentials.session
    names = ";".join(sorted(all_))
    path, _, query = sent.partition("?")
    lines = "".join(f"{name}:{all_[name]}\n" for name in sorted(all_))
    asked = "\n".join((method, path, query, lines, names, digest))
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    text = "\n".join((_ALGORITHM, time, scope, hashlib.sha256(asked.encode()).hexdigest()))
    key = f"AWS4{credentials.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    who = f"Credential={credentials.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return all_ | {"authorization": f"{_ALGORITHM} {who}"}
