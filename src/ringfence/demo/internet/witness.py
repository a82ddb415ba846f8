"""What the demo's internet saw. Every claim that a site "never heard of it" is read from here.

Three independent observers: the packet counter looks at the far end of the host's one link and sees whatever
arrives, whether or not anybody accepts it; the sites count connections at ``accept`` and requests when they
are parsed; the DNS servers keep the questions. Everything is bounded; what is beyond a bound is counted, not
kept.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from ringfence.demo.internet.places import BY_ADDRESS, BY_NAME

_EVERY_PROTOCOL: Final = 0x0003
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_KEPT: Final = 4096
_ETHERNET_TYPES: Final = {0x0800: 4, 0x86DD: 6}
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_NEIGHBOUR_DISCOVERY: Final = range(130, 138)
"""ICMPv6 housekeeping of the link itself (RFC 4861): not something that anybody sent to a site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Where a packet was going. ``port`` is 0 for ICMP."""

    address: str
    protocol: str
    port: int = 0


def read_flow(family: int, packet: bytes) -> Flow | None:
    """Parse the head of an IP packet; ``None`` for what is not a whole head or is the link's housekeeping."""
    if family == 4 and len(packet) >= 20:
        protocol, address, start = packet[9], str(IPv4Address(packet[16:20])), (packet[0] & 0x0F) * 4
    elif family == 6 and len(packet) >= 40:
        protocol, address, start = packet[6], str(IPv6Address(packet[24:40])), 40
    else:
        return None
    name = _PROTOCOLS.get(protocol, f"protocol {protocol}")
    if protocol == 58 and len(packet) > start and packet[start] in _NEIGHBOUR_DISCOVERY:
        return None
    if name not in {"tcp", "udp"}:
        return Flow(address=address, protocol=name)
    if len(packet) < start + 4:
        return None
    (port,) = struct.unpack_from("!H", packet, start + 2)
    return Flow(address=address, protocol=name, port=port)


@dataclass(slots=True, kw_only=True)
class Notebook:
    """The running record, written by the observers."""

    packets: Counter[Flow] = field(default_factory=Counter)
    connections: Counter[str] = field(default_factory=Counter)
    """Accepted TCP connections, by the name of the place that accepted them."""
    requests: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    questions: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    lost: int = 0
    """Packets that the counter may not have seen; a proof of absence needs 0."""

    def packet(self, flow: Flow) -> None:
        if flow in self.packets or len(self.packets) < _KEPT:
            self.packets[flow] += 1
        else:
            self.lost += 1

    def forget(self) -> None:
        """Start a new page."""
        for kept in (self.packets, self.connections, self.requests, self.questions):
            kept.clear()
        self.lost = 0

    def snapshot(self) -> dict[str, Any]:
        """Return the record as it travels."""
        return {
            "packets": [{**asdict(flow), "count": count} for flow, count in self.packets.items()],
            "connections": dict(self.connections),
            "requests": list(self.requests),
            "questions": list(self.questions),
            "lost": self.lost,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sightings:
    """A snapshot of the notebook, and the questions that the demo asks of it."""

    packets: Mapping[Flow, int]
    connections: Mapping[str, int]
    requests: tuple[Mapping[str, str], ...]
    questions: tuple[Mapping[str, str], ...]
    lost: int

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Sightings:
        return cls(
            packets={
                Flow(address=row["address"], protocol=row["protocol"], port=row["port"]): row["count"]
                for row in record["packets"]
            },
            connections=dict(record["connections"]),
            requests=tuple(record["requests"]),
            questions=tuple(record["questions"]),
            lost=record["lost"],
        )

    def packets_to(self, name: str, protocol: str = "") -> int:
        """How many packets reached a place, of one protocol or of any."""
        place = BY_NAME[name]
        return sum(
            count
            for flow, count in self.packets.items()
            if BY_ADDRESS.get(flow.address) is place and protocol in ("", flow.protocol)
        )

    def connections_to(self, name: str) -> int:
        return self.connections.get(name, 0)

    def requests_for(self, name: str) -> int:
        """How many requests asked a place by its name, on whatever connection."""
        return sum(request["host"] == name or request["origin"] == name for request in self.requests)

    def questions_about(self, suffix: str, server: str = "") -> int:
        """How many DNS questions named ``suffix`` or something below it, at one server or at any."""
        return sum(
            (question["name"] == suffix or question["name"].endswith(f".{suffix}"))
            and server in ("", question["server"])
            for question in self.questions
        )

    def heard_of(self, name: str) -> int:
        """Everything by which a place can have heard of somebody; 0 is the proof that it did not."""
        return (
            self.packets_to(name)
            + self.connections_to(name)
            + self.requests_for(name)
            + self.questions_about(name)
        )


class PacketCounter:
    """Counts every IP packet that arrives on an interface (``packet(7)``), before anything can drop it."""

    def __init__(self, interface: str, notebook: Notebook) -> None:
        self._notebook = notebook
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((interface, _EVERY_PROTOCOL))

    def drain(self) -> None:
        """Count what has arrived. Call it when the socket is readable, and before a snapshot."""
        while True:
            try:
                head, (_, ethernet_type, kind, *_) = self.socket.recvfrom(96)
            except BlockingIOError:
                return
            family = _ETHERNET_TYPES.get(ethernet_type)
            if kind == socket.PACKET_HOST and family and (flow := read_flow(family, head)):
                self._notebook.packet(flow)

    def lost(self) -> int:
        """Packets that the kernel could not queue for us since the last call."""
        _, dropped = struct.unpack("II", self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        return int(dropped)
