"""A client connection from its first byte to the conversation that it turns into.

There are two ways in. An explicit proxy's client says where it wants to go (CONNECT, an absolute URL, or
SOCKS5, which its first byte tells); a redirected client has gone there already, and the kernel or a synthetic
address says where that was. Both become a ``Flow``, and from there on they are one: the first bytes tell TLS,
HTTP and everything else apart.

TLS is terminated unless policy says ``inspect: never`` for an allowed host: also towards blocked hosts,
because a client shows a person a 403 and its reason, but a dropped connection shows nothing. The origin hears
of neither.

A connection is always in one phase, kept on its wire; phases replace themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ringfence.gateway.core.flow import Flow, authority_of
from ringfence.gateway.core.http1 import Http1
from ringfence.gateway.core.http2 import Http2
from ringfence.gateway.core.messages import ClientWire, Malformed
from ringfence.gateway.core.refusal import LEFT, MISTRUST, mistrusted
from ringfence.gateway.core.sniff import ClientHello, SniffKind, sniff
from ringfence.gateway.core.socks import VERSION4, VERSION5, Socks
from ringfence.gateway.core.subject import Subject
from ringfence.gateway.core.tunnels import Tunnel
from ringfence.policy.model import Decision, Reason, Verdict
from ringfence.policy.names import HOST_NAME, LOCALHOST

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_OPEN: Final = (Verdict.ALLOWED, Verdict.UNDETERMINED)


Locate = Callable[[str], tuple[str, Decision | None]]
"""From a host as a client named it to the host that is meant: what a synthetic address stands for, or its refusal."""


class Phase(Protocol):
    """What a connection is at the moment."""

    deadline: float
    """When ``expire`` wants to be called. It may be early."""

    def received(self, data: bytes, now: float) -> None: ...
    def eof(self, now: float) -> None: ...
    def lost(self, now: float) -> None: ...
    def filled(self) -> None: ...
    def drained(self, now: float) -> None: ...
    def expire(self, now: float) -> None: ...
    def revise(self, now: float) -> None: ...


def _nowhere_else(host: str) -> tuple[str, Decision | None]:
    return host, None


def explicit(
    wire: ClientWire, subject: Subject, now: float, *, canary: bool, locate: Locate = _nowhere_else
) -> Phase:
    """Begin with a client of the explicit proxy."""
    return Approach(wire, subject, now, canary, locate)


def redirected(
    wire: ClientWire,
    subject: Subject,
    host: str,
    port: int,
    now: float,
    *,
    canary: bool,
    refusal: Decision | None = None,
) -> Phase:
    """Begin with a client that was redirected on its way to ``host``, which may be refused already."""
    flow = Flow(subject, host, port, "transparent", canary=canary)
    if refusal is not None and flow.fixed is None:
        flow.refuse(refusal)
    opening = Opening(wire, flow, now)
    if canary:
        opening.dismiss(now)
    return opening


class Approach:
    """A client of the explicit proxy that has not said a byte: the first one tells SOCKS from HTTP.

    Nearly every connection begins with a CONNECT that one before it had, byte for byte: what that said it says again.
    """

    __slots__ = ("_canary", "_first", "_locate", "_since", "_subject", "deadline", "wire")

    def __init__(self, wire: ClientWire, subject: Subject, now: float, canary: bool, locate: Locate) -> None:
        self.wire = wire
        self.deadline = now + subject.limits.head_time
        self._subject = subject
        self._since = now
        self._canary = canary
        self._locate = locate
        self._first = b""
        """What came in one piece and may be a CONNECT and nothing else."""

    def received(self, data: bytes, now: float) -> None:
        wire, subject = self.wire, self._subject
        place = subject.connects.get(data)
        if place is not None:
            self._established(self._destined(*place, "connect"), ESTABLISHED, b"", now)
        elif data[0] in (VERSION4, VERSION5):
            wire.phase = Socks(wire, subject, now, destined=self._destined, established=self._established)
            wire.phase.received(data, now)
        else:
            self._first = data if data.startswith(b"CONNECT ") else b""
            wire.phase = Http1(wire, subject, self._since, tunnelled=self._tunnelled, canary=self._canary)
            wire.phase.received(data, now)
            self._first = b""

    def _tunnelled(self, authority: bytes, rest: bytes, now: float) -> None:
        """A CONNECT was read, and ``rest`` after it."""
        host, port = authority_of(authority, 0)
        if not port:
            raise Malformed("a CONNECT without a port")
        if self._first and not rest:
            self._subject.remember_connect(self._first, host, port)
        self._established(self._destined(host, port, "connect"), ESTABLISHED, rest, now)

    def _destined(self, host: str, port: int, via: str) -> Flow:
        place, refusal = self._locate(host)
        flow = Flow(self._subject, place, port, via, canary=self._canary)
        if refusal is not None and flow.fixed is None:
            flow.refuse(refusal)
        return flow

    def _established(self, flow: Flow, answer: bytes, rest: bytes, now: float) -> None:
        wire = self.wire
        opening = wire.phase = Opening(wire, flow, now)
        if self._canary:
            opening.dismiss(now)
            return
        wire.send(answer)
        if rest:
            opening.received(rest, now)

    def eof(self, now: float) -> None:  # noqa: ARG002  # nothing was asked for
        self.wire.finish()

    def lost(self, now: float) -> None:
        """Nothing was asked for."""

    def filled(self) -> None:
        """Nothing was sent."""

    def drained(self, now: float) -> None:
        """Nothing was sent."""

    def expire(self, now: float) -> None:  # noqa: ARG002  # nothing was asked for
        self.wire.finish()

    def revise(self, now: float) -> None:
        """Nothing has been decided yet."""


class Opening:
    """The destination is known; what it speaks is not."""

    def __init__(self, wire: ClientWire, flow: Flow, now: float) -> None:
        self.wire = wire
        self.deadline = now + flow.subject.limits.silence_time
        self._since = now
        self._flow = flow
        self._buffer = b""
        self._need = 1
        self._over = False
        self._unsure: Tunnel | None = None

    def dismiss(self, now: float) -> None:
        """A canary: whatever it would say."""
        self._reset(now, "")

    def received(self, data: bytes, now: float) -> None:
        if self._over:
            return
        if not self._buffer:
            self.deadline = now + self._flow.subject.limits.hello_time
        self._buffer += data
        if len(self._buffer) >= self._need:
            self._consider(now)

    def _consider(self, now: float) -> bool:
        """Act on what has arrived; return whether that is for an uninspected relay."""
        flow, buffer = self._flow, self._buffer
        sniffed = sniff(buffer)
        kind = sniffed.kind
        if kind is SniffKind.MORE:
            self._need = sniffed.need
            if len(buffer) > flow.subject.limits.hello_bytes:
                self._reset(now, "a greeting that is too long")
        elif kind is SniffKind.TLS:
            assert sniffed.hello is not None
            self._secure(sniffed.hello, now)
        elif kind is SniffKind.HTTP:
            self._over = True
            phase = Http1(self.wire, flow.subject, now, flow=flow, via=flow.via)
            self.wire.phase = phase
            phase.received(buffer, now)
        elif kind is SniffKind.OTHER:
            if self._unsure is not None:
                self._unsure.settle(now)
                return True
            self._tunnel("tcp", now)
            return True
        else:
            self._reset(now, f"a malformed ClientHello: {sniffed.text}")
        return False

    def _secure(self, hello: ClientHello, now: float) -> None:
        flow = self._flow
        name = hello.server_name
        if not flow.agree_server_name(name):
            text = f"the client names {name} inside its connection to {flow.known_as}"
            flow.refuse(Decision(reason=Reason.GUARD, text=text, revision=flow.subject.revision), 421)
        elif flow.uninspected(now):
            hidden = "an encrypted ClientHello may hide another name, and this host is not inspected"
            nobody = "a host that is not inspected must be named in the ClientHello"
            flaw = hidden if hello.ech else nobody if name is None else ""
            if not flaw:
                self._tunnel("tls", now)
                return
            flow.refuse(Decision(reason=Reason.GUARD, text=flaw, revision=flow.subject.revision))
        flow.decision(now)  # a certificate is minted only once there is one
        flow.secure = True
        self._over = True
        self.wire.phase = Securing(self.wire, flow, now)
        host = name or flow.known_as or flow.host
        self.wire.terminate(HOST_NAME if host == LOCALHOST else host, self._buffer)

    def _tunnel(self, protocol: str, now: float) -> None:
        self._over = True
        tunnel = Tunnel(self.wire, self._flow, protocol, self._buffer, now)
        self.wire.phase = tunnel
        tunnel.start(now)

    def _reset(self, now: float, text: str) -> None:
        self._over = True
        flow = self._flow
        flow.protocol = flow.protocol or "tcp"
        decision = flow.decision(now)
        if decision.verdict in _OPEN:
            decision = Decision(reason=Reason.FAILURE, text=text, revision=flow.subject.revision)
        flow.record(decision, now)
        self.wire.reset()

    def _reconsider(self, early: bytes, now: float) -> bool:
        """A client in an unsure tunnel spoke."""
        self._buffer = early
        if len(early) < self._need:
            return True
        self._over = False
        more = self._consider(now)
        return more or self.wire.phase is self._unsure

    def eof(self, now: float) -> None:
        self.lost(now)
        self.wire.finish()

    def lost(self, now: float) -> None:
        if not self._over:
            self._over = True
            self._flow.protocol = "tcp"
            self._flow.unused(now)

    def filled(self) -> None:
        """Nothing was sent that could fill anything but an answer to CONNECT."""

    def drained(self, now: float) -> None:
        """See ``filled``."""

    def expire(self, now: float) -> None:
        """Silence: perhaps the server speaks first. Half a greeting: refused."""
        if self._over:
            return
        if self._buffer:
            self._reset(now, "a greeting that did not come in time")
            return
        limits = self._flow.subject.limits
        if (
            self._flow.judge_opaque(now).verdict is not Verdict.ALLOWED
            and now < self._since + limits.patience_time
        ):
            self.deadline = (
                self._since + limits.patience_time
            )  # a slow client deserves a refusal that explains
            return
        self._over = True
        tunnel = self._unsure = Tunnel(self.wire, self._flow, "tcp", b"", now, self._reconsider)
        self.wire.phase = tunnel
        tunnel.start(now)

    def revise(self, now: float) -> None:
        """Nothing has been let through yet."""


class Securing:
    """TLS towards the client is being set up."""

    def __init__(self, wire: ClientWire, flow: Flow, now: float) -> None:
        self.wire = wire
        self.deadline = now + flow.subject.limits.hello_time
        self._flow = flow
        self._over = False

    def secured(self, protocol: str | None, now: float) -> None:
        """The handshake is complete; ``protocol`` is what ALPN chose."""
        self._over = True
        flow = self._flow
        if protocol == "h2":
            self.wire.phase = Http2(self.wire, flow, now)
        else:
            self.wire.phase = Http1(self.wire, flow.subject, now, flow=flow, via=flow.via)

    def insecure(self, text: str, now: float) -> None:
        """The handshake failed."""
        if self._over:
            return
        self._over = True
        flow = self._flow
        flow.protocol = "tls"
        decision = flow.decision(now)
        ended = b""
        if decision.verdict in _OPEN:
            ended = b"failed"
            if text in MISTRUST:
                ended = b"mistrusted"
                text = f"{text}; {mistrusted(decision, flow.place, flow.subject.contact)}"
        flow.record(decision, now, text, ended)
        self.wire.reset()

    def received(self, data: bytes, now: float) -> None:
        """The shell keeps the handshake's bytes to itself."""

    def eof(self, now: float) -> None:
        self.insecure(LEFT, now)

    def lost(self, now: float) -> None:
        self.insecure(LEFT, now)

    def filled(self) -> None:
        """A handshake is small."""

    def drained(self, now: float) -> None:
        """A handshake is small."""

    def expire(self, now: float) -> None:
        self.insecure("the TLS handshake took too long", now)

    def revise(self, now: float) -> None:
        """Nothing has been let through yet."""
