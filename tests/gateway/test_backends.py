"""TLS backends, each by the same tests: what is accepted, what is refused and in which words, how a connection ends."""

from __future__ import annotations

import ssl
import sys
import time
import types
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import pytest
from certificate_table import HOST, Case, cases
from gateway_stage import installation
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.gateway.authority import Authority
from ringfence.gateway.backends import (
    JOIN,
    OPENSSL,
    Backend,
    Endpoint,
    Insecure,
    OpenSslEndpoint,
    choose,
    endpoint,
)
from ringfence.gateway.core.refusal import UNTRUSTED

BACKENDS = ("ssl", "rtls")
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@cache
def named(name: str) -> Backend:
    if name == "rtls":
        pytest.importorskip("rtls", reason="rtls is not installed (pip install 'ringfence[fast-tls]')")
    chosen = choose(name)
    assert (chosen.server.name, chosen.client.name) == (name, name), chosen.reason
    return chosen.client


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return named(request.param)


class Taken:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.spoke = 0
        self.closed = False

    def plain(self, data: bytes) -> None:
        self.pieces.append(data)

    def speak(self) -> None:
        self.spoke += 1


class Peer:
    """The other side: Python's own TLS."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, name: str | None = None) -> None:
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.into, self.out, server_side=server_side, server_hostname=name)

    def step(self, data: bytes) -> bool:
        if data:
            self.into.write(data)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self) -> bytes:
        got = b""
        with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while piece := self.tls.read(JOIN):
                got += piece
        return got


def meet(ours: Endpoint, peer: Peer) -> None:
    """A handshake. Raises what either side says."""
    data = b""
    for _ in range(5):
        try:
            done = ours.shake(data)
        except Insecure:
            with suppress(ssl.SSLError):
                peer.step(ours.outgoing())
            raise
        met = peer.step(ours.outgoing())
        data = peer.out.read()
        if done and met:
            ours.feed(data, Taken())
            return
    raise AssertionError("the handshake does not end")


def client(backend: Backend, roots: str, host: str, *protocols: str) -> Endpoint:
    context = backend.client_context(roots, protocols or ("http/1.1",))
    return endpoint(context, server_side=False, server_name=host, session=None)


def server(backend: Backend, host: str = HOST) -> Endpoint:
    context = Authority(*installation(), backend=backend).context(host)
    return endpoint(context, server_side=True, server_name=None, session=None)


def trusting(**more: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=installation()[1].decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for name, value in more.items():
        setattr(context, name, value)
    return context


# -- what an origin shows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", cases()[1])
def test_certificates(what: str, backend: Backend) -> None:
    roots, table = cases()
    case: Case = table[what]
    ours = client(backend, roots, case.host)
    peer = Peer(case.server(), server_side=True)
    if not case.says:
        meet(ours, peer)
        return
    with pytest.raises(Insecure, match="certificate verification failed") as refused:
        meet(ours, peer)
    assert any(text and text in str(refused.value) for text in (case.says, case.also)), refused.value


@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
)
def test_versions_of_an_origin(version: ssl.TLSVersion, backend: Backend) -> None:
    roots, table = cases()
    context = table["good"].server()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = version
    ours, peer = client(backend, roots, HOST), Peer(context, server_side=True)
    if version in VERSIONS:
        meet(ours, peer)
        return
    with pytest.raises((Insecure, ssl.SSLError)):
        meet(ours, peer)
    with suppress(Insecure):
        assert not ours.shake(peer.out.read())


def test_an_origin_is_asked_by_its_name_and_for_its_protocols(backend: Backend) -> None:
    roots, table = cases()
    asked: list[str] = []
    context = table["good"].server()
    context.sni_callback = lambda _tls, name, _context: asked.append(name)
    context.set_alpn_protocols(["h2", "http/1.1"])
    for offered, chosen in ((("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1")):
        ours = client(backend, roots, HOST, *offered)
        meet(ours, Peer(context, server_side=True))
        assert ours.protocol == chosen
    assert asked == [HOST, HOST]


def test_an_address_is_no_server_name(backend: Backend) -> None:
    """RFC 6066 section 3: literal addresses are not permitted in a server name."""
    roots, table = cases()
    asked: list[str | None] = []
    context = table["good, an address"].server()
    context.sni_callback = lambda _tls, name, _context: asked.append(name)
    meet(client(backend, roots, "192.0.2.1"), Peer(context, server_side=True))
    assert asked in ([], [None])


def test_the_systems_roots_are_trusted_and_no_others(backend: Backend) -> None:
    _, table = cases()
    with pytest.raises(Insecure, match="local issuer"):
        meet(client(backend, "", HOST), Peer(table["good"].server(), server_side=True))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
        (b"\x15\x03\x03\0\2\x02\x46", "no common TLS version"),
        (b"\x15\x03\x03\0\2\x02\x28", "handshake failure"),
        (b"\x16\x03\x03\xff\xff" + b"x" * 100, "TLS failed"),
    ],
)
def test_what_is_no_handshake(raw: bytes, said: str, backend: Backend) -> None:
    ours = client(backend, "", HOST)
    assert not ours.shake(b"")
    assert ours.outgoing()
    with pytest.raises(Insecure, match=said):
        ours.shake(raw)


# -- what a client sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)]
)
def test_a_client_negotiates(
    version: ssl.TLSVersion, offered: list[str], chosen: str | None, backend: Backend
) -> None:
    context = trusting(minimum_version=version, maximum_version=version)
    if offered:
        context.set_alpn_protocols(offered)
    ours, peer = server(backend), Peer(context, server_side=False, name=HOST)
    assert not peer.step(b"")
    meet_client(ours, peer)
    assert (ours.protocol, peer.tls.selected_alpn_protocol()) == (chosen, chosen)
    assert peer.tls.version() == version.name.replace("_", ".")
    shown = peer.tls.getpeercert()
    assert shown is not None
    assert shown["subjectAltName"] == (("DNS", HOST),)


def meet_client(ours: Endpoint, peer: Peer) -> None:
    done = met = False
    for _ in range(5):
        if not done:
            done = ours.shake(peer.out.read())
        met = peer.step(ours.outgoing())
        if done and met:
            return
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_an_old_client_is_refused(version: ssl.TLSVersion, backend: Backend) -> None:
    context = trusting(minimum_version=version, maximum_version=version)
    context.set_ciphers("ALL:@SECLEVEL=0")
    ours, peer = server(backend), Peer(context, server_side=False, name=HOST)
    peer.step(b"")
    with pytest.raises(Insecure, match="no common TLS version"):
        ours.shake(peer.out.read())
    assert ours.outgoing(), "it is told"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_does_not_trust_us(version: ssl.TLSVersion, backend: Backend) -> None:
    stranger = ssl.create_default_context(cadata=cases()[0])
    stranger.minimum_version = stranger.maximum_version = version
    ours, peer = server(backend), Peer(stranger, server_side=False, name=HOST)
    peer.step(b"")
    ours.shake(peer.out.read())
    with pytest.raises(ssl.SSLCertVerificationError):
        peer.step(ours.outgoing())
    with pytest.raises(Insecure, match=UNTRUSTED):
        hear(ours, peer.out.read())


def hear(ours: Endpoint, data: bytes) -> None:
    if ours.shake(data):
        ours.feed(b"", Taken())


def test_a_session_of_one_host_is_noise_to_another(backend: Backend) -> None:
    context = trusting()
    peer = Peer(context, server_side=False, name=HOST)
    peer.step(b"")
    meet_client(server(backend), peer)
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    again = context.wrap_bio(into, out, server_hostname="b.test", session=peer.tls.session)
    other = Peer.__new__(Peer)
    other.into, other.out, other.tls = into, out, again
    other.step(b"")
    meet_client(server(backend, "b.test"), other)
    assert not again.session_reused
    shown = again.getpeercert()
    assert shown is not None
    assert shown["subjectAltName"] == (("DNS", "b.test"),)


# -- records ----------------------------------------------------------------------------------------------------------


def connected(backend: Backend, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[Endpoint, Peer]:
    ours = server(backend)
    peer = Peer(trusting(minimum_version=version, maximum_version=version), server_side=False, name=HOST)
    peer.step(b"")
    meet_client(ours, peer)
    return ours, peer


def sealed(peer: Peer, payload: bytes) -> bytes:
    peer.tls.write(payload)
    return peer.out.read()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1, 16_383, 16_384, 16_385, 65_536, 300_000])
def test_bytes_arrive_as_they_were_sent(size: int, version: ssl.TLSVersion, backend: Backend) -> None:
    ours, peer = connected(backend, version)
    payload = bytes(n % 251 for n in range(size))
    for step in (1 << 20, 32_768, 997):
        wire, taken = sealed(peer, payload), Taken()
        for at in range(0, len(wire), step):
            assert not ours.feed(wire[at : at + step], taken)
        assert b"".join(taken.pieces) == payload
        assert max(map(len, taken.pieces)) < JOIN + 16_384
    for at in range(0, size, JOIN):
        peer.into.write(ours.seal(memoryview(payload)[at : at + JOIN]))
    assert peer.read() == payload


def test_a_request_that_comes_with_the_last_flight(backend: Backend) -> None:
    ours = server(backend)
    peer = Peer(trusting(), server_side=False, name=HOST)
    peer.step(b"")
    assert not ours.shake(peer.out.read())
    assert peer.step(ours.outgoing())
    payload = b"x" * 200_000
    last = peer.out.read() + sealed(peer, payload)
    taken = Taken()
    assert ours.shake(last)
    assert not ours.feed(b"", taken)
    assert b"".join(taken.pieces) == payload


@pytest.mark.parametrize("version", VERSIONS)
def test_the_announced_end_is_told_from_a_cut_wire(version: ssl.TLSVersion, backend: Backend) -> None:
    ours, peer = connected(backend, version)
    wire, taken = sealed(peer, b"last words"), Taken()
    with suppress(ssl.SSLError):
        peer.tls.unwrap()
    bye = peer.out.read()
    assert not ours.feed(wire, taken)
    assert ours.feed(bye, taken)
    assert taken.pieces == [b"last words"]
    ours.farewell()
    assert ours.outgoing()


def test_bytes_behind_the_announced_end_are_nobodys(backend: Backend) -> None:
    """They made the ``rtls`` package's own reading go round for ever."""
    ours, peer = connected(backend)
    with suppress(ssl.SSLError):
        peer.tls.unwrap()
    bye = peer.out.read()
    taken = Taken()
    for junk in (bye + b"\x17\x03\x03\0\x20" + b"x" * 32, b"more", b"\0" * 100_000):
        with suppress(Insecure):
            assert ours.feed(junk, taken)
    assert taken.pieces == []


