"""Handshakes in memory: which certificate is shown, who is let in, what is spoken; no socket, no waiting."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from octoserve.security.certificates import HTTP1, HTTP2, Certificates
from octoserve.security.settings import Tls
from octoserve.security.trust import client_context
from support.security import Ca, touch


class Handshake:
    """Of a server's context and a client's. Raises ssl.SSLError where one of them refuses."""

    def __init__(
        self,
        server: ssl.SSLContext,
        client: ssl.SSLContext,
        name: str | None = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(there, back, server_side=True)
        self.client = client.wrap_bio(back, there, server_hostname=name, session=session)
        waiting = [self.client, self.server]
        for _ in range(10):
            for side in list(waiting):
                try:
                    side.do_handshake()
                    waiting.remove(side)
                except ssl.SSLWantReadError:
                    pass
        try:
            self.client.read(1)  # a server of TLS 1.3 refuses a client that thinks it is through
        except ssl.SSLWantReadError:
            pass
        assert waiting == []

    @property
    def serial(self) -> int:
        shown = self.client.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("certificates"))


def certificates(ca: Ca, name: str, client_ca: str = "") -> Certificates:
    certificate, key = ca.issue(name, 1)
    made = Certificates(Tls(str(certificate), str(key), client_ca))
    made.files.open()
    return made


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_newest_that_could_be_loaded_is_shown(ca: Ca, version) -> None:
    made = certificates(ca, "newest")
    port, client = made.context(HTTP1), client_context(str(ca.certificate))
    client.minimum_version = client.maximum_version = version
    assert Handshake(port, client).serial == 1
    certificate, key = ca.issue("newest", 2)
    assert made.files.look()
    assert Handshake(port, client).serial == 2
    for path in (certificate, key):
        good = path.read_text()
        touch(path, good[: len(good) // 2])
        assert not made.files.look()
        assert made.files.stale
        assert Handshake(port, client).serial == 2
        touch(path, good)
        assert made.files.look()
    other, _ = ca.issue("other", 3)
    touch(certificate, other.read_text())  # whose key has not come yet
    assert not made.files.look()
    assert Handshake(port, client).serial == 2


def test_a_client_that_names_nobody_is_served_too(ca: Ca) -> None:
    client = client_context(str(ca.certificate))
    client.check_hostname = False
    assert Handshake(certificates(ca, "unnamed").context(HTTP1), client, None).serial == 1


@pytest.mark.parametrize("alpn", [HTTP1, HTTP2])
def test_each_port_says_what_it_speaks(ca: Ca, alpn) -> None:
    client = client_context(str(ca.certificate))
    client.set_alpn_protocols([HTTP2, HTTP1])
    assert Handshake(certificates(ca, "alpn").context(alpn), client).server.selected_alpn_protocol() == alpn


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_mutual_tls_follows_its_authorities(ca: Ca, tmp_path: Path, version) -> None:
    first, second = Ca(tmp_path / "first"), Ca(tmp_path / "second")
    trusted = tmp_path / "clients.crt"
    touch(trusted, first.certificate.read_text())
    made = certificates(ca, "mutual", str(trusted))
    port, admin = made.context(HTTP2), made.context(HTTP1, clients=False)

    def client(of: Ca | None) -> ssl.SSLContext:
        shown = map(str, of.issue("client")) if of is not None else ()
        context = client_context(str(ca.certificate), *shown)
        context.minimum_version = context.maximum_version = version
        return context

    one, two, nobody = client(first), client(second), client(None)
    before = Handshake(port, one)
    assert before.server.getpeercert()
    again = Handshake(port, one, session=before.client.session)
    assert again.client.session_reused == (version == ssl.TLSVersion.TLSv1_2)
    for stranger in (two, nobody):
        with pytest.raises(ssl.SSLError):
            Handshake(port, stranger)
    assert Handshake(admin, nobody).serial == 1
    touch(trusted, second.certificate.read_text())
    assert made.files.look()
    assert Handshake(port, two).server.getpeercert()
    for session in (None, before.client.session):  # nor by a session of before
        with pytest.raises(ssl.SSLError):
            Handshake(port, one, session=session)
