"""The certificate of this process's ports, replaced in every handshake by the newest that could be loaded.

A connection keeps what it shook hands with. TLS 1.2 and later.
"""

from __future__ import annotations

import ssl
import time
from pathlib import Path

from octoserve.core.errors import SettingsError
from octoserve.security.settings import Tls
from octoserve.security.watched import Told, Watched

HTTP1, HTTP2 = "http/1.1", "h2"
HANDSHAKE_SECONDS = 10.0
"""For a client to shake hands in."""


class Certificates:
    """See the module. clients: whether they must show a certificate, where the settings say who signs those."""

    def __init__(self, tls: Tls, told: Told = lambda what, good: None) -> None:
        self._tls = tls
        self._changed = 0.0
        self.files: Watched[dict[tuple[str, bool], ssl.SSLContext]] = Watched(
            "security.tls", (tls.certificate, tls.key, tls.client_ca), self._load, told
        )

    def context(self, alpn: str, clients: bool = True) -> ssl.SSLContext:
        """What a listening port is given, once; `files` has been opened."""
        kind = (alpn, clients)
        outer = _bare(self._tls, alpn, clients)

        def newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
            assert self.files.value is not None
            if outer.verify_mode == ssl.CERT_REQUIRED and self._is_past(connection):
                return int(ssl.AlertDescription.ALERT_DESCRIPTION_HANDSHAKE_FAILURE)
            connection.context = self.files.value[kind]
            return None

        outer.sni_callback = newest  # called whether or not the client names a server
        return outer

    def _is_past(self, connection: ssl.SSLObject) -> bool:
        """Whether a session is taken up that began before the last change: nobody asks for its certificate again.

        Only TLS 1.2 knows such sessions here: they are not to be had without, and last for two hours.
        """
        session = connection.session if connection.session_reused else None
        return session is not None and session.time <= self._changed

    def _load(self) -> dict[tuple[str, bool], ssl.SSLContext]:
        kinds = ((HTTP1, True), (HTTP2, True), (HTTP1, False))
        loaded = {(alpn, clients): _context(self._tls, alpn, clients) for alpn, clients in kinds}
        self._changed = 0.0 if self.files.value is None else time.time()
        return loaded


def _bare(tls: Tls, alpn: str, clients: bool) -> ssl.SSLContext:
    """How a handshake is made, without the certificates; what OpenSSL takes from a connection's first context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([alpn])
    if tls.client_ca and clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_TICKET  # a session that is taken up again shows no certificate
        context.num_tickets = 0
    return context


def _context(tls: Tls, alpn: str, clients: bool) -> ssl.SSLContext:
    """Raises SettingsError."""
    context = _bare(tls, alpn, clients)
    for name, path in (("certificate", tls.certificate), ("key", tls.key), ("client_ca", tls.client_ca)):
        _check_readable(name, path)
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except ssl.SSLError as error:
        why = "the key is not the certificate's" if "MISMATCH" in str(error.reason) else _why(error)
        raise SettingsError(
            f"security.tls: {tls.certificate} and {tls.key}: {why}; a PEM certificate, its chain behind it, and its "
            "PEM key without a password are wanted"
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"security.tls: {tls.certificate} and {tls.key}: {error}") from None
    if tls.client_ca and clients:
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError(
                f"security.tls.client_ca: {tls.client_ca}: {_why(error)}; PEM certificates are wanted"
            ) from None
    return context


def _check_readable(name: str, path: str) -> None:
    if not path:
        return
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"security.tls.{name}: cannot read {path}: {error.strerror}") from None


def _no_password() -> str:
    """In place of a question at the terminal."""
    raise ValueError("the key is encrypted; one without a password is wanted")


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason is None and isinstance(error, ssl.SSLError):
        return "they are not PEM"
    return str(reason or error).replace("_", " ").lower()
