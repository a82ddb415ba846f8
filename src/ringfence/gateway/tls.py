"""A connection of the gateway, in the clear or under TLS, on either side.

TLS runs over memory buffers, not over the event loop's own (``start_tls`` costs 80 KB and a race per
connection): the bytes that a client sent before anybody knew that they are TLS go into the buffer like all
others. Who makes handshakes and records of them is a backend's matter (:mod:`ringfence.gateway.backends`).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from typing import Final, cast

from ringfence.gateway.backends import JOIN, OPENSSL, READ, Backend, Context, Endpoint, Insecure, endpoint
from ringfence.gateway.turns import Round

_RST: Final = struct.pack("ii", 1, 0)


class Link(asyncio.Protocol):
    """A transport with an optional TLS layer. Subclasses say what becomes of plaintext and of endings."""

    __slots__ = (
        "_held",
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
        self._tls: Endpoint | None = None
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
        self.transport = transport  # type: ignore[assignment]  # no subprocess pipe, no datagrams

    def eof_received(self) -> bool:
        if not self.closed:
            self.ended(clean=self._tls is None)
        return True

    # -- TLS ----------------------------------------------------------------------------------------------

    def wrap(
        self,
        context: Context,
        *,
        server_side: bool,
        server_name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        """From now on the transport's bytes are TLS records."""
        self._tls = endpoint(context, server_side=server_side, server_name=server_name, session=session)

    def shake(self, data: bytes = b"") -> bool:
        """Go on with the handshake; return whether it is complete."""
        tls = self._tls
        assert tls is not None
        try:
            done = tls.shake(data)
        except Insecure as flaw:
            self.speak()
            self.insecure(str(flaw))
            return False
        if not done:
            self.speak()
            return False
        self._shaken = True
        if not tls.unhurried:
            self.speak()
        self.secured()
        return not self.closed

    def data_received(self, data: bytes) -> None:
        """Take what came; give plaintext."""
        tls = self._tls
        if tls is None:
            self.plain(data)
            return
        if not self._shaken:
            if not self.shake(data):
                return
            data = b""
        try:
            over = tls.feed(data, self)
        except Insecure as flaw:
            self.insecure(str(flaw))
            return
        if over and not self.closed:
            self.ended(clean=True)

    def speak(self) -> None:
        """Send what TLS itself has to say."""
        if self._tls is not None and not self.closed and (waiting := self._tls.outgoing()):
            self._write(waiting)

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
                    self._write(tls.seal(payload))
                return
            view = memoryview(payload)
            for at in range(0, len(view), JOIN):
                self._write(tls.seal(view[at : at + JOIN]))
        except Insecure as flaw:
            self.insecure(str(flaw))

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
            self._tls.farewell()
            self.speak()

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
        return None if self._tls is None else self._tls.protocol

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection to the same server may resume."""
        return None if self._tls is None else self._tls.session


def upstream_contexts(extra_ca: str = "", backend: Backend = OPENSSL) -> dict[str, Context]:
    """Return the contexts for upstream connections, by what their ALPN offers at best: the system's roots and
    ``extra_ca`` (PEM), names always verified.
    """
    return {
        "http/1.1": backend.client_context(extra_ca, ("http/1.1",)),
        "h2": backend.client_context(extra_ca, ("h2", "http/1.1")),
    }
