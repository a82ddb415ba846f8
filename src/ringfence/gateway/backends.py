"""TLS backends: who makes handshakes and records, behind one small interface.

An ``Endpoint`` is one end of a connection in memory: bytes of the wire go in (``shake``, ``feed``), plaintext goes to
a ``Sink``, what is to be said to the far side comes out (``seal``, ``outgoing``). A ``Backend`` makes contexts for the
two sides, and nothing else of it is known anywhere.

Python's own :mod:`ssl` always works and is all that is needed. ``rtls`` (:mod:`ringfence.gateway.rustls`) is an extra
that makes handshakes cheaper; it is used when it is the very release that is tested here and has passed its checks in
this process. By itself it is chosen for the sandboxes' side only: there it spares a context of 0.5 ms and 20 KB for
every host. Upstream it would spare a third of a handshake, and cost 260 KB a connection and resumption altogether.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ringfence.gateway.core.refusal import UNACCEPTED, UNTRUSTED

READ: Final = 16_384
"""Plaintext is taken in records: a larger read faults in fresh pages for every one."""
JOIN: Final = 65_536
"""Records are joined to so much: more makes the other side's buffer grow by copying."""
WISHES: Final = ("auto", "ssl", "rtls")


class Insecure(Exception):
    """TLS failed, the handshake or a record; in words."""


class Sink(Protocol):
    """Who wants the plaintext."""

    closed: bool

    def plain(self, data: bytes) -> None: ...
    def speak(self) -> None:
        """Send what TLS itself has to say."""


class Endpoint(Protocol):
    """One end of a TLS connection. Every method but the getters may raise :class:`Insecure`."""

    def shake(self, data: bytes) -> bool:
        """Go on with the handshake; return whether it is complete. ``feed`` gives what came after it."""

    def feed(self, data: bytes, sink: Sink) -> bool:
        """Decrypt what came; return whether the far side has said that it sends no more."""

    def seal(self, payload: bytes | memoryview) -> bytes:
        """Encrypt at most ``JOIN`` bytes; return what is to be sent, with what waited."""

    def farewell(self) -> None:
        """Say that nothing more is sent."""

    def outgoing(self) -> bytes:
        """Return what waits to be sent."""

    @property
    def unhurried(self) -> bool:
        """Whether what waits after the handshake can travel with the first response."""

    @property
    def protocol(self) -> str | None:
        """What ALPN chose."""

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection may resume."""


class MemoryContext(Protocol):
    """What endpoints of a backend other than :mod:`ssl` are made from."""

    def endpoint(self, server_name: str | None) -> Endpoint: ...


Context = ssl.SSLContext | MemoryContext


class Backend(Protocol):
    """The two functions."""

    name: str

    def server_context(self, leaf: bytes, key: bytes) -> Context:
        """Return a context that presents a leaf (PEM), and offers HTTP/2 and HTTP/1.1."""

    def client_context(self, extra_ca: str, protocols: Sequence[str]) -> Context:
        """Return a context that trusts the system's roots and ``extra_ca`` (PEM), and verifies names always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """Which backend is in force on either side, and why."""

    server: Backend
    client: Backend
    reason: str


def endpoint(
    context: Context, *, server_side: bool, server_name: str | None, session: ssl.SSLSession | None
) -> Endpoint:
    if isinstance(context, ssl.SSLContext):
        return OpenSslEndpoint(context, server_side, server_name, session)
    return context.endpoint(server_name)


def choose(wish: str) -> Backends:
    """Return the backends to use. ``rtls`` that cannot be had is ``ssl``, and the reason says so. Raises ``ValueError``
    for a wish that is none.
    """
    if wish not in WISHES:
        raise ValueError(f"`{wish[:20]}` is no TLS backend; there are {', '.join(WISHES)}")
    if wish == "ssl":
        return Backends(server=OPENSSL, client=OPENSSL, reason="as configured")
    try:
        from ringfence.gateway import rustls
    except ImportError:
        missing = "rtls is not installed"
        return Backends(server=OPENSSL, client=OPENSSL, reason=missing)
    found = rustls.checked()
    if isinstance(found, str):
        return Backends(server=OPENSSL, client=OPENSSL, reason=found)
    if wish == "rtls":
        return Backends(server=found, client=found, reason="as configured; its checks passed")
    return Backends(server=found, client=OPENSSL, reason="rtls is installed and its checks passed")


