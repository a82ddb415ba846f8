"""What a sandbox sent that is neither TCP nor a question to its resolver: refused by the enclosure, told to the audit.

The enclosure rejects such packets in the kernel and gives us copies on a packet socket (packet(7)). They are
only ever counted: per flow (protocol, source, destination, port) there is one record when it begins and at
most one per interval while it lasts, so a flood costs a sandbox's audit a line and not a disk. The table of
flows is bounded; what finds no place in it is counted in a record without destination, together with what the
kernel had to drop, because reading is rationed as well.

What a kernel sends by itself to keep a link going (neighbour discovery, multicast listener reports, IGMP) is
no attempt of anybody and is not recorded.

:func:`dissect` is total. Fuzzed by ``python -m fuzz packets`` (corpus: ``fuzz/corpus/packets``).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ringfence.policy.model import Decision

INTERVAL = 5.0
"""Seconds between two records of one flow."""
FLOWS = 1_024
"""Flows that are told apart in one interval."""
BATCH = 64
"""Packets read at one go, and then not for a while: at most 1,280 a second and sandbox."""
PAUSE = 0.05

_SNAP = 256
"""Bytes looked at of one packet: network header with extensions, ports."""
_SOL_PACKET, _PACKET_STATISTICS = 263, 6

_ICMP, _IGMP, _TCP, _UDP, _ICMPV6 = 1, 2, 6, 17, 58
_TRANSPORTS = {
    _ICMP: "icmp",
    _UDP: "udp",
    33: "dccp",
    41: "ipv6-in-ip",
    47: "gre",
    50: "esp",
    _ICMPV6: "icmp",
    132: "sctp",
    136: "udplite",
}
_WITH_PORTS = frozenset((_UDP, 33, 132, 136))
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS = 0, 43, 44, 51, 60
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS))
_EXTENSION_LIMIT = 8
_LINK_KEEPING = frozenset((130, 131, 132, 133, 134, 135, 136, 137, 143))
"""ICMPv6 types of multicast listener and neighbour discovery (RFC 3810, RFC 4861)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPacket:
    """``packets`` refusals of one flow."""

    transport: str
    """``udp``, ``icmp`` (both kinds), ``sctp`` …, or ``ip-<number>``."""
    source: str = ""
    """Without its port. The sandbox can write there what it likes."""
    destination: str = ""
    """Empty: more flows than are told apart, or packets that could not be read in time."""
    port: int = 0
    """Of the destination; the type for ICMP; 0 where there is none to see."""
    packets: int = 1
    decision: Decision | None = field(default=None, compare=False)
    """Why, where the relay refused it (:mod:`ringfence.gateway.datagrams`)."""
    protocol: str = field(default="", compare=False)


def dissect(packet: bytes) -> RefusedPacket | None:
    """Read one IP packet; ``None`` if it is none of a kind that is recorded.

    A datagram in fragments is told by its first: the others have no ports, and without it they are thrown away before
    any rule sees them.
    """
    if len(packet) < 20:
        return None
    match packet[0] >> 4:
        case 4:
            return _dissect4(packet)
        case 6 if len(packet) >= 40:
            return _dissect6(packet)
        case _:
            return None


def _dissect4(packet: bytes) -> RefusedPacket | None:
    start = (packet[0] & 15) * 4
    protocol = packet[9]
    later = packet[6] & 0x1F or packet[7]
    if start < 20 or later or protocol in (_IGMP, _TCP):
        return None
    return RefusedPacket(
        transport=_TRANSPORTS.get(protocol, f"ip-{protocol}"),
        source=str(ipaddress.IPv4Address(packet[12:16])),
        destination=str(ipaddress.IPv4Address(packet[16:20])),
        port=_port(protocol, packet, start),
    )


