"""The UDP of one sandbox: datagrams in, datagrams out, and "port unreachable" for what may not pass.

The enclosure hands datagrams over unchanged (TPROXY): the receiving socket is told where each was going, and what goes
back leaves from exactly there, through a raw socket of the enclosure's that may speak for any address. The
destination is dialled like any other (name, addresses judged, the checked one connected), so an answer from anywhere
else never arrives. docs/adr/0007-udp-relay.md says why it is built like this.

Where no rule lets a datagram out the enclosure refuses by itself, and we only see copies. The switch is a fact, not a
flag: the first policy that lets one out makes us bind the receiving sockets, and the enclosure's rules find them there.
From then on refusals are ours, for as long as those sockets live.

One sandbox is bounded in flows, in flows that wait for their destination, and in what it brings per round of the loop
(:mod:`ringfence.gateway.turns`), where a datagram that is refused or begins a QUIC connection counts as many bytes, so
that a flood costs the sandbox its own turn. Flows are decided in :mod:`ringfence.gateway.core.datagrams`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections import OrderedDict
from collections.abc import Mapping
from time import time
from typing import TYPE_CHECKING, Final

from ringfence.application.ports import RELAY_PORT
from ringfence.gateway.core.datagrams import Association, relays
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.subject import UNMAPPED
from ringfence.gateway.dial import Refused, Unresolved
from ringfence.gateway.packets import INTERVAL, Flows, RefusedPacket, watch_packets
from ringfence.gateway.quic import CIPHERS
from ringfence.gateway.turns import QUANTUM
from ringfence.policy.model import Decision, Reason, Transport
from ringfence.policy.names import canonical_host

if TYPE_CHECKING:
    from ringfence.gateway.guest import Guest

ROLES: Final = frozenset({"udp4", "udp6", "reply4", "reply6", "icmp4", "icmp6", "packets-udp"})
"""Of sockets in an enclosure (``ports.Attachment``)."""
BATCH: Final = 32
"""Datagrams read from one socket before others have their turn."""
_DATAGRAM: Final = 4_096
_BEGINNING: Final = 65_536
"""Bytes that a datagram counts as beyond its own, and one that begins a flow or is refused, out of ``QUANTUM``."""
_LARGEST: Final = 65_536
_IP_PKTINFO: Final = 8
"""``linux/in.h``; Python 3.11 has no name for it."""


class Datagrams:
    """See the module. Made by ``Guest.serve``; closed with the guest."""

    def __init__(self, guest: Guest, sockets: Mapping[str, socket.socket]) -> None:
        self.guest = guest
        self.flows: OrderedDict[tuple[int, bytes], Conversation] = OrderedDict()
        """By the client's port, and the destination as the kernel tells it. Whoever was silent longest is first."""
        self.waiting = 0
        """How many of them have not reached their destination."""
        self.buffer = bytearray(_LARGEST)
        self._loop = guest.services.loop
        self._sockets = sockets
        self._doors = [_Door4(self, sockets), _Door6(self, sockets)]
        self._refusals = Flows(guest.rejected)
        self._turn = time() + INTERVAL
        self._unwatch = watch_packets(self._loop, sockets["packets-udp"], guest.rejected)
        self.relaying = False

    def begin(self) -> None:
        """Take over from the enclosure (see the module), or from whoever did so before us on these sockets."""
        self.relaying = True
        for door in self._doors:
            door.open()
        # What the copies tell from here on would be told twice; what is in the queue was refused before.
        self._sockets["packets-udp"].bind(("lo", 0))
        self.stall(self.guest.hushed)

    def close(self) -> None:
        self.stall(True)
        self.relaying = False
        self._unwatch()
        now = time()
        for conversation in list(self.flows.values()):
            conversation.association.evict(now)
        for sock in self._sockets.values():
            sock.close()

    def hush(self, hushed: bool) -> None:
        """Read nothing until further notice, from either side, or go on."""
        self.stall(hushed)
        for conversation in self.flows.values():
            conversation.stall(hushed)

    def stall(self, stalled: bool) -> None:
        """Stop reading what the sandbox sends, or go on."""
        for door in self._doors if self.relaying else ():
            door.stall(stalled)

    # -- policy and time ----------------------------------------------------------------------------------

    def revise(self, now: float) -> None:
        """Policy or credentials changed."""
        policy = self.guest.subject.policy
        if not self.relaying and (
            self._doors[0].is_open or self._doors[1].is_open or (policy is not None and relays(policy))
        ):
            self.begin()
        for conversation in list(self.flows.values()):
            conversation.association.revise(now)

    def sweep(self, now: float) -> None:
        for conversation in list(self.flows.values()):
            if now > conversation.association.deadline:
                conversation.association.expire(now)
        if now >= self._turn:
            self._turn = now + INTERVAL
            self._refusals.turn()

    # -- flows --------------------------------------------------------------------------------------------

    def receive(self, door: _Door, port: int, told: bytes, datagram: bytes) -> None:
        """A datagram from the client's ``port`` to the destination that the kernel ``told``."""
        now = time()
        conversation = self.flows.get((port, told))
        if conversation is None:
            conversation = self._begin(door, port, told, now)
        else:
            self.flows.move_to_end((port, told))
        conversation.size = len(datagram)
        conversation.association.received(datagram, now)

    def _begin(self, door: _Door, port: int, told: bytes, now: float) -> Conversation:
        guest, limits = self.guest, self.guest.subject.limits
        guest.spent += _BEGINNING
        if len(self.flows) >= limits.udp_flows:
            next(iter(self.flows.values())).association.evict(now)
        conversation = Conversation(self, door, port, told, now)
        services = guest.services
        if self.waiting >= limits.udp_waiting or services.connections >= services.capacity:
            text = "too many UDP flows wait for their destination"
            conversation.association.flow.refuse(Decision(reason=Reason.FAILURE, text=text))
        self.flows[port, told] = conversation
        self.waiting += 1
        services.connections += 1
        return conversation

    def end(self, conversation: Conversation) -> None:
        del self.flows[conversation.port, conversation.told]
        self.guest.services.connections -= 1

    def refused(self, packet: RefusedPacket) -> None:
        self.guest.spent += _BEGINNING
        self._refusals.add(packet)