# -- the standard library -------------------------------------------------------------------------------------


class OpenSsl:
    """:mod:`ssl`, whatever OpenSSL it was built with."""

    name = "ssl"

    def server_context(self, leaf: bytes, key: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 1
        context.set_alpn_protocols(["h2", "http/1.1"])
        fd = os.memfd_create("leaf", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(leaf + key)
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return context

    def client_context(self, extra_ca: str, protocols: Sequence[str]) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # RFC 9525 section 6.3: a name is proven by the subject alternative names or not at all.
        context.hostname_checks_common_name = False
        context.set_alpn_protocols(list(protocols))
        if extra_ca:
            context.load_verify_locations(cadata=extra_ca)
        return context


OPENSSL: Final = OpenSsl()


class OpenSslEndpoint:
    """See :class:`Endpoint`."""

    __slots__ = ("_in", "_out", "_tls")

    def __init__(
        self,
        context: ssl.SSLContext,
        server_side: bool,
        server_name: str | None,
        session: ssl.SSLSession | None,
    ) -> None:
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._in, self._out, server_side=server_side, server_hostname=server_name, session=session
        )

    def shake(self, data: bytes) -> bool:
        if data:
            self._in.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as flaw:
            raise Insecure(explain(flaw)) from None
        return True

    def feed(self, data: bytes, sink: Sink) -> bool:
        incoming, tls = self._in, self._tls
        if data:
            incoming.write(data)
        pieces: list[bytes] = []
        size = 0
        while True:
            try:
                piece = tls.read(READ)
            except ssl.SSLWantReadError:
                sink.speak()
                break
            except ssl.SSLError as flaw:
                raise Insecure(explain(flaw)) from None
            if not piece:
                if pieces:
                    sink.plain(b"".join(pieces))
                return True
            more = incoming.pending or (len(piece) == READ and tls.pending())
            if not more and not pieces:
                sink.plain(piece)  # nearly every request and response is one record
                return False
            pieces.append(piece)
            size += len(piece)
            if size >= JOIN:
                sink.plain(b"".join(pieces))
                if sink.closed:
                    return False
                pieces.clear()
                size = 0
            if not more:
                break
        if pieces:
            sink.plain(b"".join(pieces))
        return False

    def seal(self, payload: bytes | memoryview) -> bytes:
        try:
            self._tls.write(payload)
        except ssl.SSLError as flaw:
            raise Insecure(explain(flaw)) from None
        return self._out.read()

    def farewell(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            return  # the far side has not said goodbye yet, or never will

    def outgoing(self) -> bytes:
        return self._out.read()

    @property
    def unhurried(self) -> bool:
        return self._tls.server_side and self._tls.version() == "TLSv1.3"  # a session ticket

    @property
    def protocol(self) -> str | None:
        return self._tls.selected_alpn_protocol()

    @property
    def session(self) -> ssl.SSLSession | None:
        return self._tls.session


_ALERTS: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": UNTRUSTED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": UNACCEPTED,
    "SSLV3_ALERT_BAD_CERTIFICATE": UNACCEPTED,
    "TLSV1_ALERT_PROTOCOL_VERSION": "no common TLS version",
    "UNSUPPORTED_PROTOCOL": "no common TLS version",
    "NO_SHARED_CIPHER": "no common TLS cipher",
    "HTTP_REQUEST": "plain HTTP where TLS was expected",
    "WRONG_VERSION_NUMBER": "the far side does not speak TLS",
}


def explain(flaw: ssl.SSLError) -> str:
    """Say in words what OpenSSL says in constants."""
    if isinstance(flaw, ssl.SSLCertVerificationError):
        return f"certificate verification failed: {flaw.verify_message}"
    reason = flaw.reason or ""
    return _ALERTS.get(reason, f"TLS failed: {reason.replace('_', ' ').lower() or flaw}")
