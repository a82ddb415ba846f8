"""What HTTP means, whatever speaks it on either side: expectations, endings in the middle, slow readers, upgrades."""

from __future__ import annotations

import asyncio
import socket

import h2.config
import h2.connection
import h2.events
import pytest
from gateway_dialogue import Dialogue, rule
from gateway_multiplexed import ALLOW, Talk
from gateway_stage import PATIENCE, Stage, origin_context, play, until
from test_grpc import Caller

from ringfence.gateway.core.http2 import Http2
from ringfence.gateway.core.multiplex import WINDOW

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"


def opened(*rules: object, **more: object) -> Dialogue:
    return Dialogue(*(rules or (ALLOW,)), **more).secure("a.test:443")  # type: ignore[arg-type]


def test_an_expectation_that_the_origin_declines_at_once() -> None:
    talk = opened().receive(
        b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    )
    talk.answer(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 417 ")
    assert (talk.commands[-1], talk.upstreams[0].state) == ("finish", "closed")
    assert talk.audit("step", "status", "ended")[1:] == [("closed", 417, "done")]


def test_an_upload_goes_on_under_a_response_that_has_begun() -> None:
    talk = opened().receive(CHUNKED)
    talk.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
    talk.upstreams[0].took()
    talk.receive(b"3\r\ntwo\r\n")
    assert talk.upstreams[0].took() == b"3\r\ntwo\r\n"
    talk.receive(b"0\r\nX-Sum: 1\r\n\r\n").answer(b"0\r\n\r\n")
    assert talk.upstreams[0].took() == b"0\r\nX-Sum: 1\r\n\r\n"
    assert talk.audit("step", "ended")[-1] == ("closed", "done")
    assert talk.upstreams[0].state == "released"


def test_an_upload_of_unknown_length_that_pauses_is_not_late() -> None:
    talk = opened().receive(CHUNKED + b"1\r\na\r\n")
    talk.wait(500)
    talk.receive(b"0\r\n\r\n").answer(OK)
    assert talk.took().endswith(OK)


def test_an_origin_owes_its_answer_from_the_end_of_the_upload() -> None:
    talk = opened().receive(CHUNKED + b"1\r\na\r\n")
    talk.wait(500)
    talk.receive(b"0\r\n\r\n")
    talk.wait(59)
    assert talk.took() == b""
    talk.wait(2)
    assert talk.took().startswith(b"HTTP/1.1 504 ")


def test_each_event_leaves_in_the_call_that_brought_it() -> None:
    """Server-sent events over HTTP/1 on both sides."""
    talk = opened().receive(GET).answer(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    talk.took()
    for word in (b"data: one\n\n", b"data: two\n\n", b": ping\n\n"):
        talk.answer(word)
        assert talk.took() == b"%x\r\n%b\r\n" % (len(word), word)


# -- upgrades ---------------------------------------------------------------------------------------------------------

UPGRADE = b"GET %b HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_an_upgrade_needs_a_request_that_is_allowed() -> None:
    rules = (rule("allow", "a.test", methods=["GET"], paths=["/ws"]),)
    assert opened(*rules).receive(UPGRADE % b"/ws").dialled == 1
    refused = opened(*rules).receive(UPGRADE % b"/other")
    assert (refused.took()[:12], refused.dialled) == (b"HTTP/1.1 403", 0)


def test_bytes_after_an_upgrade_are_counted_and_end_with_the_policy() -> None:
    talk = opened().receive(UPGRADE % b"/ws").answer(SWITCH + b"hello")
    sent = len(talk.upstreams[0].took())
    talk.receive(b"abc").answer(b"de")
    assert talk.upstreams[0].took() == b"abc"
    talk.bind(rule("deny", "a.test"))
    closed = talk.records[-1]
    assert (closed["ended"], closed["bytes_in"], closed["bytes_out"]) == ("revoked", 7, sent + 3)
    assert (talk.commands[-1], talk.upstreams[0].state) == ("reset", "closed")


def test_an_upgrade_after_a_chunked_request_is_not_chunked() -> None:
    talk = opened().receive(UPGRADE.replace(b"GET", b"POST") % b"/ws").answer(SWITCH)
    talk.upstreams[0].took()
    talk.receive(b"raw")
    assert talk.upstreams[0].took() == b"raw"


def test_an_origin_that_ends_an_upgraded_connection_ends_it() -> None:
    talk = opened().receive(UPGRADE % b"/ws").answer(SWITCH)
    talk.origin_ended()
    assert talk.commands[-1] == "finish"
    assert talk.audit("step", "status", "ended")[-1] == ("closed", 101, "done")


@pytest.mark.parametrize("name", [b"h2c", b"h2", b"TLS/1.0", b"websocket, h2c"])
def test_an_upgrade_out_of_what_is_inspected_is_refused(name: bytes) -> None:
    talk = opened().receive((UPGRADE % b"/").replace(b"websocket", name))
    assert (talk.took()[:12], talk.dialled) == (b"HTTP/1.1 400", 0)


# -- over real sockets ------------------------------------------------------------------------------------------------


def test_a_client_that_is_done_with_sending_still_gets_its_answer() -> None:
    """Half-closed by the client, after a complete request; then by the origin, after a complete response."""

    async def scene(stage: Stage) -> None:
        asked = asyncio.Event()

        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await asked.wait()
            writer.write(OK)
            writer.write_eof()
            await reader.read(1)

        await stage.origin("a.test", behave, port=80, tls=False)
        stage.bind(ALLOW)
        client = await stage.dial()
        client.send(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
        client.writer.write_eof()
        await stage.settle(1, step="opened")
        await until(lambda: next(iter(stage.guest.links)).phase._closing)  # type: ignore[attr-defined]
        asked.set()
        status, _, body = await client.response()
        assert (status, body) == (200, b"hi")
        assert await client.end() == b""
        assert (await stage.settle(1, step="closed"))[0]["ended"] == "done"

    play(scene)


@pytest.mark.parametrize("shared", [False, True], ids=["http/1.1 origin", "h2 origin"])
def test_a_slow_reader_of_a_long_download_costs_a_bounded_amount_of_memory(shared: bool) -> None:
    """The client's window is all that leaves; one of ours, and what sockets hold, is all that waits."""
    size = 64 * 1_048_576

    async def scene(stage: Stage) -> None:
        written = 0

        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while written < size:
                writer.write(b"x" * 65_536)
                await writer.drain()
                written += 65_536

        async def spoken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            talk = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
            talk.initiate_connection()
            begun = False
            while data := await reader.read(65_536):
                for event in talk.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        talk.send_headers(1, [(":status", "200"), ("content-length", str(size))])
                        begun = True
                while begun and (room := min(talk.local_flow_control_window(1), 16_384)) > 0:
                    talk.send_data(1, b"x" * room)
                    written += room
                writer.write(talk.data_to_send())

        context = origin_context("a.test", protocols=("h2", "http/1.1")) if shared else True
        await stage.origin("a.test", spoken if shared else plain, tls=context)
        stage.bind(ALLOW)
        client = await stage.secure("a.test", protocols=("h2", "http/1.1"))
        sock: socket.socket = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        caller = Caller(client)
        stream = caller.open("/")
        caller.talk.end_stream(stream)
        caller._send()
        before = -1
        async with asyncio.timeout(PATIENCE):
            while written != before or not written:  # until the origin is stuck
                before = written
                await asyncio.sleep(0.1)
        assert written < size
        link = next(iter(stage.guest.links))
        assert isinstance(link.phase, Http2)
        waiting = link.phase._streams[stream].size
        assert waiting <= 2 * WINDOW
        assert link.transport.get_write_buffer_size() <= 2 * WINDOW
        if shared:
            assert written <= 65_535 + 2 * WINDOW
        client.writer.transport.abort()
        assert (await stage.settle(1, step="closed"))[0]["ended"] == "client"

    play(scene)


def test_a_request_that_is_dialling_is_bounded_by_its_own_sandbox() -> None:
    """Names in flight are counted for whoever asks."""

    async def scene(stage: Stage) -> None:
        owners: list[str] = []
        addresses = stage.dialer.addresses

        async def watched(*arguments: object, owner: str = "") -> list[tuple[str, int]]:
            owners.append(owner)
            return await addresses(*arguments, owner=owner)  # type: ignore[arg-type]

        stage.dialer.addresses = watched  # type: ignore[method-assign]
        stage.bind(ALLOW)
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[0] == 502
        assert owners == ["sandbox-1"]

    play(scene)


def test_streams_over_http_1_origins_keep_their_own_connections() -> None:
    talk = Talk(shared=False)
    first, second = talk.ask(path="/1"), talk.ask(path="/2")
    talk.answer(OK.replace(b"hi", b"22"), upstream=1)
    talk.answer(OK.replace(b"hi", b"11"), upstream=0)
    talk.exchange()
    assert (talk.body(first), talk.body(second)) == (b"11", b"22")