class Conversation:
    """One flow's shell: the wire of its association, and the socket towards its destination."""

    __slots__ = (
        "_dialling",
        "_door",
        "_held",
        "_owner",
        "_upstream",
        "_waiting",
        "association",
        "client",
        "place",
        "port",
        "size",
        "told",
    )

    def __init__(self, owner: Datagrams, door: _Door, port: int, told: bytes, now: float) -> None:
        guest = owner.guest
        self.port, self.told = port, told
        self.client = door.client
        self.place, number = door.place(told)
        """The destination, as the sandbox addressed it."""
        self.size = 0
        """Of the datagram that came last."""
        self._owner, self._door = owner, door
        self._dialling: asyncio.Task[None] | None = None
        self._upstream: socket.socket | None = None
        self._waiting = True
        host = guest.standing_for(self.place)
        flow = Flow(guest.subject, host or self.place, number, "udp", transport=Transport.UDP)
        if host is None and flow.fixed is None:
            flow.refuse(UNMAPPED)
        self._held = self.place if host is not None and guest.names.contains(self.place) else ""
        guest.names.hold(self._held)
        self.association = Association(self, flow, CIPHERS, now)

    # -- commands -----------------------------------------------------------------------------------------

    def open(self) -> None:
        self._dialling = self._owner.guest.services.loop.create_task(self._dial())

    def send(self, datagram: bytes) -> None:
        assert self._upstream is not None
        try:
            self._upstream.send(datagram)
        except ConnectionRefusedError:  # an earlier one met nobody; this one was not sent
            self.association.lost(time())
        except OSError:
            return  # full, or too large for the way: lost, as on any network

    def unreachable(self) -> None:
        with contextlib.suppress(OSError):
            self._door.unreachable(self)

    def refuse(self, decision: Decision) -> None:
        self.unreachable()
        flow = self.association.flow
        self._owner.refused(
            RefusedPacket(
                transport="udp",
                source=self.client,
                destination=self.place,
                port=flow.port,
                decision=decision,
                protocol=flow.protocol or "udp",
            )
        )

    def close(self) -> None:
        self._settle()
        if self._dialling is not None:
            self._dialling.cancel()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            self._owner.guest.services.loop.remove_reader(upstream)
            upstream.close()
        self._owner.guest.names.free(self._held)
        self._owner.end(self)

    def _settle(self) -> None:
        """It waits no more."""
        if self._waiting:
            self._waiting = False
            self._owner.waiting -= 1

    # -- the destination ----------------------------------------------------------------------------------

    async def _dial(self) -> None:
        association, flow = self.association, self.association.flow
        services = self._owner.guest.services

        def judge(address: str) -> Decision:
            return flow.judge_address(address, time())

        try:
            if services.proxies is not None and services.proxies.stands_before(flow.host, flow.port):
                raise Unresolved("there is an upstream proxy before it, which carries no datagrams")
            found = await services.dialer.addresses(flow.host, flow.port, judge, owner=flow.subject.id)
            six = ":" in self.client
            found.sort(key=lambda place: (":" in place[0]) is not six)  # a client that has both tries both
            upstream, address = services.dialer.associate(found)
        except Refused as refusal:
            association.failed(refusal.decision.text, time(), refusal.decision)
            return
        except (Unresolved, OSError) as flaw:
            self._settle()
            association.failed(str(flaw), time())
            return
        self._dialling = None
        self._settle()
        self._upstream = upstream
        services.loop.add_reader(upstream, self._answered)
        association.connected(address, time())

    def _answered(self) -> None:
        owner, now = self._owner, time()
        guest, buffer = owner.guest, owner.buffer
        for _ in range(BATCH):
            upstream = self._upstream
            if upstream is None:
                return
            try:
                size = upstream.recv_into(buffer)
            except BlockingIOError:
                break
            except OSError:
                self.association.lost(now)
                return
            guest.spent += size + _DATAGRAM
            self.association.answered(size, now)
            with contextlib.suppress(OSError):  # the sandbox does not read fast enough, or its stack is gone
                self._door.reply(self, memoryview(buffer)[:size])
        if self._upstream is not None:
            owner.flows.move_to_end((self.port, self.told))
            if guest.spent > QUANTUM:
                guest.give_way(self)

    def stall(self, stalled: bool) -> None:
        """Let others have their turn, or have it again."""
        loop = self._owner.guest.services.loop
        if self._upstream is not None:
            if stalled:
                loop.remove_reader(self._upstream)
            else:
                loop.add_reader(self._upstream, self._answered)


