"""Connections to one known address, made without a task: who is told what, and that nothing of them stays behind."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gateway_dialogue import Dialogue
from gateway_dialogue import rule as dialogue_rule
from gateway_stage import CLIENT4, Stage, echo, play, rule, until

from ringfence.gateway.core import subject
from ringfence.gateway.core.connection import ESTABLISHED
from ringfence.gateway.uplink import Attempt

ALLOW = rule("allow", "a.test", inspect="never")


@contextmanager
def deaf() -> Iterator[int]:
    """A port whose backlog is full: what is sent there is not answered."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind((CLIENT4, 0))
        listening.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def known(stage: Stage, name: str, port: int) -> None:
    """Put a name into the dialer's memory as a static one, so that there is nothing to ask."""
    stage.dialer._static[name] = (("203.0.113.77", None),)
    stage.bind(ALLOW)

    def reach(address: tuple[str, int], factory: Any) -> Any:
        return stage.services.loop.create_connection(factory, CLIENT4, port)

    stage.dialer.reach = reach  # type: ignore[method-assign]


def test_a_refused_connection_is_a_502_that_says_so() -> None:
    async def scene(stage: Stage) -> None:
        known(stage, "a.test", 1)
        client = await stage.connect("a.test", 80)
        status, _, body = await client.get("/", "a.test")
        assert status == 502
        assert b"connection refused" in body
        upstreams = stage.guest.upstreams
        assert (upstreams.open_count, upstreams._reaching, upstreams._dials) == (0, {}, set())

    play(scene)


def test_silence_is_a_502_after_the_time_to_dial() -> None:
    async def scene(stage: Stage) -> None:
        with deaf() as port:
            known(stage, "a.test", port)
            client = await stage.connect("a.test", 80)
            status, _, body = await client.get("/", "a.test")
        assert status == 502
        assert b"no answer within 0.2 s" in body
        assert stage.guest.upstreams._reaching == {}

    play(scene, dial_time=0.2)


def test_a_client_that_leaves_meanwhile_leaves_no_connection() -> None:
    async def scene(stage: Stage) -> None:
        origin = await stage.origin("a.test", echo(), port=80, tls=False)
        known(stage, "a.test", origin.port)
        upstreams = stage.guest.upstreams
        client = await stage.connect("a.test", 80)
        client.send(b"\0opaque")
        client.writer.transport.abort()
        await until(lambda: not stage.guest.links and not upstreams._reaching)
        await until(lambda: upstreams.open_count == 0)

    play(scene)


def test_a_released_sandbox_gives_up_what_it_reaches_for() -> None:
    async def scene(stage: Stage) -> None:
        with deaf() as port:
            known(stage, "a.test", port)
            client = await stage.connect("a.test", 80)
            client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            upstreams = stage.guest.upstreams
            await until(lambda: upstreams._reaching)
            stage.guest.release()
            assert (upstreams._reaching, upstreams.open_count) == ({}, 0)

    play(scene)


def test_an_attempt_that_is_cancelled_tells_nobody() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        told: list[OSError] = []

        async def connecting() -> None:
            await waiter

        Attempt(loop, connecting(), told.append).cancel()
        await asyncio.sleep(0)
        assert (waiter.cancelled(), told) == (True, [])

    asyncio.run(scene())


@pytest.mark.parametrize("early", [True, False])
def test_an_attempt_tells_later_what_failed(early: bool) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        told: list[OSError] = []
        flaw = OSError("unreachable")

        async def connecting() -> None:
            if not early:
                waiter = loop.create_future()
                loop.call_soon(waiter.set_result, None)
                await waiter
            raise flaw

        Attempt(loop, connecting(), told.append)
        assert told == []
        await until(lambda: told)
        assert told == [flaw]

    asyncio.run(scene())


def test_a_tunnel_that_is_over_is_no_garbage() -> None:
    """Cycles would keep sockets and buffers until the collector comes, and its looking is paid by everybody."""

    async def scene(stage: Stage) -> None:
        origin = await stage.origin("a.test", echo(), port=2222, tls=False)
        stage.bind(ALLOW)
        kinds = {"Relay", "_Half", "Tunnel", "Flow", "UpstreamLink", "ClientLink"}
        gc.collect()
        before = [
            each for each in gc.get_objects() if type(each).__name__ in kinds
        ]  # other tests', kept alive
        gc.disable()
        try:
            for _ in range(8):
                client = await stage.connect("a.test", 2222)
                client.send(b"\0opaque \r\n\r\n")
                assert await client.exactly(1)
                client.close()
            await until(lambda: not stage.guest.links and stage.guest.upstreams.open_count == 0)
            assert origin.connections == 8
            known = {id(each) for each in before}
            now = [each for each in gc.get_objects() if type(each).__name__ in kinds]
            assert [type(each).__name__ for each in now if id(each) not in known] == []
        finally:
            gc.enable()

    play(scene)


def test_a_connect_is_read_once_and_means_the_same_again() -> None:
    head = b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"
    talk = Dialogue(dialogue_rule("allow", "a.test"))
    assert talk.proxy().receive(head).took() == ESTABLISHED
    assert talk.subject.connects == {head: ("a.test", 443)}
    assert talk.proxy().receive(head).took() == ESTABLISHED
    talk.receive(b"GET / HTTP/1.1\r\nHost: a.test:443\r\n\r\n")
    assert talk.asked[-1][1].host == "a.test"


def test_only_whole_and_short_connects_are_remembered_and_not_many() -> None:
    talk = Dialogue(dialogue_rule("allow", "a.test"))
    head = b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n"
    talk.proxy().receive(head).receive(b"\r\n")  # in two pieces
    talk.proxy().receive(head + b"\r\n\x16\x03")  # and more after it
    talk.proxy().receive(head + b"X: " + b"x" * 600 + b"\r\n\r\n")
    talk.proxy().receive(b"CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n")  # refused
    assert talk.subject.connects == {}
    for number in range(1000):
        talk.proxy().receive(head + b"X: %d\r\n\r\n" % number)
    assert 0 < len(talk.subject.connects) <= subject._CONNECTS
