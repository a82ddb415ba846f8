"""The web sites of the demo's internet: HTTP on port 80, HTTPS on port 443, HTTP/1.1.

One listener a port for all of them: the address that a client dialled says which site it meant, before a byte
is read, and so also which certificate it gets. A site answers for any Host, as a content network does:
whoever reaches one front can fetch what is behind another ("domain fronting"), and that the sandbox cannot is
worth showing.

The far side of this server is a gateway or a curl, not an attacker; it is bounded all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from ringfence.demo.internet.packages import FILES_HOST, Page, file_page, index_page
from ringfence.demo.internet.places import BY_ADDRESS, SITES, Place
from ringfence.demo.internet.witness import Notebook

_HEAD_LIMIT: Final = 64 * 1024
_BODY_LIMIT: Final = 64 * 1024 * 1024
_CONNECTIONS: Final = 512
_IDLE: Final = 60.0
_CHUNK: Final = 64 * 1024
_CREDENTIALS: Final = ("authorization", "x-api-key")
"""Fields that are written down: whether a site saw a key is not for its answer to say, which may be masked."""
_NAMES: Final = frozenset(place.name for place in SITES)


class MalformedRequestError(Exception):
    """The client did not speak HTTP/1.1 as this server knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request, its body read and counted but not kept."""

    method: str
    path: str
    headers: Mapping[str, str]
    body_length: int = 0

    @property
    def host(self) -> str:
        return self.headers.get("host", "").partition(":")[0].lower()

    @property
    def keep_alive(self) -> bool:
        return "close" not in self.headers.get("connection", "").lower()


def parse_head(head: bytes) -> Request:
    """Parse a request head that ends with its empty line."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise MalformedRequestError(f"`{first[:80]}` is not a request line")
    headers: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if not separator:
            raise MalformedRequestError(f"`{line[:80]}` is not a header line")
        headers[name.strip().lower()] = value.strip()
    return Request(method=parts[0], path=parts[1], headers=headers)


def page_for(site: str, request: Request) -> Page:
    """Answer a request as the site that its Host names."""
    path = request.path.partition("?")[0]
    if path == "/echo":
        seen = {
            "site": site,
            "method": request.method,
            "headers": dict(request.headers),
            "body": request.body_length,
        }
        return Page(status=200, media_type="application/json", body=json.dumps(seen).encode())
    if site == "pypi.org" and path.startswith("/simple"):
        return index_page(path, request.headers.get("accept", ""))
    if site == FILES_HOST and path.startswith("/packages/"):
        return file_page(path)
    text = f"Hello from {site}. You asked for {path} with {request.method}.\n"
    return Page(status=200, media_type="text/plain; charset=utf-8", body=text.encode())


class Sites:
    """All sites: two listeners for each family, one certificate for each site."""

    def __init__(self, contexts: Mapping[str, ssl.SSLContext], notebook: Notebook) -> None:
        self._contexts = contexts
        self._notebook = notebook
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: list[tuple[socket.socket, bool]] = []

    def listen(self) -> None:
        """Listen on every address of this namespace; connections queue until :meth:`serve` runs."""
        everywhere = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 - a namespace of its own
        for family, any_address in everywhere:
            for port in (80, 443):
                listening = socket.create_server((any_address, port), family=family, backlog=128)
                listening.setblocking(False)
                self._listening.append((listening, port == 443))

    async def serve(self) -> None:
        """Accept forever."""
        async with asyncio.TaskGroup() as listeners:
            for listening, secure in self._listening:
                listeners.create_task(self._accept(listening, secure=secure))

    async def _accept(self, listening: socket.socket, *, secure: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            connection, _ = await loop.sock_accept(listening)
            place = BY_ADDRESS.get(connection.getsockname()[0].removeprefix("::ffff:"))
            if place is not None:
                self._notebook.connections[place.name] += 1
            if place is None or place.name not in _NAMES:
                connection.close()
                self._slots.release()
                continue
            task = loop.create_task(self._converse(connection, place, secure=secure))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if not task.cancelled():
            task.exception()

    async def _converse(self, connection: socket.socket, place: Place, *, secure: bool) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_HEAD_LIMIT, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        context = self._contexts[place.name] if secure else None
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
        except OSError:  # a handshake that failed; the connection was counted when it was accepted
            connection.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        scheme = "https" if secure else "http"
        try:
            with contextlib.suppress(
                OSError, TimeoutError, asyncio.IncompleteReadError, MalformedRequestError
            ):
                while await self._exchange(reader, writer, place, scheme):
                    pass
        finally:
            transport.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: Place, scheme: str
    ) -> bool:
        """Answer one request; return whether the connection goes on."""
        async with asyncio.timeout(_IDLE):
            request = await _read_request(reader, writer)
        self._notebook.requests.append(
            {
                "origin": place.name,
                "host": request.host,
                "scheme": scheme,
                "method": request.method,
                "path": request.path[:256],
                **{name: request.headers[name][:256] for name in _CREDENTIALS if name in request.headers},
            }
        )
        site = request.host if request.host in _NAMES else place.name
        if request.path.startswith("/bytes/"):
            await _send_bytes(
                writer, int(request.path.removeprefix("/bytes/")), with_body=request.method != "HEAD"
            )
        elif request.path == "/events":
            await _send_events(writer)
            return False
        else:
            await _send_page(writer, site, page_for(site, request), request)
        return request.keep_alive


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    request = parse_head(await reader.readuntil(b"\r\n\r\n"))
    if request.headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = 0
    async for piece in _body(reader, request):
        length += len(piece)
        if length > _BODY_LIMIT:
            raise MalformedRequestError(f"a body of more than {_BODY_LIMIT} bytes")
    return Request(method=request.method, path=request.path, headers=request.headers, body_length=length)


async def _body(reader: asyncio.StreamReader, request: Request) -> AsyncIterator[bytes]:
    if request.headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            if size > _BODY_LIMIT:
                raise MalformedRequestError(f"a chunk of {size} bytes")
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":  # trailers
            pass
        return
    left = int(request.headers.get("content-length", "0"))
    while left > 0:
        piece = await reader.read(min(left, _CHUNK))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece


def _head(status: int, fields: Mapping[str, str]) -> bytes:
    reason = {200: "OK", 404: "Not Found"}[status]
    lines = [
        f"HTTP/1.1 {status} {reason}",
        "Server: demo-world",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _send_page(writer: asyncio.StreamWriter, site: str, page: Page, request: Request) -> None:
    fields = {"Content-Type": page.media_type, "Content-Length": str(len(page.body)), "X-Site": site}
    writer.write(_head(page.status, fields) + (b"" if request.method == "HEAD" else page.body))
    await writer.drain()


async def _send_bytes(writer: asyncio.StreamWriter, length: int, *, with_body: bool) -> None:
    length = max(0, min(length, _BODY_LIMIT))
    writer.write(_head(200, {"Content-Type": "application/octet-stream", "Content-Length": str(length)}))
    block = bytes(range(256)) * (_CHUNK // 256)
    while with_body and length > 0:
        writer.write(block[:length])
        length -= len(block)
        await writer.drain()


async def _send_events(writer: asyncio.StreamWriter) -> None:
    """Five server-sent events, one at a time: a buffering intermediary would deliver them together."""
    writer.write(_head(200, {"Content-Type": "text/event-stream", "Connection": "close"}))
    for number in range(5):
        writer.write(f"data: {number}\n\n".encode())
        await writer.drain()
        await asyncio.sleep(0.05)