# -- the enclosure's sockets ---------------------------------------------------------------------------------


class _Door:
    """The three sockets of one family. What differs between families is in the subclasses."""

    client = ""
    anywhere = ""
    space = 0

    def __init__(self, owner: Datagrams, suffix: str, sockets: Mapping[str, socket.socket]) -> None:
        self._owner = owner
        self._loop = owner.guest.services.loop
        self._receive = sockets["udp" + suffix]
        self._reply = sockets["reply" + suffix]
        self._icmp = sockets["icmp" + suffix]
        for sock in (self._receive, self._reply, self._icmp):
            sock.setblocking(False)

    @property
    def is_open(self) -> bool:
        """Whether the enclosure's rules find somebody here: it refuses no longer, so somebody has to."""
        return bool(self._receive.getsockname()[1] == RELAY_PORT)

    def open(self) -> None:
        if not self.is_open:
            self._receive.bind((self.anywhere, RELAY_PORT))

    def stall(self, stalled: bool) -> None:
        if stalled:
            self._loop.remove_reader(self._receive)
        else:
            self._loop.add_reader(self._receive, self._readable)

    def _readable(self) -> None:
        owner = self._owner
        guest, buffer = owner.guest, owner.buffer
        for _ in range(BATCH):
            try:
                size, told, _, peer = self._receive.recvmsg_into([buffer], self.space)
            except OSError:  # nothing more, or an interface that went down: it is readable again when it is
                return
            guest.spent += size + _DATAGRAM
            place = self.destination(told)
            if place and peer[0] == self.client:
                owner.receive(self, peer[1], place, bytes(memoryview(buffer)[:size]))
            if guest.spent > QUANTUM:
                guest.give_way(owner)
                return

    def destination(self, told: list[tuple[int, int, bytes]]) -> bytes:
        """Take port and address out of what came with a datagram."""
        raise NotImplementedError

    def place(self, told: bytes) -> tuple[str, int]:
        return canonical_host(str(ipaddress.ip_address(told[2:]))), told[0] << 8 | told[1]

    def reply(self, conversation: Conversation, datagram: memoryview) -> None:
        """Send to the client what comes from its destination."""
        raise NotImplementedError

    def unreachable(self, conversation: Conversation) -> None:
        """Tell the client that nobody is at its destination's port."""
        raise NotImplementedError


