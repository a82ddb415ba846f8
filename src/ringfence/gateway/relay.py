"""The client's end: a connection that was accepted inside a sandbox, and what the core commands of it.

A ``ClientLink`` owns the transport and its TLS; its ``phase`` (``core.connection``) knows what the bytes
mean. The link tells the phase what happened and does what it says, nothing else is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
from time import time
from typing import TYPE_CHECKING, Final

from ringfence.gateway.core.connection import Phase, Securing
from ringfence.gateway.core.messages import Route, UpstreamWire
from ringfence.gateway.tls import Link
from ringfence.gateway.tunnel import NEVER, Relay
from ringfence.gateway.turns import QUANTUM

if TYPE_CHECKING:
    from collections.abc import Callable

    from ringfence.gateway.core.tunnels import Tunnel
    from ringfence.gateway.guest import Guest
    from ringfence.gateway.uplink import UpstreamLink

LINGER: Final = 5.0
"""Seconds that a client gets to read our last words before the connection goes."""


class ClientLink(Link):
    """One accepted connection of one sandbox. ``begin`` makes its first phase once the transport is there."""

    __slots__ = (
        "__weakref__",
        "_begin",
        "_guest",
        "_polite",
        "heard_all",
        "held",
        "phase",
        "request",
    )

    phase: Phase

    def __init__(self, guest: Guest, begin: Callable[[ClientLink], Phase | None]) -> None:
        super().__init__(guest.services.round)
        self._guest = guest
        self.request = guest.upstreams.request
        self._begin = begin
        self.heard_all = False
        """The client sends no more."""
        self._polite = True
        """The client has not left without a goodbye of its own."""
        self.held = ""
        """A synthetic address that this connection keeps from being given to another name."""

    # -- events -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.phase = _NOTHING
        if not self._guest.enter(self):
            self.abort(hard=True)
            return
        phase = self._begin(self)
        if phase is None:
            self.abort(hard=True)
        elif self.phase is _NOTHING:
            self.phase = phase

    def plain(self, data: bytes) -> None:
        guest = self._guest
        guest.spent += len(data)
        if guest.spent > QUANTUM:
            guest.give_way(self)
        self.phase.received(data, time())

    def secured(self) -> None:
        phase = self.phase
        assert isinstance(phase, Securing)
        phase.secured(self.protocol, time())

    def insecure(self, text: str) -> None:
        phase = self.phase
        if isinstance(phase, Securing):
            phase.insecure(text, time())
        self.abort()

    def ended(self, *, clean: bool) -> None:
        self.heard_all = True
        self._polite = clean
        self.phase.eof(time())

    def pause_writing(self) -> None:
        self.phase.filled()

    def resume_writing(self) -> None:
        self.phase.drained(time())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # however it ended, it ended
        self.closed = True
        self._guest.leave(self)
        phase, self.phase = self.phase, _NOTHING  # no cycle left for the garbage collector
        phase.lost(time())

    # -- commands -----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Say goodbye; then listen to nothing, so that no unread byte turns our last words into a reset."""
        if self.closed or isinstance(self.phase, _Lingering):
            return
        if self._polite:
            self.say_goodbye()
        self.flush()
        if self.heard_all:
            self.closed = True
            self.transport.close()
            return
        self.phase = _Lingering(self, self.phase, time() + LINGER)
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        if self._wants_pause:
            self.resume()

    def reset(self) -> None:
        self.abort(hard=True)

    def terminate(self, host: str, hello: bytes) -> None:
        try:
            context = self._guest.services.context(host)
        except ValueError as flaw:
            self.insecure(str(flaw))
            return
        self.wrap(context, server_side=True)
        self.data_received(hello)

    def open(self, tunnel: Tunnel, route: Route) -> None:
        self._guest.upstreams.open(tunnel, route)

    def relay(self, tunnel: Tunnel, upstream: UpstreamWire) -> None:
        link: UpstreamLink = upstream  # type: ignore[assignment]  # the shell's tunnels run over the shell's links
        # What goes to an upstream proxy over TLS is no socket's own bytes: the kernel cannot move it.
        sealed = link.transport.get_extra_info("ssl_object") is not None
        limit = NEVER if sealed else self._guest.subject.limits.splice_bytes
        Relay(self, link, tunnel, self._guest, limit)


class _Lingering:
    """Everything is said; the client may still read it. What it sends is thrown away."""

    __slots__ = ("_before", "_link", "deadline")

    def __init__(self, link: ClientLink, before: Phase, deadline: float) -> None:
        self._link = link
        self._before = before
        self.deadline = deadline

    def received(self, data: bytes, now: float) -> None:
        """Nobody is interested any more."""

    def eof(self, now: float) -> None:  # noqa: ARG002
        self._link.abort()

    def lost(self, now: float) -> None:
        self._before.lost(now)

    def filled(self) -> None:
        """Nothing more is written."""

    def drained(self, now: float) -> None:
        """Nothing more is written."""

    def expire(self, now: float) -> None:  # noqa: ARG002
        self._link.abort()

    def revise(self, now: float) -> None:
        """Nothing passes any more."""


class _Nothing:
    """A connection that was not let in."""

    deadline = 1e18

    def _ignore(self, *_: object) -> None:
        """There is nothing to do."""

    received = eof = lost = filled = drained = expire = revise = _ignore


_NOTHING: Final[Phase] = _Nothing()
