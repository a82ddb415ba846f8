"""An HTTP/1.1 server for test origins: asyncio streams, one request after the other, WebSocket upgrades."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping

from tests.live.origins.exchange import Exchange, Fields, Site

_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_REASONS = {101: "Switching Protocols", 200: "OK", 206: "Partial Content", 404: "Not Found"}


class Connection:
    """The carrier of one exchange at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.exchange: Exchange
        self.bodiless = False
        self.chunked = False
        self.asked = self.read = False
        """Whether a client that waits to be asked for its body was asked."""

    @property
    def waiting(self) -> bool:
        """The client has a body that it was never asked for: nobody knows what it would send next."""
        return "expect" in self.exchange.headers and not self.asked

    async def proceed(self) -> None:
        self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.asked = True

    async def head(self, status: int, fields: Fields) -> None:
        known = {name.lower() for name, _ in fields}
        self.chunked = not known & {"content-length", "upgrade"} and status not in (204, 304)
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Because')}", *(f"{k}: {v}" for k, v in fields)]
        if self.chunked:
            lines.append("transfer-encoding: chunked")
        if self.waiting:
            lines.append("connection: close")
        self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        await self.writer.drain()

    async def write(self, piece: bytes) -> None:
        if piece:
            self.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.chunked else piece)
            await self.writer.drain()

    async def finish(self, trailers: Fields) -> None:
        if self.chunked and self.exchange.method != "HEAD":
            lines = "".join(f"{name}: {value}\r\n" for name, value in trailers)
            self.writer.write(b"0\r\n%s\r\n" % lines.encode("latin-1"))
        await self.writer.drain()

    async def body(self) -> AsyncIterator[bytes]:
        headers, self.read = self.exchange.headers, True
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                name, _, value = line.decode("latin-1").partition(":")
                self.exchange.trailers[name.lower()] = value.strip()
            return
        left = int(headers.get("content-length", "0"))
        while left > 0:
            piece = await self.reader.read(min(left, 1 << 16))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)
            yield piece

    async def take(self) -> bool:
        """Read the next head; return whether there was one."""
        try:
            raw = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.asked = self.read = False
        self.exchange = Exchange(
            version="1.1",
            method=method,
            target=target,
            host=headers.get("host", "").partition(":")[0],
            headers=headers,
            carrier=self,
        )
        return True


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, site: Site) -> None:
    """Answer one connection's requests."""
    connection = Connection(reader, writer)
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while await connection.take():
            exchange = connection.exchange
            if exchange.headers.get("upgrade", "").lower() == "websocket":
                await _echo_messages(reader, writer, exchange.headers)
                break
            await site(exchange)
            if not connection.read and not connection.waiting:
                async for _ in connection.body():  # what nobody looked at is still in the way
                    pass
            if connection.waiting or "close" in exchange.headers.get("connection", "").lower():
                break
    writer.close()


async def _echo_messages(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: Mapping[str, str]
) -> None:
    """RFC 6455: every data frame comes back as it was, unmasked; a close is answered with its own."""
    key = hashlib.sha1(headers["sec-websocket-key"].encode() + _ACCEPT, usedforsecurity=False).digest()
    chosen = headers.get("sec-websocket-protocol", "").partition(",")[0]
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {base64.b64encode(key).decode()}",
        *([f"Sec-WebSocket-Protocol: {chosen}"] if chosen else []),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    while True:
        opening, size = await reader.readexactly(2)
        length = size & 0x7F
        if length > 125:
            length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8), "big")
        mask = await reader.readexactly(4)
        sent = await reader.readexactly(length)
        pattern = (mask * (length // 4 + 1))[:length]
        payload = (int.from_bytes(sent, "big") ^ int.from_bytes(pattern, "big")).to_bytes(length, "big")
        marked = length if length < 126 else 126 if length < 1 << 16 else 127
        extended = b"" if length < 126 else length.to_bytes(2 if marked == 126 else 8, "big")
        kind = opening & 0x0F
        reply = opening if kind != 9 else opening + 1  # a ping's answer is a pong
        writer.write(bytes([reply, marked]) + extended + payload)
        await writer.drain()
        if kind == 8:
            return
