"""The loopback's half of a SAML login: what it takes, and that garbage changes nothing."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.saml_handover import _Loopback

STATE = "s" * 22


def sent(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return connection.makefile("rb").read()


def test_garbage_on_the_loopback_prints_nothing_and_the_code_comes_after_it(capfd: pytest.CaptureFixture[str]) -> None:
    garbage = [
        f"/?code=a&code=b&state={STATE}",
        f"/?code=a&state={STATE}&state={STATE}",
        f"/?code=&state={STATE}",
        "/?code=a&state=other",
        "/?code=a&state=%ED%A0%80\xff",
        "/?code=a",
        "//[?" + "&" * 20,
        "/",
    ]
    with _Loopback(STATE) as loopback, ThreadPoolExecutor(1) as pool:
        code = pool.submit(loopback.wait)
        for path in garbage:
            answer = sent(loopback.server_port, f"GET {path} HTTP/1.0\r\n\r\n".encode("latin-1"))
            assert answer.startswith(b"HTTP/1.0 404"), path
        sent(loopback.server_port, b"\x16\x03\x01\r\n\r\n")
        assert not code.done()
        assert b"200" in sent(loopback.server_port, f"GET /?code=a&state={STATE} HTTP/1.0\r\n\r\n".encode())
        assert code.result(timeout=10) == "a"
    assert capfd.readouterr() == ("", "")
