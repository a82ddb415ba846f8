"""The data path over real sockets and real TLS: a client, a guest of the gateway, an origin."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import time
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from gateway_dialogue import hello
from gateway_stage import CLIENT4, PATIENCE, Client, Stage, echo, origin_context, origin_roots, play, rule

ALLOW = rule("allow", "a.test")


def test_an_allowed_request_meets_the_origin_behind_our_certificate() -> None:
    async def scene(stage: Stage) -> None:
        origin = await stage.origin("a.test", echo(b"from a"))
        stage.bind(ALLOW)
        client = await stage.secure("a.test")
        assert client.subject == {
            "organizationName": "Ringfence untrusted MITM proxy",
            "commonName": "a.test",
        }
        for _ in range(3):
            assert await client.get("/", "a.test") == (200, {"content-length": "6"}, b"from a")
        other = await stage.secure("a.test")
        assert (await other.get("/", "a.test"))[0] == 200
        assert origin.connections == 1  # pooled
        assert stage.dialer.asked == ["a.test"]
        assert [r["dialled"] for r in await stage.settle(8)] == ["203.0.113.1"] * 8

    play(scene)


def test_a_blocked_host_is_neither_looked_up_nor_dialled() -> None:
    async def scene(stage: Stage) -> None:
        origin = await stage.origin("paste.test", echo())
        stage.bind(rule("deny", "paste.test"), rule("allow", "**"))
        client = await stage.secure("paste.test")
        status, fields, body = await client.get("/", "paste.test")
        assert (status, fields["content-type"]) == (403, "text/plain; charset=utf-8")
        assert body.startswith(b"Blocked by network policy: domain paste.test:443\n")
        assert (await client.get("/", "paste.test", accept="application/json"))[1]["content-type"] == (
            "application/problem+json"
        )
        assert (await client.get("/", "paste.test", method="HEAD"))[0] == 403
        assert (stage.dialer.asked, origin.connections) == ([], 0)

    play(scene)


def test_curl_speaks_http_2_and_reads_the_same_refusal() -> None:
    async def scene(stage: Stage) -> None:
        await stage.origin("a.test", echo(b"x" * 100_000))
        stage.bind(ALLOW)
        for host, status, size in (("a.test", "200", 100_000), ("b.test", "403", None)):
            client = await stage.secure(host, protocols=("h2", "http/1.1"))
            assert client.tls.selected_alpn_protocol() == "h2"
            got_status, body = await _h2_get(client, host)
            assert got_status == status
            assert size is None or len(body) == size
        assert body.startswith(b"Blocked by network policy: domain b.test:443\n")
        assert {r["protocol"] for r in stage.records} == {"h2"}

    play(scene)


async def _h2_get(client: Client, host: str) -> tuple[str, bytes]:
    talk = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    talk.initiate_connection()
    talk.send_headers(
        1, [(":method", "GET"), (":authority", host), (":scheme", "https"), (":path", "/")], end_stream=True
    )
    client.send(talk.data_to_send())
    status, body = "", b""
    async with asyncio.timeout(PATIENCE):
        while True:
            for event in talk.receive_data(await client.reader.read(65_536)):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[":status"]
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    talk.acknowledge_received_data(event.flow_controlled_length, 1)
                elif isinstance(event, h2.events.StreamEnded):
                    return status, body
            client.send(talk.data_to_send())


BAD_ORIGINS = [
    ("expired", lambda: origin_context("a.test", expired=True), "certificate has expired"),
    ("another name", lambda: origin_context("other.test"), "mismatch"),
    ("no TLS", lambda: False, "does not speak tls"),
]


@pytest.mark.parametrize(
    ("context", "text"), [row[1:] for row in BAD_ORIGINS], ids=[row[0] for row in BAD_ORIGINS]
)
def test_an_origin_that_cannot_prove_its_name_is_a_502(context: object, text: str) -> None:
    """TLS-10."""

    async def scene(stage: Stage) -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 who are you\r\n")
            await echo()(reader, writer)

        await stage.origin("a.test", behave, tls=context())  # type: ignore[operator]
        stage.bind(ALLOW)
        client = await stage.secure("a.test")
        status, _, body = await client.get("/", "a.test", authorization="secret")
        assert (status, text in body.decode().lower()) == (502, True), body
        assert [(r["step"], r.get("status"), r.get("ended")) for r in await stage.settle(2)] == [
            ("opened", None, None),
            ("closed", 502, "upstream"),
        ]

    play(scene)


def test_a_name_that_does_not_resolve_is_a_502() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[0] == 502

    play(scene)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "10.0.0.5", "127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"]
)
def test_an_allowed_name_does_not_lead_to_a_guarded_address(address: str) -> None:
    """NAM-11: nothing is dialled, one record, blocked by the guard."""

    async def scene(stage: Stage) -> None:
        stage.addresses["a.test"] = [address]
        stage.bind(rule("allow", "**"))
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[0] == 403
        assert [(r["step"], r["verdict"], r["reason"]) for r in stage.records] == [
            ("opened", "blocked", "guard")
        ]

    play(scene)


def test_bytes_stream_both_ways_as_they_come() -> None:
    async def scene(stage: Stage) -> None:
        turns: asyncio.Queue[bytes] = asyncio.Queue()

        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            while piece := await turns.get():
                writer.write(piece)

        await stage.origin("a.test", behave)
        stage.bind(ALLOW)
        client = await stage.secure("a.test")
        client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await client.until(b"\r\n\r\n")
        for word in (b"data: one\n\n", b"data: two\n\n"):
            turns.put_nowait(word)
            assert await client.until(b"\r\n") == b"%x\r\n" % len(word)
            assert await client.exactly(len(word) + 2) == word + b"\r\n"
        turns.put_nowait(b"")

    play(scene)


@pytest.mark.parametrize("size", [3_000_000])
def test_large_bodies_arrive_whole_both_ways(size: int) -> None:
    async def scene(stage: Stage) -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(size)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)
            await writer.drain()
            await reader.read(1)

        await stage.origin("a.test", behave)
        stage.bind(ALLOW)
        client = await stage.secure("a.test")
        payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        client.send(b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % size + payload)
        assert (await client.response())[2] == payload
        closed = (await stage.settle(1, step="closed"))[0]
        assert (closed["bytes_in"], closed["bytes_out"] - size < 200) == (size, True)

    play(scene)


def test_a_client_that_does_not_read_stops_the_origin() -> None:
    async def scene(stage: Stage) -> None:
        written = 0

        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
                written += 65_536

        await stage.origin("a.test", behave, port=80, tls=False)
        stage.bind(ALLOW)
        client = await stage.dial()
        client.send(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
        before = -1
        async with asyncio.timeout(PATIENCE):
            while written != before or written == 0:  # until the origin is stuck
                before = written
                await asyncio.sleep(0.1)
        link = next(iter(stage.guest.links))
        assert link.transport.get_write_buffer_size() < 1_000_000
        client.close()
        await stage.settle(1, step="closed")

    play(scene)


def test_a_websocket_talks() -> None:
    async def scene(stage: Stage) -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            while piece := await reader.read(100):
                writer.write(piece.upper())

        await stage.origin("a.test", behave)
        stage.bind(ALLOW)
        client = await stage.secure("a.test")
        client.send(b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        client.send(b"hello")
        assert await client.exactly(5) == b"HELLO"
        stage.bind(rule("deny", "a.test"), revision=2)
        assert (await client.end()).replace(b"<reset>", b"") == b""
        assert (await stage.settle(1, step="closed"))[0]["ended"] == "revoked"

    play(scene)


# -- redirected and uninspected ---------------------------------------------------------------------------------------


def test_a_redirected_client_reaches_the_name_behind_its_synthetic_address() -> None:
    async def scene(stage: Stage) -> None:
        await stage.origin("a.test", echo(b"plain"), port=80, tls=False)
        await stage.origin("a.test", echo(b"secret"))
        stage.bind(ALLOW)
        client = await stage.reach("a.test", 80)
        assert (await client.get("/", "a.test"))[2] == b"plain"
        client = await stage.reach("a.test", 443)
        await client.start_tls("a.test", stage.certificate)
        assert (await client.get("/", "a.test"))[2] == b"secret"
        assert {r["via"] for r in stage.records} == {"transparent"}

    play(scene)


def test_a_synthetic_address_without_a_name_is_refused() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(rule("allow", "**", "198.18.0.0/15"))
        client = await stage.reach("198.18.7.7", 80)
        assert (await client.get("/", "198.18.7.7"))[0] == 403
        assert [(r["verdict"], r["reason"]) for r in stage.records] == [("blocked", "guard")]

    play(scene)


def test_a_blocked_stranger_is_reset() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        client = await stage.reach("203.0.113.77", 22)
        client.send(b"SSH-2.0-client\r\n")
        assert await client.end() == b"<reset>"
        assert [(r["host"], r["port"], r["verdict"]) for r in stage.records] == [
            ("203.0.113.77", 22, "blocked")
        ]

    play(scene)


def test_the_host_answers_on_localhost_only_if_that_very_port_is_allowed() -> None:
    async def scene(stage: Stage) -> None:
        origin = await stage.origin("localhost", echo(b"ollama"), port=11434, tls=False, address="127.0.0.1")
        for rules, status in (((rule("allow", "**"),), 403), ((rule("allow", "localhost:11434"),), 200)):
            stage.bind(*rules)
            client = await stage.reach(stage.guest.addresses.host4, 11434)
            assert (await client.get("/", "host.docker.internal:11434"))[0] == status
        assert origin.connections == 1

    play(scene)


def test_a_bypassed_host_shows_its_own_certificate_and_moves_into_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spliced = 0
    splice = os.splice

    def counting(*arguments: Any, **more: Any) -> int:
        nonlocal spliced
        spliced += 1
        return splice(*arguments, **more)

    monkeypatch.setattr(os, "splice", counting)

    async def scene(stage: Stage) -> None:
        size = 8_000_000
        await stage.origin("pinned.test", echo(b"y" * size))
        stage.bind(rule("allow", "pinned.test", inspect="never"))
        client = await stage.connect("pinned.test")
        await client.start_tls("pinned.test", origin_roots())
        assert client.subject == {"commonName": "pinned.test"}
        for _ in range(2):
            assert len((await client.get("/", "pinned.test"))[2]) == size
        client.close()
        opened, closed = await stage.settle(2)
        assert (opened["protocol"], opened.get("inspected"), closed["ended"]) == ("tls", None, "done")
        assert closed["bytes_in"] > 2 * size
        assert closed["bytes_out"] > 200

    play(scene, splice_bytes=100_000)
    assert spliced > 10


@pytest.mark.parametrize("way", ["connect", "redirected"])
def test_a_client_that_asks_and_says_that_this_was_all_is_answered(way: str) -> None:
    """``echo question | nc -N``: its end comes before anybody has dialled."""

    async def scene(stage: Stage) -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"<" + await reader.read() + b">")

        await stage.origin("a.test", behave, port=43, tls=False)
        stage.bind(ALLOW)
        client = await (stage.connect("a.test", 43) if way == "connect" else stage.reach("a.test", 43))
        client.send(b"question\n")
        client.writer.write_eof()
        assert await client.end() == b"<question\n>"
        closed = (await stage.settle(1, step="closed"))[0]
        assert (closed["bytes_out"], closed["bytes_in"], closed["ended"]) == (9, 11, "done")

    play(scene)


def test_a_client_that_leaves_without_a_word_is_gone() -> None:
    async def scene(stage: Stage) -> None:
        origin = await stage.origin("a.test", echo(), port=43, tls=False)
        stage.bind(ALLOW)
        client = await stage.reach("a.test", 43)
        client.writer.write_eof()
        assert await client.end() == b""
        assert (origin.connections, stage.records) == (0, [])

    play(scene)


def test_bulk_through_a_spliced_tunnel_waits_for_slow_readers_both_ways() -> None:
    async def scene(stage: Stage) -> None:
        size = 4_000_000

        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got = 0
            while got < size:
                got += len(await reader.read(50_000))
                await asyncio.sleep(0)
            for _ in range(size // 50_000):
                writer.write(b"z" * 50_000)
                await writer.drain()
            writer.write_eof()
            await reader.read(1)

        await stage.origin("a.test", behave, port=7000, tls=False)
        stage.bind(ALLOW)
        client = await stage.reach("a.test", 7000)
        client.send(b"\x01" + b"z" * (size - 1))
        assert len(await client.end()) == size
        client.close()
        closed = (await stage.settle(1, step="closed"))[0]
        assert (closed["bytes_in"], closed["bytes_out"]) == (size, size)

    play(scene, splice_bytes=100_000)


@pytest.mark.parametrize("splice", [100, 1 << 40])
def test_an_open_tunnel_is_revoked(splice: int) -> None:
    async def scene(stage: Stage) -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while piece := await reader.read(1000):
                writer.write(piece)

        await stage.origin("a.test", behave, port=7000, tls=False)
        stage.bind(ALLOW)
        client = await stage.reach("a.test", 7000)
        for _ in range(3):
            client.send(b"\x01" * 1000)
            await client.exactly(1000)
        stage.bind(rule("deny", "a.test"), revision=2)
        assert await client.end() == b"<reset>"
        closed = (await stage.settle(1, step="closed"))[0]
        assert (closed["ended"], closed["bytes_in"], closed["bytes_out"]) == ("revoked", 3000, 3000)
        assert not stage.guest.links

    play(scene, splice_bytes=splice)


def test_a_server_that_speaks_first() -> None:
    async def scene(stage: Stage) -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 ready\r\n")
            writer.write(await reader.readline())

        await stage.origin("a.test", behave, port=25, tls=False)
        stage.bind(ALLOW)
        client = await stage.reach("a.test", 25)
        assert await client.until(b"\n") == b"220 ready\r\n"
        client.send(b"HELO me\r\n")
        assert await client.until(b"\n") == b"HELO me\r\n"
        assert await client.end() == b""

    play(scene, silence_time=0.05)


# -- endings and limits -----------------------------------------------------------------------------------------------


def test_more_connections_than_allowed_are_reset() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        kept = [await stage.connect("b.test") for _ in range(3)]
        client = await stage.dial()
        client.send(b"CONNECT b.test:443 HTTP/1.1\r\nHost: b.test\r\n\r\n")
        assert await client.end() == b"<reset>"
        kept.pop().close()
        await stage.settle(1)
        await stage.connect("b.test")

    play(scene, connections=3)


def test_a_client_that_refuses_our_certificate_is_on_record() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        client = await stage.connect("a.test")
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.start_tls("a.test", origin_roots())
        opened, closed = await stage.settle(2)
        assert (opened["verdict"], opened["protocol"], closed["ended"]) == ("allowed", "tls", "mistrusted")
        assert "does not trust" in opened["text"] or "left during" in opened["text"]
        assert "`sbx policy allow network --inspect never a.test:443`" in opened["text"]

    play(scene)


def test_garbage_after_a_hello_is_on_record() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        client = await stage.connect("a.test")
        client.send(hello("a.test") + b"\x17\x03\x03\x00\x05hello" * 10)
        await client.end()
        assert (await stage.settle(2))[1]["ended"] == "failed"

    play(scene)


def test_a_malformed_request_is_answered_even_if_more_is_coming() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        client = await stage.secure("a.test")
        client.send(b"GET / HTTP/1.1\nHost: a.test\r\n\r\n" + b"x" * 500_000)
        status, fields, _ = await client.response()
        assert (status, fields["connection"]) == (400, "close")

    play(scene)


def test_a_released_guest_leaves_nothing_open() -> None:
    async def scene(stage: Stage) -> None:
        await stage.origin("a.test", echo())
        stage.bind(ALLOW)
        client = await stage.secure("a.test")
        await client.get("/", "a.test")
        stage.guest.release()
        assert (await client.end()).replace(b"<reset>", b"") == b""
        with pytest.raises(OSError):
            socket.create_connection((CLIENT4, stage.proxy), timeout=1).close()

    play(scene)


def test_a_rule_that_expires_closes_what_it_let_through() -> None:
    async def scene(stage: Stage) -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await reader.read(1)

        await stage.origin("a.test", behave)
        moment = datetime.datetime.fromtimestamp(int(time.time()) + 2, datetime.UTC)
        stage.bind(rule("allow", "a.test", expires_at=moment.isoformat().replace("+00:00", "Z")))
        client = await stage.secure("a.test")
        client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await client.end()
        assert (await stage.settle(1, step="closed"))[0]["ended"] == "revoked"

    play(scene)


def test_a_reset_is_a_reset() -> None:
    """`blocked transparent TCP … is reset at once`: the kernel says so, not only a closed connection."""

    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        stage.destination = ("203.0.113.77", 22)
        sock = socket.socket()
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (CLIENT4, stage.transparent))
        await loop.sock_sendall(sock, b"\x00\x01\x02")
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(sock, 1)
        sock.close()

    play(scene)
