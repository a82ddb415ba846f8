"""Bytes between two connections, uninspected: first through the event loop, then, when they are many, in the
kernel.

Small messages are cheapest as plain reads and writes of the event loop's transports. Bulk is cheapest with
``splice``, which moves pages from socket to pipe to socket and never shows them to us: half the CPU time. So
a relay begins on transports and moves over when one direction has carried a megabyte (``splice_bytes``): both
transports stop reading, their buffers drain, and duplicates of their descriptors are watched instead. A pipe
is borrowed while there are bytes in it and given back when it is empty; a tunnel that is idle holds none.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from time import time
from typing import TYPE_CHECKING, Final

from ringfence.gateway.turns import QUANTUM, Reader, Turns

if TYPE_CHECKING:
    from ringfence.gateway.core.tunnels import Tunnel
    from ringfence.gateway.relay import ClientLink
    from ringfence.gateway.uplink import UpstreamLink

_AT_ONCE: Final = 1 << 20
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_F_SETPIPE_SZ: Final = 1031
_PIPES_KEPT: Final = 32
NEVER: Final = 1 << 62


class Relay:
    """Both directions of one tunnel."""

    __slots__ = ("_client", "_halves", "_limit", "_pumps", "_tunnel", "_turns", "_upstream")

    def __init__(
        self,
        client: ClientLink,
        upstream: UpstreamLink,
        tunnel: Tunnel,
        turns: Turns,
        limit: int,
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._tunnel = tunnel
        self._turns = turns
        self._limit = limit
        self._pumps: tuple[_Pump, _Pump] | None = None
        client.flush()
        upstream.flush()
        out = _Half(self, client.transport, upstream.transport, outwards=True)
        back = _Half(self, upstream.transport, client.transport, outwards=False)
        self._halves = (out, back)
        client.transport.set_protocol(out)
        upstream.transport.set_protocol(back)
        upstream.on_close = self.stop
        client.resume()
        if client.heard_all:
            self.ended(out)

    def moved(self, half: _Half, size: int, reader: Reader) -> None:
        turns = self._turns
        turns.spent += size
        if turns.spent > QUANTUM:
            turns.give_way(reader)
        if half.outwards:
            self._tunnel.moved(size, 0, time())
        else:
            self._tunnel.moved(0, size, time())
        total = half.total = half.total + size
        if total >= self._limit and self._pumps is None:
            self.try_splice()

    def try_splice(self) -> None:
        """Move into the kernel once nothing is left in the transports' buffers."""
        out, back = self._halves
        if self._pumps is not None or out.ended or back.ended:
            return
        self._limit = 0
        waiting = False
        for half in self._halves:
            half.source.pause_reading()
            waiting = waiting or half.target.get_write_buffer_size() > 0
        if waiting:
            for half in self._halves:  # `resume_writing` comes when everything is out
                half.target.set_write_buffer_limits(high=0)
            return
        loop = asyncio.get_running_loop()
        try:
            self._pumps = (
                _Pump(self, loop, out, self._finish_half),
                _Pump(self, loop, back, self._finish_half),
            )
        except OSError:  # out of descriptors: the transports can do it
            self._limit = NEVER
            for half in self._halves:
                half.source.resume_reading()

    def other(self, half: _Half) -> _Half:
        out, back = self._halves
        return back if half is out else out

    @property
    def spliced(self) -> bool:
        """Whether the kernel moves the bytes."""
        return self._pumps is not None

    @property
    def moving(self) -> bool:
        """Whether the transports are only waiting for their buffers to drain."""
        return self._limit == 0 and self._pumps is None

    def ended(self, half: _Half) -> None:
        """One side sends no more: so be it said to the other. TLS to an upstream proxy knows no half of an end."""
        half.ended = True
        with contextlib.suppress(OSError, RuntimeError):
            if half.target.can_write_eof():
                half.target.write_eof()
            else:
                half.target.close()
        self.part()

    def part(self) -> None:
        """Both sides send no more: this is over as soon as what they said has left our buffers."""
        if not all(half.ended for half in self._halves):
            return
        if any(half.target.get_write_buffer_size() for half in self._halves):
            for half in self._halves:  # `resume_writing` comes when everything is out
                half.target.set_write_buffer_limits(high=0)
            return
        self._tunnel.finished(b"done", time())
        self.stop()
        self._client.abort()

    def _finish_half(self, half: _Half, *, broken: bool) -> None:
        if broken:
            self.lost(half)
            return
        self.ended(half)

    def lost(self, half: _Half) -> None:
        """One connection is gone."""
        self._tunnel.finished(b"client" if half.outwards else b"upstream", time())
        self.stop()
        self._client.abort()

    def client_lost(self, exc: Exception | None) -> None:
        self.stop()
        self._client.connection_lost(exc)

    def stop(self) -> None:
        """Let go of everything but the client's transport."""
        pumps, self._pumps = self._pumps, None
        self._limit = NEVER
        for pump in pumps or ():
            pump.close()
        self._upstream.transport.abort()


