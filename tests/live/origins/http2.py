"""An HTTP/2 server for test origins, on the ``h2`` library: every stream is an exchange of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError, StreamClosedError
from tests.live.origins.exchange import Exchange, Fields, Site


class Stream:
    """The carrier of one exchange."""

    def __init__(self, session: Session, number: int) -> None:
        self.session, self.number = session, number
        self.received: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.room = asyncio.Event()
        self.gone = False

    async def proceed(self) -> None:
        self.session.h2.send_headers(self.number, [(":status", "100")])
        await self.session.flush()

    async def head(self, status: int, fields: Fields) -> None:
        self.session.h2.send_headers(self.number, [(":status", str(status)), *fields])
        await self.session.flush()

    async def write(self, piece: bytes) -> None:
        while piece:
            if self.gone:
                raise ConnectionResetError
            self.room.clear()
            h2 = self.session.h2
            room = min(h2.local_flow_control_window(self.number), h2.max_outbound_frame_size, len(piece))
            if room <= 0:
                await self.room.wait()
                continue
            h2.send_data(self.number, piece[:room])
            piece = piece[room:]
            await self.session.flush()

    async def finish(self, trailers: Fields) -> None:
        if self.gone:
            return
        if trailers:
            self.session.h2.send_headers(self.number, list(trailers), end_stream=True)
        else:
            self.session.h2.end_stream(self.number)
        await self.session.flush()

    async def body(self) -> AsyncIterator[bytes]:
        while (piece := await self.received.get()) is not None:
            if piece:
                self.session.h2.acknowledge_received_data(len(piece), self.number)
                await self.session.flush()
            yield piece


class Session:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, site: Site) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.reader, self.writer, self.site = reader, writer, site
        self.streams: dict[int, tuple[Stream, Exchange]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def run(self) -> None:
        self.h2.initiate_connection()
        await self.flush()
        while piece := await self.reader.read(1 << 16):
            for event in self.h2.receive_data(piece):
                self._take(event)
            await self.flush()

    def _take(self, event: object) -> None:
        match event:
            case RequestReceived(stream_id=number, headers=headers):
                self._open(number, dict(headers))
            case DataReceived(stream_id=number, data=piece, flow_controlled_length=length):
                self.streams[number][0].received.put_nowait(piece)
                if padding := length - len(piece):
                    self.h2.acknowledge_received_data(padding, number)
            case TrailersReceived(stream_id=number, headers=headers):
                self.streams[number][1].trailers.update(headers)
            case StreamEnded(stream_id=number):
                self.streams[number][0].received.put_nowait(None)
            case StreamReset(stream_id=number):
                self.streams[number][0].gone = True
                self.streams[number][0].room.set()
            case WindowUpdated():
                for stream, _ in self.streams.values():
                    stream.room.set()

    def _open(self, number: int, headers: dict[str, str]) -> None:
        stream = Stream(self, number)
        exchange = Exchange(
            version="2",
            method=headers[":method"],
            target=headers[":path"],
            host=headers[":authority"].partition(":")[0],
            headers=headers,
            carrier=stream,
        )
        self.streams[number] = stream, exchange
        task = asyncio.ensure_future(self._answer(exchange, number))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer(self, exchange: Exchange, number: int) -> None:
        with contextlib.suppress(OSError, StreamClosedError, ProtocolError):
            await self.site(exchange)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, site: Site) -> None:
    """Answer one connection's requests."""
    session = Session(reader, writer, site)
    try:
        with contextlib.suppress(OSError):
            await session.run()
    finally:
        for task in session.tasks:
            task.cancel()
        writer.close()
