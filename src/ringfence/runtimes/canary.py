"""Attempts to get out that must fail: what proves an enclosure, before it counts and while it lives.

A canary goes where nothing answers even on an open network (addresses for documentation, RFC 5737 and RFC
3849; the name ``invalid``, RFC 6761), so a broken enclosure leaks a packet to nowhere and not a request to
somebody. It is sent from the sandbox's side of the wire by code of the host. What proves that policy refused
it is the gateway's own event, which names the address and port that were chosen for this attempt; a canary
that was merely lost has no event. An *answer* that is not the gateway's refusal is a breach, and is raised
here.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.rdatatype

from ringfence.application.errors import Unavailable
from ringfence.application.ports import Canary
from ringfence.runtimes import kernel

ZONE: Final = "canary.ringfence.invalid"
_NETWORK4: Final = IPv4Address("192.0.2.0")
_NETWORK6: Final = IPv6Address("2001:db8::")
_SERVERS: Final = ("192.0.2.53", "2001:db8::53")
_PATIENCE: Final = 2.0
_ANSWER: Final = 4096
_REFUSAL: Final = re.compile(rb"HTTP/1\.[01] (403|421|502|503) ")
_LABEL: Final = re.compile(r"[^a-z0-9]+")


class Breach(Unavailable):
    """Something outside answered a canary: the enclosure has a way out."""

    code = "enclosure-breach"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """The destinations of one round, all derived from its nonce."""

    address4: str
    address6: str
    name: str
    port: int

    def canaries(self) -> tuple[Canary, ...]:
        """In the order in which :func:`fly` tries them. ``dns``: the name, asked of a foreign server, then dialled."""
        return (
            Canary(transport="tcp", host=self.address4, port=self.port),
            Canary(transport="tcp", host=self.address6, port=self.port),
            Canary(transport="dns", host=f"a.{self.name}", port=self.port),
            Canary(transport="dns", host=f"aaaa.{self.name}", port=self.port),
            Canary(transport="udp", host=self.address4, port=self.port),
            Canary(transport="udp", host=self.address6, port=self.port),
        )


def plan(nonce: str) -> Flight:
    """Choose this round's destinations."""
    digest = hashlib.sha256(nonce.encode()).digest()
    label = _LABEL.sub("-", nonce.lower()).strip("-")[:40] or "0"
    return Flight(
        address4=str(_NETWORK4 + 64 + digest[0] % 128),
        address6=str(_NETWORK6 + (1 << 64) + int.from_bytes(digest[1:7])),
        name=f"{label}.{ZONE}",
        port=20_000 + int.from_bytes(digest[7:9]) % 30_000,
    )


async def fly(netns: str, flight: Flight) -> None:
    """Send a round from a namespace. Raises :class:`Breach`; whatever stays unanswered is no news here."""
    order = (
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET6, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET6, socket.SOCK_DGRAM),
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET6, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET6, socket.SOCK_DGRAM),
    )

    def make() -> list[socket.socket]:
        kernel.join_path(netns, kernel.CLONE_NEWNET)
        return [socket.socket(family, kind | socket.SOCK_NONBLOCK) for family, kind in order]

    sockets = await kernel.apart(make)
    raw4, raw6, ask4, ask6, named4, named6, datagram4, datagram6 = sockets
    try:
        await asyncio.gather(
            _dial(raw4, flight.address4, flight.port),
            _dial(raw6, f"{flight.address6}", flight.port),
            _dial_by_name(ask4, named4, _SERVERS[0], f"a.{flight.name}", "A", flight.port),
            _dial_by_name(ask6, named6, _SERVERS[1], f"aaaa.{flight.name}", "AAAA", flight.port),
            _throw(datagram4, flight.address4, flight.port),
            _throw(datagram6, flight.address6, flight.port),
        )
    finally:
        for sock in sockets:
            sock.close()


async def _dial(sock: socket.socket, address: str, port: int, name: str = "") -> None:
    """Connect and speak HTTP, so that whatever is there can decide at once."""
    loop = asyncio.get_running_loop()
    answer = b""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            await loop.sock_connect(sock, (address, port))
            host = name or (f"[{address}]" if ":" in address else address)
            request = f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
            await loop.sock_sendall(sock, request.encode())
            while len(answer) < _ANSWER:
                piece = await loop.sock_recv(sock, _ANSWER)
                if not piece:
                    break
                answer += piece
    if answer and not _REFUSAL.match(answer):
        raise Breach(
            f"something answered a canary at {address} port {port}",
            hint="egress of this sandbox is cut; `sbx doctor` tests the enclosure",
        )


async def _dial_by_name(
    question: socket.socket, sock: socket.socket, server: str, name: str, kind: str, port: int
) -> None:
    """Ask a server that does not exist; the enclosure's resolver answers in its stead; dial what it says."""
    loop = asyncio.get_running_loop()
    query = dns.message.make_query(name, kind, flags=dns.flags.RD)
    reply: dns.message.Message | None = None
    with suppress(OSError, TimeoutError, dns.exception.DNSException):
        async with asyncio.timeout(_PATIENCE):
            await loop.sock_connect(question, (server, 53))
            await loop.sock_sendall(question, query.to_wire())
            reply = dns.message.from_wire(await loop.sock_recv(question, _ANSWER))
    if reply is None or not query.is_response(reply):
        return
    for record in (record for group in reply.answer for record in group):
        if record.rdtype == dns.rdatatype.from_text(kind):
            await _dial(sock, record.to_text(), port, name)
            return


async def _throw(sock: socket.socket, address: str, port: int) -> None:
    """Send a datagram and wait for the refusal (an ICMP error) or nothing."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            await loop.sock_connect(sock, (address, port))
            await loop.sock_sendall(sock, b"canary")
            await loop.sock_recv(sock, 1)
            raise Breach(f"something answered a canary at {address} port {port}, UDP")
