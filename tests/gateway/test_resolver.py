"""The name server on real sockets: both transports and families, bounds, answers from where they were asked."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import dns.message
import dns.rcode
import pytest
import uvloop

from ringfence.gateway import resolver
from ringfence.gateway.core.dns import QUERY_LIMIT
from ringfence.gateway.names import SyntheticNames
from ringfence.gateway.resolver import CONNECTIONS, QUESTIONS, serve_dns

FIXED = {"host.docker.internal": ("10.255.255.3", "fd72:696e:6766::3")}

Loop = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Loop:
    return request.param  # type: ignore[no-any-return]


class Server:
    def __init__(self) -> None:
        self.names = SyntheticNames("198.18.0.0/15", "fd72:696e:6766:5359::/64")
        self.asked: list[str] = []
        self.sockets = {
            "dns-udp4": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "dns-udp6": socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
            "dns-tcp4": socket.socket(socket.AF_INET, socket.SOCK_STREAM),
            "dns-tcp6": socket.socket(socket.AF_INET6, socket.SOCK_STREAM),
        }
        for role, sock in self.sockets.items():
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::" if sock.family == socket.AF_INET6 else "0.0.0.0", 0))
            if role.startswith("dns-tcp"):
                sock.listen(128)

    def place(self, role: str, host: str = "") -> tuple[str, int]:
        sock = self.sockets[role]
        return host or ("::1" if role.endswith("6") else "127.0.0.1"), sock.getsockname()[1]

    async def udp(self, role: str, wire: bytes, host: str = "") -> bytes:
        """Ask by a connected socket: an answer from any other address than the one asked never arrives."""
        loop = asyncio.get_running_loop()
        with socket.socket(self.sockets[role].family, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(self.place(role, host))
            client.send(wire)
            return await asyncio.wait_for(loop.sock_recv(client, 4_096), 10)

    async def connect(self, role: str = "dns-tcp4") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.place(role))


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    close = serve_dns(asyncio.get_running_loop(), server.sockets, server.names, FIXED, server.asked.append)
    try:
        yield server
    finally:
        close()
        for sock in server.sockets.values():
            sock.close()


def framed(wire: bytes) -> bytes:
    return len(wire).to_bytes(2, "big") + wire


async def framed_answer(reader: asyncio.StreamReader) -> dns.message.Message:
    size = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), 10), "big")
    return dns.message.from_wire(await asyncio.wait_for(reader.readexactly(size), 10))


async def ended(reader: asyncio.StreamReader) -> bytes:
    rest = b""
    with suppress(ConnectionError):
        while more := await asyncio.wait_for(reader.read(65_536), 10):
            rest += more
    return rest


# -- datagrams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["dns-udp4", "dns-udp6"])
@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_a_datagram_is_answered(run: Loop, role: str, kind: str) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            query = dns.message.make_query("Example.com", kind)
            answer = dns.message.from_wire(await server.udp(role, query.to_wire()))
            assert query.is_response(answer)
            address = next(iter(answer.answer[0])).to_text()
            assert server.names.name(address) == "example.com"
            assert server.asked == ["example.com"]

    run(dialogue())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.8.8.8"])
def test_an_answer_comes_from_the_address_that_was_asked(run: Loop, host: str) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            wire = dns.message.make_query("a.test", "A").to_wire()
            assert await server.udp("dns-udp4", wire, host)

    run(dialogue())


def test_noise_is_survived_and_the_next_question_answered(run: Loop) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noisy:
                for noise in (b"", b"x", b"\xff" * 600, bytes(QUERY_LIMIT + 1), bytes(9_000)):
                    noisy.sendto(noise, server.place("dns-udp4"))
            # A client that is gone when its answer comes: the kernel reports its refusal on our socket.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
                gone.sendto(dns.message.make_query("gone.test", "A").to_wire(), server.place("dns-udp4"))
            wire = dns.message.make_query("a.test", "A").to_wire()
            assert await server.udp("dns-udp4", wire)
            assert server.asked[-1] == "a.test"

    run(dialogue())


def test_a_flood_is_answered_in_batches(run: Loop) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.setblocking(False)
                client.connect(server.place("dns-udp4"))
                for n in range(100):
                    client.send(dns.message.make_query(f"n{n}.test", "A").to_wire())
                seen = set()
                for _ in range(100):
                    reply = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 512), 10)
                    seen.add(dns.message.from_wire(reply).question[0].name.to_text())
            assert len(seen) == 100

    run(dialogue())


# -- connections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["dns-tcp4", "dns-tcp6"])
def test_a_connection_carries_many_questions(run: Loop, role: str) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            reader, writer = await server.connect(role)
            queries = [dns.message.make_query(f"n{n}.test", "AAAA") for n in range(20)]
            writer.write(b"".join(framed(query.to_wire()) for query in queries))
            for query in queries:
                assert query.is_response(await framed_answer(reader))
            writer.close()
            assert len(server.asked) == 20

    run(dialogue())


def test_a_question_in_single_bytes_is_answered(run: Loop) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            reader, writer = await server.connect()
            query = dns.message.make_query("a.test", "A")
            for byte in framed(query.to_wire()):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            assert query.is_response(await framed_answer(reader))
            writer.close()

    run(dialogue())


ENDINGS = {
    "a length beyond all questions": (QUERY_LIMIT + 1).to_bytes(2, "big"),
    "an answer": framed(b"\0\1\x81\x80\0\1\0\0\0\0\0\0"),
    "no message": b"\0\0",
}


@pytest.mark.parametrize("sent", ENDINGS.values(), ids=ENDINGS.keys())
def test_what_is_no_question_ends_the_connection(run: Loop, sent: bytes) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            reader, writer = await server.connect()
            writer.write(sent)
            assert await ended(reader) == b""
            writer.close()

    run(dialogue())


def test_a_connection_that_asks_without_end_is_ended(run: Loop) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            reader, writer = await server.connect()
            wire = framed(dns.message.make_query("a.test", "A").to_wire())

            async def insist() -> None:
                with suppress(ConnectionError):
                    for _ in range(QUESTIONS + 100):
                        writer.write(wire)
                        await writer.drain()

            _, rest = await asyncio.gather(insist(), ended(reader))
            assert len(server.asked) <= QUESTIONS + 1
            assert len(rest) < (QUESTIONS + 1) * 100
            writer.close()

    run(dialogue())


def test_one_connection_too_many_is_closed_and_the_others_live(run: Loop) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            pairs = [await server.connect() for _ in range(CONNECTIONS)]
            wire = framed(dns.message.make_query("a.test", "A").to_wire())
            for reader, writer in pairs:
                writer.write(wire)
                await framed_answer(reader)
            reader, writer = await server.connect()
            assert await ended(reader) == b""
            writer.close()
            pairs[0][1].write(wire)
            await framed_answer(pairs[0][0])
            pairs[0][1].close()
            await pairs[0][1].wait_closed()

            async def served() -> bool:
                fresh_reader, fresh_writer = await server.connect()
                fresh_writer.write(wire)
                with suppress(ConnectionError, asyncio.IncompleteReadError):
                    await framed_answer(fresh_reader)
                    return True
                return False

            for _ in range(1_000):  # until ours has heard of the end of that connection
                if await served():
                    break
            else:
                pytest.fail("the place of a connection that ended is not given again")
            for _, each in pairs[1:]:
                each.close()

    run(dialogue())


def test_a_silent_connection_is_ended(run: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "LIFETIME", 0.05)

    async def dialogue() -> None:
        async with serving() as server:
            reader, writer = await server.connect()
            writer.write(b"\0")
            assert await ended(reader) == b""
            writer.close()

    run(dialogue())


def test_a_client_that_does_not_read_is_cut(run: Loop) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, server.place("dns-tcp4"))
            wire = framed(dns.message.make_query("a" * 60 + ".test", "AAAA").to_wire()) * 100
            with suppress(ConnectionError):
                while True:
                    await asyncio.wait_for(loop.sock_sendall(client, wire), 10)
            client.close()
            assert server.asked

    run(dialogue())


# -- the whole -----------------------------------------------------------------------------------------------


def test_after_the_end_nobody_answers_and_the_sockets_are_the_callers(run: Loop) -> None:
    async def dialogue() -> None:
        loop = asyncio.get_running_loop()
        server = Server()
        close = serve_dns(loop, server.sockets, server.names, FIXED, server.asked.append)
        reader, writer = await server.connect()
        writer.write(framed(dns.message.make_query("a.test", "A").to_wire()))
        await framed_answer(reader)
        close()
        assert await ended(reader) == b""
        writer.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(dns.message.make_query("b.test", "A").to_wire(), server.place("dns-udp4"))
        # A socket that is still open is readable by whoever owns it.
        server.sockets["dns-udp4"].setblocking(False)
        assert await asyncio.wait_for(loop.sock_recv(server.sockets["dns-udp4"], 512), 10)
        assert server.asked == ["a.test"]
        for sock in server.sockets.values():
            sock.close()

    run(dialogue())


def test_an_unknown_role_is_refused() -> None:
    async def dialogue() -> None:
        async with serving() as server:
            sock = server.sockets["dns-udp4"]
            with pytest.raises(ValueError, match="`dns-quic` is not a role"):
                serve_dns(asyncio.get_running_loop(), {"dns-quic": sock}, server.names, FIXED, print)

    asyncio.run(dialogue())


def test_a_name_that_cannot_be_given_an_address_is_a_failure_of_the_server(run: Loop) -> None:
    async def dialogue() -> None:
        async with serving() as server:
            server.names = SyntheticNames("198.18.0.0/15", "fd00::/64", capacity=1)
            close = serve_dns(
                asyncio.get_running_loop(),
                {"dns-udp4": server.sockets["dns-udp4"]}, server.names, FIXED, server.asked.append,
            )  # fmt: skip
            server.names.hold(server.names.address("held.test", 4))
            wire = dns.message.make_query("a.test", "A").to_wire()
            answer = dns.message.from_wire(await server.udp("dns-udp4", wire))
            assert answer.rcode() == dns.rcode.SERVFAIL
            close()

    run(dialogue())


# -- a real namespace ----------------------------------------------------------------------------------------

INSIDE = textwrap.dedent("""
    import asyncio, os, socket, subprocess, sys, textwrap
    import dns.message
    from ringfence.gateway.names import SyntheticNames
    from ringfence.gateway.resolver import serve_dns

    def do(*command, text=None):
        subprocess.run(command, check=True, input=text, text=True, timeout=20)

    do("ip", "link", "set", "lo", "up")
    do("ip", "link", "add", "gw0", "type", "veth", "peer", "name", "eth0")
    keeper = subprocess.Popen(["unshare", "-n", "sleep", "60"])
    inside = ["nsenter", f"--net=/proc/{keeper.pid}/ns/net", "--"]
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{keeper.pid}/ns/net") == own:
        pass
    do("ip", "link", "set", "eth0", "netns", str(keeper.pid))
    for address in ("10.255.255.1/29", "10.255.255.3/29"):
        do("ip", "addr", "add", address, "dev", "gw0")
    for address in ("fd72:696e:6766::1/64", "fd72:696e:6766::3/64"):
        do("ip", "addr", "add", address, "dev", "gw0", "nodad")
    do("ip", "link", "set", "gw0", "up")
    do(*inside, "ip", "link", "set", "lo", "up")
    do(*inside, "ip", "addr", "add", "10.255.255.2/29", "dev", "eth0")
    do(*inside, "ip", "addr", "add", "fd72:696e:6766::2/64", "dev", "eth0", "nodad")
    do(*inside, "ip", "link", "set", "eth0", "up")
    do(*inside, "ip", "route", "add", "default", "via", "10.255.255.1")
    do(*inside, "ip", "-6", "route", "add", "default", "via", "fd72:696e:6766::1")
    do("nft", "-f", "-", text='''
        table inet t {
          chain c {
            type nat hook prerouting priority dstnat;
            meta l4proto { tcp, udp } th dport 53 redirect to :3153
          }
        }
    ''')

    CLIENT = '''
    import socket, sys
    import dns.message, dns.query
    for server in ("8.8.8.8", "10.255.255.1", "10.255.255.3", "2001:4860:4860::8888", "fd72:696e:6766::3"):
        for ask in (dns.query.udp, dns.query.tcp):
            for kind in ("A", "AAAA"):
                query = dns.message.make_query("a.test", kind)
                # dnspython raises for an answer that comes from anybody but the server that was asked
                answer = ask(query, server, timeout=10, ignore_unexpected=False) if ask is dns.query.udp \\
                    else ask(query, server, timeout=10)
                print(server, ask.__name__, kind, next(iter(answer.answer[0])).to_text())
    '''

    async def main():
        sockets = {}
        for role, family, kind in (
            ("dns-udp4", socket.AF_INET, socket.SOCK_DGRAM),
            ("dns-udp6", socket.AF_INET6, socket.SOCK_DGRAM),
            ("dns-tcp4", socket.AF_INET, socket.SOCK_STREAM),
            ("dns-tcp6", socket.AF_INET6, socket.SOCK_STREAM),
        ):
            sock = socket.socket(family, kind)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 3153))
            if kind == socket.SOCK_STREAM:
                sock.listen(8)
            sockets[role] = sock
        names = SyntheticNames("198.18.0.0/15", "fd72:696e:6766:5359::/64")
        close = serve_dns(asyncio.get_running_loop(), sockets, names, {}, lambda name: None)
        client = await asyncio.create_subprocess_exec(*inside, sys.executable, "-c", textwrap.dedent(CLIENT))
        code = await asyncio.wait_for(client.wait(), 60)
        close()
        return code

    try:
        sys.exit(asyncio.run(main()))
    finally:
        keeper.kill()
        keeper.wait()
""")


@pytest.mark.live
def test_whichever_server_is_asked_in_a_namespace_we_answer_as_that_server() -> None:
    """Redirected by nftables as in an enclosure, wildcard sockets on interfaces with several addresses."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "nft") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing")
    if subprocess.run(["unshare", "-rnm", "true"], capture_output=True, timeout=20).returncode:
        pytest.skip("namespaces cannot be made here")
    ran = subprocess.run(
        ["unshare", "-rnm", sys.executable, "-c", INSIDE],
        capture_output=True, text=True, timeout=110,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert len(lines) == 20
    for _, _, kind, address in lines:
        assert address == {"A": "198.18.0.1", "AAAA": "fd72:696e:6766:5359::1"}[kind]


def test_the_source_of_an_answer_is_told_to_the_kernel_in_its_own_form() -> None:
    told = struct.pack("=I4s4s", 7, socket.inet_aton("10.0.0.1"), socket.inet_aton("8.8.8.8"))
    interface, source, _ = struct.unpack("=I4s4s", resolver._source4(told))
    assert (interface, socket.inet_ntoa(source)) == (0, "10.0.0.1")
