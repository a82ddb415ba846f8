"""HTTP/1.1 towards an origin: one exchange after another on one connection.

An exchange speaks in messages; this codec writes the request's head and frames its body, reads the response, and
knows when the connection may carry another exchange: after a whole request and a whole response, with not a byte
behind it. What follows a response was not asked for (response queue poisoning), and ends the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ringfence.gateway.core.bodies import Body, body_of, chunk, last_chunk
from ringfence.gateway.core.exchange import Exchange
from ringfence.gateway.core.heads import BARE, END, parse_response, render_request
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.messages import CHUNKED, UPGRADED, Malformed, Request, Response, UpstreamWire

Render = Callable[[Request, bytes], bytes]
_TRUNCATED = "the connection was closed before the response was complete"


class Origin1:
    """A carrier of one exchange at a time (see the module)."""

    _request: Request

    def __init__(self, wire: UpstreamWire, limits: Limits, render: Render = render_request) -> None:
        """``render`` writes a request's head; through a proxy it is another one."""
        self.address = wire.address
        self._render = render
        self._wire = wire
        self._limits = limits
        self._exchange: Exchange | None = None
        self._response: Response | None = None
        self._body: Body | None = None
        self._head = b""
        self._asked = True
        """The whole request is out."""
        self._chunking = False

    @property
    def reused(self) -> bool:
        return self._wire.reused

    # -- what the exchange commands -----------------------------------------------------------------------

    def ask(
        self,
        exchange: Exchange,
        request: Request,
        authority: bytes,
        payload: bytes,
        trailers: Sequence[bytes] | None,
    ) -> int:
        self._exchange = exchange
        self._request = request
        chunking = self._chunking = request.length == CHUNKED
        out = self._render(request, authority)
        if payload:
            out += chunk(payload) if chunking else payload
        if trailers is None:
            self._asked = False
        else:
            self._asked = True
            if chunking:
                out += last_chunk(trailers)
        self._wire.send(out)
        return len(out)

    def send(self, payload: bytes) -> int:
        if self._chunking:
            payload = chunk(payload)
        self._wire.send(payload)
        return len(payload)

    def conclude(self, trailers: Sequence[bytes]) -> int:
        self._asked = True
        if not self._chunking:
            return 0
        out = last_chunk(trailers)
        self._wire.send(out)
        return len(out)

    def pause(self) -> None:
        self._wire.pause()

    def resume(self) -> None:
        self._wire.resume()

    def close(self, code: int = 0) -> None:  # noqa: ARG002  # HTTP/1 has no codes
        self._exchange = None
        self._wire.close()

    # -- what the connection brings -----------------------------------------------------------------------

    def received(self, data: bytes, now: float) -> None:
        exchange = self._exchange
        if exchange is None:
            self._wire.close()  # an answer to nothing: whoever came next would take it for theirs
            return
        if self._response is not None:
            self._pass(exchange, self._response, data, now)
            return
        if self._head:
            data = self._head + data
            self._head = b""
        limits = self._limits
        while True:
            end = data.find(END)
            if end < 0 or end > limits.head_bytes:
                self._wait_for_head(exchange, data, now)
                return
            end += 4
            try:
                response = parse_response(data[:end], self._request.method, limits.fields)
                if response.length == UPGRADED:
                    self._check_upgrade(response)
            except Malformed as flaw:
                exchange.malformed(flaw.text, now)
                return
            data = data[end:]
            if response.status >= 200 or response.length == UPGRADED:
                break
            exchange.informed(response, now)
            if self._exchange is not exchange:
                return
        length = response.length
        if length == len(data) or not length:  # all of it is there, as of nearly all short ones
            self._end(response, data[length:])
            exchange.completed(response, data[:length], (), now)
        else:
            self._begin(exchange, response, data, now)

    def _wait_for_head(self, exchange: Exchange, data: bytes, now: float) -> None:
        if len(data) > self._limits.head_bytes:
            exchange.malformed("the response's head is too long", now)
        elif BARE(data):
            exchange.malformed("the response's head is malformed", now)
        else:
            self._head = data

    def _check_upgrade(self, response: Response) -> None:
        upgrade = self._request.upgrade
        asked = {name.strip().lower() for name in upgrade.split(b",")}
        if not upgrade or response.upgrade.strip().lower() not in asked:
            raise Malformed("a 101 that nobody asked for", 502)

    def _begin(self, exchange: Exchange, response: Response, data: bytes, now: float) -> None:
        if response.length == UPGRADED:
            self._response = response
            self._chunking = False
            exchange.answered(response, data, now)
            return
        body = body_of(response.length)
        try:
            payload, rest = body.feed(data) if data else (data, data)
        except Malformed as flaw:
            exchange.malformed(flaw.text, now)
            return
        if body.done:
            self._end(response, rest)
            exchange.completed(response, payload, body.trailers, now)
        else:
            self._response, self._body = response, body
            exchange.answered(response, payload, now)

    def _pass(self, exchange: Exchange, response: Response, data: bytes, now: float) -> None:
        body = self._body
        if body is None:  # another protocol
            exchange.passed(data, now)
            return
        try:
            payload, rest = body.feed(data)
        except Malformed as flaw:
            exchange.malformed(flaw.text, now)
            return
        if body.done:
            self._end(response, rest)
            exchange.concluded(payload, body.trailers, now)
        else:
            exchange.passed(payload, now)

    def _end(self, response: Response, rest: bytes) -> None:
        """The response is complete; ``rest`` is what follows it."""
        self._exchange = self._response = self._body = None
        if rest or response.close or not self._asked:
            self._wire.close()
        else:
            self._wire.release()

    def ended(self, now: float) -> None:
        """The origin said that it sends no more, and proved it where TLS can."""
        exchange, response = self._exchange, self._response
        if exchange is None:
            return
        if response is not None and response.length < CHUNKED:  # endless, or another protocol
            self._end(response, b"")
            exchange.concluded(b"", (), now)
        else:
            self.lost(_TRUNCATED, now)

    def lost(self, text: str, now: float) -> None:
        """The connection broke."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost(text, now, untouched=not self._head)

    def hold(self, held: bool) -> None:
        """The origin does not (or does again) take what is sent."""
        if self._exchange is not None:
            self._exchange.hold(held)
