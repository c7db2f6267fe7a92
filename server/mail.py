"""E-mail: announcements sent through an SMTP server, in plain text, one message an event."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Literal

import aiosmtplib

from audit.entry import Entry, Kind
from server import announcements

_TIMEOUT_SECONDS = 20.0

Security = Literal["starttls", "tls", "none"]


@dataclass(frozen=True, slots=True)
class Mail:
    """Through which server, from whom and to whom, about what. `statement` sends the exact text along."""

    host: str
    port: int
    sender: str
    to: tuple[str, ...]
    security: Security = "starttls"
    ca: Path | None = None  # trusted in place of the system's
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    events: frozenset[str] = frozenset()  # of `requested`, `approved` …; empty: all
    statement: bool = False
    link: str | None = None  # where people act, with `{approval}` for the id
    pauses: Sequence[float] = announcements.PAUSES
    failure: Kind = Kind.MAIL_FAILED

    @property
    def name(self) -> str:
        """Its recipients."""
        return ", ".join(self.to)

    async def deliver(self, entry: Entry) -> str | None:
        """Send it once; why that failed, or None."""
        try:
            refused, _ = await aiosmtplib.send(
                message(self, entry),
                hostname=self.host,
                port=self.port,
                username=self.user,
                password=self.password,
                use_tls=self.security == "tls",
                start_tls=self.security == "starttls",  # or it fails: nothing goes out in the clear by itself
                tls_context=ssl.create_default_context(cafile=self.ca) if self.security != "none" else None,
                timeout=_TIMEOUT_SECONDS,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            return str(error) or type(error).__name__
        return f"the server refused {', '.join(refused)}" if refused else None


def message(mail: Mail, entry: Entry) -> EmailMessage:
    """One announcement. Its id is the same at each attempt, and all of one approval are a thread."""
    said = announcements.lines(entry, statement=mail.statement, link=mail.link)
    approval = announcements.told_by(entry)["approval"]
    found = EmailMessage()
    found["From"] = mail.sender
    found["To"] = ", ".join(mail.to)
    found["Subject"] = f"[countersign] {' '.join(said[0].split())}"
    found["Date"] = format_datetime(datetime.fromisoformat(entry.time))
    found["Message-ID"] = f"<entry-{entry.hash.hex()[:32]}@countersign>"
    found["References"] = f"<{approval}@countersign>"
    found["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday notes in answer
    found.set_content("\n".join(said) + "\n")
    return found
