"""A connection of the gateway, in the clear or under TLS, on either side.

TLS runs over memory buffers, not over the event loop's own (``start_tls`` costs 80 KB and a race per
connection): the bytes that a client sent before anybody knew that they are TLS go into the buffer like all
others. Plaintext is taken out in records of 16 KB, joined to at most 64 KB: larger reads fault in fresh pages
for every record, larger joins grow the other side's buffer by copying.

The two-function shape (``feed`` and ``send``) is all that a TLS backend has to offer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from typing import Final, cast

from ringfence.gateway.turns import Round

READ: Final = 16_384
JOIN: Final = 65_536
HIGH_WATER: Final = 65_536
_RST: Final = struct.pack("ii", 1, 0)


class Link(asyncio.Protocol):
    """A transport with an optional TLS layer. Subclasses say what becomes of plaintext and of endings."""

    __slots__ = (
        "_held",
        "_in",
        "_out",
        "_round",
        "_shaken",
        "_stalled",
        "_tls",
        "_wants_pause",
        "closed",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, round_: Round) -> None:
        self._round = round_
        self._held: list[bytes] = []
        """What will be written at the end of the round."""
        self._tls: ssl.SSLObject | None = None
        self._shaken = False
        self._stalled = False
        self._wants_pause = False
        self.closed = False

    # -- what subclasses do -------------------------------------------------------------------------------

    def plain(self, data: bytes) -> None:
        """Bytes that arrived, decrypted where there is TLS."""
        raise NotImplementedError

    def secured(self) -> None:
        """The TLS handshake is complete."""
        raise NotImplementedError

    def insecure(self, text: str) -> None:
        """TLS failed: the handshake, or a record."""
        raise NotImplementedError

    def ended(self, *, clean: bool) -> None:
        """The far side sends no more. ``clean`` means that nobody in between can have cut it short."""
        raise NotImplementedError

    # -- asyncio's events ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def eof_received(self) -> bool:
        if not self.closed:
            self.ended(clean=self._tls is None)
        return True

    # -- TLS ----------------------------------------------------------------------------------------------

    def wrap(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        """From now on the transport's bytes are TLS records."""
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._in, self._out, server_side=server_side, server_hostname=server_name, session=session
        )

    def shake(self) -> bool:
        """Go on with the handshake; return whether it is complete."""
        tls = self._tls
        assert tls is not None
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush_tls()
            return False
        except ssl.SSLError as flaw:
            self._flush_tls()
            self.insecure(explain(flaw))
            return False
        self._shaken = True
        if not (tls.server_side and tls.version() == "TLSv1.3"):
            self._flush_tls()  # else only a session ticket waits, which can travel with the first response
        self.secured()
        return not self.closed

    def data_received(self, data: bytes) -> None:
        """Take what came; give plaintext."""
        tls = self._tls
        if tls is None:
            self.plain(data)
            return
        incoming = self._in
        incoming.write(data)
        if not self._shaken and not self.shake():
            return
        pieces: list[bytes] = []
        size = 0
        over = False
        while True:
            try:
                piece = tls.read(READ)
            except ssl.SSLWantReadError:
                self._flush_tls()
                break
            except ssl.SSLError as flaw:
                self.insecure(explain(flaw))
                return
            if not piece:
                over = True
                break
            more = incoming.pending or (len(piece) == READ and tls.pending())
            if not more and not pieces:
                self.plain(piece)  # nearly every request and response is one record
                return
            pieces.append(piece)
            size += len(piece)
            if size >= JOIN:
                self.plain(b"".join(pieces))
                if self.closed:
                    return
                pieces.clear()
                size = 0
            if not more:
                break
        if pieces:
            self.plain(b"".join(pieces))
        if over and not self.closed:
            self.ended(clean=True)

    def _flush_tls(self) -> None:
        if self._out.pending and not self.closed:
            self._write(self._out.read())

    # -- commands -----------------------------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        if self.closed:
            return
        tls = self._tls
        if tls is None:
            self._write(payload)
            return
        try:
            if len(payload) <= JOIN:
                if payload:
                    tls.write(payload)
                    self._write(self._out.read())
                return
            view = memoryview(payload)
            for at in range(0, len(view), JOIN):
                tls.write(view[at : at + JOIN])
                self._write(self._out.read())
        except ssl.SSLError as flaw:
            self.insecure(explain(flaw))

    def _write(self, payload: bytes) -> None:
        held = self._held
        if not held:
            if len(payload) > READ or self._round.is_lonely():  # bulk needs no company
                self.transport.write(payload)
                return
            self._round.add(self)
        held.append(payload)

    def flush(self) -> None:
        """Write what was held back."""
        held = self._held
        if not held:
            return
        self._held = []
        if not self.closed:
            self.transport.write(held[0] if len(held) == 1 else b"".join(held))

    def pause(self) -> None:
        self._wants_pause = True
        if not self.closed:
            self.transport.pause_reading()

    def resume(self) -> None:
        self._wants_pause = False
        if not self.closed and not self._stalled:
            self.transport.resume_reading()

    def stall(self, stalled: bool) -> None:
        """Read nothing for now, whatever the protocol wants: somebody else's turn, or records that must
        wait.
        """
        self._stalled = stalled
        if self.closed:
            return
        if stalled:
            self.transport.pause_reading()
        elif not self._wants_pause:
            self.transport.resume_reading()

    def say_goodbye(self) -> None:
        """Send TLS's own end of data, so that the far side can tell it from a cut wire."""
        if self._tls is not None and self._shaken and not self.closed:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush_tls()

    def abort(self, *, hard: bool = False) -> None:
        """Close at once; ``hard`` answers what is in flight with a reset."""
        if self.closed:
            return
        self.closed = True
        if hard:
            self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self.transport.abort()

    def _socket(self) -> socket.socket:
        return cast("socket.socket", self.transport.get_extra_info("socket"))

    @property
    def protocol(self) -> str | None:
        """What ALPN chose."""
        return None if self._tls is None else self._tls.selected_alpn_protocol()

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection to the same server may resume."""
        return None if self._tls is None else self._tls.session


_ALERTS: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": "the client does not trust this installation's certificate authority",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the client does not accept the gateway's certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the client does not accept the gateway's certificate",
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


def upstream_context(extra_ca: str = "") -> ssl.SSLContext:
    """Return the context for upstream connections: the system's roots and ``extra_ca`` (PEM), names always
    verified.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if extra_ca:
        context.load_verify_locations(cadata=extra_ca)
    return context
