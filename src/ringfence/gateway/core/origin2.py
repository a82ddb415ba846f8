"""HTTP/2 towards an origin: many exchanges of one sandbox on one connection (RFC 9113).

Every exchange has a carrier here, which is one stream. Heads are checked and bodies counted as in HTTP/1, so that
no origin gains anything by speaking the newer version: what is wrong with a stream ends that stream, what is wrong
with the connection ends all of them, and floods are cut (``multiplex``). Nothing is pushed.

What arrives in one piece is told in one piece: the events of one read are gathered by stream first. Nothing waits
longer than that.

Flow control is back-pressure in both directions: what a client does not take is not acknowledged, what the origin
has no window for stays with the client, but for one read.

A request that the origin has provably not touched (refused, or above the last stream of a GOAWAY) may be sent
again once, whatever it is, if what was sent of it is still here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from ringfence.gateway.core.heads2 import parse_response, parse_trailers
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.messages import NO_ERROR, Malformed, UpstreamWire
from ringfence.gateway.core.multiplex import Multiplex, explain
from ringfence.gateway.core.streams import OriginStream

_LAST: Final = (1 << 31) - 3
"""The last stream that a client can open but one."""
_TRUNCATED: Final = "the connection was closed before the response was complete"


class Origin2:
    """See the module."""

    def __init__(self, wire: UpstreamWire, limits: Limits, now: float, *, windows: int = 16) -> None:
        self.address = wire.address
        self.limits = limits
        self.carried = 0
        """How many exchanges it was asked for."""
        self.streams: dict[int, OriginStream] = {}
        self._wire = wire
        self._touched: dict[int, OriginStream] = {}
        """Streams of which something is to be told when the current read is through."""
        self._leaving = False
        self._over = False
        self.full = False
        """The connection does not take what is sent."""
        self._batching = False
        self._now = now
        self._h2 = Multiplex(limits, now, client_side=True, windows=windows)
        self._flush()

    @property
    def room(self) -> bool:
        """Whether it takes another exchange."""
        if self._leaving or self._over or self._h2.highest_outbound_stream_id >= _LAST:
            return False
        return len(self.streams) < min(self._h2.remote_settings.max_concurrent_streams, self.limits.streams)

    def retire(self) -> bool:
        """Take no more exchanges; returns whether there are any to wait for."""
        self._leaving = True
        return bool(self.streams)

    # -- what the carriers command ------------------------------------------------------------------------

    def open(self, stream: OriginStream, fields: list[tuple[bytes, bytes]], *, end: bool) -> int:
        """Send a request's head; return its stream."""
        h2 = self._h2
        number = h2.get_next_available_stream_id()
        h2.send_headers(number, fields, end_stream=end)
        self.carried += 1
        self.streams[number] = stream
        self._flush()
        return number

    def pump(self, stream: OriginStream) -> None:
        """Send what the windows allow, and tell the exchange whether to wait."""
        if stream.number not in self.streams:
            return
        stream.sent = stream.pump(self._h2)
        blocked = stream.size > 0
        if stream.blocked is not blocked:
            stream.blocked = blocked
            if not self.full:
                stream.exchange.hold(blocked)
        self._flush()

    def release(self, stream: OriginStream) -> None:
        """Acknowledge what was held back."""
        size, stream.unacknowledged = stream.unacknowledged, 0
        if size and not self._over:
            self._h2.acknowledge_received_data(size, stream.number)
            self._flush()

    def drop(self, stream: OriginStream, code: int) -> None:
        """An exchange ends before its end."""
        if self.streams.get(stream.number) is stream:
            self._h2.reset(stream.number, code)
            self._gone(stream)

    def _gone(self, stream: OriginStream) -> None:
        """A stream is over. Bytes of it that were never acknowledged go back to the connection's window."""
        del self.streams[stream.number]
        self._touched.pop(stream.number, None)
        stream.take()
        self.release(stream)
        self._flush()
        if not self.streams and not self._over:
            if self._leaving:
                self._over = True
                self._wire.close()
            else:
                self._wire.release()

    def _flush(self) -> None:
        if not self._batching and not self._over:
            out = self._h2.data_to_send()
            if out:
                self._wire.send(out)

    # -- what the connection brings -----------------------------------------------------------------------

    def received(self, data: bytes, now: float) -> None:
        if self._over:
            return
        self._now = now
        try:
            events = self._h2.take(data, now)
        except ProtocolError as flaw:
            self._violated(explain(flaw), now)
            return
        self._batching = True
        for event in events:
            react = _REACTIONS.get(type(event))
            if react is not None:
                react(self, event)
        for stream in list(self._touched.values()):
            self._tell(stream)
        self._batching = False
        self._flush()

    def _informed(self, event: InformationalResponseReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        try:
            response = parse_response(event.headers, stream.method, False, self.limits.fields)
        except Malformed as flaw:
            self._fail(stream, flaw)
            return
        stream.touched()
        stream.exchange.informed(response, self._now)

    def _answered(self, event: ResponseReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        ended = event.stream_ended is not None
        try:
            response = parse_response(event.headers, stream.method, ended, self.limits.fields)
        except Malformed as flaw:
            self._fail(stream, flaw)
            return
        stream.response = response
        stream.left = response.length
        stream.touched()
        self._touched[stream.number] = stream

    def _data(self, event: DataReceived) -> None:
        stream, size = self.streams.get(event.stream_id), event.flow_controlled_length
        if stream is None:
            if size:
                self._h2.acknowledge_received_data(size, event.stream_id)
            return
        try:
            stream.count(len(event.data), ended=False)
        except Malformed as flaw:
            stream.arrived_size += size
            self._fail(stream, flaw)
            return
        stream.arrived.append(event.data)
        stream.arrived_size += size
        self._touched[stream.number] = stream

    def _trailers(self, event: TrailersReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        try:
            stream.trailers = parse_trailers(event.headers)
        except Malformed as flaw:
            self._fail(stream, flaw)

    def _ended(self, event: StreamEnded) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        try:
            stream.count(0, ended=True)
        except Malformed as flaw:
            self._fail(stream, flaw)
            return
        stream.ended = True
        self._touched[stream.number] = stream

    def _reset(self, event: StreamReset) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        self._tell(stream)
        if self.streams.get(event.stream_id) is not stream:
            return
        self._gone(stream)
        code = event.error_code or NO_ERROR
        text = f"the origin reset the stream: {_name(code)}"
        if code == ErrorCodes.REFUSED_STREAM:
            stream.exchange.refused(stream.kept, code, text, self._now)
        else:
            stream.exchange.reset(code, text, self._now)

    def _terminated(self, event: ConnectionTerminated) -> None:
        """The origin takes no more streams, and tells which it has not touched (section 6.8)."""
        self._leaving = True
        last = event.last_stream_id or 0
        text = f"the origin closed the connection: {_name(event.error_code or NO_ERROR)}"
        for stream in [each for each in self.streams.values() if each.number > last]:
            if self.streams.get(stream.number) is stream:
                self._gone(stream)
                stream.exchange.refused(stream.kept, ErrorCodes.REFUSED_STREAM, text, self._now)
        if not self.streams and not self._over:
            self._over = True
            self._wire.close()

    def _window(self, event: WindowUpdated | RemoteSettingsChanged) -> None:
        number = event.stream_id if isinstance(event, WindowUpdated) else 0
        chosen = list(self.streams) if not number else [number]
        for each in chosen:
            stream = self.streams.get(each)
            if stream is not None and stream.pending:
                self.pump(stream)

    def _tell(self, stream: OriginStream) -> None:
        """Tell the exchange what has arrived."""
        if self._touched.pop(stream.number, None) is None:
            return
        exchange, now, fresh = stream.exchange, self._now, stream.response
        if fresh is not None and not fresh.length and not stream.ended:
            return  # it has no body, and its end is about to come
        payload = stream.take()
        stream.response = None
        if stream.ended:
            if not stream.sent:
                self._h2.reset(stream.number, NO_ERROR)  # an upload that nobody waits for (section 8.1)
            self._gone(stream)
            if fresh is not None:
                exchange.completed(fresh, payload, stream.trailers, now)
            else:
                exchange.concluded(payload, stream.trailers, now)
            return
        if fresh is not None:
            exchange.answered(fresh, payload, now)
        else:
            exchange.passed(payload, now)
        if not stream.held:
            self.release(stream)

    def _fail(self, stream: OriginStream, flaw: Malformed) -> None:
        """One stream is malformed; the others are none the worse (section 8.1.1)."""
        self._h2.reset(stream.number, ErrorCodes.PROTOCOL_ERROR)
        self._gone(stream)
        stream.exchange.malformed(flaw.text, self._now)

    def _violated(self, text: str, now: float) -> None:
        """End the connection: nobody knows what its bytes mean, or it is an attack."""
        self._flush()
        streams = self._end()
        self._wire.close()
        for stream in streams:
            stream.exchange.malformed(text, now)

    def _end(self) -> list[OriginStream]:
        self._over = True
        streams = list(self.streams.values())
        self.streams.clear()
        self._touched.clear()
        return streams

    def ended(self, now: float) -> None:
        """The origin said that it sends no more."""
        self.lost(_TRUNCATED, now)

    def lost(self, text: str, now: float) -> None:
        """The connection broke."""
        if self._over:
            return
        for stream in self._end():
            stream.exchange.lost(text, now)

    def hold(self, held: bool) -> None:
        """The connection does not (or does again) take what is sent."""
        self.full = held
        for stream in list(self.streams.values()):
            if not stream.blocked:
                stream.exchange.hold(held)


def _name(code: int) -> str:
    """The name of an error code, known or not."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"{code:#x}"


_REACTIONS: Final[dict[type, Callable[[Origin2, Any], None]]] = {
    InformationalResponseReceived: Origin2._informed,
    ResponseReceived: Origin2._answered,
    DataReceived: Origin2._data,
    TrailersReceived: Origin2._trailers,
    StreamEnded: Origin2._ended,
    StreamReset: Origin2._reset,
    ConnectionTerminated: Origin2._terminated,
    WindowUpdated: Origin2._window,
    RemoteSettingsChanged: Origin2._window,
}
"""What events do; the others were counted, answered by ``h2``, and mean nothing here."""