def test_a_record_that_was_tampered_with(backend: Backend) -> None:
    ours, peer = connected(backend)
    wire = bytearray(sealed(peer, b"hello"))
    wire[-1] ^= 1
    taken = Taken()
    with pytest.raises(Insecure, match="TLS failed"):
        ours.feed(bytes(wire), taken)
    assert taken.pieces == []


def test_a_sink_that_closes_gets_nothing_more(backend: Backend) -> None:
    ours, peer = connected(backend)
    taken = Taken()
    taken.closed = True
    ours.feed(sealed(peer, b"x" * 4 * JOIN), taken)
    assert len(taken.pieces) == 1


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(BACKENDS), st.booleans(), st.lists(st.binary(max_size=300), max_size=4))
def test_no_bytes_break_an_endpoint(name: str, ours_is_server: bool, pieces: list[bytes]) -> None:
    backend = named(name)
    ours = server(backend) if ours_is_server else client(backend, "", HOST)
    with suppress(Insecure):
        ours.shake(b"")
        for piece in pieces:
            assert not ours.shake(b"\x16\x03\x01" + piece)
            ours.outgoing()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(BACKENDS), st.data())
def test_no_bytes_break_a_connection(name: str, drawn: st.DataObject) -> None:
    ours, peer = connected(named(name))
    wire = bytearray(sealed(peer, b"x" * 1000) + sealed(peer, b"y" * 20_000))
    for _ in range(drawn.draw(st.integers(0, 3))):
        wire[drawn.draw(st.integers(0, len(wire) - 1))] ^= drawn.draw(st.integers(1, 255))
    taken = Taken()
    with suppress(Insecure):
        for at in range(0, len(wire), step := drawn.draw(st.integers(1, 30_000))):
            ours.feed(bytes(wire[at : at + step]), taken)
    assert (b"x" * 1000 + b"y" * 20_000).startswith(b"".join(taken.pieces))


