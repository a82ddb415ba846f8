"""HTTP/2 towards a client, inside a terminated TLS connection (RFC 9113).

The ``h2`` library speaks the protocol; this module turns streams into exchanges, each decided and recorded by
itself and each with an upstream connection of its own. A request becomes the same ``Request`` that HTTP/1
yields, under the same rules, so no client gains anything by speaking the newer version: one authority that
agrees with the connection's name (section 9.1.1 would allow to reuse it for others), no CONNECT, no fields of
a connection.

Flow control is back-pressure: what an upstream does not take is not acknowledged, what a client does not take
stays upstream, but for one read per stream. Floods of frames that cost us more than their sender
(CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2025-8671) are counted and the connection is cut.
"""

from __future__ import annotations

from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    PriorityUpdated,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes, Settings

from ringfence.gateway.core import journal, refusal
from ringfence.gateway.core.exchange import Exchange
from ringfence.gateway.core.heads2 import parse_head, parse_trailers
from ringfence.gateway.core.messages import ClientWire, Malformed, Response
from ringfence.gateway.core.refusal import Notice
from ringfence.gateway.core.streams import Stream, lower_fields
from ringfence.gateway.core.subject import Flow
from ringfence.policy.model import Decision, Reason

_CONFIG: Final = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
"""Outbound heads were checked when they were parsed and are written in lower case here."""

