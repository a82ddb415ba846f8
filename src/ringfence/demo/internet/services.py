"""What else lives in the demo's internet: DNS servers that answer, a host that echoes datagrams and bytes.

They exist so that a refusal is seen to be a refusal: each of these channels demonstrably works from the
demo's host, and the same attempt from a sandbox must not reach them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import dns.exception
import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset

from ringfence.demo.internet.places import (
    BY_NAME,
    ECHO,
    ECHO_PORT,
    FOREIGN_DNS,
    HOST_DNS,
    QUIC,
    TUNNEL_ZONE,
    Place,
)
from ringfence.demo.internet.witness import Notebook

_TTL: Final = 60


def answer(server: str, wire: bytes, notebook: Notebook) -> bytes | None:
    """Answer a DNS message for every name of this world, and note the question; ``None`` for others."""
    try:
        query = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return None
    if not query.question:
        return None
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    kind = dns.rdatatype.to_text(question.rdtype)
    notebook.questions.append({"server": server, "name": name[:256], "type": kind})
    reply = dns.message.make_response(query, recursion_available=True)
    place = BY_NAME.get(name)
    if place and kind in {"A", "AAAA"}:
        address = place.v4 if kind == "A" else place.v6
        reply.answer.append(dns.rrset.from_text(question.name, _TTL, "IN", kind, address))
    elif kind == "TXT" and name.endswith(f".{TUNNEL_ZONE}"):
        reply.answer.append(dns.rrset.from_text(question.name, _TTL, "IN", kind, '"received, thank you"'))
    elif place is None:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    return reply.to_wire()


class _Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram with what a function makes of it."""

    def __init__(self, respond: Callable[[bytes], bytes | None]) -> None:
        self._respond = respond

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if (response := self._respond(data)) is not None:
            self._transport.sendto(response, addr)


class _NameServer:
    """DNS at one place, over UDP and TCP."""

    def __init__(self, place: Place, notebook: Notebook) -> None:
        self._place = place
        self._notebook = notebook

    def respond(self, wire: bytes) -> bytes | None:
        return answer(self._place.name, wire, self._notebook)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._notebook.connections[self._place.name] += 1
        try:
            while response := self.respond(await reader.readexactly(await _length(reader))):
                writer.write(len(response).to_bytes(2, "big") + response)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def serve(self) -> None:
        for address in (self._place.v4, self._place.v6):
            await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Datagrams(self.respond), (address, 53)
            )
            await asyncio.start_server(self.converse, address, 53)


async def _length(reader: asyncio.StreamReader) -> int:
    return int.from_bytes(await reader.readexactly(2), "big")


async def serve_dns(notebook: Notebook) -> None:
    """Serve DNS at the foreign resolver's and at the host's own resolver's addresses."""
    for place in (FOREIGN_DNS, HOST_DNS):
        await _NameServer(place, notebook).serve()


async def serve_echo(notebook: Notebook) -> None:
    """Echo datagrams and bytes."""
    loop = asyncio.get_running_loop()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        notebook.connections[ECHO.name] += 1
        try:
            while piece := await reader.read(4096):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    for address in (ECHO.v4, ECHO.v6):
        await asyncio.start_server(converse, address, ECHO_PORT)
    for place, port in ((ECHO, ECHO_PORT), (QUIC, 443)):
        for address in (place.v4, place.v6):
            await loop.create_datagram_endpoint(lambda: _Datagrams(bytes), (address, port))
