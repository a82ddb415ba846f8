"""The control protocol, both ends: a real worker process, obeyed, lost, found again (ARCHITECTURE.md, "Control")."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_dialogue import policy, rule
from gateway_stage import CLIENT4, PATIENCE, installation, until
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_rig import Bench, run

from ringfence.application.errors import Unavailable
from ringfence.gateway.control import Channel, GatewayLink
from ringfence.gateway.core.chain import Chain, parse_proxy
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.worker import static_names


def test_a_worker_obeys_and_reports(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        hello = await bench.link.hello()
        assert (hello["sandboxes"], hello["authority"], hello["pid"]) == ({}, False, bench.process.pid)
        await bench.link.configure(resolve={"a.test": "203.0.113.1:99"}, limits={"dial_time": 1})
        await bench.link.authority(*installation())
        port = await bench.admit()
        assert (await bench.link.hello())["sandboxes"] == {"sandbox-1": 1}
        assert await bench.ask(port, b"b.test") == 403
        record = (await bench.settle(1))[0]
        assert (record["sandbox"], record["sandbox_name"], record["agent"], record["user"]) == (
            "sandbox-1",
            "lab1",
            "shell",
            "ada",
        )
        stats = await bench.link.stats()
        assert stats["dropped"] == 0
        assert stats["capacity"] > 100

    run(tmp_path, scene)


def test_policy_is_live_and_a_cut_is_closed(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        port = await bench.admit()
        await bench.link.bind("sandbox-1", policy(rule("deny", "a.test", name="no"), revision=2).to_wire())
        assert await bench.ask(port, b"a.test") == 403
        assert [(r["rule"], r["revision"]) for r in await bench.settle(1)] == [("no", 2)]
        await bench.link.cut("sandbox-1", closed=True)
        assert await bench.ask(port, b"a.test") == 403
        assert (await bench.settle(2))[1]["reason"] == "failure"
        await bench.link.cut("sandbox-1", closed=False)
        assert await bench.ask(port, b"a.test") == 403
        assert (await bench.settle(3))[2]["rule"] == "no"
        await bench.link.release("sandbox-1")
        await bench.link.release("sandbox-1")
        with pytest.raises(OSError):
            await asyncio.open_connection(CLIENT4, port)

    run(tmp_path, scene)


def test_two_sandboxes_know_nothing_of_each_other(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        one, two = await bench.admit(1, "a.test"), await bench.admit(2, "b.test")
        assert [await bench.ask(one, b"b.test"), await bench.ask(two, b"a.test")] == [403, 403]
        await bench.link.cut("sandbox-1", closed=True)
        assert await bench.ask(two, b"c.test") == 403
        assert [(r["sandbox"], r["reason"]) for r in await bench.settle(3)] == [
            ("sandbox-1", "default"),
            ("sandbox-2", "default"),
            ("sandbox-2", "default"),
        ]

    run(tmp_path, scene)


def test_traffic_goes_on_without_a_daemon_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        port = await bench.admit()
        assert await bench.ask(port, b"one.test") == 403
        await bench.settle(1)
        bench.link.close()
        for host in (b"two.test", b"three.test"):
            assert await bench.ask(port, host) == 403
        await bench.reconnect()
        assert (await bench.link.hello())["sandboxes"] == {"sandbox-1": 1}
        await until(lambda: {r["host"] for r in bench.records} == {"one.test", "two.test", "three.test"})

    run(tmp_path, scene)


def test_bad_orders_change_nothing(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        port = await bench.admit()
        for order in (
            bench.link.bind("sandbox-1", {}),
            bench.link.bind("sandbox-9", policy().to_wire()),
            bench.link.cut("sandbox-9", closed=True),
            bench.link.configure(limits={"nonsense": 1}),
            bench.link.configure(extra_ca="not a certificate"),
            bench.link.configure(resolve={"a.test": "nonsense"}),
            bench.link.configure(upstream_proxy={"tunnels": "http://proxy.test:3128"}),
            bench.link.authority(b"x", b"y"),
        ):
            with pytest.raises(Unavailable, match="refused"):
                await order
        assert (await bench.link.hello())["sandboxes"] == {"sandbox-1": 1}
        assert await bench.ask(port, b"b.test") == 403

    run(tmp_path, scene)


def test_a_worker_goes_out_the_way_it_is_told_and_never_says_the_password(tmp_path: Path) -> None:
    secret = "s3cret-canary"

    async def scene(bench: Bench) -> None:
        heard: list[str] = []

        async def parent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        server = await asyncio.start_server(parent, CLIENT4, 0)
        place = f"{CLIENT4}:{server.sockets[0].getsockname()[1]}"
        chain = Chain(plain=parse_proxy(f"http://ada:{secret}@{place}"))
        told = {"resolve": {"a.test": "203.0.113.1"}, "limits": {"dial_time": 0.2}}
        await bench.link.configure(upstream_proxy=chain.to_wire(), **told)  # type: ignore[arg-type]
        port = await bench.admit()
        assert await bench.ask(port, b"a.test") == 200
        assert heard[0].startswith("GET http://203.0.113.1/x HTTP/1.1\r\nProxy-Authorization: Basic ")
        broken = {**chain.to_wire(), "plain": {"password": secret}}
        with pytest.raises(Unavailable, match="the upstream proxy is not understood") as refused:
            await bench.link.configure(upstream_proxy=broken, **told)  # type: ignore[arg-type]
        assert secret not in str(refused.value)
        await bench.link.configure(**told)  # type: ignore[arg-type]
        assert await bench.ask(port, b"a.test") != 200
        assert len(heard) == 1
        assert secret not in repr(bench.records)
        assert secret.encode() not in Path(f"/proc/{bench.process.pid}/cmdline").read_bytes()
        server.close()

    run(tmp_path, scene)


def test_a_worker_that_dies_fails_what_waits_for_it(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        port = await bench.admit()
        bench.process.kill()
        await bench.process.wait()
        with pytest.raises(Unavailable):
            await bench.link.hello()
        with pytest.raises(OSError):
            await asyncio.open_connection(CLIENT4, port)
        with pytest.raises(Unavailable):
            await GatewayLink.connect(bench.path)

    run(tmp_path, scene)


@pytest.mark.skipif(os.geteuid() != 0, reason="only a worker that root started has anything to give up")
def test_a_worker_has_no_privileges(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        await bench.link.hello()
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{bench.process.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert set(status["Uid"].split()) != {"0"}
        assert "0" not in status["Uid"].split()
        assert (status["NoNewPrivs"], int(status["CapEff"], 16), int(status["CapPrm"], 16)) == ("1", 0, 0)
        assert status["Groups"].split() == []

    run(tmp_path, scene)


@pytest.mark.parametrize("wish", ["ssl", "auto", "rtls"])
def test_a_worker_without_privileges_has_the_tls_backend_that_it_is_told(tmp_path: Path, wish: str) -> None:
    """It may not be able to read Python's files any more, so what a backend loads late it has loaded before."""
    if wish != "ssl":
        pytest.importorskip("rtls", reason="rtls is not installed (pip install 'ringfence[fast-tls]')")

    async def scene(bench: Bench) -> None:
        await bench.link.configure(tls=wish)
        await bench.link.authority(*installation())
        tls = (await bench.link.stats())["tls"]
        server, client = {"ssl": ("ssl", "ssl"), "auto": ("rtls", "ssl"), "rtls": ("rtls", "rtls")}[wish]
        assert (tls["server"], tls["client"]) == (server, client), tls
        assert (await bench.link.hello())["tls"] == wish
        with pytest.raises(Unavailable, match="no TLS backend"):
            await bench.link.configure(tls="gnutls")

    run(tmp_path, scene)


