"""Connections to origins: dialled, verified, pooled per sandbox, destination and policy revision.

Pooling is the largest single saving for short exchanges (a verified TLS handshake costs a third of a
millisecond), and the most delicate: a pooled connection may serve only requests that this very sandbox could
have dialled it for, under the policy in force. So the pool belongs to one sandbox, its key holds the
revision, and a connection goes back only when its last response ended where its framing said. TLS sessions
are kept per destination, and never shared either.

An HTTP/1 connection carries one exchange and waits on a *shelf* between two. An HTTP/2 connection is *shared*: it
takes exchanges as long as it has room, and another one is made when it has not. While the first connection to a
destination is being made nobody knows which it will be, so those who come meanwhile wait for it.

Where there is nothing to wait for but the connection itself (one address, known and judged, no proxy, no TLS: most
tunnels) it is made at once. Whatever has to be asked, raced for or shaken hands on first takes a task of its own.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Iterator
from time import time
from typing import TYPE_CHECKING, Final

from ringfence.gateway.core.exchange import Exchange
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.messages import Route
from ringfence.gateway.core.origin1 import Origin1
from ringfence.gateway.core.origin2 import Origin2
from ringfence.gateway.core.streams import OriginStream
from ringfence.gateway.core.subject import Subject
from ringfence.gateway.core.tunnels import Tunnel
from ringfence.gateway.dial import Judge, Refused, Unconnected, Unresolved, reason, silence
from ringfence.gateway.turns import Turns
from ringfence.gateway.uplink import Attempt, Unreached, UpstreamLink
from ringfence.policy.model import Decision

if TYPE_CHECKING:
    from ringfence.gateway.guest import Services

_SESSIONS: Final = 256
"""TLS sessions kept for one sandbox."""
_WINDOWS, _FEW = 16, 64
"""Downloads of one shared connection that may be stuck before the others wait for them; beyond so many connections of
a sandbox one, so that a sandbox that reads nothing costs a gigabyte at worst, and not sixteen."""
_UNSHARED: Final = 1024
"""Routes that are known not to be shared."""


class Upstreams:
    """The connections to origins of one sandbox."""

    def __init__(self, services: Services, subject: Subject, turns: Turns) -> None:
        self._services = services
        self.subject = subject
        self.turns = turns
        self.round = services.round
        self.shelves: dict[Route, list[UpstreamLink]] = {}
        """Where idle connections wait."""
        self.shared: dict[Route, list[UpstreamLink]] = {}
        """Connections that carry many exchanges at once."""
        self._waiting: dict[Route, list[Exchange]] = {}
        """Who waits for the first connection of a route that may be shared."""
        self._unshared: set[Route] = set()
        """Routes whose origins chose HTTP/1 although they were offered more."""
        self._sessions: OrderedDict[tuple[object, ...], ssl.SSLSession] = OrderedDict()
        self._dials: set[asyncio.Task[None]] = set()
        self._reaching: dict[UpstreamLink, tuple[Exchange | Tunnel, Attempt]] = {}
        """Connections to one known address that are being made, and whom for."""
        self._shaking: set[UpstreamLink] = set()
        self.open_count = 0

    # -- what the core asks for ---------------------------------------------------------------------------

    def request(self, exchange: Exchange, route: Route, *, fresh: bool) -> None:
        """Answer with ``exchange.connected`` or ``exchange.failed``; at once if a pooled connection is
        there.
        """
        shelf = self.shelves.get(route)
        if shelf and not fresh:
            link = shelf.pop()
            link.reused = True
            carrier = link.owner
            assert isinstance(carrier, Origin1)
            exchange.connected(carrier, time())
            return
        if route.protocol == "h2" and route not in self._unshared:
            self._share(exchange, route, fresh=fresh)
            return
        self._start(exchange, exchange.flow, route)

    def _share(self, exchange: Exchange, route: Route, *, fresh: bool) -> None:
        """Find room on a shared connection, or wait for one that is being made, or make one."""
        if not fresh:
            for link in self.shared.get(route, ()):
                owner = link.owner
                if isinstance(owner, Origin2) and owner.room:
                    exchange.connected(OriginStream(owner), time())
                    return
        waiting = self._waiting.get(route)
        if waiting is not None:
            waiting.append(exchange)
            return
        self._waiting[route] = []
        self._start(exchange, exchange.flow, route)

    def _waited(self, owner: Exchange | Tunnel, route: Route) -> Iterator[Exchange]:
        """Those who waited for a connection that was made (or not) for ``owner``, and are still there."""
        if isinstance(owner, Exchange):
            yield from (each for each in [owner, *self._waiting.pop(route, ())] if not each.over)

    def open(self, tunnel: Tunnel, route: Route) -> None:
        """Answer with ``tunnel.connected`` or ``tunnel.failed``."""
        self._start(tunnel, tunnel.flow, route)

    def _start(self, owner: Exchange | Tunnel, flow: Flow, route: Route) -> None:
        if self.open_count + len(self._dials) + len(self._reaching) >= self.subject.limits.connections:
            self._failed(owner, route, 503, "this sandbox has too many connections")
            return
        services = self._services
        if services.proxies is None and not route.server_name:
            now = time()
            place = services.dialer.place(
                route.host, route.port, lambda address: flow.judge_address(address, now)
            )
            if place is not None:
                self._reach(owner, route, place, now)
                return
        task = services.loop.create_task(self._dial(owner, flow, route))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    def _reach(self, owner: Exchange | Tunnel, route: Route, place: tuple[str, int], now: float) -> None:
        """Connect to the one place there is; ``arrived`` or ``_unreached`` comes of it."""
        services = self._services
        link = UpstreamLink(self, route)
        link.address = place[0]
        link.idle_since = now
        attempt = Attempt(
            services.loop,
            services.dialer.reach(place, lambda: link),
            lambda flaw: self._unreached(link, flaw),
        )
        self._reaching[link] = (owner, attempt)

    def arrived(self, link: UpstreamLink) -> None:
        """A connection is there. One that somebody dials for it in a task is taken from there."""
        self.open_count += 1
        reached = self._reaching.pop(link, None)
        if reached is None:
            return
        link.idle_since = 0.0
        owner = reached[0]
        if isinstance(owner, Exchange):
            self._made(link, owner, link.route)
        elif owner.over:
            link.close()
        else:
            link.owner = owner
            link.early = None
            owner.connected(link, time())

    def _unreached(self, link: UpstreamLink, flaw: OSError) -> None:
        """Nobody answered where ``link`` was to go."""
        reached = self._reaching.pop(link, None)
        if reached is not None:
            self._failed(reached[0], link.route, 502, reason(flaw))

    async def _dial(self, owner: Exchange | Tunnel, flow: Flow, route: Route) -> None:
        try:
            link = await self._connect(flow, route)
        except Refused as refusal:
            self._failed(owner, route, 403, refusal.decision.text, refusal.decision)
        except Unreached as flaw:
            self._failed(owner, route, flaw.status, flaw.text)
        except Exception:
            self._failed(owner, route, 502, "the gateway failed")
            raise
        else:
            if isinstance(owner, Exchange):
                self._made(link, owner, route)
            elif owner.over:
                link.close()
            else:
                link.owner = owner
                owner.connected(link, time())
                link.adopted()

    def _failed(
        self, owner: Exchange | Tunnel, route: Route, status: int, text: str, decision: Decision | None = None
    ) -> None:
        """There is no connection, for nobody who waited for it."""
        if isinstance(owner, Tunnel):
            owner.failed(status, text, time(), decision)
            return
        for exchange in self._waited(owner, route):
            exchange.failed(status, text, time(), decision)

    def _made(self, link: UpstreamLink, owner: Exchange, route: Route) -> None:
        """A connection is there; who waited for it takes what it has room for."""
        waited = self._waited(owner, route)
        if link.protocol == "h2":
            windows = _WINDOWS if self.open_count <= _FEW else 1
            link.owner = Origin2(link, self.subject.limits, time(), windows=windows)
            link.adopted()
            link.idle_since = time()
            self.shared.setdefault(route, []).append(link)
        else:
            if route.protocol == "h2":
                if len(self._unshared) >= _UNSHARED:
                    self._unshared.clear()
                self._unshared.add(route)
            first = next(waited, None)
            if first is None:
                link.close()
                return
            if link.early:
                link.close()
                first.failed(502, "the server spoke before it was asked", time(), None)
            else:
                link.early = None
                carrier = link.owner = Origin1(link, self.subject.limits, link.render)
                first.connected(carrier, time())
        for exchange in waited:
            self.request(exchange, route, fresh=False)

    async def _connect(self, flow: Flow, route: Route) -> UpstreamLink:
        def judge(address: str) -> Decision:
            return flow.judge_address(address, time())

        services = self._services
        if services.proxies is not None:
            link = await services.proxies.connect(self, flow, route, judge)
        else:
            link = await self._straight(route, judge)
        if route.server_name:
            await self._shake(link, route)
        return link

    async def _straight(self, route: Route, judge: Judge) -> UpstreamLink:
        services = self._services
        try:
            addresses = await services.dialer.addresses(route.host, route.port, judge, owner=self.subject.id)
        except Unresolved as flaw:
            raise Unreached(502, str(flaw)) from None
        try:
            _, link, (address, _port) = await services.dialer.connect(
                addresses, lambda: UpstreamLink(self, route), timeout=self.subject.limits.dial_time
            )
        except Unconnected as flaw:
            raise Unreached(502, str(flaw)) from None
        link.address = address
        return link

    async def _shake(self, link: UpstreamLink, route: Route) -> None:
        ready = link.ready = self._services.loop.create_future()
        link.idle_since = time()
        self._shaking.add(link)
        link.wrap(
            self._services.upstream_contexts[route.protocol],
            server_side=False,
            server_name=route.server_name,
            session=self._sessions.get(_destination(route)),
        )
        link.shake()
        try:
            await ready
        except BaseException:
            link.close()
            raise
        finally:
            self._shaking.discard(link)
            link.ready = None

    # -- the pool -----------------------------------------------------------------------------------------

    def remember(self, link: UpstreamLink) -> None:
        """Keep what resumes the session. Once per connection: OpenSSL makes a copy, which costs more than a
        request.
        """
        session = link.session
        if session is not None:
            self._sessions[_destination(link.route)] = session
            if len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)

    def forget(self, link: UpstreamLink) -> None:
        """A connection is gone."""
        self.open_count -= 1
        if not link.idle_since:
            return  # it never waited anywhere
        for links in (self.shelves.get(link.route), self.shared.get(link.route)):
            if links is not None and link in links:
                links.remove(link)

    def drop(self) -> None:
        """Close all idle connections: what they were made under has changed. Shared ones end with what they
        carry.
        """
        shelves, self.shelves = self.shelves, {}
        shared, self.shared = self.shared, {}
        self._unshared.clear()
        self._sessions.clear()
        for links in (*shelves.values(), *shared.values()):
            for link in list(links):
                if not (isinstance(link.owner, Origin2) and link.owner.retire()):
                    link.close()

    def sweep(self, now: float) -> None:
        """Close connections that nobody wanted for a while, and handshakes that do not end."""
        late = now - self.subject.limits.dial_time
        for link, (owner, attempt) in list(self._reaching.items()):
            if link.idle_since < late:
                del self._reaching[link]
                attempt.cancel()
                self._failed(owner, link.route, 502, silence(self.subject.limits.dial_time))
        for link in list(self._shaking):
            if link.idle_since < late and link.ready is not None and not link.ready.done():
                link.ready.set_exception(Unreached(504, "the TLS handshake took too long"))
        before = now - self.subject.limits.idle_upstream_time
        for pool in (self.shelves, self.shared):
            for route, links in list(pool.items()):
                for link in list(links):
                    busy = isinstance(link.owner, Origin2) and link.owner.streams
                    if link.idle_since < before and not busy:
                        link.close()
                if not links:
                    del pool[route]

    def close(self) -> None:
        """The sandbox is gone."""
        for task in list(self._dials):
            task.cancel()
        for _, attempt in self._reaching.values():
            attempt.cancel()
        self._reaching.clear()
        self.drop()


def _destination(route: Route) -> tuple[object, ...]:
    """What TLS sessions are kept under: not the revision, but what ALPN offers, which has a context of its own."""
    return (route.host, route.port, route.server_name, route.protocol)
