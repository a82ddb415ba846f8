"""Dialogues with the gateway's core: events in, commands out, records beside them. No socket, no clock.

``Dialogue`` plays both wires. What the core commands is a list of tuples in ``said``; a test drives the core with the
methods that a shell would call and compares what came of it, the audit always included.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from ringfence.gateway.core import connection
from ringfence.gateway.core.connection import Phase, Securing
from ringfence.gateway.core.exchange import Exchange
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.messages import Route
from ringfence.gateway.core.origin1 import Origin1
from ringfence.gateway.core.origin2 import Origin2
from ringfence.gateway.core.streams import OriginStream
from ringfence.gateway.core.subject import Subject
from ringfence.gateway.core.tunnels import Tunnel
from ringfence.policy.document import parse_rule
from ringfence.policy.effective import EffectivePolicy, Entry
from ringfence.policy.rule import Rule

NOON = 1_700_000_000.0
_numbers = itertools.count(1)


def rule(effect: str, *resources: str, **more: Any) -> Rule:
    """Return a network rule, named after what it says unless it has a name."""
    name = more.pop("name", f"{effect} {resources[0]}")
    written = {
        "id": f"r{next(_numbers)}",
        "name": name,
        "effect": effect,
        "resources": list(resources),
        **more,
    }
    return parse_rule(written)


def policy(*rules: Rule, revision: int = 1, origin: str = "local", **more: Any) -> EffectivePolicy:
    entries = tuple(Entry(rule=each, origin=origin) for each in rules)
    return EffectivePolicy(revision=revision, entries=entries, **more)


class Upstream:
    """An upstream wire: one connection to an origin."""

    def __init__(self, dialogue: Dialogue, route: Route, address: str, *, reused: bool) -> None:
        self.dialogue = dialogue
        self.route = route
        self.address = address
        self.reused = reused
        self.sent = b""
        self.state = "open"
        self.codec: Origin1 | Origin2 | None = None
        """What makes messages of its bytes, unless it is a tunnel's."""
        self.idle = 0
        """How often it was given back."""

    def send(self, payload: bytes) -> None:
        assert self.state == "open", "bytes for a connection that was given back"
        self.sent += payload

    def pause(self) -> None:
        self.dialogue.said.append(("upstream.pause",))

    def resume(self) -> None:
        self.dialogue.said.append(("upstream.resume",))

    def release(self) -> None:
        assert self.state == "open"
        self.idle += 1
        if not isinstance(self.codec, Origin2):
            self.state = "released"

    def close(self) -> None:
        self.state = "closed"

    def took(self) -> bytes:
        """What was sent since the last look."""
        sent, self.sent = self.sent, b""
        return sent


