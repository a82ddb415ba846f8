"""A gateway for tests: answers on an enclosure's listeners and writes down what it heard."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Self

import dns.message
import dns.rrset

from ringfence.application.ports import Attachment

REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SYNTHETIC4, SYNTHETIC6 = "198.18.0.7", "fd72:696e:6766:5359::7"


def dialled(connection: socket.socket) -> tuple[str, int]:
    """The address that a redirected connection was meant for (``SO_ORIGINAL_DST``)."""
    if connection.family == socket.AF_INET:
        raw = connection.getsockopt(socket.SOL_IP, 80, 16)
        return str(IPv4Address(raw[4:8])), struct.unpack_from("!H", raw, 2)[0]
    raw = connection.getsockopt(socket.IPPROTO_IPV6, 80, 28)
    return str(IPv6Address(raw[8:24])), struct.unpack_from("!H", raw, 2)[0]


@dataclass
class Outlet:
    """Refuses every connection, answers every question with one address, sees every refused packet."""

    attachment: Attachment
    answer: bytes = REFUSAL
    connections: list[tuple[str, str, int]] = field(default_factory=list)
    """``(listener, address, port)``."""
    questions: list[str] = field(default_factory=list)
    packets: list[bytes] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        for role, sock in self.attachment.listeners.items():
            if role.startswith(("proxy", "transparent")):
                serve = self._accept(role, sock)
            elif role.startswith("dns-udp"):
                serve = self._answer(sock)
            elif role in ("packets", "packets-udp"):
                serve = self._watch(sock)
            else:
                continue
            self.tasks.append(asyncio.create_task(serve))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def until(self, seen: object) -> None:
        """Wait until a callable says that what is looked for was heard."""
        assert callable(seen)
        async with asyncio.timeout(20):
            while not seen():
                self.changed.clear()
                await self.changed.wait()

    async def _accept(self, role: str, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(sock)
            self.connections.append((role, *dialled(connection)))
            self.changed.set()
            self.tasks.append(asyncio.create_task(self._refuse(connection)))

    async def _refuse(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            await loop.sock_recv(connection, 4096)
            await loop.sock_sendall(connection, self.answer)

    async def _answer(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wire, peer = await loop.sock_recvfrom(sock, 4096)
            query = dns.message.from_wire(wire)
            (question,) = query.question
            self.questions.append(str(question.name).rstrip("."))
            self.changed.set()
            reply = dns.message.make_response(query)
            address = {1: SYNTHETIC4, 28: SYNTHETIC6}[question.rdtype]
            reply.answer.append(dns.rrset.from_text(question.name, 1, "IN", question.rdtype, address))
            await loop.sock_sendto(sock, reply.to_wire(), peer)

    async def _watch(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.packets.append(await loop.sock_recv(sock, 65536))
            self.changed.set()
