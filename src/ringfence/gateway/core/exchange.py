"""One request and its response: decided, recorded, forwarded, and recorded again.

An exchange stands between a conversation (the client's HTTP/1 or HTTP/2) and one upstream connection. It
decides before anything leaves, so a refused request costs no DNS question and no connection. It records
``opened`` before the first byte goes upstream and ``closed`` when it is over, whatever way it ends. Bodies
pass through as they come; the slower side pauses the faster one.

Events are the public methods below; commands go to the conversation and to the upstream wire.
"""

from __future__ import annotations

from typing import Final

from ringfence.gateway.core import journal
from ringfence.gateway.core.bodies import Body, body_of
from ringfence.gateway.core.heads import BARE, END, parse_response, render_request
from ringfence.gateway.core.messages import (
    CHUNKED,
    UPGRADED,
    Conversation,
    Malformed,
    Request,
    Response,
    UpstreamWire,
)
from ringfence.gateway.core.subject import Flow
from ringfence.policy.model import Decision, Verdict

_ALLOWED: Final = Verdict.ALLOWED
_AGAIN: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
"""Methods that may be sent twice when a reused connection turns out to be dead (RFC 9110 section 9.2.2)."""


class Exchange:
    """See the module. ``number`` is the conversation's own (a stream id)."""

    over = False
    upstream: UpstreamWire | None = None
    response: Response | None = None
    deadline = 0.0
    _fields = b""
    _body: Body | None = None
    _head = b""
    _interim = 0
    _pending_size = 0
    _recorded = False
    _again = False
    _sent = 0
    _received = 0
    _first = 0.0
    # Defaults above, because most exchanges change few of them and there is one for every request.

    def __init__(
        self, conversation: Conversation, flow: Flow, request: Request, number: int, now: float
    ) -> None:
        subject = flow.subject
        self.conversation = conversation
        self.flow = flow
        self.request = request
        self.number = number
        self.id = subject.ids()
        self.now = self._started = now
        """When the event happened that is being dealt with."""
        self.uploaded = request.length == 0
        """The whole request body came in."""
        self.decision = flow.judge(request.method, request.path, now)
        self._limits = subject.limits
        self._epoch = subject.epoch
        self._pending: list[bytes] = []

    @property
    def upgraded(self) -> bool:
        response = self.response
        return response is not None and response.length == UPGRADED

    # -- the client's side --------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Decide; refuse, or ask for an upstream connection."""
        self.now = now
        if self.decision.verdict is not _ALLOWED:
            self._refuse(self.decision, now)
            return
        request = self.request
        if request.overrides and self.flow.decision(now).verdict is _ALLOWED:
            request.lines += request.overrides
        self.deadline = now + self._limits.dial_time * 2
        self.conversation.wire.request(self, self.flow.route(), fresh=False)

    def upload(self, payload: bytes, now: float) -> None:
        """More of the request's body, or of an upgraded connection."""
        if self.request.length == CHUNKED and self.response is None:
            payload = b"%x\r\n%b\r\n" % (len(payload), payload)
        self._put(payload, now)

    def upload_done(self, trailers: list[bytes], now: float) -> None:
        self.uploaded = True
        if self.request.length == CHUNKED:
            self._put(b"0\r\n%b\r\n" % b"".join(line + b"\r\n" for line in trailers), now)

    def _put(self, payload: bytes, now: float) -> None:
        if self.over:
            return
        limits = self._limits
        if self.upstream is None:
            self._pending.append(payload)
            self._pending_size += len(payload)
            if self._pending_size > limits.pending_bytes:
                self.conversation.hold(self, True)
            return
        self._sent += len(payload)
        self.deadline = now + (limits.tunnel_time if self.upgraded else limits.first_byte_time)
        self.upstream.send(payload)

    def client_gone(self, now: float) -> None:
        """Nobody waits for the response any more."""
        self.now = now
        self._end(b"client", now)

    # -- the upstream's side ------------------------------------------------------------------------------

    def connected(self, upstream: UpstreamWire, now: float) -> None:
        """An upstream connection is there, verified and checked. The shell never calls this once ``over``."""
        self.now = now
        subject = self.flow.subject
        if subject.epoch != self._epoch:
            decision = self._judge_again(upstream.address, now)
            if decision.verdict is not _ALLOWED:
                upstream.close()
                self._refuse(decision, now)
                return
            self.decision = decision
        self.upstream = upstream
        request = self.request
        if not self._recorded:
            self._record_opened(upstream.address, now)
        out = render_request(request, self.flow.authority)
        if self._pending:
            out += b"".join(self._pending)
            self._pending.clear()
            if self._pending_size > self._limits.pending_bytes:
                self.conversation.hold(self, False)
        self._sent += len(out)
        self.deadline = now + self._limits.first_byte_time
        upstream.send(out)

    def failed(self, status: int, text: str, now: float, decision: Decision | None = None) -> None:
        """There is no upstream connection: refused by ``decision`` about its addresses, or not reached."""
        if self.over:
            return
        self.now = now
        if decision is not None:
            self._refuse(decision, now)
            return
        self._trouble(status, text, now, b"upstream")

    def received(self, data: bytes, now: float) -> None:
        """Bytes from upstream."""
        self.now = now
        if self.response is not None:
            self._receive_body(data, now)
            return
        if self._head:
            data = self._head + data
        limits = self._limits
        while True:
            end = data.find(END)
            if end < 0 or end > limits.head_bytes:
                self._wait_for_head(data, now)
                return
            end += 4
            try:
                response = parse_response(data[:end], self.request.method, limits.fields)
                if response.length == UPGRADED:
                    self._check_upgrade(response)
            except Malformed as flaw:
                self._trouble(502, flaw.text, now, b"upstream")
                return
            data = data[end:]
            if response.status >= 200 or response.length == UPGRADED:
                break
            self._interim += 1
            if self._interim > limits.interim:
                self._trouble(502, "the response has too many interim responses", now, b"upstream")
                return
            self.conversation.inform(self, response)
        self._head = b""
        self._first = now
        self.response = response
        length = response.length
        if length == len(data) or not length:  # all of it is there, as of nearly all short ones
            self._received += length
            self._finish(data[length:], b"done", now)
            self.conversation.complete(self, response, data[:length], [])
        else:
            self._respond(response, data, now)

    def _wait_for_head(self, data: bytes, now: float) -> None:
        if len(data) > self._limits.head_bytes:
            self._trouble(502, "the response's head is too long", now, b"upstream")
        elif BARE(data):
            self._trouble(502, "the response's head is malformed", now, b"upstream")
        else:
            self._head = data

    def _receive_body(self, data: bytes, now: float) -> None:
        body = self._body
        if body is None:  # another protocol
            self._received += len(data)
            self.deadline = now + self._limits.tunnel_time
            self.conversation.extend(self, data)
            return
        self.deadline = now + self._limits.idle_time
        try:
            payload, rest = body.feed(data)
        except Malformed:
            self._break(b"upstream", now)
            return
        self._received += len(payload)
        if body.done:
            self._finish(rest, b"done", now)
            self.conversation.conclude(self, payload, body.trailers)
        elif payload:
            self.conversation.extend(self, payload)

    def _check_upgrade(self, response: Response) -> None:
        asked = {name.strip().lower() for name in self.request.upgrade.split(b",")}
        if not self.request.upgrade or response.upgrade.strip().lower() not in asked:
            raise Malformed("a 101 that nobody asked for", 502)

    def _respond(self, response: Response, data: bytes, now: float) -> None:
        limits = self._limits
        if response.length == UPGRADED:
            self.deadline = now + limits.tunnel_time
            self._received += len(data)
            self.conversation.respond(self, response, data)
            return
        body = self._body = body_of(response.length)
        self.deadline = now + limits.idle_time
        try:
            payload, rest = body.feed(data) if data else (data, data)
        except Malformed as flaw:
            self.response = None
            self._trouble(502, flaw.text, now, b"upstream")
            return
        self._received += len(payload)
        if body.done:
            self._finish(rest, b"done", now)
            self.conversation.complete(self, response, payload, body.trailers)
        else:
            self.conversation.respond(self, response, payload)

    def ended(self, now: float) -> None:
        """The upstream said that it sends no more, and proved it where TLS can."""
        if self.over:
            return
        self.now = now
        response = self.response
        if response is not None and response.length < CHUNKED:  # endless, or another protocol
            self._finish(b"", b"done", now)
            self.conversation.conclude(self, b"", [])
        else:
            self.lost("the connection was closed before the response was complete", now)

    def lost(self, text: str, now: float) -> None:
        """The upstream connection broke."""
        self.now = now
        if self.over:
            return
        upstream = self.upstream
        if self.response is not None:
            self._break(b"upstream", now)
        elif upstream is not None and self._may_try_again(upstream):
            self._again = True
            self.upstream = None
            self.conversation.wire.request(self, self.flow.route(), fresh=True)
        else:
            self._trouble(502, text, now, b"upstream")

    def _may_try_again(self, upstream: UpstreamWire) -> bool:
        request = self.request
        untouched = not self._head and not self._interim and not self._again
        return upstream.reused and untouched and request.length == 0 and request.method in _AGAIN

    def throttle(self, full: bool) -> None:
        """The client does not (or does again) take what the upstream sends."""
        if self.upstream is not None:
            if full:
                self.upstream.pause()
            else:
                self.upstream.resume()

    def hold(self, held: bool) -> None:
        """The upstream does not (or does again) take what the client sends."""
        if not self.over:
            self.conversation.hold(self, held)

    # -- time and policy ----------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """The deadline has passed."""
        self.now = now
        if self.response is not None:
            self._break(b"limit", now)
        else:
            self._trouble(504, "no response in time", now, b"limit")

    def revise(self, now: float) -> None:
        """Another policy is in force: what it refuses ends now."""
        if self.over:
            return
        self.now = now
        upstream = self.upstream
        if upstream is None:
            return  # `connected` judges before anything leaves
        decision = self._judge_again(upstream.address, now)
        if decision.verdict is not _ALLOWED:
            self._break(b"revoked", now)

    def _judge_again(self, address: str, now: float) -> Decision:
        decision = self.flow.judge(self.request.method, self.request.path, now)
        self._epoch = self.flow.subject.epoch
        if decision.verdict is not _ALLOWED:
            return decision
        judged = self.flow.judge_address(address, now)
        return decision if judged.verdict in (_ALLOWED, Verdict.UNDETERMINED) else judged

    # -- endings ------------------------------------------------------------------------------------------

    def _refuse(self, decision: Decision, now: float) -> None:
        self.over = True
        self.decision = decision
        request, flow = self.request, self.flow
        fields = journal.asking(flow.shared(decision), request.method, request.path)
        fields += b',"status":%d' % flow.status
        flow.subject.sink(journal.opened(self.id, now, fields), False)
        self.conversation.refuse(self, decision)

    def _trouble(self, status: int, text: str, now: float, ended: bytes) -> None:
        upstream = self.upstream
        self.upstream = None
        self.over = True
        if upstream is not None:
            upstream.close()
        if not self._recorded:
            self._record_opened("", now)
        self._record_closed(status, ended, now, text)
        self.conversation.trouble(self, text, status)

    def _break(self, ended: bytes, now: float) -> None:
        """End an exchange whose response has begun, or that may not go on."""
        self._end(ended, now)
        self.conversation.abort(self)

    def _end(self, ended: bytes, now: float) -> None:
        if self.over:
            return
        self.over = True
        upstream = self.upstream
        self.upstream = None
        if upstream is not None:
            upstream.close()
        if not self._recorded:
            self._record_opened("", now)
        self._record_closed(self.response.status if self.response else 0, ended, now)

    def _finish(self, rest: bytes, ended: bytes, now: float) -> None:
        """The response is complete. What follows it was not asked for (response queue poisoning): never reuse
        that.
        """
        self.over = True
        upstream, response = self.upstream, self.response
        assert upstream is not None
        assert response is not None
        self.upstream = None
        self._record_closed(response.status, ended, now)
        if rest or response.close or response.length == UPGRADED or not self.uploaded:
            upstream.close()
        else:
            upstream.release()

    def _record_opened(self, address: str, now: float) -> None:
        self._recorded = True
        flow, request = self.flow, self.request
        shared = flow.shared(self.decision)
        fields = self._fields = journal.asking(shared, request.method, request.path, address)
        flow.subject.sink(journal.opened(self.id, now, fields), True)

    def _record_closed(self, status: int, ended: bytes, now: float, text: str = "") -> None:
        fields = self._fields
        if text:
            flow, request = self.flow, self.request
            fields = journal.asking(flow.annotated(self.decision, text), request.method, request.path)
        record = journal.closed(
            self.id, now, fields, status, ended, self._started, self._first, self._sent, self._received
        )
        self.flow.subject.sink(record, True)
