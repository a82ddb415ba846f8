"""One UDP flow of a sandbox: from a client's port to one destination, decided once, recorded once, closed by time.

UDP has no beginning and no end, so the flow has: it begins with a datagram that policy allows, and ends when nothing
came for a minute, when the policy in force refuses it, or when the destination says that nobody is there. What
is refused is answered (the shell sends ICMP "port unreachable"), because a client that hears nothing waits.

QUIC hides from the gateway what TCP shows it, so it passes only where there is nothing to look at: the rule says
``inspect: never``, no rule is about requests to the host, no credential is bound to it, and the name in every
ClientHello is the flow's (:mod:`ringfence.gateway.core.quic`). Until that is known nothing passes; the destination
hears of no datagram, and its name is not even resolved. A version of QUIC that cannot be read is refused on port 443,
where it would be HTTP/3; elsewhere long headers prove nothing and the rule decides.
"""

from __future__ import annotations

from typing import Final, Protocol

from ringfence.gateway.core import budgets, journal
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.quic import Ciphers, Handshakes, Kind
from ringfence.gateway.core.sniff import ClientHello
from ringfence.policy.effective import EffectivePolicy
from ringfence.policy.model import (
    Decision,
    Effect,
    Inspect,
    Mode,
    NetworkAccess,
    Reason,
    Transport,
    Verdict,
)

_HTTP3_PORT: Final = 443
_LONG_HEADER: Final = b"\x80"
_DEAF_TIME: Final = 5.0
"""Seconds in which a destination that cannot be reached is not tried again, nor recorded again."""


def relays(policy: EffectivePolicy) -> bool:
    """Whether any rule in force lets a datagram out."""
    return any(
        clause.effect is Effect.ALLOW
        and Transport.UDP in clause.rule.transports
        and clause.rule.mode is Mode.ENFORCE
        for clause in policy.index.clauses
    )


class DatagramWire(Protocol):
    """Commands of one flow."""

    def open(self) -> None:
        """Find an address that may be dialled. Answers with ``connected`` or ``failed``."""

    def send(self, datagram: bytes) -> None:
        """Send towards the destination. What does not fit is lost, as on any network."""

    def unreachable(self) -> None:
        """Tell the client that nobody is there."""

    def refuse(self, decision: Decision) -> None:
        """Tell the client the same, and record that policy says so. Refusals of one flow are recorded together."""

    def close(self) -> None:
        """The flow is over."""


