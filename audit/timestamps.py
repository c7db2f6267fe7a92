"""Time-stamps of checkpoints by an authority (RFC 3161): asked for, verified, kept; and verified again by an auditor.

Needs the extra `timestamps`. What is stamped is the signed note, byte for byte; what is kept is the whole response,
which `openssl ts -verify` reads as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import httpx2
from cryptography import x509
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from audit.errors import AuditUnavailable
from audit.note import PublicKey
from audit.signed import Signed
from audit.testimony import witnessed
from audit.witness import WitnessAway, shown

_TIMEOUT_SECONDS = 20.0
_LONGEST_ANSWER = 256 * 1024


class TimestampWitness:
    """An authority at `url`, whose certificate must lead to one of `roots`, or be among them with its root.

    Asked every so many seconds at most.
    """

    def __init__(
        self, url: str, roots: Sequence[x509.Certificate], *, every: float = 3600.0, required: bool = False
    ) -> None:
        self.name = shown(url)
        self._url = url
        self.required = required
        self.every = every
        self._roots = roots
        self._http = httpx2.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=False)

    def check(self, keys: Collection[PublicKey], signed: Signed) -> None:
        """Nothing to compare: an authority keeps nothing. Its time-stamps are in the chain, and hold it to a time."""

    def take(self, signed: Signed) -> Mapping[str, object] | None:
        """Have the newest checkpoint stamped. Raises AuditUnavailable."""
        newest = signed.newest()
        if newest is None:
            return None
        size, note = newest
        request = TimestampRequestBuilder().data(note.encode()).hash_algorithm(HashAlgorithm.SHA256)
        # An authority whose own certificate is at hand need not send any: some send them in no valid order.
        wanted = not any(_stamps(one) for one in self._roots)
        asked = request.nonce(nonce=True).cert_request(cert_request=wanted).build()
        answer = self._ask(asked.as_bytes())
        try:
            verify(answer, note, self._roots, nonce=asked.nonce)
        except (ValueError, VerificationError) as error:
            self._fail(f"its time-stamp does not hold: {error}")
        return {"size": size, "note": note, "timestamp": base64.b64encode(answer).decode("ascii")}

    def _ask(self, request: bytes) -> bytes:
        headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
        try:
            answer = self._http.post(self._url, content=request, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            self._fail(str(error) or type(error).__name__)
        if not answer.is_success or len(answer.content) > _LONGEST_ANSWER:
            self._fail(f"it answered {answer.status_code} with {len(answer.content)} bytes")
        return answer.content

    def _fail(self, why: str) -> NoReturn:
        raise WitnessAway(f"the time-stamp authority `{self.name}`: {why}; it is asked again")


def verify(
    response: bytes, note: str, roots: Sequence[x509.Certificate], *, nonce: int | None = None
) -> TimeStampResponse:
    """Hold a response to the note and to who may stamp. Raises ValueError, VerificationError.

    Certificates of the response are what it says of itself: they are never trusted, only led back to `roots`.
    """
    anchors = [one for one in roots if not _stamps(one)]
    known: list[x509.Certificate | None] = [one for one in roots if _stamps(one)]
    if decode_timestamp_response(response).signed_data.certificates or not known:
        known = [None]
    problem = ValueError("no certificate was tried")
    for certificate in known:
        stamped = decode_timestamp_response(response)
        verifier = VerifierBuilder(roots=anchors, tsa_certificate=certificate, nonce=nonce).build()
        try:
            verifier.verify_message(stamped, note.encode())
            return stamped
        except (ValueError, VerificationError) as error:
            problem = ValueError(str(error))
    raise problem


def _stamps(certificate: x509.Certificate) -> bool:
    """Whether it is an authority's own certificate, and not one that signs others."""
    try:
        return not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return True


@dataclass(frozen=True, slots=True)
class Stamps:
    """How many time-stamps of a store hold, over how many entries the newest of them is, and its time."""

    count: int
    size: int
    time: datetime | None


def check_all(path: Path, roots: Sequence[x509.Certificate]) -> Stamps:
    """Verify every time-stamp of a store against its checkpoints. Raises AuditUnavailable at the first that fails."""
    signed, found = Signed(path), Stamps(0, 0, None)
    for one in witnessed(path):
        if one.timestamp is None:
            continue
        if signed.note(one.size) != one.note:
            raise AuditUnavailable(f"entry {one.seq}: its time-stamp is of a checkpoint that is not the store's")
        try:
            stamped = verify(one.timestamp, one.note, roots)
        except (ValueError, VerificationError) as error:
            raise AuditUnavailable(f"entry {one.seq}: its time-stamp does not hold: {error}") from None
        found = Stamps(found.count + 1, one.size, stamped.tst_info.gen_time.astimezone(UTC))
    return found