class Dialogue:
    """One client connection of one sandbox. ``auto`` answers every request for an upstream at once."""

    def __init__(
        self, *rules: Rule, auto: bool = True, address: str = "203.0.113.9", **limits: float
    ) -> None:
        self.now = NOON
        self.said: list[tuple[Any, ...]] = []
        self.sent = b""
        self.records: list[dict[str, Any]] = []
        self.droppable: list[bool] = []
        self.upstreams: list[Upstream] = []
        self.asked: list[tuple[Exchange | Tunnel, Route]] = []
        self.pool: dict[Route, list[Upstream]] = {}
        self.auto = auto
        self.shared = False
        """Origins choose HTTP/2 if they are offered it."""
        self.address = address
        ids = itertools.count(1)
        self.subject = Subject(
            id="sandbox-1",
            name="lab",
            agent="shell",
            user="ada",
            limits=Limits.from_wire(limits),
            own=frozenset({"10.255.255.1"}),
            ids=lambda: b"00000000-%08x" % next(ids),
            sink=self._record,
        )
        if rules:
            self.subject.bind(policy(*rules))
        self.phase: Phase

    def _record(self, record: bytes, droppable: bool) -> None:
        self.records.append(json.loads(record))
        self.droppable.append(droppable)

    # -- openings -------------------------------------------------------------------------------------------------

    def proxy(self, *, canary: bool = False) -> Dialogue:
        """A client of the explicit proxy."""
        self.phase = connection.explicit(self, self.subject, self.now, canary=canary)
        return self

    def redirected(self, host: str, port: int, *, canary: bool = False) -> Dialogue:
        self.phase = connection.redirected(self, self.subject, host, port, self.now, canary=canary)
        return self

    def tunnel(self, authority: str) -> Dialogue:
        """A client with an open CONNECT tunnel."""
        self.proxy().receive(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        assert self.took() == connection.ESTABLISHED
        return self

    def secure(self, authority: str, *, name: str | None = None, protocol: str = "http/1.1") -> Dialogue:
        """A client whose TLS was terminated inside of a CONNECT tunnel."""
        self.tunnel(authority)
        self.receive(hello(name or authority.rpartition(":")[0]))
        assert ("terminate", name or authority.rpartition(":")[0]) in self.said
        self.secured(protocol)
        return self

    # -- events -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, *, pieces: int = 0) -> Dialogue:
        """Bytes from the client, whole or in pieces of a size."""
        for piece in [data[k : k + pieces] for k in range(0, len(data), pieces)] if pieces else [data]:
            self.phase.received(piece, self.now)
        return self

    def secured(self, protocol: str | None) -> None:
        assert isinstance(self.phase, Securing)
        self.phase.secured(protocol, self.now)

    def answer(self, data: bytes, *, upstream: int = -1) -> Dialogue:
        """Bytes from the origin, to whoever is served."""
        wire = self.upstreams[upstream]
        if wire.codec is not None:
            wire.codec.received(data, self.now)
        else:
            self._tunnel(wire).answered(data, self.now)
        return self

    def origin_ended(self, *, clean: bool = True) -> None:
        codec = self.upstreams[-1].codec
        assert codec is not None
        if clean:
            codec.ended(self.now)
        else:
            codec.lost("the connection was reset", self.now)

    def _tunnel(self, wire: Upstream) -> Tunnel:
        return next(
            owner
            for owner, _ in reversed(self.asked)
            if isinstance(owner, Tunnel) and owner._upstream is wire
        )

    def connected(self, number: int = -1, *, reused: bool = False) -> Upstream:
        """Answer a request for an upstream."""
        owner, route = self.asked[number]
        upstream = Upstream(self, route, self.address, reused=reused)
        self.upstreams.append(upstream)
        if isinstance(owner, Tunnel):
            owner.connected(upstream, self.now)
        elif self.shared and route.protocol == "h2":
            upstream.codec = Origin2(upstream, self.subject.limits, self.now)
            owner.connected(OriginStream(upstream.codec), self.now)
        else:
            upstream.codec = Origin1(upstream, self.subject.limits)
            owner.connected(upstream.codec, self.now)
        return upstream

    def bind(self, *rules: Rule, revision: int = 2) -> None:
        """Another policy comes into force."""
        self.subject.bind(policy(*rules, revision=revision))
        self.phase.revise(self.now)

    def wait(self, seconds: float) -> None:
        """Time goes by, and somebody looks at the deadlines."""
        self.now += seconds
        for _ in range(4):
            if self.now > self.phase.deadline and "finish" not in self.commands:
                self.phase.expire(self.now)

    # -- the client's wire --------------------------------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        self.sent += payload

    def pause(self) -> None:
        self.said.append(("pause",))

    def resume(self) -> None:
        self.said.append(("resume",))

    def finish(self) -> None:
        self.said.append(("finish",))

    def reset(self) -> None:
        self.said.append(("reset",))

    def terminate(self, host: str, hello: bytes) -> None:
        self.said.append(("terminate", host))

    def request(self, exchange: Exchange, route: Route, *, fresh: bool) -> None:
        self.said.append(("request", route.host, route.port, route.server_name, fresh))
        self.asked.append((exchange, route))
        if not self.auto:
            return
        for upstream in self.upstreams:
            origin = upstream.codec
            if not fresh and isinstance(origin, Origin2) and upstream.route == route and origin.room:
                exchange.connected(OriginStream(origin), self.now)
                return
        self.connected()

    def open(self, tunnel: Tunnel, route: Route) -> None:
        self.said.append(("open", route.host, route.port))
        self.asked.append((tunnel, route))
        if self.auto:
            self.connected()

    def relay(self, tunnel: Tunnel, upstream: Any) -> None:
        self.said.append(("relay",))

    # -- what came of it ----------------------------------------------------------------------------------------------

    def took(self) -> bytes:
        """What the client was sent since the last look."""
        sent, self.sent = self.sent, b""
        return sent

    @property
    def commands(self) -> list[str]:
        return [command[0] for command in self.said]

    def audit(self, *fields: str) -> list[tuple[Any, ...]]:
        """The records, reduced to some fields."""
        return [tuple(record.get(field) for field in fields) for record in self.records]

    @property
    def dialled(self) -> int:
        """How many upstream connections were asked for."""
        return len(self.asked)


def hello(name: str | None, *, protocols: tuple[bytes, ...] = (), ech: bool = False) -> bytes:
    """A ClientHello, as small as they come."""

    def vector(width: int, body: bytes) -> bytes:
        return len(body).to_bytes(width, "big") + body

    extensions = b""
    if name is not None:
        extensions += b"\0\0" + vector(2, vector(2, b"\0" + vector(2, name.encode())))
    if protocols:
        extensions += b"\0\x10" + vector(2, vector(2, b"".join(vector(1, each) for each in protocols)))
    if ech:
        extensions += b"\xfe\x0d" + vector(2, b"\0")
    body = b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"\x13\x01") + b"\x01\0"
    body += vector(2, extensions) if extensions else b""
    return b"\x16\x03\x01" + vector(2, b"\x01" + vector(3, body))
