"""Behind an upstream proxy: a real one of each kind on loopback, the bytes that it sees, and what it cannot change.

The stage's origins have public-looking addresses; so have the proxies, because an administrator's proxy may stand
anywhere. A proxy of the stage connects to whichever origin it is asked for, by name or by address.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Mapping
from typing import Any

import pytest
from gateway_stage import CLIENT4, Behaviour, Origin, Stage, echo, origin_context, origin_roots, play, rule

from ringfence.gateway.core.chain import Chain, parse_proxy
from ringfence.gateway.proxies import Proxies

ALLOW = rule("allow", "**.test")
TARGET = "203.0.113.1"
"""The address of the stage's first origin."""
BASIC = base64.b64encode(b"ada:s3cret@canary").decode()
WHO = "ada:s3cret%40canary@"
CANARY = "s3cret"


class Parent:
    """An upstream proxy. ``heard`` is what it was told, one entry for each question."""

    def __init__(self, stage: Stage, *, answers: Mapping[str, bytes | None] | None = None) -> None:
        self.stage = stage
        self.answers = answers or {}
        self.heard: list[str] = []
        self.connections = 0

    def find(self, host: str, port: int) -> Origin:
        addresses = (host, *self.stage.addresses.get(host, ()))
        return next(
            self.stage.origins[(each, port)] for each in addresses if (each, port) in self.stage.origins
        )

    async def pipe(self, origin: Origin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(CLIENT4, origin.port)
        both = [asyncio.create_task(_copy(reader, ours)), asyncio.create_task(_copy(theirs, writer))]
        try:
            await asyncio.wait(both)
        finally:
            for copying in both:
                copying.cancel()
            ours.close()

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heard.append(head)
            method, target, _ = head.split(" ", 2)
            answer = self.answers.get(target, b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
            if answer is None:
                await reader.read()
            if answer is None or not answer.startswith(b"HTTP/1.1 200"):
                writer.write(answer or b"")
                await writer.drain()
                return None
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                origin = self.find(host, int(port))
                writer.write(answer)
                return await self.pipe(origin, reader, writer)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nplain\n")

    async def socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        _, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        if 2 in methods:
            writer.write(b"\x05\x02")
            _, size = await reader.readexactly(2)
            user = await reader.readexactly(size)
            password = await reader.readexactly((await reader.readexactly(1))[0])
            self.heard.append(f"{user.decode()}:{password.decode()}")
            writer.write(b"\x01\x00")
        else:
            writer.write(b"\x05\x00")
        *_, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = ".".join(map(str, await reader.readexactly(4)))
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.heard.append(f"{host}:{port}")
        answer = self.answers.get(f"{host}:{port}", b"\x05\x00\x00\x01" + bytes(6))
        writer.write(answer or b"")
        if answer and answer[1] == 0 and len(answer) == 10:
            await self.pipe(self.find(host, port), reader, writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()


async def behind(
    stage: Stage,
    url: str,
    *,
    answers: Mapping[str, bytes | None] | None = None,
    **more: Any,
) -> Parent:
    """Put a proxy on the stage, and its sandbox behind it. The stage's origins come first."""
    proxy = parse_proxy(url)
    parent = Parent(stage, answers=answers)
    tls: bool | ssl.SSLContext = origin_context("proxy.test") if proxy.scheme == "https" else False
    behaviour: Behaviour = parent.http if proxy.speaks_http else parent.socks
    await stage.origin("proxy.test", behaviour, port=proxy.port, tls=tls, address="10.9.9.9")
    chain = Chain(plain=proxy, tunnels=proxy, **more)
    stage.services.proxies = Proxies(stage.services.loop, stage.dialer, chain, origin_roots())
    return parent


# -- what the proxy sees -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_tls_goes_by_connect_to_the_address_that_was_judged(scheme: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        origin = await stage.origin("a.test", echo(b"hello\n"))
        parent = await behind(stage, f"{scheme}://{WHO}proxy.test:3128")
        client = await stage.secure("a.test")
        for _ in range(2):
            assert await client.get("/x", "a.test") == (200, {"content-length": "6"}, b"hello\n")
        assert parent.heard == [
            f"CONNECT {TARGET}:443 HTTP/1.1\r\nHost: {TARGET}:443\r\nProxy-Authorization: Basic {BASIC}\r\n\r\n"
        ]
        assert origin.connections == 1
        records = await stage.settle(4)
        assert {record["dialled"] for record in records} == {TARGET}
        assert CANARY not in repr(records)
        assert BASIC not in repr(records)

    play(scene)


def test_the_certificate_must_prove_the_name_and_no_proxy_can_change_that() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        origin = await stage.origin("a.test", echo(), tls=origin_context("b.test"))
        await behind(stage, "http://proxy.test:3128")
        client = await stage.secure("a.test")
        status, _, body = await client.get("/", "a.test")
        assert status == 502
        assert b"certificate verification failed" in body
        assert origin.seen == []

    play(scene)


@pytest.mark.parametrize(
    ("url", "more"), [("http", {"remote": True}), ("socks5", {"remote": True}), ("socks5h", {})]
)
def test_a_proxy_that_resolves_is_given_the_name(url: str, more: dict[str, Any]) -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", echo(b"hello\n"))
        parent = await behind(stage, f"{url}://proxy.test:3128", **more)
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[2] == b"hello\n"
        assert parent.heard == (
            ["CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"] if url == "http" else ["a.test:443"]
        )
        assert "a.test" in stage.dialer.asked, "it is resolved here all the same"
        assert (await stage.settle(1))[0]["dialled"] == TARGET

    play(scene)


def test_socks_goes_by_address_and_says_who_asks() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", echo(b"hello\n"))
        await stage.origin("a.test", echo(b"plain\n"), port=80, tls=False, address=TARGET)
        parent = await behind(stage, f"socks5://{WHO}proxy.test:1080")
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[2] == b"hello\n"
        client = await stage.reach("a.test", 80)
        assert (await client.get("/", "a.test"))[2] == b"plain\n"
        assert parent.heard == ["ada:s3cret@canary", f"{TARGET}:443", "ada:s3cret@canary", f"{TARGET}:80"]

    play(scene)


def test_plain_http_is_sent_on_with_its_whole_url() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        origin = await stage.origin("a.test", echo(), port=80, tls=False)
        parent = await behind(stage, f"http://{WHO}proxy.test:3128")
        client = await stage.dial()
        for target in ("http://a.test/x?y=1", "http://a.test/"):
            assert (await client.get(target, "a.test", Proxy_Authorization="theirs"))[2] == b"plain\n"
        client = await stage.reach("a.test", 8080)
        assert (await client.get("/", "a.test:8080", "OPTIONS"))[2] == b"plain\n"
        credentials = f"Proxy-Authorization: Basic {BASIC}\r\n"
        assert parent.heard == [
            f"GET http://a.test/x?y=1 HTTP/1.1\r\n{credentials}Host: a.test\r\n\r\n",
            f"GET http://a.test/ HTTP/1.1\r\n{credentials}Host: a.test\r\n\r\n",
            f"OPTIONS http://a.test:8080/ HTTP/1.1\r\n{credentials}Host: a.test:8080\r\n\r\n",
        ]
        assert (parent.connections, origin.connections) == (2, 0), (
            "connections to a proxy are pooled by destination"
        )
        assert [record["status"] for record in await stage.settle(3, step="closed")] == [200] * 3

    play(scene)


def test_other_protocols_are_tunnelled_and_a_server_may_speak_first() -> None:
    async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-origin\r\n")
        writer.write(b"<" + await reader.readline() + b">")
        await writer.drain()

    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", greets, port=22, tls=False)
        parent = await behind(stage, "http://proxy.test:3128")
        client = await stage.reach("a.test", 22)
        assert await client.until(b"\n") == b"SSH-2.0-origin\r\n"
        client.send(b"SSH-2.0-client\r\n")
        assert await client.end() == b"<SSH-2.0-client\r\n>"
        assert parent.heard == [f"CONNECT {TARGET}:22 HTTP/1.1\r\nHost: {TARGET}:22\r\n\r\n"]
        client.close()
        assert (await stage.settle(2))[1]["bytes_in"] == 16 + 18

    play(scene)


def test_what_comes_with_the_answer_is_the_destinations() -> None:
    """The server's first words in the same segment as the proxy's answer."""

    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", echo(), port=22, tls=False)

        async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-origin\r\n")
            writer.write(b"<" + await reader.readline() + b">")
            await writer.drain()

        await stage.origin("proxy.test", at_once, port=3128, tls=False, address="10.9.9.9")
        chain = Chain(tunnels=parse_proxy("http://proxy.test:3128"))
        stage.services.proxies = Proxies(stage.services.loop, stage.dialer, chain)
        client = await stage.reach("a.test", 22)
        assert await client.until(b"\n") == b"SSH-2.0-origin\r\n"
        client.send(b"hello\n")
        assert await client.end() == b"<hello\n>"

    play(scene)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_bulk_passes_whole_also_where_the_kernel_cannot_move_it(scheme: str) -> None:
    size = 3_000_000

    async def bulk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(size)
        writer.write(bytes(size))
        await writer.drain()

    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", bulk, port=9, tls=False)
        await behind(stage, f"{scheme}://proxy.test:3128")
        client = await stage.reach("a.test", 9)
        client.send(b"\x00" * size)
        assert len(await client.exactly(size)) == size
        client.close()
        closed = (await stage.settle(2))[1]
        assert (closed["bytes_out"], closed["bytes_in"]) == (size, size)

    play(scene, splice_bytes=100_000)


# -- who goes past it ----------------------------------------------------------------------------------------


def test_exempt_names_and_the_hosts_loopback_are_dialled_directly() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW, rule("allow", "localhost:8080"))
        await stage.origin("a.test", echo(b"straight\n"))
        await stage.origin("localhost", echo(b"loopback\n"), port=8080, tls=False, address="127.0.0.1")
        parent = await behind(stage, "http://proxy.test:3128", exemptions=("a.test",))
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[2] == b"straight\n"
        client = await stage.reach(stage.guest.addresses.host4, 8080)
        assert (await client.get("/", "host.docker.internal:8080"))[2] == b"loopback\n"
        assert parent.connections == 0

    play(scene)


def test_each_kind_of_traffic_has_its_own_proxy_or_none() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", echo(b"straight\n"))
        parent = await behind(stage, "http://proxy.test:3128")
        chain = Chain(plain=parse_proxy("http://proxy.test:3128"))
        stage.services.proxies = Proxies(stage.services.loop, stage.dialer, chain)
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[2] == b"straight\n"
        client = await stage.reach("a.test", 80)
        assert (await client.get("/", "a.test"))[2] == b"plain\n"
        assert len(parent.heard) == 1

    play(scene)


# -- policy is the same --------------------------------------------------------------------------------------


def test_a_blocked_name_causes_no_question_and_no_connection() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(rule("allow", "a.test"))
        parent = await behind(stage, "http://proxy.test:3128", remote=True)
        client = await stage.secure("b.test")
        assert (await client.get("/", "b.test"))[0] == 403
        client = await stage.reach("b.test", 22)
        client.send(b"SSH-2.0-client\r\n")
        assert await client.end() == b"<reset>"
        assert (parent.connections, stage.dialer.asked) == (0, [])

    play(scene)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("address", "reason"),
    [("169.254.169.254", "cloud metadata"), ("10.0.0.5", "private address"), ("198.51.100.7", "denied by")],
)
def test_guards_and_address_denies_stand_before_the_proxy(remote: bool, address: str, reason: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW, rule("deny", "198.51.100.0/24"))
        stage.addresses["bad.test"] = [address]
        parent = await behind(stage, "http://proxy.test:3128", remote=remote)
        for client, secure in ((await stage.secure("bad.test"), True), (await stage.dial(), False)):
            status, _, body = await client.get("/" if secure else "http://bad.test/", "bad.test")
            assert (status, reason in body.decode() or "rule" in body.decode()) == (403, True), body
        assert parent.connections == 0

    play(scene)


def test_where_the_proxy_picks_the_address_all_of_them_must_pass() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", echo(b"hello\n"))
        stage.addresses["a.test"].append("169.254.169.254")
        parent = await behind(stage, "http://proxy.test:3128", remote=True)
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[0] == 403
        assert parent.connections == 0
        # The positive control: where we pick it, the good one is asked for.
        chain = Chain(tunnels=parse_proxy("http://proxy.test:3128"))
        stage.services.proxies = Proxies(stage.services.loop, stage.dialer, chain)
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[2] == b"hello\n"

    play(scene)


def test_a_name_that_cannot_be_resolved_here_is_not_asked_for_there() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        parent = await behind(stage, "socks5h://proxy.test:1080")
        client = await stage.secure("nowhere.test")
        status, _, body = await client.get("/", "nowhere.test")
        assert (status, parent.connections) == (502, 0)
        assert b"`nowhere.test` has no address" in body

    play(scene)


@pytest.mark.parametrize("exemptions", [(), ("*",)])
@pytest.mark.parametrize("host", ["proxy.test", "10.9.9.9", "alias.test", "64:ff9b::a09:909"])
def test_no_sandbox_reaches_the_proxy_itself(host: str, exemptions: tuple[str, ...]) -> None:
    """Whatever is sent there must be ours: a CONNECT of the sandbox's own would pass no policy."""

    async def scene(stage: Stage) -> None:
        stage.bind(rule("allow", "**"), rule("allow", "10.0.0.0/8"), rule("allow", "64:ff9b::/96"))
        parent = await behind(stage, "http://proxy.test:3128", exemptions=exemptions)
        stage.addresses["alias.test"] = ["10.9.9.9"]
        client = await stage.reach(host, 3128)
        shown = f"[{host}]" if ":" in host else host
        status, _, body = await client.get("/", f"{shown}:3128")
        assert (status, b"the upstream proxy itself is not a destination" in body) == (403, True)
        assert parent.connections == 0
        (record,) = await stage.settle(1)
        assert (record["verdict"], record["reason"]) == ("blocked", "guard")
        # The positive control: another port of the same address is a destination like others.
        await stage.origin("other.test", echo(b"hello\n"), port=80, tls=False, address="10.9.9.9")
        if exemptions:
            client = await stage.reach("other.test", 80)
            assert (await client.get("/", "other.test"))[2] == b"hello\n"

    play(scene)


# -- what goes wrong -----------------------------------------------------------------------------------------

CONNECT = f"{TARGET}:443"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "wants other credentials: 407 Proxy Authentication",
        ),
        (b"HTTP/1.1 403 No\x1b[31m way\r\n\r\n", "refused the connection: 403 No[31m way"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "refused the connection: 502 Bad Gateway"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "refused the connection: 100 Continue"),
        (b"SSH-2.0-not-a-proxy\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200\r\nX: " + b"y" * 20_000, "answered with a head that is too long"),
        (b"HTTP/1.1 20", "closed the connection"),
        (b"", "closed the connection"),
        (None, "did not answer within 0.5 s"),
    ],
)
def test_a_proxy_that_does_not_do_it_is_a_502_that_names_it(answer: bytes | None, text: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        origin = await stage.origin("a.test", echo())
        await behind(stage, f"http://{WHO}proxy.test:3128", answers={CONNECT: answer})
        client = await stage.secure("a.test")
        status, _, body = await client.get("/", "a.test")
        assert status == 502
        assert f"the upstream proxy http://proxy.test:3128 {text}" in body.decode()
        records = await stage.settle(2)
        assert text in records[1]["text"]
        assert records[1]["ended"] == "upstream"
        assert CANARY not in repr(records) + body.decode()
        assert origin.connections == 0

    play(scene, dial_time=0.5)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"\x05\x02\x00\x01" + bytes(6), "refused the connection: its rules do not allow it"),
        (b"\x05\x63\x00\x01" + bytes(6), "refused the connection: reply 99"),
        (b"\x04\x00\x00\x01" + bytes(6), "does not speak SOCKS5"),
        (b"\x05\x00\x00\x07" + bytes(6), "does not speak SOCKS5"),
        (b"\x05\x00\x00", "closed the connection"),
    ],
)
def test_so_is_a_socks_proxy(answer: bytes, text: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", echo())
        await behind(stage, f"socks5://{WHO}proxy.test:1080", answers={CONNECT: answer})
        client = await stage.secure("a.test")
        status, _, body = await client.get("/", "a.test")
        assert (status, f"the upstream proxy socks5://proxy.test:1080 {text}" in body.decode()) == (502, True)

    play(scene)


def test_plain_http_that_the_proxy_wants_paid_for_is_a_502() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        stage.addresses["a.test"] = [TARGET]
        refused = b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
        await behind(stage, "http://proxy.test:3128", answers={"http://a.test/": refused})
        client = await stage.dial()
        status, fields, body = await client.get("http://a.test/", "a.test")
        assert (status, "proxy-authenticate" in fields) == (502, False)
        assert b"the upstream proxy http://proxy.test:3128 wants credentials: 407" in body

    play(scene)


def test_a_proxy_whose_certificate_is_not_its_own_is_told_nothing() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", echo())
        parent = await behind(stage, "https://proxy.test:3128")
        chain = Chain(tunnels=parse_proxy(f"https://{WHO}alias.test:3128"))
        stage.addresses["alias.test"] = ["10.9.9.9"]
        stage.services.proxies = Proxies(stage.services.loop, stage.dialer, chain, origin_roots())
        client = await stage.secure("a.test")
        status, _, body = await client.get("/", "a.test")
        assert (status, parent.heard) == (502, [])
        assert b"https://alias.test:3128 cannot be reached: certificate verification failed" in body

    play(scene)


def test_a_proxy_that_is_not_there_is_a_502() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        await stage.origin("a.test", echo())
        for host in ("proxy.test", "nowhere.test"):
            stage.addresses["proxy.test"] = ["10.9.9.9"]
            chain = Chain(tunnels=parse_proxy(f"http://{host}:1"))
            stage.services.proxies = Proxies(stage.services.loop, stage.dialer, chain)
            client = await stage.secure("a.test")
            status, _, body = await client.get("/", "a.test")
            assert (status, f"the upstream proxy http://{host}:1 cannot be reached" in body.decode()) == (
                502,
                True,
            )

    play(scene)


@pytest.mark.parametrize(
    ("url", "failure"),
    [("http", b"HTTP/1.1 503 No Route\r\n\r\n"), ("socks5", b"\x05\x03\x00\x01" + bytes(6))],
)
def test_an_address_that_the_proxy_does_not_reach_is_followed_by_the_next(url: str, failure: bytes) -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(ALLOW)
        stage.addresses["a.test"] = ["203.0.113.77"]
        await stage.origin("a.test", echo(b"hello\n"), address=TARGET)
        parent = await behind(stage, f"{url}://proxy.test:3128", answers={"203.0.113.77:443": failure})
        client = await stage.secure("a.test")
        assert (await client.get("/", "a.test"))[2] == b"hello\n"
        assert [said.removeprefix("CONNECT ").split(" ")[0] for said in parent.heard] == [
            "203.0.113.77:443",
            f"{TARGET}:443",
        ]
        assert (await stage.settle(1))[0]["dialled"] == TARGET

    play(scene)
