"""A witness over HTTP: is posted each checkpoint with the proof that it carries on the one before; may cosign it.

What is posted is the body of `add-checkpoint` of c2sp.org/tlog-witness, so that the public witnesses of transparency
logs serve as they are; a plain receiver keeps what it is sent and answers 2xx.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NoReturn

import httpx2

from audit.cosignature import WitnessKey
from audit.errors import AuditUnavailable
from audit.note import Note, NoteError, PublicKey
from audit.signed import Signed
from audit.witness import WitnessAway, conflict, shown

_TIMEOUT_SECONDS = 10.0
_LONGEST_ANSWER = 64 * 1024
_SIZE = "text/x.tlog.size"


class WebhookWitness:
    """`key`: whose cosignature is required of each answer; without one, any 2xx is enough and nothing is kept."""

    every = 0.0

    def __init__(
        self, url: str, *, key: WitnessKey | None = None, token: str | None = None, required: bool = False
    ) -> None:
        """`token` is sent as a bearer token."""
        self.name = shown(url)
        self._url = url
        self.required = required
        self._key = key
        self._seen = 0  # entries that it is known to have cosigned; it says so itself where that is wrong
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx2.Client(headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=False)

    def check(self, keys: Collection[PublicKey], signed: Signed) -> None:
        """Nothing to compare yet: a witness that cosigns refuses what does not carry on, when it is handed over."""

    def take(self, signed: Signed) -> Mapping[str, object] | None:
        """Post the newest checkpoint; its cosignature is to be kept. Raises AuditUnavailable."""
        newest = signed.newest()
        if newest is None:
            return None
        size, note = newest
        answer = self._post(signed, size, note)
        if answer.status_code == httpx2.codes.CONFLICT:
            self._seen = self._size_told(answer)
            size, note = signed.newest() or newest  # another process of ours may have handed over more meanwhile
            if self._seen > size:
                raise conflict(self.name, self._seen)
            answer = self._post(signed, size, note)
        if not answer.is_success:
            self._fail(f"it answered {answer.status_code} {answer.text[:200]!r}")
        self._seen = size
        return self._cosigned(size, note, answer.text)

    def _post(self, signed: Signed, size: int, note: str) -> httpx2.Response:
        extension = signed.extension(self._seen, size, note)
        if extension is None:
            raise conflict(self.name, self._seen)
        try:
            return self._http.post(self._url, content=extension.text.encode(), headers={"Content-Type": "text/plain"})
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            self._fail(str(error) or type(error).__name__)

    def _size_told(self, answer: httpx2.Response) -> int:
        text = answer.text.strip()
        if not answer.headers.get("content-type", "").startswith(_SIZE) or not (text.isascii() and text.isdigit()):
            self._fail("it answered 409 without the size that it has seen")
        return int(text)

    def _cosigned(self, size: int, note: str, lines: str) -> Mapping[str, object] | None:
        """The note with the cosignature below it; None where nobody's is asked for. Raises AuditUnavailable."""
        if self._key is None:
            return None
        if len(lines) > _LONGEST_ANSWER:
            self._fail("its answer is too long for cosignatures")
        whole = note + "".join(f"{line}\n" for line in lines.splitlines() if line.startswith("\N{EM DASH} "))
        try:
            time = self._key.cosigned(Note.parse(whole))
        except NoteError as error:
            raise AuditUnavailable(f"the witness `{self.name}`: {error}; ask who keeps it") from None
        if time is None:
            self._fail(f"its answer has no cosignature of `{self._key.name}` ({self._key.id.hex()})")
        return {"size": size, "note": whole}

    def _fail(self, why: str) -> NoReturn:
        raise WitnessAway(f"the witness `{self.name}`: {why}; it is tried again")