class Association:
    """One flow (see the module)."""

    __slots__ = (
        "_accounts",
        "_decision",
        "_dialled",
        "_epoch",
        "_fields",
        "_first",
        "_handshakes",
        "_held",
        "_id",
        "_opening",
        "_started",
        "_waiting",
        "_wire",
        "deadline",
        "deaf",
        "flow",
        "live",
        "over",
        "received_bytes",
        "sent",
    )

    def __init__(self, wire: DatagramWire, flow: Flow, ciphers: Ciphers, now: float) -> None:
        self.flow = flow
        self.deadline = now + flow.subject.limits.patience_time
        self.live = False
        """It reaches its destination."""
        self.deaf = False
        """Nobody was there."""
        self.over = False
        self.sent = self.received_bytes = 0
        self._wire = wire
        self._handshakes = Handshakes(ciphers)
        self._waiting = False
        """A ClientHello is not complete."""
        self._held: list[bytes] = []
        self._opening = False
        self._decision: Decision | None = None
        self._epoch = -1
        self._id = self._fields = b""
        self._dialled = ""
        self._accounts: tuple[budgets.Account, ...] = ()
        """Of the rules' budgets that pay."""
        self._started = now
        self._first = 0.0

    # -- the client's side --------------------------------------------------------------------------------

    def received(self, datagram: bytes, now: float) -> None:
        if self.deaf:
            self._wire.unreachable()
            return
        if self._decision is None:
            self._epoch = self.flow.subject.epoch
            self._decision = self.flow.judge_opaque(now)
            if self._decision.verdict is not Verdict.ALLOWED:
                self._refuse(self._decision, now)
                return
        if datagram >= _LONG_HEADER and (refusal := self._inspect(datagram, now)) is not None:
            self._refuse(refusal, now)
        elif self.live and not self._waiting:
            self._forward(datagram, now)
        else:
            self._hold(datagram, now)

    def _inspect(self, datagram: bytes, now: float) -> Decision | None:
        """Read what may be QUIC; return why it must not pass, or note whether it has to wait."""
        flow = self.flow
        reading = self._handshakes.read(datagram)
        if reading.kind is Kind.PLAIN or (reading.kind is Kind.FOREIGN and flow.port != _HTTP3_PORT):
            return None
        flow.protocol = "quic"
        text = ""
        if reading.kind is Kind.FOREIGN:
            text = "QUIC of a version that cannot be read"
        elif reading.kind is Kind.MALFORMED:
            text = f"QUIC that cannot be read: {reading.text}"
        else:
            text = self._unfit(now) or next(filter(None, map(self._disagreement, reading.hellos)), "")
            self._waiting = reading.kind is Kind.MORE
        return Decision(reason=Reason.GUARD, text=text, revision=flow.subject.revision) if text else None

    def _unfit(self, now: float) -> str:
        """Say why QUIC, which nobody looks into, must not pass to this destination."""
        flow = self.flow
        subject = flow.subject
        if flow.decision(now).inspect is not Inspect.NEVER:
            return "QUIC cannot be inspected: it passes only where the rule says `inspect: never`"
        requests = subject.decide(NetworkAccess(host=flow.host, port=flow.port), now)
        if requests.verdict is Verdict.UNDETERMINED:
            return "rules about requests apply here, and QUIC cannot be inspected"
        if flow.known_as == flow.host and subject.credentials.towards(flow.host, flow.port) is not None:
            return "a credential is bound to this host, and QUIC cannot be inspected"
        return ""

    def _disagreement(self, hello: ClientHello) -> str:
        """Say what is wrong with a ClientHello, as it would be of a TLS connection that is not inspected."""
        flow = self.flow
        if hello.ech:
            return "an encrypted ClientHello may hide another name, and this host is not inspected"
        if hello.server_name is None and flow.known_as is not None:
            return "a host that is not inspected must be named in the ClientHello"
        if not flow.agree_server_name(hello.server_name):
            return f"the client names {hello.server_name} inside its connection to {flow.known_as}"
        return ""

    def _hold(self, datagram: bytes, now: float) -> None:
        limits = self.flow.subject.limits
        held = self._held
        fits = len(held) < limits.udp_held and sum(map(len, held)) + len(datagram) <= limits.udp_held_bytes
        if fits:
            held.append(datagram)
        elif self._waiting:
            self._late(now)
        if not self._waiting and not self.over:
            if self.live:
                self._flush(now)
            elif not self._opening:
                self._opening = True
                self.deadline = now + limits.dial_time
                self._wire.open()

    def _late(self, now: float) -> None:
        text = "a ClientHello that was not complete in time"
        self._refuse(Decision(reason=Reason.FAILURE, text=text, revision=self.flow.subject.revision), now)

    def _flush(self, now: float) -> None:
        held, self._held = self._held, []
        for datagram in held:
            if self.live:
                self._forward(datagram, now)

    def _forward(self, datagram: bytes, now: float) -> None:
        self.sent += len(datagram)
        self._touch(now)
        self._wire.send(datagram)
        self._book(len(datagram), now)

    # -- the destination's side ---------------------------------------------------------------------------

    def connected(self, address: str, now: float) -> None:
        """An address was found that may be dialled, under the policy of the moment before."""
        subject = self.flow.subject
        self._dialled = address
        refusal = self._revoked(now) if subject.epoch != self._epoch else None
        if refusal is not None:
            self._refuse(refusal, now)
            return
        self.live = True
        self._touch(now)
        self._id = subject.ids()
        assert self._decision is not None
        flow = self.flow
        flow.protocol = flow.protocol or "udp"
        self._fields = flow.shared(self._decision) + b',"dialled":"%b"' % address.encode()
        self._accounts = subject.budgets.charged(self._decision)
        if self._accounts:
            self._fields += b"," + journal.encode({"charged": budgets.names(self._accounts)})
        subject.sink(journal.opened(self._id, now, self._fields), True)
        if not self._waiting:
            self._flush(now)

    def failed(self, text: str, now: float, decision: Decision | None = None) -> None:
        """There is no way there: policy refuses every address, or (no ``decision``) there is none."""
        if decision is not None:
            self._refuse(decision, now)
            return
        assert self._decision is not None
        self.flow.protocol = self.flow.protocol or "udp"
        self.flow.record(self._decision, now, f"502: {text}", b"upstream")
        self._held.clear()
        self.deaf = True
        self.deadline = now + _DEAF_TIME
        self._wire.unreachable()

    def answered(self, size: int, now: float) -> None:
        """The destination sent a datagram, which is on its way to the client."""
        self.received_bytes += size
        self._first = self._first or now
        self._touch(now)
        self._book(size, now)

    def lost(self, now: float) -> None:
        """The destination says that nobody is there."""
        self._wire.unreachable()
        self._end(b"upstream", now)

    # -- time and policy ----------------------------------------------------------------------------------

    def _book(self, size: int, now: float) -> None:
        """Charge bytes that moved to the rules that allowed them."""
        if not self._accounts:
            return
        if budgets.spend(self._accounts, size, 0, now):
            self.flow.subject.drain()
        if any(account.drained for account in self._accounts):
            self.revise(now)

    def _touch(self, now: float) -> None:
        limits = self.flow.subject.limits
        self.deadline = now + (limits.udp_time if self._first else limits.udp_unanswered_time)

    def expire(self, now: float) -> None:
        """The deadline is over."""
        if self.live or self.deaf:
            self._end(b"done", now)
        elif self._opening:
            self.failed("it could not be found in time", now)
        else:
            self._late(now)

    def evict(self, now: float) -> None:
        """Make place for another flow."""
        self._end(b"limit", now)

    def revise(self, now: float) -> None:
        """Policy or credentials changed."""
        refusal = None if self.over else self._revoked(now)
        if refusal is None:
            return
        if self.live:
            self._wire.unreachable()
            self._end(b"revoked", now)
        elif not self.deaf:
            self._refuse(refusal, now)

    def _revoked(self, now: float) -> Decision | None:
        """Return the decision that refuses what was let through."""
        flow = self.flow
        decision = flow.judge_opaque(now)
        if decision.verdict is Verdict.ALLOWED and self._dialled:
            judged = flow.judge_address(self._dialled, now)
            decision = decision if judged.verdict is Verdict.ALLOWED else judged
        if decision.verdict is not Verdict.ALLOWED:
            return decision
        if flow.protocol == "quic" and (text := self._unfit(now)):
            return Decision(reason=Reason.GUARD, text=text, revision=flow.subject.revision)
        self._epoch, self._decision = flow.subject.epoch, decision
        return None

    def _refuse(self, decision: Decision, now: float) -> None:
        self._wire.refuse(decision)
        self._end(b"failed", now)

    def _end(self, ended: bytes, now: float) -> None:
        self.over = True
        self._held.clear()
        if self.live:
            self.live = False
            record = journal.closed(
                self._id,
                now,
                self._fields,
                0,
                ended,
                self._started,
                self._first,
                self.sent,
                self.received_bytes,
            )
            self.flow.subject.sink(record, True)
        self._wire.close()
