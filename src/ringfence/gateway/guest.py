"""One sandbox at the gateway: its subject, its listeners, its names, its connections.

The listener that accepted a connection is the sandbox's identity. Everything that belongs to a sandbox hangs
off its ``Guest`` and nothing is shared between two of them but the services: the certificate authority, the
dialer, the outbox.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING

from ringfence.application.ports import Addresses
from ringfence.gateway import listener
from ringfence.gateway.core.subject import Subject
from ringfence.gateway.datagrams import ROLES, Datagrams
from ringfence.gateway.names import SyntheticNames
from ringfence.gateway.packets import RefusedPacket, watch_packets
from ringfence.gateway.resolver import serve_dns
from ringfence.gateway.turns import Round, Turns
from ringfence.gateway.upstream import Upstreams
from ringfence.policy.effective import EffectivePolicy
from ringfence.policy.names import LOCALHOST
from ringfence.sandbox.credentials import Binding

if TYPE_CHECKING:
    from ringfence.gateway.authority import Authority
    from ringfence.gateway.backends import Context
    from ringfence.gateway.dial import Dialer
    from ringfence.gateway.outbox import Outbox
    from ringfence.gateway.proxies import Proxies
    from ringfence.gateway.relay import ClientLink


@dataclass(slots=True)
class Services:
    """What all guests of a worker share."""

    loop: asyncio.AbstractEventLoop
    dialer: Dialer
    outbox: Outbox
    upstream_contexts: Mapping[str, Context]
    round: Round
    proxies: Proxies | None = None
    """The way out, where it is not straight."""
    authority: Authority | None = None
    capacity: int = 4096
    """Client connections that the worker's descriptors bear."""
    connections: int = 0
    """How many there are."""

    def context(self, host: str) -> Context:
        """Return the TLS context for a host; raises ``ValueError`` without an authority or for a strange
        name.
        """
        if self.authority is None:
            raise ValueError("the gateway has no certificate authority yet")
        return self.authority.context(host)


class Guest(Turns):
    """See the module. Made by ``admit``, gone with ``release``."""

    def __init__(self, services: Services, subject: Subject, addresses: Addresses) -> None:
        super().__init__(services.loop)
        self.services = services
        self.subject = subject
        self.addresses = addresses
        self.names = SyntheticNames(addresses.synthetic4, addresses.synthetic6)
        self.upstreams = Upstreams(services, subject, self)
        self.links: set[ClientLink] = set()
        self.datagrams: Datagrams | None = None
        self.questions = 0
        """How many names were asked for."""
        self._closers: list[Callable[[], None]] = []
        self._expiry: float | None = None
        self._released = False

    async def serve(self, sockets: Mapping[str, socket.socket]) -> None:
        """Listen on an enclosure's sockets, by their roles."""
        loop, addresses = self.services.loop, self.addresses
        resolving: dict[str, socket.socket] = {}
        relaying: dict[str, socket.socket] = {}
        for role, sock in sockets.items():
            if role.startswith("dns-"):
                resolving[role] = sock
                self._closers.append(sock.close)
            elif role == "packets":
                self._closers += [sock.close, watch_packets(loop, sock, self.rejected)]
            elif role in ROLES:
                relaying[role] = sock
            else:
                self._closers.append(await listener.listen(loop, self, role, sock))
        if resolving:
            fixed = {
                "gateway.docker.internal": (addresses.gateway4, addresses.gateway6),
                "host.docker.internal": (addresses.host4, addresses.host6),
            }
            # Last in, first out: the resolver stops before its sockets close.
            self._closers.append(serve_dns(loop, resolving, self.names, fixed, self._asked))

        if relaying:
            self.datagrams = Datagrams(self, relaying)
            self._closers.append(self.datagrams.close)
            self.datagrams.revise(time())

    def _asked(self, name: str) -> None:  # noqa: ARG002  # a question leaves nothing and decides nothing
        self.questions += 1

    def standing_for(self, address: str) -> str | None:
        """Return the host that an address stands for inside; nothing if it is a synthetic one of no name."""
        if address in (self.addresses.host4, self.addresses.host6):
            return LOCALHOST
        return self.names.name(address) if self.names.contains(address) else address

    def rejected(self, packet: RefusedPacket) -> None:
        """The enclosure, or the relay, rejected packets."""
        addresses = self.addresses
        self.subject.refuse_packets(
            packet.transport,
            self.standing_for(packet.destination) or packet.destination,
            packet.port,
            packet.packets,
            time(),
            canary=packet.source in (addresses.canary4, addresses.canary6),
            because=packet.decision,
            protocol=packet.protocol,
        )

    # -- connections --------------------------------------------------------------------------------------

    def enter(self, link: ClientLink) -> bool:
        """Let a connection in, unless there are too many or its refusals could not be recorded."""
        services = self.services
        if self._released or self.hushed or len(self.links) >= self.subject.limits.connections:
            return False
        if services.connections >= services.capacity:
            return False
        services.connections += 1
        self.links.add(link)
        return True

    def leave(self, link: ClientLink) -> None:
        if link in self.links:
            self.links.remove(link)
            self.services.connections -= 1
        if link.held:
            self.names.free(link.held)
            link.held = ""

    def hush(self, hushed: bool) -> None:
        """Stop (or begin again) to listen to this sandbox."""
        self.hushed = hushed
        for link in list(self.links):
            link.stall(hushed)
        if self.datagrams is not None:
            self.datagrams.hush(hushed)

    # -- policy -------------------------------------------------------------------------------------------

    def bind(self, policy: EffectivePolicy, now: float) -> None:
        """Put a snapshot in force, and end what it refuses."""
        self.subject.bind(policy, now)
        self._expiry = policy.next_expiry(now)
        self._revise(now)

    def arm(self, credentials: Sequence[Binding]) -> None:
        """Replace the credentials; requests from now on see these."""
        self.subject.arm(credentials)
        self.upstreams.drop()
        if self.datagrams is not None:
            self.datagrams.revise(time())

    def cut(self, closed: bool, now: float) -> None:
        """Refuse everything, or stop refusing everything."""
        if self.subject.cut is not closed:
            self.subject.close(closed)
            self._revise(now)

    def _revise(self, now: float) -> None:
        self.upstreams.drop()
        for link in list(self.links):
            link.phase.revise(now)
        if self.datagrams is not None:
            self.datagrams.revise(now)

    def sweep(self, now: float) -> None:
        """End what is overdue: silent connections, idle upstreams, rules that expired."""
        subject, policy = self.subject, self.subject.policy
        if subject.budgets and subject.budgets.renewed(now):
            subject.drain()
        if self._expiry is not None and policy is not None and now >= self._expiry:
            self.bind(policy, now)
        for link in list(self.links):
            if now > link.phase.deadline:
                link.phase.expire(now)
        self.upstreams.sweep(now)
        if self.datagrams is not None:
            self.datagrams.sweep(now)

    def release(self) -> None:
        """The sandbox is gone: nothing of it stays open."""
        self._released = True
        now = time()
        self.subject.close(True)
        self._revise(now)
        for link in list(self.links):
            link.abort(hard=True)
        for close in reversed(self._closers):
            close()
        self._closers.clear()
        self.datagrams = None
        self.upstreams.close()
