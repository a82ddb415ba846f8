"""HTTP/1 towards a client: one request after another on one connection.

The same conversation serves an explicit proxy's plain requests (each names its own destination), plain HTTP
to a fixed destination, and the inside of a terminated TLS connection. Requests are taken strictly in order;
what a client sends ahead waits in a bounded buffer, and every request is checked and decided by itself (a
second, pipelined request that nobody looked at is the oldest hole of such proxies).

A message that is malformed is answered once and ends the connection: behind it nobody knows where the next
one begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ringfence.gateway.core import journal, refusal
from ringfence.gateway.core.bodies import Body, body_of, chunk, last_chunk
from ringfence.gateway.core.exchange import Exchange
from ringfence.gateway.core.flow import Flow, authority_of
from ringfence.gateway.core.heads import BARE, END, is_model, parse_again, parse_request, render_response
from ringfence.gateway.core.messages import UPGRADED, ClientWire, Malformed, Request, Response
from ringfence.gateway.core.subject import Subject
from ringfence.policy.model import Decision, Reason


class Http1:
    """A conversation (see the module). Without a ``flow`` every request names its destination, and CONNECT is
    taken by ``tunnelled``.
    """

    def __init__(
        self,
        wire: ClientWire,
        subject: Subject,
        now: float,
        *,
        flow: Flow | None = None,
        via: str = "forward",
        tunnelled: Callable[[bytes, bytes, float], None] | None = None,
        canary: bool = False,
    ) -> None:
        self.wire = wire
        self.deadline = now + subject.limits.head_time
        self.requests = 0
        """How many requests were answered or refused: a connection without any is recorded by whoever owns
        it.
        """
        self._subject = subject
        self._limits = subject.limits
        self._model: Request | None = None
        """The last request, if others may be read like it, and the bytes of its fields."""
        self._model_fields = b""
        self._flow = flow
        self._fixed = flow is not None
        self._scheme = b"" if flow is not None else b"http"
        """What requests are usually asked with; others are looked at more closely."""
        self._via = via
        self._tunnelled = tunnelled
        self._canary = canary
        self._buffer = b""
        self._exchange: Exchange | None = None
        self._body: Body | None = None
        self._chunking = False
        self._closing = False
        """Finish after the current response."""
        self._full = False
        self._paused = False
        self._stepping = False
        if flow is not None:
            flow.protocol = "http/1.1"

    # -- bytes from the client ----------------------------------------------------------------------------

    def received(self, data: bytes, now: float) -> None:
        exchange = self._exchange
        if exchange is None:
            if not self._closing:
                self._step(self._buffer + data if self._buffer else data, now)
        elif self._body is not None:
            self._upload(exchange, data, now)
        elif exchange.upgraded:
            exchange.upload(data, now)
        else:
            self._wait(data)

    def _wait(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if len(self._buffer) > self._limits.pending_bytes:
            self._pause(True)

    def _pause(self, paused: bool) -> None:
        if paused is not self._paused:
            self._paused = paused
            if paused:
                self.wire.pause()
            else:
                self.wire.resume()

    def _step(self, buffer: bytes, now: float) -> None:
        """Take requests from the buffer until one is under way, the client must read first, or bytes are
        missing.
        """
        limits = self._limits
        begun = bool(self._buffer)
        self._buffer = b""
        self._stepping = True
        while buffer and self._exchange is None and not self._closing and not self._full:
            end = buffer.find(END)
            if end < 0 or end > limits.head_bytes:
                if len(buffer) > limits.head_bytes:
                    self._malformed(Malformed("a request head that is too long", 431), now)
                    buffer = b""
                elif BARE(buffer):
                    self._malformed(Malformed("a CR or LF that is not a CRLF"), now)
                    buffer = b""
                elif not begun:
                    self.deadline = now + limits.head_time
                break
            end += 4
            head, buffer = (buffer, b"") if end == len(buffer) else (buffer[:end], buffer[end:])
            begun = False
            try:
                request = self._read(head)
                if request.method == b"CONNECT":
                    self._connect(request, buffer, now)
                    buffer = b""
                    break
                flow = self._flow
                if flow is None or request.authority != flow.seen or request.scheme != self._scheme:
                    flow = self._flow_of(request)
            except Malformed as flaw:
                self._malformed(flaw, now)
                buffer = b""
                break
            buffer = self._begin(request, flow, buffer, now)
        self._buffer = buffer
        self._stepping = False
        if self._exchange is not None and len(buffer) > limits.pending_bytes:
            self._pause(True)

    def _read(self, head: bytes) -> Request:
        at = head.index(b"\r\n")
        fields = head[at:]
        model = self._model
        if model is not None and fields == self._model_fields:
            request = parse_again(head[:at], model)
            if request is not None:
                return request
        request = parse_request(head, self._limits.fields)
        if is_model(request):
            self._model, self._model_fields = request, fields
        return request

    def _connect(self, request: Request, rest: bytes, now: float) -> None:
        if self._tunnelled is None:
            raise Malformed("a CONNECT inside a tunnel", 405)
        self.requests += 1
        self._closing = True  # the connection belongs to the tunnel now
        self._tunnelled(request.authority, rest, now)

    def _flow_of(self, request: Request) -> Flow:
        """Return the flow that a request belongs to. All names must agree (GATEWAY.md section 3)."""
        flow = self._flow
        if self._fixed:
            assert flow is not None
            if request.scheme and (request.scheme == b"https") is not flow.secure:
                raise Malformed("a scheme that is not the connection's", 421)
            if flow.status != 421 and not flow.agree(request.authority):
                named = request.authority.decode("latin-1")
                raise Malformed(f"the request names {named}, its connection {flow.known_as}:{flow.port}", 421)
            return flow
        if request.scheme != b"http":
            raise Malformed("a proxy is asked with an absolute http URL, or with CONNECT")
        if flow is None or flow.seen != request.authority:
            host, port = authority_of(request.authority, 80)
            flow = Flow(self._subject, host, port, self._via, canary=self._canary)
            flow.protocol = "http/1.1"
            flow.agree(request.authority)
            self._flow = flow
        return flow

    def _begin(self, request: Request, flow: Flow, buffer: bytes, now: float) -> bytes:
        """Start the exchange; return what does not belong to its body."""
        self.requests += 1
        self.deadline = 0.0  # the exchange has one
        exchange = self._exchange = Exchange(self, flow, request, 0, now)
        if request.close:
            self._closing = True
        if request.length:
            self._body = body_of(request.length)
        exchange.start(now)
        if self._exchange is exchange and self._body is not None and buffer:
            self._buffer = b""
            self._upload(exchange, buffer, now)
            buffer, self._buffer = self._buffer, b""
        return buffer

    def _upload(self, exchange: Exchange, data: bytes, now: float) -> None:
        body = self._body
        assert body is not None
        try:
            payload, rest = body.feed(data)
        except Malformed as flaw:
            answered = exchange.response is not None
            exchange.client_gone(now)
            self._malformed(flaw, now, answered=answered)
            return
        if body.done:
            self._body = None
        if payload:
            exchange.upload(payload, now)
        if body.done:
            self.deadline = 0.0  # the exchange has a nearer one now
            exchange.upload_done(body.trailers, now)
            if rest:
                self._wait(rest)

    def eof(self, now: float) -> None:
        """The client sends no more. What it asked for completely is still answered."""
        exchange = self._exchange
        if exchange is None:
            self.wire.finish()
        elif self._body is not None or exchange.upgraded:
            exchange.client_gone(now)
            self.wire.finish()
        else:
            self._closing = True

    def lost(self, now: float) -> None:
        """The connection is gone."""
        self._closing = True
        if self._exchange is not None:
            self._exchange.client_gone(now)
            self._exchange = None
        if self._fixed and self._flow is not None and not self.requests:
            self._flow.unused(now)

    # -- the conversation's side of an exchange -----------------------------------------------------------

    def inform(self, exchange: Exchange, response: Response) -> None:
        if exchange.request.version == 1:
            self.wire.send(render_response(response, framing=b"", close=False))

    def respond(self, exchange: Exchange, response: Response, payload: bytes) -> None:
        request = exchange.request
        if response.length == UPGRADED:
            switch = b"Connection: upgrade\r\nUpgrade: " + response.upgrade
            self.wire.send(render_response(response, framing=switch, close=False) + payload)
            self._body = None
            self._closing = True
            if self._buffer:
                early, self._buffer = self._buffer, b""
                self._pause(False)
                exchange.upload(early, exchange.now)
            return
        if self._body is not None:
            self._closing = True  # the rest of an upload that nobody waits for is not worth reading
        if response.length > 0:
            self._chunking = False
            framing = b"Content-Length: %d" % response.length
        elif request.version:
            self._chunking = True
            framing = b"Transfer-Encoding: chunked"
            payload = chunk(payload)
        else:
            self._chunking = False
            self._closing = True
            framing = b""
        self.wire.send(render_response(response, framing=framing, close=self._closing) + payload)

    def complete(
        self, exchange: Exchange, response: Response, payload: bytes, trailers: Sequence[bytes]
    ) -> None:
        if self._body is not None:
            self._closing = True
        framing = b""
        if trailers and exchange.request.version:
            framing = b"Transfer-Encoding: chunked"
            payload = chunk(payload) + last_chunk(trailers)
        elif payload or _has_length(exchange, response):
            framing = b"Content-Length: %d" % len(payload)
        self.wire.send(render_response(response, framing=framing, close=self._closing) + payload)
        self._ended(exchange.now)

    def extend(self, exchange: Exchange, payload: bytes) -> None:  # noqa: ARG002  # there is one
        self.wire.send(chunk(payload) if self._chunking else payload)

    def conclude(self, exchange: Exchange, payload: bytes, trailers: Sequence[bytes]) -> None:
        if self._chunking:
            payload = chunk(payload) + last_chunk(trailers)
        if payload:
            self.wire.send(payload)
        if exchange.upgraded:
            self._closing = True
        self._ended(exchange.now)

    def refuse(self, exchange: Exchange, decision: Decision) -> None:
        request, flow = exchange.request, exchange.flow
        if request.length or request.expect:
            self._closing = True
        wants_json = refusal.wants_json(request.lines)
        if exchange.retry:
            notice = refusal.postponed(
                decision, flow.place, exchange.id, exchange.retry, flow.subject.contact, wants_json=wants_json
            )
            response = refusal.http1(notice, close=self._closing, headless=False)
        else:
            response = flow.refusal(decision, exchange.id, wants_json=wants_json, close=self._closing)
        if request.method == b"HEAD":
            response = response[: response.index(END) + 4]
        self.wire.send(response)
        self._ended(exchange.now)

    def trouble(self, exchange: Exchange, text: str, status: int) -> None:
        request, flow = exchange.request, exchange.flow
        if self._body is not None or request.length:
            self._closing = True
        wants_json = refusal.wants_json(request.lines)
        notice = refusal.troubled(text, flow.place, exchange.id, status=status, wants_json=wants_json)
        self.wire.send(refusal.http1(notice, close=self._closing, headless=request.method == b"HEAD"))
        self._ended(exchange.now)

    def abort(self, exchange: Exchange, code: int) -> None:  # noqa: ARG002  # there is one; no codes
        self._exchange = None
        self._closing = True
        self.wire.reset()

    def hold(self, exchange: Exchange, held: bool) -> None:  # noqa: ARG002  # there is one
        self._pause(held)

    def _ended(self, now: float) -> None:
        self._exchange = None
        self._body = None
        self._chunking = False
        if self._closing:
            self._buffer = b""
            self.wire.finish()
            return
        self.deadline = now + self._limits.idle_time
        if self._paused and not self._full:
            self._pause(False)
        if self._buffer and not self._stepping:
            self._step(self._buffer, now)

    def _malformed(self, flaw: Malformed, now: float, *, answered: bool = False) -> None:
        """Refuse what is no message, or names something else, and close: one record, one answer (unless the
        request was being ``answered`` already).
        """
        self.requests += 1
        self._closing = True
        subject, flow = self._subject, self._flow
        if flow is None:
            flow = Flow(subject, "", 0, self._via, canary=self._canary)
            flow.protocol = "http/1.1"
        reason = Reason.GUARD if flaw.status == 421 else Reason.FAILURE
        decision = Decision(reason=reason, text=flaw.text, revision=subject.revision)
        number = subject.ids()
        subject.sink(
            journal.opened(number, now, flow.shared(decision) + (b',"status":%d' % flaw.status)), False
        )
        if answered:
            self.wire.reset()
            return
        notice = refusal.misread(flaw.text, number, status=flaw.status)
        self.wire.send(refusal.http1(notice, close=True, headless=False))
        self.wire.finish()

    # -- pressure, time, policy ---------------------------------------------------------------------------

    def filled(self) -> None:
        """The client reads slower than we write."""
        self._full = True
        if self._exchange is not None:
            self._exchange.throttle(True)
        else:
            self._pause(True)

    def drained(self, now: float) -> None:
        self._full = False
        if self._exchange is not None:
            self._exchange.throttle(False)
            return
        self._pause(False)
        if self._buffer and not self._closing:
            self._step(self._buffer, now)

    def expire(self, now: float) -> None:
        exchange = self._exchange
        if exchange is not None:
            if now > exchange.deadline:
                exchange.expire(now)
            else:
                self.deadline = exchange.deadline
        elif self._buffer and not self._closing:
            self._malformed(Malformed("a request head that did not come in time", 408), now)
        elif self._closing:
            self.wire.reset()
        else:
            self.wire.finish()

    def revise(self, now: float) -> None:
        """Another policy is in force. Also a connection that only waits for its next request is closed if
        refused.
        """
        exchange = self._exchange
        if exchange is not None:
            exchange.revise(now)
            return
        flow = self._flow
        if not self._fixed or flow is None or self._closing:
            return
        decision = flow.revoked(now)
        if decision is not None:
            self.requests += 1
            self._closing = True
            number, subject = self._subject.ids(), self._subject
            subject.sink(journal.opened(number, now, flow.shared(decision) + b',"ended":"revoked"'), False)
            self.wire.finish()


def _has_length(exchange: Exchange, response: Response) -> bool:
    """Whether an empty body is said to be empty: not for HEAD, 204 and 304, whose framing means something
    else.
    """
    return exchange.request.method != b"HEAD" and response.status not in (204, 304)
