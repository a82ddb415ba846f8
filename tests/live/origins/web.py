"""A site for every way that HTTP carries bytes: echoes, sizes, ranges, encodings, trailers, event streams."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections import defaultdict

from tests.live.origins.exchange import Exchange

BLOCK = bytes(range(256)) * 256
_confirmed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


async def site(exchange: Exchange) -> None:
    """Answer by the first element of the path."""
    name, _, rest = exchange.path.removeprefix("/").partition("/")
    match name:
        case "bytes":
            await _bytes(exchange, int(rest))
        case "echo":
            await _echo(exchange)
        case "refuse":
            await exchange.answer(b"not that\n", 413)
        case "gzip":
            await exchange.answer(gzip.compress(b"much " * 1000, mtime=0), content_encoding="gzip")
        case "trailers":
            await _trailers(exchange)
        case "events":
            await _events(exchange, rest)
        case "confirm":
            _confirmed[rest].set()
            await exchange.answer(b"thank you\n")
        case "talk":
            await _talk(exchange)
        case _:
            await exchange.answer(f"hello from {exchange.host}\n".encode(), x_origin="test")


async def _bytes(exchange: Exchange, size: int) -> None:
    """So many bytes, or the range that is asked for."""
    first, last, status = 0, size - 1, 200
    fields = {"accept_ranges": "bytes"}
    if asked := exchange.headers.get("range"):
        start, _, end = asked.removeprefix("bytes=").partition("-")
        first, last, status = int(start), min(int(end or last), last), 206
        fields["content_range"] = f"bytes {first}-{last}/{size}"
    await exchange.begin(status, content_length=str(last - first + 1), **fields)
    at = first
    while at <= last and exchange.method != "HEAD":
        piece = BLOCK[at % 256 :][: last - at + 1]
        await exchange.send(piece)
        at += len(piece)
    await exchange.end()


async def _echo(exchange: Exchange) -> None:
    """What was received, said as JSON."""
    body = await exchange.read()
    seen = {
        "version": exchange.version,
        "method": exchange.method,
        "target": exchange.target,
        "headers": dict(exchange.headers),
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "trailers": exchange.trailers,
    }
    await exchange.answer(json.dumps(seen).encode(), content_type="application/json")


async def _trailers(exchange: Exchange) -> None:
    await exchange.begin(content_type="text/plain", trailer="x-checksum")
    await exchange.send(b"a body\n")
    await exchange.end(("x-checksum", hashlib.sha256(b"a body\n").hexdigest()))


async def _events(exchange: Exchange, key: str) -> None:
    """Two events; the second only after the client has confirmed, by a request of its own, that it has the
    first. Whoever buffers an event stream waits here for ever.
    """
    await exchange.begin(content_type="text/event-stream", cache_control="no-cache")
    await exchange.send(b"data: one\n\n")
    await _confirmed[key].wait()
    await exchange.send(b"data: two\n\n")
    await exchange.end()


async def _talk(exchange: Exchange) -> None:
    """Each piece of the request is answered before the next is read: both directions are open at once."""
    await exchange.begin(content_type="application/octet-stream")
    async for piece in exchange.pieces():
        await exchange.send(piece.upper())
    await exchange.end()
