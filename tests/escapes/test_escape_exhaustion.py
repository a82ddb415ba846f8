"""DOS-01 to DOS-03: slow, idle, huge and endless clients and origins; what they cost is theirs to bear."""

from __future__ import annotations

import asyncio
import gzip
import resource
from collections.abc import Iterator

import pytest
from tests.escapes.escape_stage import (
    OK,
    PATIENCE,
    SENTINEL,
    Client,
    Lab,
    Outcome,
    allowed,
    connect,
    forward,
    get,
    inside,
    redirected,
    refused,
    rule,
    tunnel,
    until,
)

HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
CONNECTIONS = 300


@pytest.fixture(scope="module")
def _theatre() -> Iterator[Lab]:
    """A stage whose clocks run fast and whose doors are few."""
    lab = Lab(
        head_time=0.3, hello_time=0.3, silence_time=0.1, patience_time=0.3, first_byte_time=0.5, idle_time=0.5,
        connections=CONNECTIONS,
    )  # fmt: skip
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def world(lab: Lab) -> Lab:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test")
    lab.serve("a.test", port=80, tls=False)
    lab.expect(inside("a.test", get("a.test")), allowed(HEARD))
    return lab


async def answered(lab: Lab) -> int:
    """Whether another client is served in between."""
    client = await lab.stage.dial()
    client.send(get("a.test", "http://a.test/"))
    status, _, _ = await client.response()
    client.close()
    return status


# -- DOS-01: clients ------------------------------------------------------------------------------------------

SLOW: list[tuple[str, bytes, tuple[int | str | bytes, ...], str]] = [
    ("half a head", b"GET http://a.test/ HTTP/1.1\r\nHost: a.te", (408, "closed"), "failure"),
    (
        "half a SOCKS request",
        b"\x05\x01\x00\x05\x01",
        (b"\x05\x00\x05\x01\x00\x01" + bytes(6), "closed"),
        "failure",
    ),
]


@pytest.mark.parametrize(
    ("payload", "seen", "reason"), [each[1:] for each in SLOW], ids=[each[0] for each in SLOW]
)
def test_dos_01_a_slow_client_is_answered_and_ended(
    world: Lab, payload: bytes, seen: tuple[int | str | bytes, ...], reason: str
) -> None:
    world.expect(forward(payload), refused(reason, *seen))


def test_dos_01_a_slow_hello_is_ended(world: Lab) -> None:
    world.expect(tunnel("a.test", b"\x16\x03\x01\x02\x00\x01"), refused("failure", "reset"))


