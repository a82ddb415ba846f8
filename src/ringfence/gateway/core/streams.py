"""One HTTP/2 stream: what flow control does not let go yet, and what is not acknowledged yet (RFC 9113 section
5.2).

The same on both sides of the gateway: a response on its way to a client, a request on its way to an origin. Towards
an origin the stream is also what carries its exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from h2.exceptions import StreamClosedError

from ringfence.gateway.core.exchange import Exchange
from ringfence.gateway.core.heads2 import lower_fields, render_fields
from ringfence.gateway.core.messages import CANCEL, CHUNKED, Malformed, Request, Response
from ringfence.gateway.core.multiplex import Multiplex

if TYPE_CHECKING:
    from ringfence.gateway.core.origin2 import Origin2


class Stream:
    """An exchange's stream: the outgoing part that the peer's windows have no room for, and the account of what
    came in.
    """

    __slots__ = (
        "arrived",
        "arrived_size",
        "blocked",
        "end",
        "exchange",
        "held",
        "left",
        "number",
        "pending",
        "size",
        "unacknowledged",
    )

    exchange: Exchange

    def __init__(self, number: int) -> None:
        self.number = number
        self.pending: list[bytes] = []
        self.size = 0
        self.end: Sequence[bytes] | None = None
        """Trailers, once the body is complete."""
        self.blocked = False
        """Whoever brings the outgoing bytes was paused because of us."""
        self.held = False
        """Whoever takes the incoming bytes is full: nothing is acknowledged."""
        self.unacknowledged = 0
        self.arrived: list[bytes] = []
        """What came in with the current read and is not told yet: many small frames are told as one piece."""
        self.arrived_size = 0
        """What it costs in flow control."""
        self.left = CHUNKED
        """How much of the incoming body is still to come, if its head says."""

    def take(self) -> bytes:
        """Return what came in, to be told; what it costs is owed to the peer from now on."""
        arrived = self.arrived
        payload = arrived[0] if len(arrived) == 1 else b"".join(arrived)
        arrived.clear()
        self.unacknowledged += self.arrived_size
        self.arrived_size = 0
        return payload

    def add(self, payload: bytes) -> None:
        if payload:
            self.pending.append(payload)
            self.size += len(payload)

    def pump(self, h2: Multiplex) -> bool:
        """Send what both windows allow; return whether all is out."""
        try:
            return self._pump(h2)
        except (StreamClosedError, KeyError):  # the peer has reset it in the bytes that are being dealt with
            self.pending.clear()
            self.size = 0
            return False

    def _pump(self, h2: Multiplex) -> bool:
        number = self.number
        pending = self.pending
        while pending:
            room = h2.room(number)
            if room <= 0:
                return False
            payload = pending[0]
            if len(payload) > room:
                h2.pass_data(number, payload[:room], end=False)
                pending[0] = payload[room:]
                self.size -= room
                continue
            del pending[0]
            self.size -= len(payload)
            last = self.end is not None and not self.end and not pending
            h2.pass_data(number, payload, end=last)
            if last:
                return True
        if self.end is None:
            return False
        if self.end:
            h2.send_headers(number, lower_fields(self.end), end_stream=True)
        else:
            h2.send_data(number, b"", end_stream=True)
        return True

    def count(self, size: int, *, ended: bool) -> None:
        """Hold the incoming body against the length that its head gave; raises ``Malformed``."""
        left = self.left
        if left == CHUNKED:
            return
        self.left = left = left - size
        if left < 0 or (ended and left):
            raise Malformed("a body that is not as long as its Content-Length", 400)


class OriginStream(Stream):
    """The carrier of one exchange."""

    __slots__ = (
        "_kept",
        "_kept_size",
        "_origin",
        "address",
        "ended",
        "method",
        "response",
        "reused",
        "sent",
        "trailers",
    )

    def __init__(self, origin: Origin2) -> None:
        super().__init__(0)
        self._origin = origin
        self.address = origin.address
        self.reused = origin.carried > 0
        self.method = b""
        self.sent = False
        """The whole request is out."""
        self.response: Response | None = None
        """The final response's head, until it is told."""
        self.ended = False
        self.trailers: Sequence[bytes] = ()
        self._kept: list[bytes] | None = []
        """The request's body as far as it was sent, as long as it is short and unanswered."""
        self._kept_size = 0

    # -- what the exchange commands -----------------------------------------------------------------------

    def ask(
        self,
        exchange: Exchange,
        request: Request,
        authority: bytes,
        payload: bytes,
        trailers: Sequence[bytes] | None,
    ) -> int:
        self.exchange = exchange
        self.method = request.method
        fields = render_fields(request, authority)
        self.number = self._origin.open(
            self, fields, end=trailers is not None and not payload and not trailers
        )
        size = sum(len(name) + len(value) + 4 for name, value in fields)
        if trailers is not None and not payload and not trailers:
            self.sent = True
            return size
        self.end = trailers
        if payload or trailers:
            self._put(payload)
        if self._origin.full:
            exchange.hold(True)
        return size + len(payload)

    def send(self, payload: bytes) -> int:
        self._put(payload)
        return len(payload)

    def conclude(self, trailers: Sequence[bytes]) -> int:
        self.end = trailers
        self._put(b"")
        return sum(map(len, trailers))

    def _put(self, payload: bytes) -> None:
        kept = self._kept
        if kept is not None and payload:
            kept.append(payload)
            self._kept_size += len(payload)
            if self._kept_size > self._origin.limits.pending_bytes:
                self.touched()
        self.add(payload)
        self._origin.pump(self)

    @property
    def kept(self) -> bytes | None:
        """All that was sent of the request's body, if it is still here."""
        return None if self._kept is None else b"".join(self._kept)

    def touched(self) -> None:
        """The request is not sent again: the origin has begun to answer, or it is too long to keep."""
        self._kept = None

    def pause(self) -> None:
        self.held = True

    def resume(self) -> None:
        self.held = False
        self._origin.release(self)

    def close(self, code: int = CANCEL) -> None:
        self._origin.drop(self, code)
