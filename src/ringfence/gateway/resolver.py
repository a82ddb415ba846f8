"""The sandbox's name server on its sockets: UDP and TCP around :func:`ringfence.gateway.core.dns.answer`.

The sockets live in the sandbox's enclosure, where packets to port 53 of *any* address are redirected to them,
so the client believes that it speaks with whichever server it named. A datagram is therefore answered from
the address that it came in on (``IP_PKTINFO``); connection tracking turns that back into the address that was
asked.

Every socket is drained in small batches and every connection is bounded in number, length, questions and
time, so a sandbox that floods its resolver delays itself. A client that does not read its answers is cut: an
answer always fits into an empty socket buffer.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress

from ringfence.gateway.core.dns import QUERY_LIMIT, Answer, answer
from ringfence.gateway.names import SyntheticNames

BATCH = 32
"""Datagrams or connections taken from a socket before others have their turn."""
CONNECTIONS = 64
"""Open TCP connections of one sandbox."""
QUESTIONS = 1_024
"""Questions on one TCP connection."""
LIFETIME = 30.0
"""Seconds that a TCP connection may last in all; a stub resolver needs one round trip."""
PAUSE = 1.0
"""Seconds without accepting after descriptors ran out."""

_IP_PKTINFO = 8
"""``linux/in.h``; Python 3.11 has no name for it."""


def serve_dns(
    loop: asyncio.AbstractEventLoop,
    sockets: Mapping[str, socket.socket],
    names: SyntheticNames,
    fixed: Mapping[str, tuple[str, str]],
    on_query: Callable[[str], None],
) -> Callable[[], None]:
    """Answer on the sockets of the roles ``dns-udp4 dns-udp6 dns-tcp4 dns-tcp6``; return what stops it.

    ``on_query`` hears the name of every question, escaped if it is none. The sockets stay the caller's.
    """

    def respond(query: bytes) -> Answer:
        given = answer(query, address=names.address, fixed=fixed)
        if given.name:
            on_query(given.name)
        return given

    parts: list[_Datagrams | _Connections] = []
    for role, sock in sockets.items():
        match role:
            case "dns-udp4":
                parts.append(_Datagrams(loop, sock, respond, _SOURCE4))
            case "dns-udp6":
                parts.append(_Datagrams(loop, sock, respond, _SOURCE6))
            case "dns-tcp4" | "dns-tcp6":
                parts.append(_Connections(loop, sock, respond))
            case _:
                raise ValueError(f"`{role}` is not a role of the resolver")

    def close() -> None:
        for part in parts:
            part.close()

    return close


class _Source:
    """How the kernel tells where a datagram was sent to, and is told where an answer comes from."""

    def __init__(self, level: int, ask: int, kind: int, size: int, source: Callable[[bytes], bytes]) -> None:
        self.level, self.ask, self.kind, self.size, self.source = level, ask, kind, size, source


def _source4(told: bytes) -> bytes:
    """``in_pktinfo``: interface, address of ours, address in the packet. Answers leave by route, from our address."""
    return struct.pack("=I4s4x", 0, told[4:8])


def _source6(told: bytes) -> bytes:
    """``in6_pktinfo``: address, interface. The interface counts for link-local addresses only."""
    return told


_SOURCE4 = _Source(socket.IPPROTO_IP, _IP_PKTINFO, _IP_PKTINFO, 12, _source4)
_SOURCE6 = _Source(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, socket.IPV6_PKTINFO, 20, _source6)


class _Datagrams:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        respond: Callable[[bytes], Answer],
        source: _Source,
    ) -> None:
        self._loop, self._socket, self._respond, self._source = loop, sock, respond, source
        self._space = socket.CMSG_SPACE(source.size)
        sock.setblocking(False)
        sock.setsockopt(source.level, source.ask, 1)
        loop.add_reader(sock, self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)

    def _readable(self) -> None:
        source = self._source
        for _ in range(BATCH):
            try:
                query, told, flags, peer = self._socket.recvmsg(QUERY_LIMIT, self._space)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error that an earlier answer met; reading has cleared it
                continue
            if flags & socket.MSG_TRUNC:
                continue
            reply = self._respond(query).reply
            if reply is None:
                continue
            control = [
                (level, kind, source.source(value))
                for level, kind, value in told
                if level == source.level and kind == source.kind and len(value) == source.size
            ]
            with suppress(OSError):  # the sandbox asks again, as it would of any server that lost a packet
                self._socket.sendmsg([reply], control, 0, peer)


class _Connections:
    """A listener and its open connections."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, respond: Callable[[bytes], Answer]
    ) -> None:
        self._loop, self._socket, self._respond = loop, sock, respond
        self._open: set[_Connection] = set()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        loop.add_reader(sock, self._acceptable)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        for connection in tuple(self._open):
            connection.close()

    def _acceptable(self) -> None:
        for _ in range(BATCH):
            try:
                accepted, _ = self._socket.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._loop.remove_reader(self._socket)
                    self._pause = self._loop.call_later(PAUSE, self._resume)
                return
            if len(self._open) >= CONNECTIONS:
                accepted.close()
                continue
            self._open.add(_Connection(self._loop, accepted, self._respond, self._open.discard))

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._acceptable)


class _Connection:
    """Questions behind lengths of two bytes (RFC 7766 section 8), answered in order."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        respond: Callable[[bytes], Answer],
        forget: Callable[[_Connection], None],
    ) -> None:
        self._loop, self._socket, self._respond, self._forget = loop, sock, respond, forget
        self._unread = b""
        self._questions = 0
        sock.setblocking(False)
        loop.add_reader(sock, self._readable)
        self._end = loop.call_later(LIFETIME, self.close)

    def close(self) -> None:
        self._end.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._forget(self)

    def _readable(self) -> None:
        try:
            arrived = self._socket.recv(4_096)
        except BlockingIOError:
            return
        except OSError:
            arrived = b""
        replies = self._replies(arrived) if arrived else None
        if replies is None:
            self.close()
            return
        if not replies:
            return
        try:
            sent = self._socket.send(replies)
        except OSError:
            sent = 0
        if sent < len(replies):
            self.close()

    def _replies(self, arrived: bytes) -> bytes | None:
        """Return the answers to the questions that are whole now; ``None`` ends the connection."""
        unread = self._unread + arrived
        replies: list[bytes] = []
        while len(unread) >= 2:
            size = unread[0] << 8 | unread[1]
            if size > QUERY_LIMIT:
                return None
            if len(unread) < 2 + size:
                break
            reply = self._respond(unread[2 : 2 + size]).reply
            self._questions += 1
            if reply is None or self._questions > QUESTIONS:
                return None
            replies += (len(reply).to_bytes(2, "big"), reply)
            unread = unread[2 + size :]
        self._unread = unread
        return b"".join(replies)