_WINDOW: Final = 262_144
"""What one stream may send before we have passed it on."""


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
        self._floods = 0
        self._flood_start = now
        self._batching = False
        flow.protocol = "h2"
        limits = flow.subject.limits
        h2 = self._h2 = H2Connection(config=_CONFIG)
        h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
                SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
            },
        )
        h2.initiate_connection()
        h2.increment_flow_control_window(_WINDOW * 4)
        self._flush()

    # -- bytes from the client ----------------------------------------------------------------------------

    def received(self, data: bytes, now: float) -> None:
        if self._over:
            return
        self._batching = True
        try:
            for event in self._h2.receive_data(data):
                self._take(event, now)
        except ProtocolError as flaw:
            self._violated(f"HTTP/2 protocol: {type(flaw).__name__}: {flaw}", now)
            return
        finally:
            self._batching = False
        if not self._over:
            self._flush()

    def _take(self, event: Event, now: float) -> None:
        if self._over:
            return
        match event:
            case DataReceived():
                self._data(event, now)
            case RequestReceived():
                self._request(event, now)
            case StreamEnded():
                self._stream_ended(event.stream_id, [], now)
            case TrailersReceived():
                self._trailers(event, now)
            case WindowUpdated():
                self._window(event.stream_id)
            case StreamReset():
                stream = self._streams.pop(event.stream_id, None)
                if stream is not None:
                    self._release(stream)
                    stream.exchange.client_gone(now)
                self._flood(now)
            case PingReceived() | PriorityUpdated():
                self._flood(now)
            case RemoteSettingsChanged():
                self._flood(now)
                self._window(None)
            case ConnectionTerminated():
                self.eof(now)

    def _flood(self, now: float) -> None:
        """Count what costs its sender nothing."""
        limits = self._subject.limits
        if now - self._flood_start > limits.flood_time:
            self._flood_start, self._floods = now, 0
        self._floods += 1
        if self._floods > limits.floods:
            self._violated("a flood of HTTP/2 frames", now, ErrorCodes.ENHANCE_YOUR_CALM)

    def _request(self, event: RequestReceived, now: float) -> None:
        self.requests += 1
        if event.priority_updated is not None:
            self._floods -= 1  # part of this request, though reported by itself
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
        self._streams[number] = Stream(exchange)
        exchange.start(now)

    def _data(self, event: DataReceived, now: float) -> None:
        number, size = event.stream_id, event.flow_controlled_length
        stream = self._streams.get(number)
        if stream is None:
            self._acknowledge(number, size)
            return
        if event.data:
            stream.exchange.upload(event.data, now)
        elif event.stream_ended is None:
            self._flood(now)
        if stream.held:
            stream.unacknowledged += size
        else:
            self._acknowledge(number, size)

    def _acknowledge(self, number: int, size: int) -> None:
        if size and not self._over:
            self._h2.acknowledge_received_data(size, number)

    def _trailers(self, event: TrailersReceived, now: float) -> None:
        try:
            lines = parse_trailers(event.headers)
        except Malformed:
            self._reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR, now)
            return
        self._stream_ended(event.stream_id, lines, now)

    def _stream_ended(self, number: int, trailers: list[bytes], now: float) -> None:
        stream = self._streams.get(number)
        if stream is not None and not stream.exchange.uploaded:
            stream.exchange.upload_done(trailers, now)

    def _reset(self, number: int, code: ErrorCodes, now: float) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._release(stream)
            stream.exchange.client_gone(now)
        try:
            self._h2.reset_stream(number, code)
        except StreamClosedError:
            return  # it is gone already
        self._flush()

    def _release(self, stream: Stream) -> None:
        """A stream ends with bytes that were never acknowledged: the connection's window gets them back."""
        size, stream.unacknowledged = stream.unacknowledged, 0
        self._acknowledge(stream.exchange.number, size)

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
        if not self.requests:
            self._flow.unused(now)

    # -- the conversation's side of an exchange -----------------------------------------------------------

    def inform(self, exchange: Exchange, response: Response) -> None:
        self._head(exchange.number, response, 0, end=False)
        self._flush()

    def respond(self, exchange: Exchange, response: Response, payload: bytes) -> None:
        self._head(exchange.number, response, max(response.length, 0), end=False)
        self._send(exchange.number, payload)

    def complete(self, exchange: Exchange, response: Response, payload: bytes, trailers: list[bytes]) -> None:
        end = not payload and not trailers
        self._head(exchange.number, response, len(payload), end=end)
        if end:
            self._done(exchange.number)
            self._flush()
        else:
            self._streams[exchange.number].end = trailers
            self._send(exchange.number, payload)

    def extend(self, exchange: Exchange, payload: bytes) -> None:
        self._send(exchange.number, payload)

    def conclude(self, exchange: Exchange, payload: bytes, trailers: list[bytes]) -> None:
        self._streams[exchange.number].end = trailers
        self._send(exchange.number, payload)

    def refuse(self, exchange: Exchange, decision: Decision) -> None:
        flow = exchange.flow
        notice = refusal.refused(
            decision,
            flow.place,
            exchange.id,
            status=flow.status,
            contact=flow.subject.contact,
            wants_json=refusal.wants_json(exchange.request.lines),
        )
        self._notice(exchange, notice)

    def trouble(self, exchange: Exchange, text: str, status: int) -> None:
        wants_json = refusal.wants_json(exchange.request.lines)
        place = exchange.flow.place
        self._notice(
            exchange, refusal.troubled(text, place, exchange.id, status=status, wants_json=wants_json)
        )

    def abort(self, exchange: Exchange) -> None:
        number = exchange.number
        stream = self._streams.pop(number, None)
        if stream is not None and not self._over:
            self._release(stream)
            self._reset(number, ErrorCodes.INTERNAL_ERROR, 0.0)

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
        self._h2.send_headers(exchange.number, fields, end_stream=not body)
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
        self._h2.send_headers(number, fields, end_stream=end)

    def _send(self, number: int, payload: bytes) -> None:
        stream = self._streams[number]
        if payload:
            stream.pending.append(payload)
            stream.size += len(payload)
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
        """The response is out. An upload that nobody waits for is cut, politely (RFC 9113 section 8.1)."""
        stream = self._streams.pop(number)
        self._release(stream)
        if not stream.exchange.uploaded:
            self._h2.reset_stream(number, ErrorCodes.NO_ERROR)

    def _window(self, number: int | None) -> None:
        numbers = list(self._streams) if not number else [number]
        for each in numbers:
            stream = self._streams.get(each)
            if stream is not None and (stream.pending or stream.end is not None):
                self._pump(each, stream)

    def _flush(self) -> None:
        if not self._batching:
            out = self._h2.data_to_send()
            if out:
                self.wire.send(out)

    # -- violations ---------------------------------------------------------------------------------------

    def _malformed(self, number: int, flaw: Malformed, now: float) -> None:
        """Refuse one stream; the others are none the worse (section 8.1.1)."""
        id_ = self._subject.ids()
        reason = Reason.GUARD if flaw.status == 421 else Reason.FAILURE
        decision = Decision(reason=reason, text=flaw.text, revision=self._subject.revision)
        record = journal.opened(id_, now, self._flow.shared(decision) + (b',"status":%d' % flaw.status))
        self._subject.sink(record, False)
        notice = refusal.misread(flaw.text, id_, status=flaw.status)
        self._h2.send_headers(number, [(b":status", b"%d" % flaw.status), *notice.fields()])
        room = min(self._h2.local_flow_control_window(number), len(notice.body))
        self._h2.send_data(number, notice.body[:room], end_stream=room == len(notice.body))
        if room < len(notice.body):
            self._h2.reset_stream(number, ErrorCodes.NO_ERROR)

    def _violated(self, text: str, now: float, code: ErrorCodes | None = None) -> None:
        """End the connection: nobody knows what its bytes mean, or it is an attack."""
        if self._over:
            return
        self.requests += 1
        if code is not None:
            self._h2.close_connection(code)
        out = self._h2.data_to_send()
        if out:
            self.wire.send(out)
        self._flow.record(Decision(reason=Reason.FAILURE, text=text, revision=self._subject.revision), now)
        self.lost(now)
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
                    self._reset(stream.exchange.number, ErrorCodes.CANCEL, now)
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
