"""Half-closed tunnels: each side says its last word when it likes, and every byte before it arrives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gateway_stage import Stage, play, rule, until

from ringfence.gateway.tunnel import Relay

RAW = rule("allow", "raw.test:7")
SIZES = [1, 50_000, 300_000, 2_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_the_server_ends_first_and_hears_the_client_to_its_end(size: int) -> None:
    heard: list[int] = []

    async def speech(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"s" * size)
        writer.write_eof()
        heard.append(len(await reader.read()))

    async def scene(stage: Stage) -> None:
        stage.bind(RAW)
        await stage.origin("raw.test", speech, port=7, tls=False)
        client = await stage.reach("raw.test", 7)
        assert await client.end() == b"s" * size
        client.send(b"c" * size)
        client.writer.write_eof()
        (record,) = await stage.settle(1, step="closed")
        await until(lambda: heard)
        assert heard == [size]
        assert (record["ended"], record.get("bytes_out", 0), record.get("bytes_in", 0)) == (
            "done",
            size,
            size,
        )

    play(scene)


@pytest.mark.parametrize("size", SIZES)
def test_the_client_ends_first_and_hears_the_server_to_its_end(size: int) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.read()
        writer.write(b"%d " % len(said) + b"s" * size)
        writer.write_eof()

    async def scene(stage: Stage) -> None:
        stage.bind(RAW)
        await stage.origin("raw.test", count, port=7, tls=False)
        client = await stage.reach("raw.test", 7)
        client.send(b"?" + b"c" * size)
        client.writer.write_eof()
        assert await client.end() == b"%d " % (size + 1) + b"s" * size
        (record,) = await stage.settle(1, step="closed")
        assert (record["ended"], record["bytes_out"]) == ("done", size + 1)

    play(scene)


class Transport:
    """A transport with bytes that have not left."""

    def __init__(self) -> None:
        self.waiting = 0
        self.said: list[str] = []
        self.protocol: Any = None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0

    def can_write_eof(self) -> bool:
        return True

    def resume_reading(self) -> None:
        """Nothing more comes."""

    def write_eof(self) -> None:
        self.said.append("eof")

    def abort(self) -> None:
        self.said.append("abort")


class Link:
    heard_all = False

    def __init__(self) -> None:
        self.transport = Transport()

    def flush(self) -> None: ...
    def resume(self) -> None: ...
    def abort(self) -> None:
        self.transport.abort()


@pytest.mark.parametrize("slow", ["client", "upstream"])
def test_nothing_is_thrown_away_that_has_not_left(slow: str) -> None:
    """Both sides have said their last word, and one of them has not heard the other's yet."""
    ends = {"client": Link(), "upstream": Link()}
    finished: list[bytes] = []

    class Ending:
        def finished(self, ended: bytes, now: float) -> None:
            finished.append(ended)

    client, upstream = ends["client"].transport, ends["upstream"].transport
    Relay(ends["client"], ends["upstream"], Ending(), None, 1 << 20)  # type: ignore[arg-type]
    ends[slow].transport.waiting = 10_000
    client.protocol.eof_received()
    upstream.protocol.eof_received()
    assert (client.said, upstream.said, finished) == (["eof"], ["eof"], [])
    ends[slow].transport.waiting = 0
    ends[slow].transport.protocol.resume_writing()
    assert (client.said, upstream.said, finished) == (["eof", "abort"], ["eof", "abort"], [b"done"])
