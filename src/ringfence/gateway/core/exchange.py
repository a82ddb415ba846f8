"""One request and its response: decided, recorded, forwarded, and recorded again.

An exchange stands between a conversation (the client's HTTP/1 or HTTP/2) and a carrier (the destination's). It
decides before anything leaves, so a refused request costs no DNS question and no connection. It records
``opened`` before the first byte goes upstream and ``closed`` when it is over, whatever way it ends. Bodies
pass through as they come, both ways at once if need be; the slower side pauses the faster one.

Events are the public methods below; commands go to the conversation and to the carrier. Neither knows the other, so
every version of HTTP on one side goes with every version on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ringfence.gateway.core import journal, refusal
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.messages import (
    CANCEL,
    INTERNAL_ERROR,
    UPGRADED,
    Carrier,
    Conversation,
    Request,
    Response,
)
from ringfence.gateway.core.treated import Treated
from ringfence.policy.model import Decision, Verdict

_ALLOWED: Final = Verdict.ALLOWED
_AGAIN: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
"""Methods that may be sent twice when a reused connection turns out to be dead (RFC 9110 section 9.2.2)."""


class Exchange(Treated):
    """See the module. ``number`` is the conversation's own (a stream id)."""

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
        self.over = False
        self.upstream: Carrier | None = None
        self.response: Response | None = None
        self.treatment = None
        self.deadline = 0.0
        self.retry = 0
        """In how many seconds a client that is refused may ask again, if that is a matter of a minute."""
        self._limits = subject.limits
        self._epoch = subject.epoch
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._trailers: Sequence[bytes] = ()
        self._fields = b""
        self._interim = 0
        self._recorded = self._again = False
        self._sent = self._received = 0
        self._first = 0.0

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
        if self.flow.plan is None or self._treat(now):
            self._dial(now)

    def _dial(self, now: float) -> None:
        self.deadline = now + self._limits.dial_time * 2
        self.conversation.wire.request(self, self.flow.route(), fresh=False)

    def upload(self, payload: bytes, now: float) -> None:
        """More of the request's body, or of an upgraded connection."""
        if self.over:
            return
        limits = self._limits
        upstream, treatment = self.upstream, self.treatment
        if treatment is not None:
            taken = self._taken(treatment, payload, now)
            if taken is None:
                return
            payload = taken
        if upstream is None:
            self._pending.append(payload)
            self._pending_size += len(payload)
            if self._pending_size > limits.pending_bytes:
                self.conversation.hold(self, True)
            return
        self.deadline = now + (limits.tunnel_time if self.upgraded else limits.idle_time)
        self._sent += upstream.send(payload)
        if treatment is not None and treatment.accounts:
            self._overspent(treatment, now)

    def upload_done(self, trailers: Sequence[bytes], now: float) -> None:
        """The request's body is complete."""
        self.uploaded = True
        self._trailers = trailers
        upstream, treatment = self.upstream, self.treatment
        if self.over or (treatment is not None and not self._concluded(treatment, now)) or upstream is None:
            return
        limits = self._limits
        self.deadline = now + (limits.first_byte_time if self.response is None else limits.idle_time)
        self._sent += upstream.conclude(self._trailers)

    def client_gone(self, now: float, code: int = CANCEL) -> None:
        """Nobody waits for the response any more."""
        self.now = now
        self._end(b"client", now, code)

    # -- the upstream's side ------------------------------------------------------------------------------

    def connected(self, upstream: Carrier, now: float) -> None:
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
        if not self._recorded:
            self._record_opened(upstream.address, now)
        payload = b""
        if self._pending:
            payload = b"".join(self._pending)
            self._pending.clear()
            if self._pending_size > self._limits.pending_bytes:
                self.conversation.hold(self, False)
            self._pending_size = 0
        limits = self._limits
        if self.uploaded:
            self.deadline = now + limits.first_byte_time
            trailers: Sequence[bytes] | None = self._trailers
        else:
            self.deadline = now + limits.idle_time
            trailers = None
        request = self.request if self.treatment is None else self.treatment.request
        self._sent += upstream.ask(self, request, self.flow.authority, payload, trailers)

    def failed(self, status: int, text: str, now: float, decision: Decision | None = None) -> None:
        """There is no upstream connection: refused by ``decision`` about its addresses, or not reached."""
        if self.over:
            return
        self.now = now
        if decision is not None:
            self._refuse(decision, now)
            return
        self._trouble(status, text, now, b"upstream")

    def informed(self, response: Response, now: float) -> None:
        """An interim response."""
        self.now = now
        self._interim += 1
        if self._interim > self._limits.interim:
            self._trouble(502, "the response has too many interim responses", now, b"upstream")
            return
        if self.treatment is not None:
            self.treatment.inform(response)
        self.conversation.inform(self, response)

    def answered(self, response: Response, payload: bytes, now: float) -> None:
        """The response's head, and what is there of its body; more follows."""
        treatment = self.treatment
        self._received += len(payload)
        if treatment is not None:
            flaw = treatment.meet(response)
            if flaw:
                self._trouble(502, flaw, now, b"upstream")
                return
            payload = treatment.passed(payload)
        self._meet(response, now)
        limits = self._limits
        self.deadline = now + (limits.tunnel_time if response.length == UPGRADED else limits.idle_time)
        self.conversation.respond(self, response, payload)
        if treatment is not None and treatment.accounts:
            self._overspent(treatment, now)

    def passed(self, payload: bytes, now: float) -> None:
        """More of the response's body, or of another protocol after a 101."""
        self.now = now
        limits = self._limits
        self.deadline = now + (limits.tunnel_time if self.upgraded else limits.idle_time)
        if payload:
            self._received += len(payload)
            treatment = self.treatment
            if treatment is not None:
                payload = treatment.passed(payload)
                if (treatment.accounts and self._overspent(treatment, now)) or not payload:
                    return
            self.conversation.extend(self, payload)

    def completed(self, response: Response, payload: bytes, trailers: Sequence[bytes], now: float) -> None:
        """A whole response, all at once."""
        self._received += len(payload)
        if self.treatment is not None:
            flaw = self.treatment.meet(response)
            if flaw:
                self.upstream = None  # it has taken care of its connection
                self._trouble(502, flaw, now, b"upstream")
                return
            payload, trailers = self.treatment.concluded(payload, trailers)
        self._meet(response, now)
        self._done(response, now)
        self.conversation.complete(self, response, payload, trailers)

    def concluded(self, payload: bytes, trailers: Sequence[bytes], now: float) -> None:
        """The rest of the response's body, and its end."""
        assert self.response is not None
        self.now = now
        self._received += len(payload)
        if self.treatment is not None:
            payload, trailers = self.treatment.concluded(payload, trailers)
        self._done(self.response, now)
        self.conversation.conclude(self, payload, trailers)

    def _meet(self, response: Response, now: float) -> None:
        """The final response's head is there."""
        self.now = self._first = now
        self.response = response

    def malformed(self, text: str, now: float) -> None:
        """What the origin sends is no response."""
        self.now = now
        if self.response is None:
            self._trouble(502, text, now, b"upstream")
        else:
            self._break(b"upstream", now)

    def lost(self, text: str, now: float, *, untouched: bool = True) -> None:
        """The upstream connection broke, perhaps before it brought anything (``untouched``)."""
        self.now = now
        if self.over:
            return
        upstream = self.upstream
        if self.response is not None:
            self._break(b"upstream", now)
        elif upstream is not None and untouched and self._may_try_again(upstream):
            self._again = True
            self.upstream = None
            self.conversation.wire.request(self, self.flow.route(), fresh=True)
        else:
            self._trouble(502, text, now, b"upstream")

    def refused(self, kept: bytes | None, code: int, text: str, now: float) -> None:
        """The origin has not touched the request, and says so (RFC 9113 section 8.7). ``kept`` is what was sent of
        its body."""
        if kept is None or self._again:
            self.reset(code, text, now)
            return
        self.now = now
        self._again = True
        self.upstream = None
        if kept:
            self._pending = [kept]
            self._pending_size = len(kept)
        self.conversation.hold(self, False)
        self.conversation.wire.request(self, self.flow.route(), fresh=True)

    def reset(self, code: int, text: str, now: float) -> None:
        """The origin gave up the request, with a code that a client of the same kind understands."""
        self.now = now
        self.upstream = None
        if self.response is None and self.request.version < 2:
            self._trouble(502, text, now, b"upstream")
        else:
            self._break(b"upstream", now, code or INTERNAL_ERROR, text)

    def _may_try_again(self, upstream: Carrier) -> bool:
        request = self.request
        untouched = not self._interim and not self._again
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
        decision = self.flow.judge(self.request.method, self.request.path, now, counted=False)
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
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()
        if flow.subject.budgets:
            self.retry = flow.subject.retry(decision, now)
        status = refusal.LATER if self.retry else flow.status
        if self._recorded:
            self._record_closed(status, b"failed", now, decision.text)
        else:
            fields = journal.asking(flow.shared(decision), request.method, request.path)
            fields += b',"status":%d' % status
            flow.subject.sink(journal.opened(self.id, now, fields), False)
            if self.treatment is not None:
                self.treatment.close(now)
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

    def _break(self, ended: bytes, now: float, code: int = INTERNAL_ERROR, text: str = "") -> None:
        """End an exchange whose response has begun, or that may not go on."""
        self._end(ended, now, text=text)
        self.conversation.abort(self, code)

    def _end(self, ended: bytes, now: float, code: int = CANCEL, text: str = "") -> None:
        if self.over:
            return
        self.over = True
        upstream = self.upstream
        self.upstream = None
        if upstream is not None:
            upstream.close(code)
        if not self._recorded:
            self._record_opened("", now)
        self._record_closed(self.response.status if self.response else 0, ended, now, text)

    def _done(self, response: Response, now: float) -> None:
        """The response is complete; the carrier has taken care of its connection."""
        self.over = True
        self.upstream = None
        self._record_closed(response.status, b"done", now)

    def _record_opened(self, address: str, now: float) -> None:
        self._recorded = True
        flow, request = self.flow, self.request
        shared = flow.shared(self.decision)
        fields = self._fields = journal.asking(shared, request.method, request.path, address)
        if self.treatment is not None:
            fields = self._fields = fields + self.treatment.named
        flow.subject.sink(journal.opened(self.id, now, fields), True)

    def _record_closed(self, status: int, ended: bytes, now: float, text: str = "") -> None:
        fields = self._fields
        if text:
            flow, request = self.flow, self.request
            fields = journal.asking(flow.annotated(self.decision, text), request.method, request.path)
        if self.treatment is not None:
            fields += self.flow.settle(self.treatment, self._sent + self._received, now)
        record = journal.closed(
            self.id, now, fields, status, ended, self._started, self._first, self._sent, self._received
        )
        self.flow.subject.sink(record, self.decision.verdict is _ALLOWED)
