"""The ``rtls`` backend: rustls and aws-lc, through the extension module of the PyPI package ``rtls``.

Not through the package's imitation of :mod:`ssl`: that makes an OpenSSL context for every one of its own, and its
reading never returns when bytes follow the end of data that a peer has announced (release 2026.9.21), which any sandbox
could send. The extension's own objects are a thin cover of rustls; since they are nobody's promise, exactly one release
is accepted, and it must pass ``checked`` in the process that uses it.

What differs from OpenSSL: no sessions are resumed (a configuration is made anew for every connection); TLS 1.2 without
forward secrecy is not spoken; a certificate authority's own certificate is not a server's. webpki ignores two things
that this project does not: the key usage of intermediates, and the expiry of roots. Both are looked at here. A
connection to an origin holds a copy of all roots, 260 KB, so only some are made so; the others are OpenSSL's, which
verifies no less.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from cryptography import x509
from rtls import _rustls

from ringfence.gateway.backends import JOIN, OPENSSL, READ, Insecure, OpenSslEndpoint, Sink
from ringfence.gateway.core.refusal import UNACCEPTED, UNTRUSTED

if TYPE_CHECKING:
    from ringfence.gateway.backends import Endpoint

RELEASE: Final = "2026.9.21"
"""The release that is tested here; no other is used."""
FOUND: Final = version("rtls")
MOST: Final = 256
"""Connections to origins at a time, 66 MB of roots."""
_FEED: Final = 32_768
"""Bytes that rustls gets at a time: it moves what is left to the front for every record."""
_TLS13: Final = 0x0304
_REQUIRED: Final = 2


class Rustls:
    """See :class:`ringfence.gateway.backends.Backend`. Made by :func:`checked` alone."""

    name = "rtls"

    def server_context(self, leaf: bytes, key: bytes) -> Leaf:
        return Leaf(leaf, key)

    def client_context(self, extra_ca: str, protocols: Sequence[str]) -> Roots:
        store = OPENSSL.client_context(extra_ca, protocols)
        return Roots(_unexpired(store, time.time()), protocols, store)


class Leaf:
    """A server's context: a leaf and its key. It costs a thousand bytes; every connection reads it anew."""

    __slots__ = ("_builder",)

    def __init__(self, leaf: bytes, key: bytes) -> None:
        self._builder = _rustls.RustlsConfigBuilder()
        self._builder.set_server_cert_chain_pem(leaf, key, None)
        self._builder.set_alpn([b"h2", b"http/1.1"])

    def endpoint(self, _server_name: str | None) -> Endpoint:
        return ServerEndpoint(self._builder.build_server_connection())


class Roots:
    """A client's context: whom it trusts."""

    __slots__ = ("_builder", "_otherwise", "live")

    def __init__(self, roots: Sequence[bytes], protocols: Sequence[str], otherwise: ssl.SSLContext) -> None:
        """``otherwise`` is for connections that are too many."""
        self._otherwise = otherwise
        self._builder = _rustls.RustlsConfigBuilder()
        self._builder.set_verify_mode(_REQUIRED)
        self._builder.set_check_hostname(True)
        self._builder.set_alpn([protocol.encode() for protocol in protocols])
        for root in roots:
            self._builder.add_root_cert_from_der(root)
        self.live = 0
        """Connections there are."""

    def endpoint(self, server_name: str | None) -> Endpoint:
        if self.live >= MOST:
            return OpenSslEndpoint(self._otherwise, False, server_name, None)
        return ClientEndpoint(self, server_name or "")

    def connect(self, server_name: str) -> _rustls.RustlsClientConnection:
        return self._builder.build_client_connection(server_name)


def _unexpired(store: ssl.SSLContext, now: float) -> Sequence[bytes]:
    """The roots of a store (DER) that have not expired; webpki does not look."""
    listed = zip(store.get_ca_certs(binary_form=True), store.get_ca_certs(), strict=True)
    return [der for der, told in listed if ssl.cert_time_to_seconds(str(told["notAfter"])) > now]


