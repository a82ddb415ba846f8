"""Services that are neither TLS nor HTTP, in the demo world's internet: ``python raw_services.py ADDRESS``.

Small, but true to the bytes: who speaks first, what ends a message, who closes which half. The standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
from collections.abc import Awaitable, Callable

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


async def ssh(reader: Reader, writer: Writer) -> None:
    """RFC 4253 section 4.2: the server says its version at once, and so does the client."""
    writer.write(b"SSH-2.0-raw_1.0\r\n")
    said = await reader.readline()
    writer.write(b"you are " + said)


async def git(reader: Reader, writer: Writer) -> None:
    """git://: the client asks in one packet, the server advertises."""
    asked = await reader.readexactly(int(await reader.readexactly(4), 16) - 4)
    line = b"0" * 40 + b" refs/heads/main for " + asked.partition(b"\0")[0] + b"\n"
    writer.write(b"%04x" % (len(line) + 4) + line + b"0000")


async def postgres(reader: Reader, writer: Writer) -> None:
    """The startup of the PostgreSQL protocol 3.0 without TLS, and one row for every simple query."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!I", len(body) + 4) + body

    while True:
        (size,) = struct.unpack("!I", await reader.readexactly(4))
        body = await reader.readexactly(size - 4)
        if body[:4] not in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):  # SSLRequest, GSSENCRequest
            break
        writer.write(b"N")
    ready = message(b"Z", b"I")
    writer.write(message(b"R", struct.pack("!I", 0)) + message(b"S", b"client_encoding\0UTF8\0") + ready)
    while (kind := await reader.readexactly(1)) != b"X":
        (size,) = struct.unpack("!I", await reader.readexactly(4))
        await reader.readexactly(size - 4)
        if kind == b"Q":
            column = b"answer\0" + struct.pack("!IHIhih", 0, 0, 25, -1, -1, 0)
            writer.write(message(b"T", struct.pack("!h", 1) + column))
            writer.write(message(b"D", struct.pack("!hi", 1, 9) + b"forty-two"))
            writer.write(message(b"C", b"SELECT 1\0") + ready)


async def redis(reader: Reader, writer: Writer) -> None:
    """RESP: an array of bulk strings is a command."""
    while count := await reader.readline():
        words = []
        for _ in range(int(count[1:])):
            size = int((await reader.readline())[1:])
            words.append((await reader.readexactly(size + 2))[:-2])
        writer.write(b"+PONG\r\n" if words == [b"PING"] else b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1]))
        await writer.drain()


async def count(reader: Reader, writer: Writer) -> None:
    """Everything until the client closes its half; then the answer."""
    writer.write(b"%d bytes\n" % len(await reader.read()))


heard: list[int] = []


async def speech(reader: Reader, writer: Writer) -> None:
    """The server closes its half first, and goes on listening."""
    writer.write(b"s" * 100_000)
    writer.write_eof()
    heard.append(len(await reader.read()))


async def report(_: Reader, writer: Writer) -> None:
    """What the last client of ``speech`` said after the server's last word."""
    writer.write(b"%d bytes\n" % heard[-1])


SERVICES: dict[int, Callable[[Reader, Writer], Awaitable[None]]] = {
    22: ssh,
    9418: git,
    5432: postgres,
    6379: redis,
    7001: count,
    7002: speech,
    7003: report,
}


class Time(asyncio.DatagramProtocol):
    """RFC 5905: a client's packet (mode 3) is answered by a server's (mode 4) that repeats its transmit timestamp."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) == 48 and data[0] & 7 == 3:
            answer = bytes((data[0] & 0x38 | 4, 1)) + bytes(22) + data[40:48] + bytes(16)
            self.transport.sendto(answer, addr)


class Echo(Time):
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


async def main(address: str) -> None:
    def service(
        behave: Callable[[Reader, Writer], Awaitable[None]],
    ) -> Callable[[Reader, Writer], Awaitable[None]]:
        async def serve(reader: Reader, writer: Writer) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await behave(reader, writer)
            with contextlib.suppress(OSError):
                writer.close()
                await writer.wait_closed()

        return serve

    for port, behave in SERVICES.items():
        await asyncio.start_server(service(behave), address, port)
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Time, (address, 123))
    await loop.create_datagram_endpoint(Echo, (address, 7))
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