def _udp(source: int, destination: int, size: int) -> bytes:
    return struct.pack("!HHHH", source, destination, min(8 + size, 0xFFFF), 0)


class _Door4(_Door):
    anywhere = "0.0.0.0"  # noqa: S104  # inside an enclosure, whose rules decide what arrives
    space = socket.CMSG_SPACE(16)

    def __init__(self, owner: Datagrams, sockets: Mapping[str, socket.socket]) -> None:
        super().__init__(owner, "4", sockets)
        self.client = owner.guest.addresses.sandbox4

    def destination(self, told: list[tuple[int, int, bytes]]) -> bytes:
        for level, _, value in told:  # IP_ORIGDSTADDR: a sockaddr_in
            if level == socket.IPPROTO_IP:
                return value[2:8]
        return b""

    def reply(self, conversation: Conversation, datagram: memoryview) -> None:
        """The checksum is left out, as IPv4 permits (RFC 768): nothing of this way leaves the machine."""
        told = conversation.told
        header = _udp(told[0] << 8 | told[1], conversation.port, len(datagram))
        source = (socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4x", 0, told[2:]))
        self._reply.sendmsg([header, datagram], [source], 0, (self.client, 0))

    def unreachable(self, conversation: Conversation) -> None:
        """RFC 792: type 3, code 3, and the beginning of what could not be delivered."""
        told = conversation.told
        size = min(28 + conversation.size, 0xFFFF)
        head = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, socket.IPPROTO_UDP, 0)
        head += socket.inet_aton(self.client) + told[2:]
        head = head[:10] + _checksum(head) + head[12:]
        quote = head + _udp(conversation.port, told[0] << 8 | told[1], conversation.size)
        error = b"\x03\x03\0\0\0\0\0\0" + quote
        self._icmp.sendto(error[:2] + _checksum(error) + error[4:], (self.client, 0))


class _Door6(_Door):
    anywhere = "::"
    space = socket.CMSG_SPACE(28)

    def __init__(self, owner: Datagrams, sockets: Mapping[str, socket.socket]) -> None:
        super().__init__(owner, "6", sockets)
        self.client = owner.guest.addresses.sandbox6

    def destination(self, told: list[tuple[int, int, bytes]]) -> bytes:
        for level, _, value in told:  # IPV6_ORIGDSTADDR: a sockaddr_in6
            if level == socket.IPPROTO_IPV6:
                return value[2:4] + value[8:24]
        return b""

    def reply(self, conversation: Conversation, datagram: memoryview) -> None:
        """The kernel fills in the checksum (``IPV6_CHECKSUM``)."""
        told = conversation.told
        header = _udp(told[0] << 8 | told[1], conversation.port, len(datagram))
        source = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, told[2:] + bytes(4))
        self._reply.sendmsg([header, datagram], [source], 0, (self.client, 0))

    def unreachable(self, conversation: Conversation) -> None:
        """RFC 4443 section 3.1: type 1, code 4. The kernel fills in the checksum, as of all ICMPv6."""
        told = conversation.told
        udp = _udp(conversation.port, told[0] << 8 | told[1], conversation.size)
        head = struct.pack("!IHBB", 6 << 28, min(8 + conversation.size, 0xFFFF), socket.IPPROTO_UDP, 64)
        head += socket.inet_pton(socket.AF_INET6, self.client) + told[2:]
        self._icmp.sendto(b"\x01\x04\0\0\0\0\0\0" + head + udp, (self.client, 0))


def _checksum(octets: bytes) -> bytes:
    """The Internet checksum (RFC 1071) of an even number of octets: a sum modulo 65535, whatever it is summed in."""
    return (0xFFFF - int.from_bytes(octets, "big") % 0xFFFF).to_bytes(2, "big")
