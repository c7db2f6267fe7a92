"""Authenticating to a server as its client: trust, cleartext inside TLS or on loopback, SCRAM-SHA-256(-PLUS). Sans-IO.

Source: PostgreSQL documentation, "Start-up" and "SASL Authentication"; RFC 5802, RFC 7677, RFC 5929.
"""

from __future__ import annotations

from ssl import SSLObject

from cryptography import x509
from scramp import ScramException

from gateway.model import ChannelBinding
from wire.backend import Authentication
from wire.binding import end_point
from wire.fields import ProtocolError
from wire.frontend import AuthenticationResponse
from wire.scram import ScramClient


class LoginError(Exception):
    """The server asks for what we do not do, or did not prove that it knows the password. A sentence."""


class Login:
    """One authentication. Feed it each Authentication message, send what it returns.

    `nonce` is random and printable.
    """

    def __init__(
        self,
        user: str,
        password: str,
        nonce: str,
        *,
        private: bool,
        tls: SSLObject | None,
        channel_binding: ChannelBinding = "prefer",
    ) -> None:
        """`private`: nobody else can read the connection (TLS, or this machine's loopback)."""
        self._user = user
        self._password = password
        self._nonce = nonce
        self._private = private
        self._tls = tls if channel_binding != "disable" else None
        self._bound = channel_binding == "require"
        self._scram: ScramClient | None = None
        self._proved = False
        self.done = False

    def answer(self, request: Authentication) -> AuthenticationResponse | None:
        """The answer to a request; None where none is due. Raises LoginError or ProtocolError."""
        try:
            match request.kind:
                case Authentication.OK:
                    self._accept()
                    return None
                case Authentication.CLEARTEXT:
                    return self._cleartext()
                case Authentication.SASL:
                    return self._scram_first(request.mechanisms())
                case Authentication.SASL_CONTINUE if self._scram is not None:
                    return AuthenticationResponse(self._scram.final(request.data))
                case Authentication.SASL_FINAL if self._scram is not None:
                    self._scram.check(request.data)
                    self._proved = True
                    return None
                case Authentication.MD5:
                    raise LoginError("it asks for an MD5 password, which is not supported: use scram-sha-256")
        except (ScramException, ProtocolError, ValueError) as error:
            raise LoginError(f"SCRAM authentication failed: {error}") from None
        raise ProtocolError(f"unexpected authentication request {request.kind}")

    def _accept(self) -> None:
        if self._scram is not None and not self._proved:
            raise LoginError("it did not prove that it knows the password")
        if self._bound and self._scram is None:
            raise LoginError("it lets us in without SCRAM, but channel_binding is `require`")
        self.done = True

    def _cleartext(self) -> AuthenticationResponse:
        if self._bound:
            raise LoginError("it asks for the password in clear text, but channel_binding is `require`")
        if not self._private:
            raise LoginError("it asks for the password in clear text outside of TLS")
        return AuthenticationResponse.password(self._password)

    def _scram_first(self, mechanisms: list[str]) -> AuthenticationResponse:
        known = [name for name in mechanisms if name in ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")]
        if not known:
            raise LoginError(f"it offers no authentication that is supported, only {', '.join(mechanisms)}")
        binding = self._end_point() if "SCRAM-SHA-256-PLUS" in known else None
        if self._bound and binding is None:
            why = "it does not offer SCRAM-SHA-256-PLUS" if self._tls is not None else "there is no TLS"
            raise LoginError(f"{why}, but channel_binding is `require`")
        could_bind = self._tls is not None and "SCRAM-SHA-256-PLUS" not in known
        self._scram = ScramClient(self._user, self._password, self._nonce, binding, could_bind=could_bind)
        return AuthenticationResponse.sasl_initial(self._scram.mechanism, self._scram.first())

    def _end_point(self) -> bytes | None:
        """What can be bound to: the hash of the server's certificate inside TLS."""
        certificate = self._tls.getpeercert(binary_form=True) if self._tls is not None else None
        return end_point(x509.load_der_x509_certificate(certificate)) if certificate is not None else None
