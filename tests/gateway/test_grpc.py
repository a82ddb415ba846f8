"""HTTP/2 on both sides over real sockets and real TLS: gRPC in its four kinds, and what streams do to each other.

gRPC is five bytes in front of every message, and a status in trailers; the test writes that itself.
"""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import pytest
from gateway_stage import PATIENCE, Client, Origin, Stage, echo, origin_context, play, rule, until

ALLOW = rule("allow", "a.test")
H2 = ("h2", "http/1.1")


def message(payload: bytes) -> bytes:
    return struct.pack(">BI", 0, len(payload)) + payload


def messages(raw: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole messages in some bytes, and what is left."""
    found = []
    while len(raw) >= 5 and len(raw) >= 5 + (size := struct.unpack_from(">xI", raw)[0]):
        found.append(raw[5 : 5 + size])
        raw = raw[5 + size :]
    return found, raw


class Call:
    """One call as its server sees it."""

    def __init__(self, server: Server, stream: int, path: str) -> None:
        self.path = path
        self.got: list[bytes] = []
        self.left = b""
        self._server = server
        self._stream = stream

    def head(self) -> None:
        fields = [(":status", "200"), ("content-type", "application/grpc")]
        self._server.talk.send_headers(self._stream, fields)

    def say(self, payload: bytes) -> None:
        self._server.put(self._stream, message(payload))

    def end(self, status: int = 0) -> None:
        self._server.talk.send_headers(
            self._stream, [("grpc-status", str(status)), ("grpc-message", "done")], end_stream=True
        )

    def heard(self, payload: bytes) -> None:
        """A message from the client."""
        self.got.append(payload)
        if self.path == "/t.Echo/Both":
            self.say(payload.upper())

    def opened(self) -> None:
        if self.path in ("/t.Echo/Both", "/t.Echo/Many"):
            self.head()
        if self.path == "/t.Echo/Never":
            self.head()
            self.say(b"first")

    def closed(self) -> None:
        """The client has said everything."""
        match self.path:
            case "/t.Echo/One":
                self.head()
                self.say(self.got[0].upper())
                self.end()
            case "/t.Echo/Many":
                for number in range(int(self.got[0])):
                    self.say(b"%d" % number)
                self.end()
            case "/t.Echo/Sum":
                self.head()
                self.say(b"%d" % sum(map(int, self.got)))
                self.end()
            case "/t.Echo/Both":
                self.end()
            case "/t.Echo/Fail":  # "trailers only": one head that ends the stream
                fields = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5")]
                self._server.talk.send_headers(self._stream, fields, end_stream=True)


class Server:
    """A gRPC server on one connection."""

    def __init__(self, calls: list[Call], resets: list[int]) -> None:
        self.talk = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self.calls = calls
        self.resets = resets
        self._streams: dict[int, Call] = {}
        self._waiting: dict[int, bytes] = defaultdict(bytes)

    def put(self, stream: int, raw: bytes) -> None:
        self.talk.send_data(stream, raw)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.talk.initiate_connection()
        writer.write(self.talk.data_to_send())
        while data := await reader.read(65_536):
            for event in self.talk.receive_data(data):
                self._take(event)
            writer.write(self.talk.data_to_send())

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            fields = dict(event.headers)
            assert fields["te"] == "trailers"
            call = self._streams[event.stream_id] = Call(self, event.stream_id, fields[":path"])
            self.calls.append(call)
            call.opened()
        elif isinstance(event, h2.events.DataReceived):
            call = self._streams[event.stream_id]
            found, call.left = messages(call.left + event.data)
            for each in found:
                call.heard(each)
            self.talk.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._streams[event.stream_id].closed()
        elif isinstance(event, h2.events.StreamReset):
            self.resets.append(int(event.error_code))


class Caller:
    """A gRPC client in the sandbox."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.talk = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.talk.initiate_connection()
        self.events: list[h2.events.Event] = []

    def open(self, path: str) -> int:
        stream = self.talk.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "a.test")]
        fields += [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "10S")]
        self.talk.send_headers(stream, fields)
        self._send()
        return stream

    def say(self, stream: int, payload: bytes | None, *, end: bool = False) -> None:
        self.talk.send_data(stream, b"" if payload is None else message(payload), end_stream=end)
        self._send()

    def cancel(self, stream: int, code: int = 8) -> None:
        self.talk.reset_stream(stream, code)
        self._send()

    def _send(self) -> None:
        self._client.send(self.talk.data_to_send())

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                data = await self._client.reader.read(65_536)
                assert data, "the connection ended"
                for event in self.talk.receive_data(data):
                    self.events.append(event)
                    if isinstance(event, h2.events.DataReceived):
                        self.talk.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._send()

    def heard(self, stream: int) -> list[bytes]:
        raw = b"".join(
            event.data
            for event in self.events
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream
        )
        return messages(raw)[0]

    def status(self, stream: int) -> str:
        """The status that ended a call; empty while it lasts."""
        kinds = (h2.events.TrailersReceived, h2.events.ResponseReceived)
        heads = [e for e in self.events if isinstance(e, kinds) and e.stream_id == stream]
        return next(
            (dict(head.headers)["grpc-status"] for head in heads if "grpc-status" in dict(head.headers)), ""
        )

    def reset(self, stream: int) -> int | None:
        resets = [e for e in self.events if isinstance(e, h2.events.StreamReset) and e.stream_id == stream]
        return int(resets[0].error_code) if resets else None


