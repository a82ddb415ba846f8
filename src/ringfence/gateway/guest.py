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
from ringfence.gateway.names import SyntheticNames
from ringfence.gateway.packets import RefusedPacket, watch_packets
from ringfence.gateway.resolver import serve_dns
from ringfence.gateway.turns import Round, Turns
from ringfence.gateway.upstream import Upstreams
from ringfence.policy.effective import EffectivePolicy
from ringfence.sandbox.credentials import Binding

if TYPE_CHECKING:
    import ssl

    from ringfence.gateway.authority import Authority
    from ringfence.gateway.dial import Dialer
    from ringfence.gateway.outbox import Outbox
    from ringfence.gateway.relay import ClientLink


@dataclass(slots=True)
class Services:
    """What all guests of a worker share."""

    loop: asyncio.AbstractEventLoop
    dialer: Dialer
    outbox: Outbox
    upstream_context: ssl.SSLContext
    round: Round
    authority: Authority | None = None
    capacity: int = 4096
    """Client connections that the worker's descriptors bear."""
    connections: int = 0
    """How many there are."""

    def context(self, host: str) -> ssl.SSLContext:
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
        self.questions = 0
        """How many names were asked for."""
        self._closers: list[Callable[[], None]] = []
        self._expiry: float | None = None
        self._released = False

    async def serve(self, sockets: Mapping[str, socket.socket]) -> None:
        """Listen on an enclosure's sockets, by their roles."""
        loop, addresses = self.services.loop, self.addresses
        resolving: dict[str, socket.socket] = {}
        for role, sock in sockets.items():
            if role.startswith("dns-"):
                resolving[role] = sock
                self._closers.append(sock.close)
            elif role == "packets":
                self._closers += [sock.close, watch_packets(loop, sock, self._rejected)]
            else:
                self._closers.append(await listener.listen(loop, self, role, sock))
        if resolving:
            fixed = {
                "gateway.docker.internal": (addresses.gateway4, addresses.gateway6),
                "host.docker.internal": (addresses.host4, addresses.host6),
            }
            # Last in, first out: the resolver stops before its sockets close.
            self._closers.append(serve_dns(loop, resolving, self.names, fixed, self._asked))

    def _asked(self, name: str) -> None:  # noqa: ARG002  # a question leaves nothing and decides nothing
        self.questions += 1

    def _rejected(self, packet: RefusedPacket) -> None:
        """The enclosure rejected packets."""
        addresses = self.addresses
        canary = packet.source in (addresses.canary4, addresses.canary6)
        host = self.names.name(packet.destination) or packet.destination
        self.subject.refuse_packets(
            packet.transport, host, packet.port, packet.packets, time(), canary=canary
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

    # -- policy -------------------------------------------------------------------------------------------

    def bind(self, policy: EffectivePolicy, now: float) -> None:
        """Put a snapshot in force, and end what it refuses."""
        self.subject.bind(policy)
        self._expiry = policy.next_expiry(now)
        self._revise(now)

    def arm(self, credentials: Sequence[Binding]) -> None:
        """Replace the credentials; requests from now on see these."""
        self.subject.credentials = tuple(credentials)

    def cut(self, closed: bool, now: float) -> None:
        """Refuse everything, or stop refusing everything."""
        if self.subject.cut is not closed:
            self.subject.close(closed)
            self._revise(now)

    def _revise(self, now: float) -> None:
        self.upstreams.drop()
        for link in list(self.links):
            link.phase.revise(now)

    def sweep(self, now: float) -> None:
        """End what is overdue: silent connections, idle upstreams, rules that expired."""
        policy = self.subject.policy
        if self._expiry is not None and policy is not None and now >= self._expiry:
            self.bind(policy, now)
        for link in list(self.links):
            if now > link.phase.deadline:
                link.phase.expire(now)
        self.upstreams.sweep(now)

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
        self.upstreams.close()
