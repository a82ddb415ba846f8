"""One request and its answer, as an origin's sites see them, whatever version of HTTP carries them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

Fields = Sequence[tuple[str, str]]


class Carrier(Protocol):
    """What carries an answer: an HTTP/1 connection or an HTTP/2 stream."""

    async def proceed(self) -> None:
        """Send ``100 Continue``."""

    async def head(self, status: int, fields: Fields) -> None: ...

    async def write(self, piece: bytes) -> None: ...

    async def finish(self, trailers: Fields) -> None: ...

    def body(self) -> AsyncIterator[bytes]: ...


@dataclass(kw_only=True)
class Exchange:
    """A request, and the means to answer it."""

    version: str
    method: str
    target: str
    host: str
    headers: Mapping[str, str]
    carrier: Carrier
    trailers: dict[str, str] = field(default_factory=dict)
    """Of the request; there once its body has been read."""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}

    def pieces(self) -> AsyncIterator[bytes]:
        return self.carrier.body()

    async def read(self) -> bytes:
        """Return the whole body, asking for it first if the client waits to be asked."""
        if self.headers.get("expect", "").lower() == "100-continue":
            await self.carrier.proceed()
        return b"".join([piece async for piece in self.carrier.body()])

    async def begin(self, status: int = 200, **fields: str) -> None:
        """Send the head. A field's name is written with underscores."""
        named = [(name.replace("_", "-"), value) for name, value in fields.items()]
        await self.carrier.head(status, named)

    async def send(self, piece: bytes) -> None:
        if self.method != "HEAD":
            await self.carrier.write(piece)

    async def end(self, *trailers: tuple[str, str]) -> None:
        await self.carrier.finish(trailers)

    async def answer(self, body: bytes, status: int = 200, **fields: str) -> None:
        """Send a whole answer."""
        kind = fields.pop("content_type", "text/plain; charset=utf-8")
        await self.begin(status, content_type=kind, content_length=str(len(body)), **fields)
        await self.send(body)
        await self.end()


Site = Callable[[Exchange], Awaitable[None]]
