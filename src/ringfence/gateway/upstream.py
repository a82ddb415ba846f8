"""Connections to origins: dialled, verified, pooled per sandbox, destination and policy revision.

Pooling is the largest single saving for short exchanges (a verified TLS handshake costs a third of a
millisecond), and the most delicate: a pooled connection may serve only requests that this very sandbox could
have dialled it for, under the policy in force. So the pool belongs to one sandbox, its key holds the
revision, and a connection goes back only when its last response ended where its framing said. TLS sessions
are kept per destination, and never shared either.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Final

from ringfence.gateway.core.exchange import Exchange
from ringfence.gateway.core.messages import Route
from ringfence.gateway.core.subject import Flow, Subject
from ringfence.gateway.core.tunnels import Tunnel
from ringfence.gateway.dial import Refused, Unconnected, Unresolved
from ringfence.gateway.tls import Link
from ringfence.gateway.turns import QUANTUM, Turns
from ringfence.policy.model import Decision

if TYPE_CHECKING:
    from ringfence.gateway.guest import Services

_SESSIONS: Final = 256
"""TLS sessions kept for one sandbox."""


class UpstreamLink(Link):
    """One connection to an origin. It works for one exchange or tunnel at a time, its ``owner``."""

    __slots__ = ("_pool", "address", "idle_since", "on_close", "owner", "ready", "reused", "route")

    def __init__(self, pool: Upstreams, route: Route) -> None:
        super().__init__(pool.round)
        self._pool = pool
        self.route = route
        self.owner: Exchange | Tunnel | None = None
        self.address = ""
        self.reused = False
        self.idle_since = 0.0
        """Since when it waits: for an exchange, or for its handshake."""
        self.ready: asyncio.Future[None] | None = None
        """The handshake, while somebody waits for it."""
        self.on_close: Callable[[], None] | None = None

    # -- events -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._pool.open_count += 1

    def plain(self, data: bytes) -> None:
        turns = self._pool.turns
        turns.spent += len(data)
        if turns.spent > QUANTUM:
            turns.give_way(self)
        owner = self.owner
        if type(owner) is Exchange:
            owner.received(data, time())
        elif isinstance(owner, Tunnel):
            owner.answered(data, time())
        else:
            self.close()  # an answer to nothing: whoever came next would take it for theirs

    def secured(self) -> None:
        if self.ready is not None and not self.ready.done():
            self.ready.set_result(None)

    def insecure(self, text: str) -> None:
        if self.ready is not None and not self.ready.done():
            self.ready.set_exception(Unreached(502, text))
        self._gone(text)

    def ended(self, *, clean: bool) -> None:
        owner = self.owner
        if clean and type(owner) is Exchange:
            owner.ended(time())
        if not self.closed:
            self._gone("the connection was closed before the response was complete")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ready is not None and not self.ready.done():
            self.ready.set_exception(Unreached(502, "the connection was closed during the TLS handshake"))
        self._gone("the connection was reset" if exc else "the connection was closed")

    def pause_writing(self) -> None:
        if isinstance(self.owner, Exchange):
            self.owner.hold(True)

    def resume_writing(self) -> None:
        if isinstance(self.owner, Exchange):
            self.owner.hold(False)

    def _gone(self, text: str) -> None:
        owner, self.owner = self.owner, None
        self._leave()
        if isinstance(owner, Exchange):
            owner.lost(text, time())
        elif owner is not None:
            owner.finished(b"upstream", time())

    # -- commands -----------------------------------------------------------------------------------------

    def release(self) -> None:
        self.owner = None
        pool, route = self._pool, self.route
        shelf = pool.shelves.get(route)
        if shelf is None:
            shelf = pool.shelves[route] = []
        subject = pool.subject
        if self.closed or route.epoch != subject.epoch or len(shelf) >= subject.limits.idle_upstreams:
            self.close()
            return
        if not self.reused and route.server_name:
            pool.remember(self)
        self.idle_since = time()
        shelf.append(self)

    def close(self) -> None:
        self.owner = None
        if self.on_close is not None:
            on_close, self.on_close = self.on_close, None
            on_close()
        self._leave()

    def _leave(self) -> None:
        if self.closed:
            return
        if not self._held:  # what was held back was meant for an exchange that is over
            self.say_goodbye()
            self.flush()
        self.abort()
        self._pool.forget(self)


class Upstreams:
    """The connections to origins of one sandbox."""

    def __init__(self, services: Services, subject: Subject, turns: Turns) -> None:
        self._services = services
        self.subject = subject
        self.turns = turns
        self.round = services.round
        self.shelves: dict[Route, list[UpstreamLink]] = {}
        """Where idle connections wait."""
        self._sessions: OrderedDict[tuple[str, int, str], ssl.SSLSession] = OrderedDict()
        self._dials: set[asyncio.Task[None]] = set()
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
            link.owner = exchange
            exchange.connected(link, time())
            return
        self._start(exchange, exchange.flow, route)

    def open(self, tunnel: Tunnel, route: Route) -> None:
        """Answer with ``tunnel.connected`` or ``tunnel.failed``."""
        self._start(tunnel, tunnel.flow, route)

    def _start(self, owner: Exchange | Tunnel, flow: Flow, route: Route) -> None:
        if self.open_count + len(self._dials) >= self.subject.limits.connections:
            owner.failed(503, "this sandbox has too many connections", time())
            return
        task = self._services.loop.create_task(self._dial(owner, flow, route))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self, owner: Exchange | Tunnel, flow: Flow, route: Route) -> None:
        try:
            link = await self._connect(flow, route)
        except Refused as refusal:
            owner.failed(403, refusal.decision.text, time(), refusal.decision)
        except Unreached as flaw:
            owner.failed(flaw.status, flaw.text, time())
        except Exception:
            owner.failed(502, "the gateway failed", time())
            raise
        else:
            if owner.over:
                link.close()
                return
            link.owner = owner
            owner.connected(link, time())

    async def _connect(self, flow: Flow, route: Route) -> UpstreamLink:
        def judge(address: str) -> Decision:
            return flow.judge_address(address, time())

        services = self._services
        try:
            addresses = await services.dialer.addresses(route.host, route.port, judge)
        except Unresolved as flaw:
            raise Unreached(502, str(flaw)) from None
        try:
            _, link, (address, _port) = await services.dialer.connect(
                addresses, lambda: UpstreamLink(self, route), timeout=self.subject.limits.dial_time
            )
        except Unconnected as flaw:
            raise Unreached(502, str(flaw)) from None
        link.address = address
        if route.server_name:
            await self._shake(link, route)
        return link

    async def _shake(self, link: UpstreamLink, route: Route) -> None:
        ready = link.ready = self._services.loop.create_future()
        link.idle_since = time()
        self._shaking.add(link)
        link.wrap(
            self._services.upstream_context,
            server_side=False,
            server_name=route.server_name,
            session=self._sessions.get(route[:3]),
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
            self._sessions[link.route[:3]] = session
            if len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)

    def forget(self, link: UpstreamLink) -> None:
        """A connection is gone."""
        self.open_count -= 1
        shelf = self.shelves.get(link.route)
        if shelf is not None and link in shelf:
            shelf.remove(link)

    def drop(self) -> None:
        """Close all idle connections: what they were made under has changed."""
        shelves, self.shelves = self.shelves, {}
        for links in shelves.values():
            for link in list(links):
                link.close()

    def sweep(self, now: float) -> None:
        """Close connections that nobody wanted for a while, and handshakes that do not end."""
        late = now - self.subject.limits.dial_time
        for link in list(self._shaking):
            if link.idle_since < late and link.ready is not None and not link.ready.done():
                link.ready.set_exception(Unreached(504, "the TLS handshake took too long"))
        before = now - self.subject.limits.idle_upstream_time
        for route, links in list(self.shelves.items()):
            for link in list(links):
                if link.idle_since < before:
                    link.close()
            if not links:
                del self.shelves[route]

    def close(self) -> None:
        """The sandbox is gone."""
        for task in list(self._dials):
            task.cancel()
        self.drop()


class Unreached(Exception):
    """There is no connection: the status to answer with, and why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
