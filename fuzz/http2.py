"""HTTP/2 on both sides: hostile frames end streams or connections, never the gateway; nothing passes undecided.

The first byte says who is hostile (1: the origin that an honest client has asked; else a client inside the
sandbox), whether the host is refused (2) and whether the origin speaks HTTP/1 (4). The rest are frames, cut where
the second byte says. What must hold: no exception but a refusal, no connection without a decision, bounded output
for bounded input, and whoever was asked for is closed or answered when it is over.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from ringfence.gateway.core.exchange import Exchange
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.http2 import Http2
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.messages import Route
from ringfence.gateway.core.origin1 import Origin1
from ringfence.gateway.core.origin2 import Origin2
from ringfence.gateway.core.streams import OriginStream
from ringfence.gateway.core.subject import Subject
from ringfence.policy.document import parse_rule
from ringfence.policy.effective import EffectivePolicy, Entry

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
ASK = b"\x00\x00\x0b\x01\x05\x00\x00\x00%c\x82\x87\x84\x41\x06a.test"
"""``GET https://a.test/`` on a stream to be filled in."""
GROWTH = 8192
"""What the gateway may say beside twice what it hears: settings, windows, refusals."""
_POLICY = EffectivePolicy(
    revision=1,
    entries=(
        Entry(
            rule=parse_rule({"id": "r", "name": "r", "effect": "allow", "resources": ["a.test"]}),
            origin="local",
        ),
    ),
)


class Wire:
    """Both wires, and everything that was commanded."""

    address = "203.0.113.9"
    reused = False

    def __init__(self) -> None:
        self.said = 0
        self.commands: list[str] = []
        self.phase: Any = None
        self.asked: list[Exchange] = []
        self.upstreams: list[Wire] = []
        self.speaks_h2 = True
        self.codec: Any = None

    def send(self, payload: bytes) -> None:
        self.said += len(payload)

    def __getattr__(self, name: str) -> Any:
        if name not in ("pause", "resume", "release", "close", "finish", "reset"):
            raise AttributeError(name)
        return lambda: self.commands.append(name)

    def request(self, exchange: Exchange, route: Route, *, fresh: bool) -> None:  # noqa: ARG002
        assert route.host == "a.test", "a connection that nobody decided about"
        assert exchange.decision.allowed
        self.asked.append(exchange)
        wire = Wire()
        self.upstreams.append(wire)
        limits = exchange.flow.subject.limits
        if self.speaks_h2:
            wire.codec = Origin2(wire, limits, 0.0)
            exchange.connected(OriginStream(wire.codec), 0.0)
        else:
            wire.codec = Origin1(wire, limits)
            exchange.connected(wire.codec, 0.0)


def one(data: bytes) -> None:
    if len(data) < 2:
        return
    records: list[dict[str, Any]] = []
    numbers = itertools.count(1)
    subject = Subject(
        id="s",
        limits=Limits(floods=50),
        ids=lambda: b"00000000-%08x" % next(numbers),
        sink=lambda record, _: records.append(json.loads(record)),
    )
    subject.bind(_POLICY)
    hostile, step, frames = data[0], data[1] or 256, data[2:]
    flow = Flow(subject, "b.test" if hostile & 2 else "a.test", 443, "forward")
    flow.secure = True
    wire = Wire()
    wire.speaks_h2 = not hostile & 4
    talk = wire.phase = Http2(wire, flow, 0.0)
    pieces = [frames[at : at + step] for at in range(0, len(frames), step)]
    if hostile & 1:
        for stream in (1, 3):
            talk.received((PREFACE if stream == 1 else b"") + ASK % stream, 0.0)
        codec = wire.upstreams[0].codec if wire.upstreams else None
        for piece in pieces:
            if codec is not None and "close" not in wire.upstreams[0].commands:
                codec.received(piece, 1.0)
        if codec is not None:
            codec.ended(2.0)
    else:
        talk.received(PREFACE, 0.0)
        for piece in pieces:
            if "finish" not in wire.commands:
                talk.received(piece, 1.0)
        assert wire.said <= 2 * len(data) + GROWTH * (len(records) + 1)
    talk.lost(3.0)
    steps = [(record["id"], record["step"]) for record in records]
    assert len(steps) == len(set(steps))
    opened = {
        record["id"] for record in records if record["step"] == "opened" and record["verdict"] == "allowed"
    }
    assert opened == {record["id"] for record in records if record["step"] == "closed"}
    assert all(exchange.over for exchange in wire.asked)
    for each in wire.upstreams:
        assert not each.codec.streams if isinstance(each.codec, Origin2) else each.commands