class _Endpoint:
    """What both sides have in common. See :class:`ringfence.gateway.backends.Endpoint`."""

    __slots__ = ("_conn", "_rest")

    _conn: _rustls.RustlsServerConnection | _rustls.RustlsClientConnection

    def shake(self, data: bytes) -> bool:
        conn = self._conn
        try:
            for at in range(0, len(data), _FEED):
                piece = data[at : at + _FEED]
                while piece:
                    taken = conn.read_tls(piece)
                    conn.process_new_packets()
                    piece = piece[taken:]
                    if not conn.is_handshaking():
                        self._rest = piece + data[at + _FEED :]  # the first request came with the last flight
                        return True
                    if not taken:
                        raise Insecure("the connection was closed during the TLS handshake")
        except ssl.SSLError as flaw:
            raise Insecure(explain(flaw)) from None
        return not conn.is_handshaking()

    def feed(self, data: bytes, sink: Sink) -> bool:
        conn = self._conn
        if self._rest:
            data, self._rest = self._rest + data, b""
        try:
            taken = conn.read_tls(data[:_FEED]) if data else 0
            conn.process_new_packets()
            piece = conn.read_plaintext(READ)
            if taken == len(data) and 0 < len(piece) < READ and not conn.pending():
                sink.plain(piece)  # nearly every request and response is one record
                return not conn.wants_read()
            return self._drain([piece] if piece else [], data[taken:] if taken else b"", sink)
        except ssl.SSLError as flaw:
            raise Insecure(explain(flaw)) from None

    def _drain(self, pieces: list[bytes], data: bytes, sink: Sink) -> bool:
        """Take all plaintext, what ``data`` brings included."""
        conn = self._conn
        size = sum(map(len, pieces))
        said = bool(pieces)
        at = 0
        while True:
            while piece := conn.read_plaintext(READ):
                pieces.append(piece)
                size += len(piece)
                if size >= JOIN:
                    sink.plain(b"".join(pieces))
                    if sink.closed:
                        return False
                    said = True
                    pieces.clear()
                    size = 0
            if at >= len(data):
                break
            taken = conn.read_tls(data[at : at + _FEED])
            if not taken:
                break  # bytes behind the announced end of data are nobody's
            at += taken
            conn.process_new_packets()
        if pieces:
            sink.plain(b"".join(pieces))
        elif not said:
            sink.speak()
        return not conn.wants_read()

    def seal(self, payload: bytes | memoryview) -> bytes:
        conn = self._conn
        rest = bytes(payload)
        said = b""
        try:
            while True:
                taken = conn.write_plaintext(rest)
                said += self.outgoing()
                if taken == len(rest):
                    return said
                if not taken:
                    raise Insecure("nothing more can be sent on this connection")
                rest = rest[taken:]
        except ssl.SSLError as flaw:
            raise Insecure(explain(flaw)) from None

    def farewell(self) -> None:
        with suppress(ssl.SSLError):
            self._conn.send_close_notify()

    def outgoing(self) -> bytes:
        conn = self._conn
        said = b""
        while conn.wants_write() and (piece := conn.write_tls()):
            said += piece
        return said

    @property
    def protocol(self) -> str | None:
        chosen = self._conn.alpn_protocol()
        return None if chosen is None else chosen.decode()

    @property
    def session(self) -> None:
        """Nothing can be resumed."""
        return None


class ServerEndpoint(_Endpoint):
    __slots__ = ()

    def __init__(self, conn: _rustls.RustlsServerConnection) -> None:
        self._conn = conn
        self._rest = b""

    @property
    def unhurried(self) -> bool:
        return self._conn.protocol_version() == _TLS13  # tickets, which nobody will redeem


class ClientEndpoint(_Endpoint):
    """It begins with the first ``shake``, so that what is wrong with the name is said like everything else."""

    __slots__ = ("_name", "_roots", "_shaken")

    def __init__(self, roots: Roots, server_name: str) -> None:
        self._roots = roots
        self._name = server_name
        self._rest = b""
        self._shaken = False
        roots.live += 1

    def __del__(self) -> None:
        self._roots.live -= 1

    def shake(self, data: bytes) -> bool:
        if not self._shaken:
            self._shaken = True
            try:
                self._conn = self._roots.connect(self._name)
            except ssl.SSLError as flaw:
                raise Insecure(explain(flaw)) from None
        if not super().shake(data):
            return False
        for issuer in (self._conn.peer_certificates() or [])[1:]:
            if not _may_issue(bytes(issuer)):
                raise Insecure("certificate verification failed: invalid CA certificate")
        return True

    def outgoing(self) -> bytes:
        return super().outgoing() if hasattr(self, "_conn") else b""

    @property
    def unhurried(self) -> bool:
        return False


@lru_cache(maxsize=1024)
def _may_issue(der: bytes) -> bool:
    """Whether a certificate's key usage, if it has one, lets it sign certificates (RFC 5280 section 6.1.4 (n))."""
    try:
        usage = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        return True
    except ValueError:
        return False
    return bool(usage.value.key_cert_sign)


# -- words ----------------------------------------------------------------------------------------------------