class World:
    """A stage with a gRPC server on it, and a client in the sandbox."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.calls: list[Call] = []
        self.resets: list[int] = []
        self.origin: Origin

    async def open(self) -> Caller:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await Server(self.calls, self.resets).serve(reader, writer)

        self.origin = await self.stage.origin("a.test", behave, tls=origin_context("a.test", protocols=H2))
        self.stage.bind(ALLOW)
        return await self.caller()

    async def caller(self) -> Caller:
        return Caller(await self.stage.secure("a.test", protocols=H2))


def test_unary_and_client_streaming_calls() -> None:
    async def scene(stage: Stage) -> None:
        world = World(stage)
        caller = await world.open()
        one, total, failed = (
            caller.open("/t.Echo/One"),
            caller.open("/t.Echo/Sum"),
            caller.open("/t.Echo/Fail"),
        )
        caller.say(one, b"hello", end=True)
        caller.say(failed, b"x", end=True)
        for number in range(10):
            caller.say(total, b"%d" % number, end=number == 9)
        await caller.until(lambda: all(map(caller.status, (one, total, failed))))
        assert (caller.heard(one), caller.status(one)) == ([b"HELLO"], "0")
        assert (caller.heard(total), caller.status(total)) == ([b"45"], "0")
        assert (caller.heard(failed), caller.status(failed)) == ([], "5")
        assert world.origin.connections == 1
        closed = await stage.settle(3, step="closed")
        assert sorted((r["path"], r["method"], r["protocol"], r["status"], r["ended"]) for r in closed) == [
            ("/t.Echo/Fail", "POST", "h2", 200, "done"),
            ("/t.Echo/One", "POST", "h2", 200, "done"),
            ("/t.Echo/Sum", "POST", "h2", 200, "done"),
        ]

    play(scene)


def test_a_server_streams() -> None:
    async def scene(stage: Stage) -> None:
        caller = await World(stage).open()
        stream = caller.open("/t.Echo/Many")
        caller.say(stream, b"100", end=True)
        await caller.until(lambda: caller.status(stream))
        assert caller.heard(stream) == [b"%d" % number for number in range(100)]

    play(scene)


def test_both_stream_in_turns() -> None:
    """Neither side says a word before it has heard the other's."""

    async def scene(stage: Stage) -> None:
        caller = await World(stage).open()
        stream = caller.open("/t.Echo/Both")
        for number in range(20):
            word = b"word %d" % number
            caller.say(stream, word)
            await caller.until(lambda word=word: caller.heard(stream)[-1:] == [word.upper()])
        assert caller.status(stream) == ""
        caller.say(stream, None, end=True)
        await caller.until(lambda: caller.status(stream) == "0")
        closed = (await stage.settle(1, step="closed"))[0]
        assert (closed["bytes_in"], closed["ended"]) == (
            sum(5 + len(b"word %d" % n) for n in range(20)),
            "done",
        )

    play(scene)


