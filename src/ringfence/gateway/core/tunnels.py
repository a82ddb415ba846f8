"""Bytes that nobody looks into: a bypassed TLS connection, or an allowed protocol that is neither TLS nor
HTTP.

A tunnel is decided once, recorded once, and lives as long as the policy in force allows it. Its bytes move
outside the core (the shell relays them, later the kernel does); the core hears how many.

Where the server speaks first (SSH, SMTP, databases) nothing tells the protocol before somebody waits for it.
Then the tunnel is ``unsure``: it dials, and whoever speaks first settles it. If the server does, no TLS or
HTTP client is there. If the client does, its bytes are sniffed after all, and TLS and HTTP go the way that
all TLS and HTTP goes.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.gateway.core import journal
from ringfence.gateway.core.budgets import Account, names, spend
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.messages import ClientWire, Route, UpstreamWire
from ringfence.policy.model import Decision, Verdict


class Tunnel:
    """A relay (see the module). ``reconsider`` takes what a client said in an unsure tunnel and returns
    whether it stays one.
    """

    def __init__(
        self,
        wire: ClientWire,
        flow: Flow,
        protocol: str,
        early: bytes,
        now: float,
        reconsider: Callable[[bytes, float], bool] | None = None,
    ) -> None:
        self.wire = wire
        self.flow = flow
        self.deadline = now + flow.subject.limits.dial_time * 2
        self.sent = 0
        self.received_bytes = 0
        flow.protocol = protocol
        self._early = early
        self._reconsider = reconsider
        self._upstream: UpstreamWire | None = None
        self.over = False
        self._id = b""
        self._dialled = b""
        self._fields = b""
        self._started = now
        self._first = 0.0
        self._accounts: tuple[Account, ...] = ()
        """The budgets that pay for its bytes."""
        self._decision = flow.judge_opaque(now)
        self._epoch = flow.subject.epoch
        self._patience = flow.subject.limits.tunnel_time

    def start(self, now: float) -> None:
        """Decide; reset what is refused (never a connection that looks open and stays silent), or dial."""
        if self._decision.verdict is not Verdict.ALLOWED:
            self._refuse(self._decision, now)
            return
        flow = self.flow
        self.wire.open(self, Route(flow.host, flow.port, "", flow.subject.revision))

    # -- the client's side --------------------------------------------------------------------------------

    def received(self, data: bytes, now: float) -> None:
        """Bytes that came before the relay runs."""
        self._early += data
        if self._reconsider is not None:
            if not self._reconsider(self._early, now):
                self.over = True  # the connection is something else now
                if self._upstream is not None:
                    self._upstream.close()
            return
        if len(self._early) > self.flow.subject.limits.pending_bytes:
            self.wire.pause()

    def settle(self, now: float) -> None:
        """An unsure tunnel is one."""
        self._reconsider = None
        if self._upstream is not None:
            self._relay(self._upstream, now)

    def eof(self, now: float) -> None:
        """The client sends no more. What it said (``echo question | nc -N``) still goes out, and the end of it too,
        once the relay runs.
        """
        if self.over or not self._early:
            self.lost(now)
            self.wire.finish()

    def lost(self, now: float) -> None:
        self.finished(b"client", now)

    def filled(self) -> None:
        """Pressure is the relay's own matter."""

    def drained(self, now: float) -> None:
        """Pressure is the relay's own matter."""

    # -- the upstream's side ------------------------------------------------------------------------------

    def connected(self, upstream: UpstreamWire, now: float) -> None:
        if self.over:
            upstream.close()
            return
        subject = self.flow.subject
        if subject.epoch != self._epoch:
            decision = self._judge_again(upstream.address, now)
            if decision.verdict is not Verdict.ALLOWED:
                upstream.close()
                self._refuse(decision, now)
                return
            self._decision = decision
        self._upstream = upstream
        self._dialled = b',"dialled":"%b"' % upstream.address.encode()
        self.deadline = now + subject.limits.tunnel_time
        if self._reconsider is None:
            self._relay(upstream, now)

    def failed(self, status: int, text: str, now: float, decision: Decision | None = None) -> None:
        if self.over:
            return
        if decision is not None:
            self._refuse(decision, now)
            return
        self.over = True
        self.flow.record(self._decision, now, f"{status}: {text}", b"upstream")
        self.wire.reset()

    def answered(self, data: bytes, now: float) -> None:
        """The server spoke before the relay runs: it speaks first, so this is a tunnel."""
        self.settle(now)
        if not self.over:
            self.moved(0, len(data), now)
            self.wire.send(data)

    def _relay(self, upstream: UpstreamWire, now: float) -> None:
        self._open(now)
        early, self._early = self._early, b""
        if early:
            self.moved(len(early), 0, now)
            upstream.send(early)
        self.wire.relay(self, upstream)

    # -- the relay ----------------------------------------------------------------------------------------

    def moved(self, sent: int, received: int, now: float) -> None:
        """So many bytes went each way."""
        self.sent += sent
        self.received_bytes += received
        if received and not self._first:
            self._first = now
        self.deadline = now + self._patience
        if self._accounts:
            self._book(sent + received, now)

    def _book(self, size: int, now: float) -> None:
        """Charge bytes; where no rule allows one more, end."""
        subject = self.flow.subject
        if spend(self._accounts, size, 0, now):
            subject.drain()
        if any(each.drained for each in self._accounts) and not self.flow.judge_opaque(now).allowed:
            self.finished(b"limit", now)
            self.wire.reset()

    def finished(self, ended: bytes, now: float) -> None:
        """One side, or both, are gone."""
        if self.over:
            return
        self.over = True
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.close()
        if not self._id:
            self._open(now)
        self._close(ended, now)

    # -- time and policy ----------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        self.finished(b"limit", now)
        self.wire.reset()

    def revise(self, now: float) -> None:
        upstream = self._upstream
        if self.over or upstream is None:
            return  # `connected` judges before anything leaves
        decision = self._judge_again(upstream.address, now)
        if decision.verdict is not Verdict.ALLOWED or (
            self.flow.protocol == "tls" and not self.flow.uninspected(now)
        ):
            self.finished(b"revoked", now)
            self.wire.reset()

    def _judge_again(self, address: str, now: float) -> Decision:
        decision = self.flow.judge_opaque(now)
        self._epoch = self.flow.subject.epoch
        if decision.verdict is not Verdict.ALLOWED:
            return decision
        judged = self.flow.judge_address(address, now)
        return decision if judged.verdict is Verdict.ALLOWED else judged

    def _refuse(self, decision: Decision, now: float) -> None:
        self.over = True
        self.flow.record(decision, now)
        self.wire.reset()

    def _open(self, now: float) -> None:
        self._id = self.flow.subject.ids()
        self._fields = self.flow.shared(self._decision) + self._dialled
        if self.flow.subject.budgets:
            self._accounts = self.flow.subject.budgets.charged(self._decision)
            if self._accounts:
                self._fields += b"," + journal.encode({"charged": names(self._accounts)})
        self.flow.subject.sink(journal.opened(self._id, now, self._fields), True)

    def _close(self, ended: bytes, now: float) -> None:
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