# -- which one --------------------------------------------------------------------------------------------------------


def test_ssl_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rtls", None)
    monkeypatch.delitem(sys.modules, "ringfence.gateway.rustls", raising=False)
    monkeypatch.delattr("ringfence.gateway.rustls", raising=False)
    for wish in ("auto", "rtls"):
        chosen = choose(wish)
        assert (chosen.server, chosen.client, chosen.reason) == (OPENSSL, OPENSSL, "rtls is not installed")
    assert choose("ssl").reason == "as configured"


def test_rtls_is_chosen_for_the_sandboxes_side_by_itself_and_for_both_when_told() -> None:
    named("rtls")
    by_itself, told = choose("auto"), choose("rtls")
    assert (by_itself.server.name, by_itself.client.name) == ("rtls", "ssl")
    assert (told.server.name, told.client.name) == ("rtls", "rtls")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda m, r: m.setattr(r, "FOUND", "2027.1.1"), "2027.1.1 is installed"),
        (lambda m, r: None, ""),
        (lambda m, r: m.setattr(r, "_may_issue", lambda _: True), "who may issue"),
        (lambda m, r: m.setattr(r.Roots, "connect", _lenient), "it accepts"),
        (lambda m, r: m.setattr(r.Leaf, "endpoint", None), "did not pass its checks"),
    ],
    ids=[
        "another release",
        "nothing",
        "one that lets anybody issue",
        "one that accepts anything",
        "one that fails",
    ],
)
def test_an_rtls_that_fails_its_checks_is_not_used(
    spoil: Callable[[pytest.MonkeyPatch, types.ModuleType], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named("rtls")
    from ringfence.gateway import rustls

    spoil(monkeypatch, rustls)
    rustls.checked.cache_clear()
    try:
        chosen = choose("rtls")
    finally:
        monkeypatch.undo()
        rustls.checked.cache_clear()
    assert (chosen.server.name == "ssl") is bool(reason)
    assert reason in chosen.reason


def _lenient(self: object, server_name: str) -> object:
    self._builder.set_verify_mode(0)  # type: ignore[attr-defined]
    self._builder.set_check_hostname(False)  # type: ignore[attr-defined]
    return self._builder.build_client_connection(server_name)  # type: ignore[attr-defined]


def test_what_is_held_for_connections_to_origins_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a copy of all roots. Beyond the bound connections are OpenSSL's, and verified like any other."""
    backend = named("rtls")
    monkeypatch.setattr("ringfence.gateway.rustls.MOST", 2)
    roots, table = cases()
    context = backend.client_context(roots, ("http/1.1",))

    def one() -> Endpoint:
        return endpoint(context, server_side=False, server_name=HOST, session=None)

    held = [one() for _ in range(3)]
    assert [isinstance(each, OpenSslEndpoint) for each in held] == [False, False, True]
    for ours in held:
        meet(ours, Peer(table["good"].server(), server_side=True))
    with pytest.raises(Insecure, match="has expired"):
        meet(one(), Peer(table["expired"].server(), server_side=True))
    del held, ours
    assert not isinstance(one(), OpenSslEndpoint)


def test_a_leaf_is_valid_now(backend: Backend) -> None:
    """The clock is an argument of the authority's; backends read the real one."""
    authority = Authority(*installation(), now=lambda: time.time() - 40 * 86_400, backend=backend)
    ours = endpoint(authority.context(HOST), server_side=True, server_name=None, session=None)
    peer = Peer(trusting(), server_side=False, name=HOST)
    peer.step(b"")
    ours.shake(peer.out.read())
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        peer.step(ours.outgoing())
