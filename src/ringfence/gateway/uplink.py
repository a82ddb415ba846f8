"""One connection to an origin: its transport, its TLS, and whose it is at the moment.

What connections are for, who may share them and how long they are kept is :mod:`ringfence.gateway.upstream`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import time
from typing import TYPE_CHECKING, Any, cast

from ringfence.gateway.core.heads import render_request
from ringfence.gateway.core.messages import Route
from ringfence.gateway.core.origin1 import Origin1
from ringfence.gateway.core.origin2 import Origin2
from ringfence.gateway.core.tunnels import Tunnel
from ringfence.gateway.tls import Link
from ringfence.gateway.turns import QUANTUM

if TYPE_CHECKING:
    from ringfence.gateway.upstream import Upstreams


class Unreached(Exception):
    """There is no connection: the status to answer with, and why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Attempt:
    """A connection in the making, driven by hand: what a task does for it costs more than all that we do.

    ``failed`` is told, later, why there is none, unless it was cancelled.
    """

    __slots__ = ("_connecting", "_failed", "_loop", "_waiter")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connecting: Coroutine[Any, object, object],
        failed: Callable[[OSError], None],
    ) -> None:
        self._loop = loop
        self._connecting = connecting
        self._failed = failed
        self._waiter: asyncio.Future[object] | None = None
        self._go_on()

    def _go_on(self, _: object = None) -> None:
        try:
            waiter = self._waiter = self._connecting.send(None)
        except (StopIteration, asyncio.CancelledError):
            self._waiter = None
        except OSError as flaw:
            self._waiter = None
            self._loop.call_soon(self._failed, flaw)
        else:
            waiter.add_done_callback(self._go_on)

    def cancel(self) -> None:
        if self._waiter is not None:
            self._waiter.cancel()


class UpstreamLink(Link):
    """One connection to an origin. Its bytes are its ``owner``'s: a codec's or a tunnel's."""

    __slots__ = ("_pool", "address", "early", "idle_since", "on_close", "owner", "ready", "reused", "route")

    render = staticmethod(render_request)
    """Writes the head of a request that goes over it."""

    def __init__(self, pool: Upstreams, route: Route) -> None:
        super().__init__(pool.round)
        self._pool = pool
        self.route = route
        self.owner: Origin1 | Origin2 | Tunnel | None = None
        self.address = ""
        self.early: bytes | None = b""
        """What came before the first owner: a server may speak first (ssh), or with its last word of the handshake
        (HTTP/2 over TLS 1.2). One read at most, then it waits. ``None`` once there was an owner.
        """
        self.reused = False
        self.idle_since = 0.0
        """Since when it waits: for an exchange, or for its handshake."""
        self.ready: asyncio.Future[None] | None = None
        """The handshake, while somebody waits for it."""
        self.on_close: Callable[[], None] | None = None

    # -- events -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._pool.arrived(self)

    def plain(self, data: bytes) -> None:
        turns = self._pool.turns
        turns.spent += len(data)
        if turns.spent > QUANTUM:
            turns.give_way(self)
        owner = self.owner
        if type(owner) is Origin1 or type(owner) is Origin2:
            owner.received(data, time())
        elif isinstance(owner, Tunnel):
            owner.answered(data, time())
        elif self.early is not None:
            self.early += data
            self.pause()
        else:
            self.close()  # it speaks and nobody asked

    def secured(self) -> None:
        if self.ready is not None and not self.ready.done():
            self.ready.set_result(None)

    def insecure(self, text: str) -> None:
        if self.ready is not None and not self.ready.done():
            self.ready.set_exception(Unreached(502, text))
        self._gone(text)

    def ended(self, *, clean: bool) -> None:
        owner = self.owner
        if clean and isinstance(owner, Origin1 | Origin2):
            owner.ended(time())
        if not self.closed:
            self._gone("the connection was closed before the response was complete")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ready is not None and not self.ready.done():
            self.ready.set_exception(Unreached(502, "the connection was closed during the TLS handshake"))
        self._gone("the connection was reset" if exc else "the connection was closed")

    def pause_writing(self) -> None:
        if isinstance(self.owner, Origin1 | Origin2):
            self.owner.hold(True)

    def resume_writing(self) -> None:
        if isinstance(self.owner, Origin1 | Origin2):
            self.owner.hold(False)

    def _gone(self, text: str) -> None:
        owner, self.owner = self.owner, None
        self._leave()
        if isinstance(owner, Tunnel):
            owner.finished(b"upstream", time())
        elif owner is not None:
            owner.lost(text, time())

    # -- commands -----------------------------------------------------------------------------------------

    def adopted(self) -> None:
        """The first owner is there: it, or the relay that has taken its place, gets what came early."""
        early, self.early = self.early, None
        if early and not self.closed:
            self.resume()
            protocol = self.transport.get_protocol()
            if protocol is self:
                self.plain(early)
            else:
                cast("asyncio.Protocol", protocol).data_received(early)

    def release(self) -> None:
        pool, route = self._pool, self.route
        if isinstance(self.owner, Origin2):
            self.idle_since = time()
            if route.epoch != pool.subject.epoch:
                self.close()
            elif not self.reused:
                self.reused = True
                pool.remember(self)
            return
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