def test_dos_01_a_head_that_trickles_is_bounded_by_its_beginning(world: Lab) -> None:
    """Slowloris: a byte now and then does not renew the time that a head has."""

    async def scene() -> int:
        world.forget()
        client = await world.stage.dial()
        client.send(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n")
        answer = asyncio.ensure_future(client.response())
        while not answer.done():
            client.send(b"X: y\r\n")
            await asyncio.sleep(0.02)
        status, _, _ = answer.result()
        client.close()
        await world._quiet()
        return status

    assert world.run(scene()) == 408
    assert [each["verdict"] for each in world.stage.records] == ["blocked"]
    world.sentinel()


def test_dos_01_idle_connections_keep_nobody_waiting_and_end(world: Lab) -> None:
    async def scene() -> None:
        idle = [await world.stage.dial() for _ in range(256)]
        assert await answered(world) == 200
        for client in idle:
            client.send(b"G")
        assert await answered(world) == 200
        ends = await asyncio.gather(*(client.end() for client in idle))
        assert all(b" 408 " in end.split(b"\r\n")[0] for end in ends)
        for client in idle:
            client.close()
        await world._quiet()

    world.forget()
    world.run(scene())
    world.sentinel()


BOMBS: list[tuple[str, bytes, int]] = [
    ("a head of 70 KB", get("a.test", "http://a.test/", "X: " + "y" * 70_000), 431),
    ("a URL of 70 KB", get("a.test", "http://a.test/" + "y" * 70_000), 431),
    ("201 fields", get("a.test", "http://a.test/", *(f"X-{number}: y" for number in range(200))), 431),
    ("4,000 empty fields", get("a.test", "http://a.test/", *(["X:"] * 4_000)), 431),
    ("a megabyte without an end", b"GET http://a.test/" + b"y" * 1_000_000, 431),
    ("a megabyte of line ends", b"\r\n" * 500_000, 400),
]


@pytest.mark.parametrize(("payload", "status"), [each[1:] for each in BOMBS], ids=[each[0] for each in BOMBS])
def test_dos_01_a_head_is_bounded(world: Lab, payload: bytes, status: int) -> None:
    world.expect(forward(payload), refused("failure", status))


def grown(before: int) -> int:
    """Kilobytes that the process's largest size has grown by."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_dos_01_a_trailer_section_and_an_extension_are_bounded(world: Lab) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    for body, status in ((b"1;" + b"x" * 1_000_000, 400), (b"0\r\n" + b"X: y\r\n" * 200_000, 431)):

        async def scene(payload: bytes = head + body) -> int:
            client = await world.stage.dial()
            client.send(payload)
            got, _, _ = await client.response()
            client.close()
            await world._quiet()
            return got

        world.forget()
        assert world.run(scene()) == status
    assert grown(before) < 32_768
    world.sentinel()


# -- DOS-01: origins ------------------------------------------------------------------------------------------


def test_dos_01_an_origin_that_says_nothing_is_a_504(world: Lab) -> None:
    world.serve("silent.test", port=80, tls=False, reply=b"")
    world.bind(rule("allow", "silent.test"))
    heard = HEARD.replace(b"a.test", b"silent.test")
    outcome = allowed(heard, 504, ended="limit")
    world.expect(forward(get("silent.test", "http://silent.test/")), outcome)


def test_dos_01_five_thousand_interim_responses_are_a_502(world: Lab) -> None:
    world.serve("hints.test", port=80, tls=False, reply=b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5_000 + OK)
    world.bind(rule("allow", "hints.test"))
    heard = HEARD.replace(b"a.test", b"hints.test")
    ask = forward(get("hints.test", "http://hints.test/"))
    world.expect(ask, allowed(heard, *((103,) * 32), 502, ended="upstream"))


def test_dos_01_nothing_is_decompressed(world: Lab) -> None:
    """A bomb passes as the bytes that it is, and costs what these cost."""
    bomb = gzip.compress(bytes(50_000_000))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    world.serve("bomb.test", port=80, tls=False, reply=head + bomb)
    world.bind(rule("allow", "bomb.test"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def scene() -> bytes:
        client = await world.stage.dial()
        client.send(get("bomb.test", "http://bomb.test/"))
        _, fields, body = await client.response()
        assert fields["content-encoding"] == "gzip"
        client.close()
        return body

    assert world.run(scene()) == bomb
    assert grown(before) < 32_768
    world.sentinel()


def test_dos_01_an_endless_stream_waits_for_its_reader(world: Lab) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while written < 200_000_000:
            writer.write(bytes(65_536))
            await writer.drain()
            written += 65_536

    async def scene() -> None:
        await world.stage.origin("flood.test", flood, port=80, tls=False)
        client = await world.stage.dial()
        client.send(get("flood.test", "http://flood.test/"))
        last = -1
        async with asyncio.timeout(PATIENCE):
            while written != last or not written:  # until the origin is stuck
                last = written
                await asyncio.sleep(0.05)
                assert await answered(world) == 200
        client.close()
        await world._quiet()

    world.bind(rule("allow", "flood.test", "a.test"))
    world.run(scene())
    assert written < 40_000_000
    assert grown(before) < 49_152
    world.sentinel()


# -- DOS-02 ---------------------------------------------------------------------------------------------------


def test_dos_02_a_sandbox_has_so_many_connections_and_no_more(world: Lab) -> None:
    async def scene() -> None:
        open_ = [await world.stage.connect("a.test") for _ in range(CONNECTIONS)]
        for _ in range(20):
            more = await world.stage.dial()
            more.send(connect("a.test:443"))
            assert await more.end() == b"<reset>"
        for client in open_:
            client.close()
        await world._quiet()
        assert await answered(world) == 200

    world.run(scene())
    world.sentinel()


def test_dos_02_clients_that_vanish_leave_nothing_behind(world: Lab) -> None:
    """Killed in the middle of a tunnel, of a handshake, of an upload: their places are free at once."""
    world.serve("a.test", port=7000, tls=False, greeting=b"ready")

    async def scene() -> None:
        clients: list[Client] = []
        for _ in range(30):
            for ask in (
                tunnel("a.test", b"\1", port=7000),
                tunnel("a.test", b"\x16\x03\x01"),
                redirected("a.test", b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nx"),
                forward(b"\x05\x01\x00"),
            ):
                client = await ask.open(world)
                client.send(ask.payload)
                clients.append(client)
        for client in clients:
            client.writer.transport.abort()
        await world._quiet()
        await until(lambda: world.stage.guest.upstreams.open_count == 0)
        assert world.stage.services.connections == 0
        assert await answered(world) == 200

    world.run(scene())
    world.sentinel()


# -- DOS-03 ---------------------------------------------------------------------------------------------------


def test_dos_03_a_flood_of_approvals_allows_nobody(world: Lab) -> None:
    """A thousand hosts that would each need a person: every one is refused, at once, without a question asked."""
    world.bind(rule("approval", "*.ask.test"), rule("allow", "a.test"))

    async def scene() -> None:
        client = await world.stage.dial()
        for number in range(1_000):
            name = f"n{number}.ask.test"
            client.send(get(name, f"http://{name}/"))
            status, _, _ = await client.response()
            assert status == 403
        client.close()
        await world._quiet()

    world.forget()
    world.run(scene())
    assert {each["verdict"] for each in world.stage.records} == {"approval"}
    assert len(world.stage.records) == 1_000
    assert (world.stage.dialer.asked, world.stage.dials) == ([], [])
    world.expect(forward(get("a.test", "http://a.test/")), allowed(HEARD))
    ask = forward(get("n1.ask.test", "http://n1.ask.test/"))
    world.expect(ask, Outcome(seen=(403,), verdict="approval", reason="rule"))
    assert SENTINEL not in world.stage.dialer.asked