class _Half(asyncio.Protocol):
    """One direction, while it runs over transports."""

    __slots__ = ("_relay", "ended", "full", "outwards", "source", "target", "total")

    def __init__(
        self, relay: Relay, source: asyncio.Transport, target: asyncio.Transport, *, outwards: bool
    ) -> None:
        self._relay = relay
        self.source = source
        self.target = target
        self.outwards = outwards
        self.total = 0
        self.ended = False
        self.full = False
        """Its target takes no more for now."""

    def data_received(self, data: bytes) -> None:
        self.target.write(data)
        self._relay.moved(self, len(data), self)

    def eof_received(self) -> bool:
        self._relay.ended(self)
        return True

    def stall(self, stalled: bool) -> None:
        if self.source.is_closing() or self._relay.moving or self._relay.spliced:
            return
        if stalled:
            self.source.pause_reading()
        elif not self.full:
            self.source.resume_reading()

    # `source` is also what the other half writes to: its pressure stops the other half's source.
    def pause_writing(self) -> None:
        self._relay.other(self).full = True
        self.target.pause_reading()

    def resume_writing(self) -> None:
        self._relay.other(self).full = False
        if self._relay.moving:
            self._relay.try_splice()
        elif not self._relay.spliced:
            self.target.resume_reading()
            self._relay.part()

    def connection_lost(self, exc: Exception | None) -> None:
        relay = self._relay
        del self._relay  # no cycle left for the garbage collector
        relay.lost(self)
        if self.outwards:
            relay.client_lost(exc)


class _Pump:
    """One direction, in the kernel."""

    __slots__ = (
        "_done",
        "_ended",
        "_filled",
        "_half",
        "_loop",
        "_pipe",
        "_relay",
        "_source",
        "_stalled",
        "_target",
    )

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop, half: _Half, done: _Done) -> None:
        self._relay = relay
        self._loop = loop
        self._half = half
        self._done = done
        self._pipe: tuple[int, int] | None = None
        self._filled = 0
        self._ended = self._stalled = False
        self._source = _duplicate(half.source)
        self._target = _duplicate(half.target)
        loop.add_reader(self._source, self._readable)

    def _readable(self) -> None:
        try:
            if self._pipe is None:
                self._pipe = _borrow()
            size = os.splice(self._source, self._pipe[1], _AT_ONCE, flags=_FLAGS)
            if size == 0:
                self._ended = True
                self._loop.remove_reader(self._source)
                self._give_back()
                self._done(self._half, broken=False)
                return
            self._filled = size
            self._relay.moved(self._half, size, self)
            self._filled -= os.splice(self._pipe[0], self._target, size, flags=_FLAGS)
        except BlockingIOError:
            if not self._filled:
                self._give_back()
                return
        except OSError:
            self._done(self._half, broken=True)
            return
        if self._filled:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._writable)
        else:
            self._give_back()

    def stall(self, stalled: bool) -> None:
        self._stalled = stalled
        if self._source < 0 or self._ended:
            return
        if stalled:
            self._loop.remove_reader(self._source)
        elif not self._filled:
            self._loop.add_reader(self._source, self._readable)

    def _writable(self) -> None:
        assert self._pipe is not None
        try:
            self._filled -= os.splice(self._pipe[0], self._target, self._filled, flags=_FLAGS)
        except BlockingIOError:
            return
        except OSError:
            self._done(self._half, broken=True)
            return
        if not self._filled:
            self._give_back()
            self._loop.remove_writer(self._target)
            if not self._stalled:
                self._loop.add_reader(self._source, self._readable)

    def _give_back(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return
        if self._filled or len(_PIPES) >= _PIPES_KEPT:
            os.close(pipe[0])
            os.close(pipe[1])
        else:
            _PIPES.append(pipe)

    def close(self) -> None:
        if self._source < 0:
            return
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        self._give_back()
        os.close(self._source)
        os.close(self._target)
        self._source = self._target = -1


if TYPE_CHECKING:
    from typing import Protocol

    class _Done(Protocol):
        def __call__(self, half: _Half, *, broken: bool) -> None: ...


_PIPES: Final[list[tuple[int, int]]] = []
"""Empty pipes, for the next one who needs one."""


def _borrow() -> tuple[int, int]:
    if _PIPES:
        return _PIPES.pop()
    pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # beyond the user's share of pipe pages: smaller pipes work too
        fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, _AT_ONCE)
    return pipe


def _duplicate(transport: asyncio.Transport) -> int:
    """The event loop refuses to watch a descriptor that a transport owns; a duplicate is the same socket."""
    sock: socket.socket = transport.get_extra_info("socket")
    return fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