def test_the_control_socket_is_the_owners(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        assert bench.path.stat().st_mode & 0o777 == 0o600

    run(tmp_path, scene)


# -- the channel ------------------------------------------------------------------------------------------------------


def channels(test: Callable[[Channel, Channel, list[Any], list[str]], Awaitable[None]]) -> None:
    async def staged() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        got: list[Any] = []
        lost: list[str] = []
        one = Channel(loop, left, lambda m, d: got.append((m, d)), lambda: lost.append("one"))
        two = Channel(loop, right, lambda m, d: got.append((m, d)), lambda: lost.append("two"))
        try:
            async with asyncio.timeout(PATIENCE):
                await test(one, two, got, lost)
        finally:
            one.close()
            two.close()

    asyncio.run(staged())


def test_descriptors_arrive_with_the_message_that_names_them() -> None:
    async def scene(one: Channel, two: Channel, got: list[Any], lost: list[str]) -> None:
        reader, writer = os.pipe()
        one.send({"do": "nothing"})
        one.send({"roles": ["a"]}, [writer])
        one.send({"do": "x" * 500_000})
        one.send({"roles": ["b"]}, [writer])
        os.close(writer)
        await until(lambda: len(got) == 4)
        assert [len(descriptors) for _, descriptors in got] == [0, 1, 0, 1]
        os.write(got[3][1][0], b"hi")
        assert os.read(reader, 2) == b"hi"
        for descriptor in (reader, *got[1][1], *got[3][1]):
            os.close(descriptor)

    channels(scene)


def test_a_message_that_names_more_than_came_ends_the_channel() -> None:
    async def scene(one: Channel, two: Channel, got: list[Any], lost: list[str]) -> None:
        one.send({"roles": ["a"]})
        await until(lambda: len(lost) == 2)
        assert got == []

    channels(scene)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_channel(raw: bytes) -> None:
    async def scene(one: Channel, two: Channel, got: list[Any], lost: list[str]) -> None:
        one._socket.send(raw or b"\0")
        one.close()
        await until(lambda: "two" in lost)
        assert all(isinstance(message, dict) for message, _ in got)

    channels(scene)


# -- what is configured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "parsed"),
    [
        ("203.0.113.1", ("203.0.113.1", None)),
        ("203.0.113.1:8443", ("203.0.113.1", 8443)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
        ("[2001:db8::1]:8443", ("2001:db8::1", 8443)),
    ],
)
def test_static_names(target: str, parsed: tuple[str, int | None]) -> None:
    assert static_names({"a.test": target}) == {"a.test": parsed}


@pytest.mark.parametrize("wire", [{"x": 1}, {"fields": 0}, {"fields": -1}, {"fields": True}, {"fields": "9"}])
def test_limits_that_are_none(wire: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="limit"):
        Limits.from_wire(wire)


def test_limits_that_are_set() -> None:
    limits = Limits.from_wire(json.loads('{"connections": 10, "head_time": 2}'))
    assert (limits.connections, limits.head_time, limits.fields) == (10, 2.0, 200)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0
