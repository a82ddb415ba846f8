"""HTTP/2 towards a client, inside a terminated TLS connection (RFC 9113).

The ``h2`` library speaks the protocol; this module turns streams into exchanges, each decided and recorded by
itself and each with an upstream connection of its own. A request becomes the same ``Request`` that HTTP/1
yields, under the same rules, so no client gains anything by speaking the newer version: one authority that
agrees with the connection's name (section 9.1.1 would allow to reuse it for others), no CONNECT, no fields of
a connection.

Flow control is back-pressure: what an upstream does not take is not acknowledged, what a client does not take
stays upstream, but for one read per stream. Floods of frames that cost us more than their sender are cut
(``multiplex``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from ringfence.gateway.core import journal, refusal
from ringfence.gateway.core.exchange import Exchange
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.heads2 import lower_fields, parse_head, parse_trailers
from ringfence.gateway.core.messages import CANCEL, NO_ERROR, ClientWire, Malformed, Response
from ringfence.gateway.core.multiplex import Multiplex, explain
from ringfence.gateway.core.refusal import Notice
from ringfence.gateway.core.streams import Stream
from ringfence.policy.model import Decision, Reason

_WINDOWS: Final = 4
"""Uploads of one connection that may be stuck before the others wait for them."""


class Http2:
    """A conversation (see the module)."""

    def __init__(self, wire: ClientWire, flow: Flow, now: float) -> None:
        self.wire = wire
        self.requests = 0
        self.deadline = now + flow.subject.limits.head_time
        self._flow = flow
        self._subject = flow.subject
        self._streams: dict[int, Stream] = {}
        self._over = False
        self._full = False
        self._batching = False
        self._touched: dict[int, Stream] = {}
        """Streams of which something is to be told when the current read is through."""
        self._unheard: dict[int, int] = {}
        """Uploads that go on although they were answered, and how much more of each is taken and thrown away."""
        self._leaving = False
        """The client opens no more streams."""
        self._now = now
        flow.protocol = "h2"
        self._h2 = Multiplex(flow.subject.limits, now, client_side=False, windows=_WINDOWS)
        self._flush()

    # -- bytes from the client ----------------------------------------------------------------------------

    def received(self, data: bytes, now: float) -> None:
        if self._over:
            return
        try:
            events = self._h2.take(data, now)
        except ProtocolError as flaw:
            self._violated(flaw, now)
            return
        self._now = now
        self._batching = True
        for event in events:
            react = _REACTIONS.get(type(event))
            if react is not None:
                react(self, event)
        if self._touched:
            for stream in list(self._touched.values()):
                self._tell(stream)
        self._batching = False
        if not self._over:
            self._flush()

    def _requested(self, event: RequestReceived) -> None:
        self.requests += 1
        now = self._now
        number = event.stream_id
        ended = event.stream_ended is not None
        flow = self._flow
        try:
            request = parse_head(event.headers, ended, self._subject.limits.fields)
            if flow.status != 421 and not flow.agree(request.authority):
                named = request.authority.decode("latin-1")
                raise Malformed(f"the request names {named}, its connection {flow.known_as}:{flow.port}", 421)
        except Malformed as flaw:
            self._malformed(number, flaw, now)
            return
        self.deadline = 0.0  # the exchanges have theirs
        exchange = Exchange(self, flow, request, number, now)
        stream = self._streams[number] = Stream(number)
        stream.exchange = exchange
        stream.left = request.length
        exchange.start(now)

    def _data(self, event: DataReceived) -> None:
        number, size = event.stream_id, event.flow_controlled_length
        stream = self._streams.get(number)
        if stream is None:
            self._acknowledge(number, size)
            self._throw_away(number, size)
            return
        if event.data:
            try:
                stream.count(len(event.data), ended=False)
            except Malformed:
                stream.arrived_size += size
                self._reset(number, ErrorCodes.PROTOCOL_ERROR)
                return
            stream.arrived.append(event.data)
        stream.arrived_size += size
        self._touched[number] = stream

    def _tell(self, stream: Stream) -> None:
        """Tell the exchange what has arrived."""
        if self._touched.pop(stream.number, None) is None:
            return
        payload = stream.take()
        if payload:
            stream.exchange.upload(payload, self._now)
        if not stream.held:
            self._release(stream)

    def _acknowledge(self, number: int, size: int) -> None:
        if size and not self._over:
            self._h2.acknowledge_received_data(size, number)

    def _trailers(self, event: TrailersReceived) -> None:
        try:
            lines = parse_trailers(event.headers)
        except Malformed:
            self._reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        self._ended(event, lines)

    def _ended(self, event: StreamEnded | TrailersReceived, trailers: Sequence[bytes] = ()) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None or stream.exchange.uploaded:
            self._unheard.pop(event.stream_id, None)
            return
        try:
            stream.count(0, ended=True)
        except Malformed:
            self._reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        self._tell(stream)
        stream.exchange.upload_done(trailers, self._now)

    def _was_reset(self, event: StreamReset) -> None:
        self._unheard.pop(event.stream_id, None)
        stream = self._gone(event.stream_id)
        if stream is not None:
            stream.exchange.client_gone(self._now, event.error_code or CANCEL)

    def _left(self, _: ConnectionTerminated) -> None:
        """What the client asked for is still answered (RFC 9113 section 6.8)."""
        self._leaving = True

    def _opened(self, event: WindowUpdated | RemoteSettingsChanged) -> None:
        """A window."""
        number = event.stream_id if isinstance(event, WindowUpdated) else 0
        for each in [number] if number else list(self._streams):
            stream = self._streams.get(each)
            if stream is not None and (stream.pending or stream.end is not None):
                self._pump(each, stream)

    def _reset(self, number: int, code: int) -> None:
        stream = self._gone(number)
        if stream is not None:
            stream.exchange.client_gone(self._now)
        self._h2.reset(number, code)
        self._flush()

    def _release(self, stream: Stream) -> None:
        """Acknowledge what was held back."""
        size, stream.unacknowledged = stream.unacknowledged, 0
        self._acknowledge(stream.number, size)

    def _gone(self, number: int) -> Stream | None:
        """A stream is over. Bytes of it that were never acknowledged go back to the connection's window."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._touched.pop(number, None)
            stream.take()
            self._release(stream)
        return stream

    def eof(self, now: float) -> None:
        self.lost(now)
        self.wire.finish()

    def lost(self, now: float) -> None:
        if self._over:
            return
        self._over = True
        for stream in list(self._streams.values()):
            stream.exchange.client_gone(now)
        self._streams.clear()
        self._touched.clear()
        if not self.requests:
            self._flow.unused(now)

    # -- the conversation's side of an exchange -----------------------------------------------------------

    def inform(self, exchange: Exchange, response: Response) -> None:
        self._head(exchange.number, response, 0, end=False)
        self._flush()

    def respond(self, exchange: Exchange, response: Response, payload: bytes) -> None:
        self._head(exchange.number, response, max(response.length, 0), end=False)
        self._send(exchange.number, payload)

    def complete(
        self, exchange: Exchange, response: Response, payload: bytes, trailers: Sequence[bytes]
    ) -> None:
        end = not payload and not trailers
        # A client that is told a length (curl) is content with it, and does not wait for trailers.
        self._head(exchange.number, response, 0 if trailers else len(payload), end=end)
        if end:
            self._done(exchange.number)
            self._flush()
        else:
            self._streams[exchange.number].end = trailers
            self._send(exchange.number, payload)

    def extend(self, exchange: Exchange, payload: bytes) -> None:
        self._send(exchange.number, payload)

    def conclude(self, exchange: Exchange, payload: bytes, trailers: Sequence[bytes]) -> None:
        self._streams[exchange.number].end = trailers
        self._send(exchange.number, payload)

    def refuse(self, exchange: Exchange, decision: Decision) -> None:
        flow = exchange.flow
        wants_json = refusal.wants_json(exchange.request.lines)
        place, number, contact = flow.place, exchange.id, flow.subject.contact
        if exchange.retry:
            notice = refusal.postponed(
                decision, place, number, exchange.retry, contact, wants_json=wants_json
            )
        else:
            notice = refusal.refused(
                decision, place, number, status=flow.status, contact=contact, wants_json=wants_json
            )
        self._notice(exchange, notice)

    def trouble(self, exchange: Exchange, text: str, status: int) -> None:
        wants_json = refusal.wants_json(exchange.request.lines)
        place = exchange.flow.place
        self._notice(
            exchange, refusal.troubled(text, place, exchange.id, status=status, wants_json=wants_json)
        )

    def abort(self, exchange: Exchange, code: int) -> None:
        number = exchange.number
        if self._gone(number) is not None and not self._over:
            self._h2.reset(number, code)
            self._flush()

    def hold(self, exchange: Exchange, held: bool) -> None:
        stream = self._streams.get(exchange.number)
        if stream is None or stream.held is held:
            return
        stream.held = held
        if not held:
            self._release(stream)
            self._flush()

    def _notice(self, exchange: Exchange, notice: Notice) -> None:
        body = b"" if exchange.request.method == b"HEAD" else notice.body
        fields = [(b":status", b"%d" % notice.status), *notice.fields()]
        self._h2.open_head(exchange.number, fields, end=not body)
        if body:
            self._streams[exchange.number].end = []
            self._send(exchange.number, body)
        else:
            self._done(exchange.number)
            self._flush()

    def _head(self, number: int, response: Response, length: int, *, end: bool) -> None:
        fields = [(b":status", b"%d" % response.status)]
        fields += lower_fields(response.lines)
        if length:
            fields.append((b"content-length", b"%d" % length))
        self._h2.open_head(number, fields, end=end)

    def _send(self, number: int, payload: bytes) -> None:
        stream = self._streams[number]
        stream.add(payload)
        self._pump(number, stream)
        self._flush()

    def _pump(self, number: int, stream: Stream) -> None:
        if stream.pump(self._h2):
            self._done(number)
        elif stream.blocked is not (stream.size > 0):
            stream.blocked = stream.size > 0
            if not self._full:
                stream.exchange.throttle(stream.blocked)

    def _done(self, number: int) -> None:
        """The response is out. To cut an upload that nobody waits for, politely (RFC 9113 section 8.1), would be
        right and useless: curl 7 fails and httpcore waits for ever, neither has read why. So it may go on for a while.
        """
        stream = self._gone(number)
        if stream is not None and not stream.exchange.uploaded:
            self._unheard[number] = self._subject.limits.unheard_bytes

    def _throw_away(self, number: int, size: int) -> None:
        left = self._unheard.get(number)
        if left is None:
            return
        self._unheard[number] = left - size
        if left < size:
            del self._unheard[number]
            self._h2.reset(number, NO_ERROR)

    def _flush(self) -> None:
        if self._batching:
            return
        out = self._h2.data_to_send()
        if out:
            self.wire.send(out)
        if self._leaving and not self._streams and not self._over:
            self.eof(self._now)

    # -- violations ---------------------------------------------------------------------------------------

    def _malformed(self, number: int, flaw: Malformed, now: float) -> None:
        """Refuse one stream; the others are none the worse (section 8.1.1)."""
        id_ = self._subject.ids()
        reason = Reason.GUARD if flaw.status == 421 else Reason.FAILURE
        decision = Decision(reason=reason, text=flaw.text, revision=self._subject.revision)
        record = journal.opened(id_, now, self._flow.shared(decision) + (b',"status":%d' % flaw.status))
        self._subject.sink(record, False)
        notice = refusal.misread(flaw.text, id_, status=flaw.status)
        fields = [(b":status", b"%d" % flaw.status), *notice.fields()]
        self._h2.open_head(number, fields, end=False)
        answer = Stream(number)
        answer.add(notice.body)
        answer.end = ()
        if not answer.pump(self._h2):
            self._h2.reset(number, NO_ERROR)

    def _violated(self, flaw: ProtocolError, now: float) -> None:
        """End the connection: nobody knows what its bytes mean, or it is an attack."""
        self.requests += 1
        out = self._h2.data_to_send()
        if out:
            self.wire.send(out)
        decision = Decision(reason=Reason.FAILURE, text=explain(flaw), revision=self._subject.revision)
        self.lost(now)
        self._flow.record(decision, now)
        self.wire.finish()

    # -- pressure, time, policy ---------------------------------------------------------------------------

    def filled(self) -> None:
        self._full = True
        self.wire.pause()
        for stream in list(self._streams.values()):
            if not stream.blocked:
                stream.exchange.throttle(True)

    def drained(self, now: float) -> None:  # noqa: ARG002  # a phase's signature
        self._full = False
        self.wire.resume()
        for stream in list(self._streams.values()):
            if not stream.blocked:
                stream.exchange.throttle(False)

    def expire(self, now: float) -> None:
        if self._over:
            self.wire.reset()
            return
        for stream in list(self._streams.values()):
            if now > stream.exchange.deadline:
                if stream.exchange.over:  # complete, but the client does not take it
                    self._reset(stream.number, ErrorCodes.CANCEL)
                else:
                    stream.exchange.expire(now)
        if self._streams:
            return
        if self.deadline == 0.0:
            self.deadline = now + self._subject.limits.idle_time
        elif now > self.deadline:
            self._close(now)

    def revise(self, now: float) -> None:
        """Another policy is in force: what it refuses ends now, and so does a connection that only waits."""
        if self._over:
            return
        idle = not self._streams
        decision = self._flow.revoked(now)
        for stream in list(self._streams.values()):
            stream.exchange.revise(now)
        if decision is not None:
            if idle:
                self.requests += 1
                id_ = self._subject.ids()
                record = journal.opened(id_, now, self._flow.shared(decision) + b',"ended":"revoked"')
                self._subject.sink(record, False)
            self._close(now)

    def _close(self, now: float) -> None:
        self._h2.close_connection()
        self._flush()
        self.lost(now)
        self.wire.finish()


_REACTIONS: Final[dict[type, Callable[[Http2, Any], None]]] = {
    RequestReceived: Http2._requested,
    DataReceived: Http2._data,
    TrailersReceived: Http2._trailers,
    StreamEnded: Http2._ended,
    StreamReset: Http2._was_reset,
    ConnectionTerminated: Http2._left,
    WindowUpdated: Http2._opened,
    RemoteSettingsChanged: Http2._opened,
}
"""What events do; the others were counted, answered by ``h2``, and mean nothing here."""