@pytest.mark.parametrize("code", [8, 2])
def test_a_call_that_is_cancelled_is_cancelled_at_the_server(code: int) -> None:
    async def scene(stage: Stage) -> None:
        world = World(stage)
        caller = await world.open()
        gone, kept = caller.open("/t.Echo/Both"), caller.open("/t.Echo/Both")
        caller.say(gone, b"x")
        await caller.until(lambda: caller.heard(gone))
        caller.cancel(gone, code)
        await until(lambda: world.resets == [code])
        caller.say(kept, b"y", end=True)
        await caller.until(lambda: caller.status(kept) == "0")
        assert world.origin.connections == 1

    play(scene)


def test_calls_of_several_clients_share_a_connection_and_policy_ends_only_its_own() -> None:
    async def scene(stage: Stage) -> None:
        world = World(stage)
        first = await world.open()
        second = await world.caller()
        kept, gone = first.open("/t.Echo/Both"), second.open("/t.Echo/Never")
        first.say(kept, b"x")
        await first.until(lambda: first.heard(kept))
        await second.until(lambda: second.heard(gone) == [b"first"])
        assert world.origin.connections == 1
        stage.bind(ALLOW, rule("deny", "a.test", methods=["ANY"], paths=["/t.Echo/Never"]), revision=2)
        await second.until(lambda: second.reset(gone) is not None)
        await until(lambda: world.resets == [8])
        first.say(kept, b"y", end=True)
        await first.until(lambda: first.status(kept) == "0")
        assert first.heard(kept) == [b"X", b"Y"]
        closed = await stage.settle(2, step="closed")
        assert sorted((r["path"], r["ended"]) for r in closed) == [
            ("/t.Echo/Both", "done"),
            ("/t.Echo/Never", "revoked"),
        ]
        again = await world.caller()
        stream = again.open("/t.Echo/One")
        again.say(stream, b"z", end=True)
        await again.until(lambda: again.status(stream) == "0")
        assert world.origin.connections == 2  # made under the policy in force

    play(scene)


def test_a_crowd_that_comes_at_once_waits_for_one_connection() -> None:
    async def scene(stage: Stage) -> None:
        world = World(stage)
        caller = await world.open()
        streams = [caller.open("/t.Echo/One") for _ in range(80)]
        for stream in streams:
            caller.say(stream, b"hi", end=True)
        await caller.until(lambda: all(map(caller.status, streams)))
        assert world.origin.connections == 1
        assert stage.guest.upstreams.open_count == 1

    play(scene)


def test_a_crowd_before_an_origin_of_http_1_gets_a_connection_each() -> None:
    async def scene(stage: Stage) -> None:
        origin = await stage.origin("a.test", echo(b"old"))
        stage.bind(ALLOW)
        caller = Caller(await stage.secure("a.test", protocols=H2))
        streams = [caller.open("/") for _ in range(5)]
        for stream in streams:
            caller.talk.end_stream(stream)
        caller._send()
        ends = (h2.events.StreamEnded,)
        await caller.until(lambda: sum(isinstance(event, ends) for event in caller.events) == 5)
        assert 1 <= origin.connections <= 5
        assert stage.dialer.asked == ["a.test"]

    play(scene)


def test_nobody_who_waited_is_left_alone_when_the_connection_fails() -> None:
    async def scene(stage: Stage) -> None:
        await stage.origin("a.test", echo(), tls=origin_context("other.test", protocols=H2))
        stage.bind(ALLOW)
        caller = Caller(await stage.secure("a.test", protocols=H2))
        for _ in range(5):
            caller.open("/")
        await caller.until(
            lambda: sum(isinstance(event, h2.events.ResponseReceived) for event in caller.events) == 5
        )
        heads = [dict(e.headers) for e in caller.events if isinstance(e, h2.events.ResponseReceived)]
        assert {head[":status"] for head in heads} == {"502"}
        assert stage.guest.upstreams.open_count == 0

    play(scene)