_CERTIFICATE: Final = "invalid peer certificate: "
_VERIFIED: Final = (
    ("certificate not valid for name", "Hostname mismatch"),
    ("certificate expired", "certificate has expired"),
    ("certificate not valid yet", "certificate is not yet valid"),
    ("certificate does not allow extended key usage", "unsuitable certificate purpose"),
    ("UnknownIssuer", "unable to get local issuer certificate"),
    ("BadSignature", "bad signature, or a key that is too weak"),
    ("Other(OtherError(CaUsedAsEndEntity", "a certificate authority's own certificate"),
    ("Other(OtherError(EndEntityUsedAsCa", "invalid CA certificate"),
    ("Other(OtherError(PathLenConstraintViolated", "path length constraint exceeded"),
    ("Other(OtherError(NameConstraintViolation", "permitted subtree violation"),
    ("Other(OtherError(UnsupportedCriticalExtension", "unhandled critical extension"),
    ("Other(OtherError(UnsupportedSignatureAlgorithm", "unsupported signature algorithm"),
)
"""How webpki's words begin, and what OpenSSL would say. The rest of them is the peer's own."""
_SAID: Final = (
    ("received fatal alert: UnknownCA", UNTRUSTED),
    ("received fatal alert: CertificateUnknown", UNACCEPTED),
    ("received fatal alert: BadCertificate", UNACCEPTED),
    ("received fatal alert: ProtocolVersion", "no common TLS version"),
    ("received corrupt message of type InvalidContentType", "the far side does not speak TLS"),
    ("peer is incompatible: NoCipherSuitesInCommon", "no common TLS cipher"),
    ("peer is incompatible: ", "no common TLS version"),
)
_WORD: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def explain(flaw: ssl.SSLError) -> str:
    """Say in words what rustls says in the names of its types."""
    told = str(flaw.args[0]) if flaw.args else ""
    if told.startswith(_CERTIFICATE):
        why = told.removeprefix(_CERTIFICATE)
        text = next((text for start, text in _VERIFIED if why.startswith(start)), "it is not acceptable")
        return f"certificate verification failed: {text}"
    for start, text in _SAID:
        if told.startswith(start):
            return text
    return f"TLS failed: {_WORD.sub(' ', told).lower()[:120]}"


# -- the checks -----------------------------------------------------------------------------------------------


@cache
def checked() -> Rustls | str:
    """Return the backend, or why it is not used. What is checked is what trust depends on: that a handshake with a good
    certificate succeeds, on both sides and with OpenSSL, and that one with a bad certificate does not.
    """
    if FOUND != RELEASE:
        return f"rtls {FOUND} is installed, and only {RELEASE} is known here"
    backend = Rustls()
    try:
        return _failed(time.time()) or backend
    except Exception as error:  # noqa: BLE001  # whatever it was, it did not pass
        return f"rtls did not pass its checks: {type(error).__name__}"


def _failed(now: float) -> str:
    from ringfence.gateway.authority import Mint, create_authority

    if not _unexpired(OPENSSL.client_context("", ()), now):
        return "rtls would trust nobody: the system's roots cannot be listed"
    host, day = "check.ringfence.test", 86_400.0
    key, certificate = create_authority(now=now)
    mint = Mint(key, certificate)
    good = Leaf(mint.leaf(host, now - day, now + day), mint.leaf_key_pem)
    trusting, stranger = _trusting(certificate), _trusting(create_authority(now=now)[1])
    bad = {
        "an expired certificate": (mint.leaf(host, now - 2 * day, now - day), trusting, host),
        "a certificate of the future": (mint.leaf(host, now + day, now + 2 * day), trusting, host),
        "another host's certificate": (mint.leaf("a.test", now - day, now + day), trusting, host),
        "an unknown authority": (mint.leaf(host, now - day, now + day), stranger, host),
    }
    if _meet(trusting.endpoint(host), good.endpoint(None)) != "h2":
        return "rtls did not pass its checks: no connection with a good certificate"
    if not _may_issue(_der(certificate)) or _may_issue(_der(mint.leaf(host, now - day, now + day))):
        return "rtls did not pass its checks: who may issue certificates is misread"
    for what, (leaf, roots, name) in bad.items():
        with suppress(Insecure):
            _meet(roots.endpoint(name), Leaf(leaf, mint.leaf_key_pem).endpoint(None))
            return f"rtls did not pass its checks: it accepts {what}"
    return ""


def _trusting(certificate: bytes) -> Roots:
    store = OPENSSL.client_context(certificate.decode(), ("h2",))
    return Roots([_der(certificate)], ("h2",), store)


def _der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def _meet(client: Endpoint, server: Endpoint) -> str | None:
    """A handshake in memory. Raises :class:`Insecure` if it fails on either side."""
    there = back = b""
    for _ in range(4):
        done = client.shake(back)
        there = client.outgoing()
        done = server.shake(there) and done
        back = server.outgoing()
        if done:
            return server.protocol
    raise Insecure("the handshake does not end")