def _dissect6(packet: bytes) -> RefusedPacket | None:
    protocol, at = packet[6], 40
    for _ in range(_EXTENSION_LIMIT):
        if protocol not in _EXTENSIONS or len(packet) < at + 8:
            break
        if protocol == _FRAGMENT and (packet[at + 2] or packet[at + 3] & 0xF8):
            return None
        size = {_FRAGMENT: 8, _AUTHENTICATION: (packet[at + 1] + 2) * 4}.get(
            protocol, (packet[at + 1] + 1) * 8
        )
        protocol, at = packet[at], at + size
    port = _port(protocol, packet, at)
    if protocol == _TCP or (protocol == _ICMPV6 and port in _LINK_KEEPING):
        return None
    return RefusedPacket(
        transport=_TRANSPORTS.get(protocol, f"ip-{protocol}"),
        source=str(ipaddress.IPv6Address(packet[8:24])),
        destination=str(ipaddress.IPv6Address(packet[24:40])),
        port=port,
    )


def _port(protocol: int, packet: bytes, at: int) -> int:
    if protocol in _WITH_PORTS and len(packet) >= at + 4:
        return packet[at + 2] << 8 | packet[at + 3]
    if protocol in (_ICMP, _ICMPV6) and len(packet) > at:
        return packet[at]
    return 0


class Flows:
    """Coalesces refusals. Time comes in as calls of :meth:`turn`, once per interval."""

    def __init__(self, report: Callable[[RefusedPacket], None], *, capacity: int = FLOWS) -> None:
        self._report = report
        self._capacity = capacity
        self._counts: dict[RefusedPacket, int] = {}
        """By the flow's first packet: how many came since the last record."""
        self._beyond: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, packet: RefusedPacket) -> None:
        """Count a packet; the first of a flow is reported at once."""
        count = self._counts.get(packet)
        if count is not None:
            self._counts[packet] = count + 1
        elif len(self._counts) < self._capacity:
            self._counts[packet] = 0
            self._report(packet)
        else:
            self.add_unread(1, packet.transport)

    def add_unread(self, packets: int, transport: str = "ip") -> None:
        """Count packets that nothing more is known of."""
        self._beyond[transport] = self._beyond.get(transport, 0) + packets

    def turn(self) -> None:
        """An interval is over: report what has gathered, forget the flows that have ended."""
        ended, beyond = self._counts, self._beyond
        self._counts, self._beyond = {packet: 0 for packet, count in ended.items() if count}, {}
        for packet in self._counts:
            self._report(replace(packet, packets=ended[packet]))
        for transport, count in beyond.items():
            self._report(RefusedPacket(transport=transport, packets=count))


def watch_packets(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    report: Callable[[RefusedPacket], None],
    *,
    interval: float = INTERVAL,
) -> Callable[[], None]:
    """Report what arrives on a packet socket until the returned function is called. The socket stays the caller's.

    The socket is of type ``SOCK_DGRAM``: what it gives begins with the network header.
    """
    return _Watch(loop, sock, report, interval).close


class _Watch:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        report: Callable[[RefusedPacket], None],
        interval: float,
    ) -> None:
        self._loop, self._socket, self._interval = loop, sock, interval
        self._flows = Flows(report)
        self._paused: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        loop.add_reader(sock, self._readable)
        self._timer = loop.call_later(interval, self._turn)

    def close(self) -> None:
        self._timer.cancel()
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._socket)

    def _readable(self) -> None:
        for _ in range(BATCH):
            try:
                packet = self._socket.recv(_SNAP)
            except BlockingIOError:
                return
            except OSError:  # the interface went down; it may come back
                break
            refused = dissect(packet)
            if refused is not None:
                self._flows.add(refused)
        self._loop.remove_reader(self._socket)
        self._paused = self._loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._socket, self._readable)

    def _turn(self) -> None:
        try:
            statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        except OSError:
            statistics = bytes(8)
        dropped: int = struct.unpack("=II", statistics)[1]
        if dropped:
            self._flows.add_unread(dropped)
        self._flows.turn()
        self._timer = self._loop.call_later(self._interval, self._turn)
