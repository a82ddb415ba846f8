"""Every limit of GATEWAY.md section 8 that no dialogue elsewhere is about: its value, and what happens beyond it."""

from __future__ import annotations

import asyncio

import pytest
from gateway_dialogue import Dialogue, hello, rule
from gateway_stage import Stage, echo, play, until
from gateway_stage import rule as stage_rule

from ringfence.gateway.core.limits import Limits

ALLOW = rule("allow", "a.test")

VALUES = [
    ("connections", 4096), ("head_bytes", 65_536), ("fields", 200), ("head_time", 30), ("first_byte_time", 60),
    ("idle_time", 600), ("tunnel_time", 3600), ("hello_bytes", 65_536), ("hello_time", 10), ("streams", 100),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_the_values_are_those_of_the_design(name: str, value: float) -> None:
    assert getattr(Limits(), name) == value


def test_a_silent_tunnel_ends_after_an_hour() -> None:
    talk = Dialogue(ALLOW).redirected("a.test", 22).receive(b"SSH-2.0-x\r\n")
    talk.wait(3599)
    assert talk.commands[-1] == "relay"
    talk.wait(2)
    assert talk.commands[-1] == "reset"
    assert talk.audit("step", "ended")[-1] == ("closed", "limit")


def test_bytes_keep_a_tunnel_open() -> None:
    talk = Dialogue(ALLOW).redirected("a.test", 22).receive(b"SSH-2.0-x\r\n")
    talk.wait(3000)
    talk.phase.moved(1, 0, talk.now)  # type: ignore[attr-defined]
    talk.wait(3000)
    assert talk.commands[-1] == "relay"


def test_a_hello_of_more_than_64_kib_is_refused() -> None:
    long = hello("a.test", protocols=tuple(b"x" * 200 for _ in range(300)))
    record = b"\x16\x03\x01"
    talk = Dialogue(ALLOW).redirected("a.test", 443)
    body = long[5:] + bytes(20_000)
    body = b"\x01" + (70_000).to_bytes(3, "big") + body[4:]
    for start in range(0, len(body), 16_000):
        piece = body[start : start + 16_000]
        talk.receive(record + len(piece).to_bytes(2, "big") + piece)
    assert talk.commands == ["reset"]
    assert talk.audit("verdict", "reason") == [("blocked", "failure")]


def test_an_origin_that_never_finishes_its_handshake_is_a_504() -> None:
    async def scene(stage: Stage) -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        await stage.origin("a.test", behave, tls=False)
        stage.bind(stage_rule("allow", "a.test"))
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[0] == 504

    play(scene, dial_time=0.1)


def test_only_so_many_idle_upstreams_are_kept_and_not_for_long() -> None:
    async def scene(stage: Stage) -> None:
        origin = await stage.origin("a.test", echo(), port=80, tls=False)
        stage.bind(stage_rule("allow", "a.test"))
        clients = [await stage.connect("a.test", 80) for _ in range(4)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        for client in clients:
            assert (await client.response())[0] == 200
        upstreams = stage.guest.upstreams
        assert origin.connections >= upstreams.open_count
        assert upstreams.open_count <= 2
        await until(lambda: upstreams.open_count == 0)

    play(scene, idle_upstreams=2, idle_upstream_time=0.2)


def test_pooled_connections_end_with_the_policy_that_made_them() -> None:
    async def scene(stage: Stage) -> None:
        origin = await stage.origin("a.test", echo(), port=80, tls=False)
        stage.bind(stage_rule("allow", "a.test"))
        client = await stage.connect("a.test", 80)
        await client.get("/", "a.test")
        stage.bind(stage_rule("allow", "a.test"), revision=2)
        assert stage.guest.upstreams.open_count == 0
        await client.get("/", "a.test")
        assert origin.connections == 2

    play(scene)


def test_more_upstreams_than_connections_are_a_503() -> None:
    async def scene(stage: Stage) -> None:
        origin = await stage.origin("a.test", echo(), port=80, tls=False)
        stage.bind(stage_rule("allow", "a.test"))
        client = await stage.connect("a.test", 80)
        stage.guest.upstreams.open_count += stage.subject.limits.connections
        assert (await client.get("/", "a.test"))[0] == 503
        stage.guest.upstreams.open_count -= stage.subject.limits.connections
        assert ((await client.get("/", "a.test"))[0], origin.connections) == (200, 1)

    play(scene)
