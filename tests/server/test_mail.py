"""E-mail: through a real SMTP server, encrypted and with a login, tried again, written down where nobody took it."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from aiosmtpd.smtp import Session as Peer

from server.announcements import announcing
from server.config import MailFile
from server.mail import Mail
from tests import certificates
from tests.gateway.test_approvals import GRACE, SQL, Desk, broken, desk

__all__ = ["desk"]  # a fixture


@dataclass
class Postbox:
    """What an SMTP server got; the first answers are `codes`, then it takes everything."""

    codes: list[str] = field(default_factory=list)
    got: list[EmailMessage] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    encrypted: bool = False

    async def handle_DATA(self, server: SMTP, session: Peer, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        assert isinstance(envelope.content, bytes)
        found = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(found, EmailMessage)
        self.got.append(found)
        self.encrypted = session.ssl is not None
        self.arrived.set()
        return self.codes.pop(0) if self.codes else "250 taken"

    async def until(self, count: int) -> None:
        async with asyncio.timeout(15):
            while len(self.got) < count:
                self.arrived.clear()
                await self.arrived.wait()


def _login(server: SMTP, session: Peer, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    good = LoginPassword(b"countersign", b"letmein")
    return AuthResult(success=data == good, handled=False)


@asynccontextmanager
async def postbox(folder: Path, *codes: str) -> AsyncIterator[tuple[Postbox, Mail]]:
    """A server that wants STARTTLS and a login, and how to reach it."""
    certificate = certificates.make(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.certificate, certificate.key)
    box = Postbox(list(codes))

    def serve() -> SMTP:
        return SMTP(
            box, tls_context=context, require_starttls=True, auth_required=True, authenticator=_login, loop=loop,
            hostname="localhost",
        )  # fmt: skip

    loop = asyncio.get_running_loop()
    server = await loop.create_server(serve, "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    mail = Mail(
        "localhost", box.port, "countersign@example.com", ("dba@example.com",), ca=certificate.certificate,
        user="countersign", password="letmein", pauses=(0.0, 0.0),
    )  # fmt: skip
    try:
        yield box, mail
    finally:
        server.close()
        await server.wait_closed()


def body_of(message: EmailMessage) -> str:
    return str(message.get_content()).replace("\r\n", "\n")


async def test_a_request_and_its_end_are_a_thread_of_mail_without_the_statement(desk: Desk, tmp_path: Path) -> None:
    async with postbox(tmp_path) as (box, mail):
        told = replace(mail, events=frozenset({"requested", "approved"}), link="https://console.example/{approval}")
        async with announcing([told], desk.recorder):
            pending = await desk.ask()
            await desk.vote(pending, GRACE)
            await box.until(2)
    first, second = box.got
    assert box.encrypted
    assert first["Subject"] == f"[countersign] {pending.id}: requested by devin on shop"
    assert (first["To"], first["From"]) == ("dba@example.com", "countersign@example.com")
    assert first["References"] == second["References"] == f"<{pending.id}@countersign>"
    assert f"countersign approvals show {pending.id}\nhttps://console.example/{pending.id}\n" in body_of(first)
    assert second["Subject"] == f"[countersign] {pending.id}: approved by grace on shop"
    assert not [one for one in box.got if SQL.decode() in str(one)]


async def test_the_statement_goes_along_only_where_it_is_asked_for(desk: Desk, tmp_path: Path) -> None:
    async with postbox(tmp_path) as (box, mail), announcing([replace(mail, statement=True)], desk.recorder):
        await desk.ask()
        await box.until(1)
    assert SQL.decode() in body_of(box.got[0])


async def test_a_broken_glass_and_its_review_are_told_with_the_comment_and_the_command(
    desk: Desk, tmp_path: Path
) -> None:
    events = frozenset({"broken_glass", "review_opened"})
    async with postbox(tmp_path) as (box, mail), announcing([replace(mail, events=events)], desk.recorder):
        pending = await broken(desk)
        await box.until(2)
    assert "comment: the shop is down" in body_of(box.got[0])
    assert f"countersign approvals review {pending.id} --comment" in body_of(box.got[1])


async def test_what_was_not_taken_is_sent_again_as_the_same_message(desk: Desk, tmp_path: Path) -> None:
    async with postbox(tmp_path, "451 later", "550 no") as (box, mail), announcing([mail], desk.recorder):
        await desk.ask()
        await box.until(3)
    assert len({one["Message-ID"] for one in box.got}) == 1
    assert desk.entries("mail.failed") == []


async def failure(desk: Desk) -> str:
    async with asyncio.timeout(15):
        while not desk.entries("mail.failed"):  # noqa: ASYNC110 - bounded
            await asyncio.sleep(0.01)
    [(_, body)] = desk.entries("mail.failed")
    return body


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"password": "guessed"}, "5"),
    ({"security": "none"}, "STARTTLS"),  # this server takes no login in the clear
    ({"host": "127.0.0.1", "ca": None}, "certificate"),
]


@pytest.mark.parametrize(("changed", "said"), WRONG, ids=["wrong password", "in the clear", "unknown certificate"])
async def test_what_nobody_takes_is_an_entry(desk: Desk, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    async with postbox(tmp_path) as (box, mail), announcing([replace(mail, **changed)], desk.recorder):
        await desk.ask()
        told = await failure(desk)
    assert said.lower() in told.lower()
    assert "dba@example.com" in told
    assert "guessed" not in told
    assert box.got == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"security": "none"}, "on this machine only"),
        ({"user": "x"}, "go together"),
        ({"password_env": "X"}, "go together"),
        ({"to": ["a@b, c@d"]}, "pattern"),
        ({"sender": "a@b\nBcc: c@d"}, "pattern"),
    ],
)
def test_a_mailbox_that_would_be_read_by_others_or_is_none_is_refused(changed: dict[str, Any], sentence: str) -> None:
    file = {"host": "smtp.example.com", "sender": "a@example.com", "to": ["b@example.com"]}
    with pytest.raises(ValueError, match=sentence):
        MailFile(**(file | changed))
