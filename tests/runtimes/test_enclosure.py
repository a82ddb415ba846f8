"""An enclosure has one way out, and it is the gateway: each claim tried by a plain program inside."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from outlet import SYNTHETIC4, SYNTHETIC6, Outlet
from runtime_needs import needs_namespaces

from ringfence.application.errors import InvalidInput
from ringfence.application.ports import Addresses, Attachment
from ringfence.runtimes import canary, firewall, kernel, netns
from ringfence.runtimes.enclosure import Enclosures

pytestmark = [pytest.mark.live, needs_namespaces]

A = Addresses()
ROLES = {
    *(f"{role}{family}" for role in ("proxy", "transparent", "dns-udp", "dns-tcp") for family in "46"),
    *(f"{role}{family}" for role in ("udp", "reply", "icmp") for family in "46"),
    "packets",
    "packets-udp",
}


@asynccontextmanager
async def enclosure(path: Path, sandbox: str = "one") -> AsyncIterator[tuple[Enclosures, Attachment]]:
    enclosures = Enclosures(path)
    attachment = await enclosures.open(sandbox)
    try:
        yield enclosures, attachment
    finally:
        await enclosures.close(sandbox)


async def inside(attachment: Attachment, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the sandbox's namespace."""

    def run() -> subprocess.CompletedProcess[str]:
        kernel.join_path(attachment.netns, kernel.CLONE_NEWNET)
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    return await kernel.apart(run)


async def attempt(attachment: Attachment, source: str) -> str:
    """Run Python inside; what it prints, or the error it ends with."""
    done = await inside(attachment, sys.executable, "-I", "-S", "-c", f"import socket, struct\n{source}")
    return done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]


def scenario(path: Path, play: Callable[[Attachment, Outlet], Coroutine[Any, Any, None]]) -> None:
    async def go() -> None:
        async with enclosure(path) as (_, attachment), Outlet(attachment) as outlet:
            await play(attachment, outlet)

    asyncio.run(go())


def test_it_has_every_listener_and_each_is_in_the_gate(tmp_path: Path) -> None:
    async def play(attachment: Attachment, outlet: Outlet) -> None:
        assert set(attachment.listeners) == ROLES
        assert attachment.listeners["proxy4"].getsockname() == (A.gateway4, 3128)
        assert attachment.listeners["proxy6"].getsockname()[:2] == (A.gateway6, 3128)
        assert all(not sock.getblocking() for sock in attachment.listeners.values())

    scenario(tmp_path, play)


@pytest.mark.parametrize(
    ("host", "port", "listener"),
    [
        (A.gateway4, 3128, "proxy4"),
        (A.gateway6, 3128, "proxy6"),
        ("203.0.113.9", 443, "transparent4"),
        ("203.0.113.9", 3128, "transparent4"),
        ("8.8.8.8", 853, "transparent4"),
        ("169.254.169.254", 80, "transparent4"),
        (SYNTHETIC4, 22, "transparent4"),
        (A.host4, 11434, "transparent4"),
        (A.gateway4, 22, "transparent4"),
        (A.gateway4, firewall.TRANSPARENT_PORT, "transparent4"),
        (A.gateway4, firewall.DNS_PORT, "transparent4"),
        ("2001:db8::9", 443, "transparent6"),
        (SYNTHETIC6, 1, "transparent6"),
        (A.host6, 11434, "transparent6"),
        (A.gateway6, 65535, "transparent6"),
    ],
)
def test_every_connection_reaches_the_gateway_with_its_destination(
    tmp_path: Path, host: str, port: int, listener: str
) -> None:
    async def play(attachment: Attachment, outlet: Outlet) -> None:
        answer = await attempt(
            attachment,
            f"s = socket.create_connection(({host!r}, {port}), 5)\ns.sendall(b'GET')\nprint(s.recv(12))",
        )
        assert answer == "b'HTTP/1.1 403'"
        assert outlet.connections == [(listener, host, port)]

    scenario(tmp_path, play)


@pytest.mark.parametrize(
    "server", ["8.8.8.8", A.gateway4, A.sandbox4[:-1] + "5", "2001:4860:4860::8888", A.gateway6]
)
def test_a_question_to_any_server_is_answered_by_ours_in_its_name(tmp_path: Path, server: str) -> None:
    family = "AF_INET6" if ":" in server else "AF_INET"
    question = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1"

    async def play(attachment: Attachment, outlet: Outlet) -> None:
        answer = await attempt(
            attachment,
            f"s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\ns.settimeout(5)\n"
            f"s.connect(({server!r}, 53))\ns.send({question!r})\nprint(socket.inet_ntoa(s.recv(512)[-4:]))",
        )
        if server.endswith(".5"):  # on the wire itself, where nobody of that name is: no way to ask it
            assert "timed out" in answer or "No route" in answer
        else:
            assert answer == SYNTHETIC4
            assert outlet.questions == ["example.com"]

    scenario(tmp_path, play)


def test_dns_over_tcp_has_a_listener_of_its_own(tmp_path: Path) -> None:
    async def play(attachment: Attachment, outlet: Outlet) -> None:
        loop = asyncio.get_running_loop()
        asked = asyncio.create_task(
            attempt(attachment, "s = socket.create_connection(('9.9.9.9', 53), 5)\nprint('connected')")
        )
        connection, _ = await loop.sock_accept(attachment.listeners["dns-tcp4"])
        connection.close()
        assert await asked == "connected"
        assert outlet.connections == []

    scenario(tmp_path, play)


_DATAGRAM = "s = socket.socket({family}, socket.SOCK_DGRAM)\ns.settimeout(5)\ns.connect(({host!r}, {port}))\n"


@pytest.mark.parametrize(
    ("what", "source", "seen"),
    [
        ("QUIC", _DATAGRAM.format(family="socket.AF_INET", host="203.0.113.9", port=443), "203.0.113.9"),
        ("NTP", _DATAGRAM.format(family="socket.AF_INET", host="203.0.113.9", port=123), "203.0.113.9"),
        (
            "the gateway itself",
            _DATAGRAM.format(family="socket.AF_INET", host=A.gateway4, port=3153),
            A.gateway4,
        ),
        (
            "QUIC over IPv6",
            _DATAGRAM.format(family="socket.AF_INET6", host="2001:db8::9", port=443),
            "2001:db8::9",
        ),
    ],
)
def test_datagrams_are_refused_at_once_and_seen(tmp_path: Path, what: str, source: str, seen: str) -> None:
    async def play(attachment: Attachment, outlet: Outlet) -> None:
        answer = await attempt(attachment, source + "s.send(b'x' * 600)\ns.recv(1)")
        assert "Connection refused" in answer, answer  # ICMP type 3 code 3; ICMPv6 type 1 code 4
        await outlet.until(lambda: outlet.packets)
        packet = outlet.packets[0]
        address = packet[24:40] if packet[0] >> 4 == 6 else packet[16:20]
        assert address == socket.inet_pton(socket.AF_INET6 if ":" in seen else socket.AF_INET, seen)
        assert len(packet) == firewall.SNAPSHOT

    scenario(tmp_path, play)


@pytest.mark.parametrize(
    ("family", "protocol", "host", "payload"),
    [
        ("AF_INET", 1, "203.0.113.9", bytes((8, 0, 0xF7, 0xFE, 0, 1, 0, 0))),  # echo request
        ("AF_INET", 1, A.gateway4, bytes((8, 0, 0xF7, 0xFE, 0, 1, 0, 0))),
        ("AF_INET", 132, "203.0.113.9", bytes(12)),  # SCTP
        ("AF_INET", 47, "203.0.113.9", bytes(8)),  # GRE
        ("AF_INET", 41, "203.0.113.9", bytes(40)),  # IPv6 in IPv4
        ("AF_INET6", 58, "2001:db8::9", bytes((128, 0, 0, 0, 0, 1, 0, 0))),
        ("AF_INET6", 132, "2001:db8::9", bytes(12)),
    ],
)
def test_other_protocols_are_refused_and_seen(
    tmp_path: Path, family: str, protocol: int, host: str, payload: bytes
) -> None:
    async def play(attachment: Attachment, outlet: Outlet) -> None:
        answer = await attempt(
            attachment,
            f"s = socket.socket(socket.{family}, socket.SOCK_RAW, {protocol})\n"
            f"e = socket.socket(socket.{family}, socket.SOCK_RAW, {1 if family == 'AF_INET' else 58})\n"
            f"e.settimeout(5)\ns.sendto({payload!r}, ({host!r}, 0))\n"
            + (
                "while True:\n  p = e.recv(999)[20:]\n  if p[0] == 3: break\nprint(p[0], p[1])"
                if family == "AF_INET"
                else "while True:\n  p = e.recv(999)\n  if p[0] == 1: break\nprint(p[0], p[1])"
            ),
        )
        assert answer == ("3 13" if family == "AF_INET" else "1 1")
        await outlet.until(lambda: outlet.packets)
        assert outlet.packets[0][9 if family == "AF_INET" else 6] == protocol
        assert outlet.connections == []

    scenario(tmp_path, play)


def test_the_witness_leaves_out_what_has_a_listener_and_the_link_s_own_talk(tmp_path: Path) -> None:
    async def play(attachment: Attachment, outlet: Outlet) -> None:
        await attempt(
            attachment, "s = socket.create_connection(('203.0.113.9', 80), 5)\ns.sendall(b'x')\ns.recv(1)"
        )
        await attempt(
            attachment,
            "for f, h in ((socket.AF_INET, '8.8.8.8'), (socket.AF_INET6, '2001:db8::8')):\n"
            "  socket.socket(f, socket.SOCK_DGRAM).sendto(b'not a question', (h, 53))",
        )
        await attempt(
            attachment, "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'last', ('203.0.113.9', 9))"
        )
        await outlet.until(lambda: outlet.packets)
        assert [packet[-4:] for packet in outlet.packets] == [b"last"]

    scenario(tmp_path, play)


def test_nobody_inside_can_pass_for_a_canary_or_a_stranger(tmp_path: Path) -> None:
    async def play(attachment: Attachment, outlet: Outlet) -> None:
        for address in (A.canary4, "10.255.255.4"):
            await inside(attachment, "ip", "addr", "add", f"{address}/29", "dev", "eth0")
            answer = await attempt(
                attachment,
                f"s = socket.socket()\ns.settimeout(1)\ns.bind(({address!r}, 0))\ns.connect(('203.0.113.9', 443))",
            )
            assert "timed out" in answer
        assert outlet.connections == []

    scenario(tmp_path, play)


def test_without_rules_there_is_still_no_way_out(tmp_path: Path) -> None:
    async def play(attachment: Attachment, outlet: Outlet) -> None:
        gate = str(Path(attachment.netns).with_name("gate.ns"))

        def flush() -> tuple[str, str]:
            kernel.join_path(gate, kernel.CLONE_NEWNET)
            netns.run(("nft", "flush", "ruleset"), "")
            links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
            routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
            return links, routes

        links, routes = await kernel.apart(flush)
        assert [line.split(": ")[1].partition("@")[0] for line in links.splitlines()] == ["lo", "gw0"]
        assert "default" not in routes
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            for namespace in ("gate.ns", "net.ns", "probe.ns"):
                path = str(Path(attachment.netns).with_name(namespace))

                def read(path: str = path, setting: str = setting) -> str:
                    kernel.join_path(path, kernel.CLONE_NEWNET)
                    return Path(f"/proc/sys/net/{setting}").read_text().strip()

                assert await kernel.apart(read) == "0"
        answer = await attempt(attachment, "socket.create_connection(('203.0.113.9', 443), 1)")
        assert "timed out" in answer or "unreachable" in answer or "No route" in answer

    scenario(tmp_path, play)


def test_canaries_reach_the_gateway_as_they_were_announced(tmp_path: Path) -> None:
    async def go() -> None:
        async with enclosure(tmp_path) as (enclosures, attachment), Outlet(attachment) as outlet:
            sent = await enclosures.canaries(attachment, "0123-abcd")
            flight = canary.plan("0123-abcd")
            assert [(c.transport, c.host, c.port) for c in sent] == [
                ("tcp", flight.address4, flight.port),
                ("tcp", flight.address6, flight.port),
                ("dns", "a.0123-abcd.canary.ringfence.invalid", flight.port),
                ("dns", "aaaa.0123-abcd.canary.ringfence.invalid", flight.port),
                ("udp", flight.address4, flight.port),
                ("udp", flight.address6, flight.port),
            ]
            assert sorted(outlet.connections) == sorted(
                [
                    ("transparent4", flight.address4, flight.port),
                    ("transparent6", flight.address6, flight.port),
                    ("transparent4", SYNTHETIC4, flight.port),
                    ("transparent6", SYNTHETIC6, flight.port),
                ]
            )
            assert sorted(outlet.questions) == [sent[2].host, sent[3].host]
            await outlet.until(lambda: len(outlet.packets) == 2)
            assert {packet[12:16] for packet in outlet.packets if packet[0] >> 4 == 4} == {
                socket.inet_aton(A.canary4)
            }

    asyncio.run(go())


def test_canaries_still_fly_when_the_runtime_took_the_addresses_off_the_interface(tmp_path: Path) -> None:
    async def go() -> None:
        async with enclosure(tmp_path) as (enclosures, attachment), Outlet(attachment) as outlet:
            await inside(attachment, "ip", "addr", "flush", "dev", "eth0")
            await enclosures.canaries(attachment, "n")
            await outlet.until(lambda: len(outlet.packets) == 2)
            assert len(outlet.connections) == 4

            await kernel.apart(lambda: netns.dress(attachment.netns, attachment.addresses))
            answer = await attempt(
                attachment, "socket.create_connection(('203.0.113.9', 1), 5)\nprint('again')"
            )
            assert answer == "again"

    asyncio.run(go())


def test_a_canary_that_is_answered_is_a_breach(tmp_path: Path) -> None:
    async def go() -> None:
        async with enclosure(tmp_path) as (enclosures, attachment):
            answering = Outlet(attachment, answer=b"HTTP/1.1 200 OK\r\n\r\n")
            with pytest.raises(canary.Breach, match="something answered a canary"):
                async with answering:
                    await enclosures.canaries(attachment, "n")

    asyncio.run(go())


def test_canaries_without_a_gateway_are_no_news(tmp_path: Path) -> None:
    async def go() -> None:
        async with enclosure(tmp_path) as (enclosures, attachment):
            assert len(await enclosures.canaries(attachment, "n")) == 6

    asyncio.run(go())


def test_opening_again_changes_nothing_and_a_restarted_daemon_adopts(tmp_path: Path) -> None:
    async def go() -> None:
        async with enclosure(tmp_path) as (enclosures, attachment):
            assert await enclosures.open("one") is attachment
            inode = Path(attachment.netns).stat().st_ino

            restarted = Enclosures(tmp_path)
            assert await restarted.known() == ("one",)
            adopted = await restarted.open("one")
            assert Path(adopted.netns).stat().st_ino == inode
            assert set(adopted.listeners) == ROLES
            for sock in attachment.listeners.values():
                sock.close()
            async with Outlet(adopted) as outlet:
                await attempt(adopted, "socket.create_connection(('203.0.113.9', 443), 5)")
                await outlet.until(lambda: outlet.connections)
            renewed = await enclosures.open("one")
            assert renewed is not attachment
            for sock in adopted.listeners.values():
                sock.close()
            async with Outlet(renewed) as outlet:
                await attempt(renewed, "socket.create_connection(('203.0.113.9', 443), 5)")
                await outlet.until(lambda: outlet.connections)

    asyncio.run(go())


def test_what_a_reboot_or_a_crash_left_is_made_again(tmp_path: Path) -> None:
    left = tmp_path / "sandboxes" / "one"
    left.mkdir(parents=True)
    for name in ("gate.ns", "net.ns"):
        (left / name).touch()

    async def play(attachment: Attachment, outlet: Outlet) -> None:
        await attempt(attachment, "socket.create_connection(('203.0.113.9', 443), 5)")
        await outlet.until(lambda: outlet.connections)

    scenario(tmp_path, play)
    assert not left.exists()


def test_closing_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    async def go() -> None:
        async with enclosure(tmp_path) as (enclosures, _):
            await enclosures.close("one")
            assert await enclosures.known() == ()
            assert not any((tmp_path / "sandboxes").iterdir())

    asyncio.run(go())


def test_many_open_at_once_with_the_same_addresses(tmp_path: Path) -> None:
    async def go() -> None:
        enclosures = Enclosures(tmp_path)
        names = [f"sandbox-{number}" for number in range(8)]
        try:
            attachments = await asyncio.gather(*map(enclosures.open, names))
            assert {attachment.addresses for attachment in attachments} == {A}
            assert await enclosures.known() == tuple(sorted(names))
        finally:
            await asyncio.gather(*map(enclosures.close, names))

    asyncio.run(go())


def test_its_namespace_belongs_to_a_user_namespace_without_ids_of_the_host(tmp_path: Path) -> None:
    async def play(attachment: Attachment, outlet: Outlet) -> None:
        descriptor = kernel.os.open(attachment.netns, kernel.os.O_RDONLY)
        owner = kernel.owning_user_namespace(descriptor)
        program = await asyncio.create_subprocess_exec(
            "nsenter",
            f"--user=/proc/self/fd/{owner}",
            "cat",
            "/proc/self/uid_map",
            pass_fds=[owner],
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await program.communicate()
        kernel.os.close(owner)
        kernel.os.close(descriptor)
        inside, outside, count = map(int, said.split())
        assert (inside, count) == (0, 65536)
        assert outside >= 0x5000_0000

    scenario(tmp_path, play)


def test_the_probe_makes_one(tmp_path: Path) -> None:
    verdict = asyncio.run(Enclosures(tmp_path).probe())
    assert verdict.usable, verdict.reason
    assert not any((tmp_path / "sandboxes").iterdir())


@pytest.mark.parametrize("sandbox", ["", "../x", "a/b", ".", "A" * 65, "é"])
def test_ids_that_are_no_file_names_are_refused(tmp_path: Path, sandbox: str) -> None:
    with pytest.raises(InvalidInput):
        asyncio.run(Enclosures(tmp_path).open(sandbox))


@pytest.mark.parametrize("relayable", [False, True])
def test_packets_of_the_program_are_whole(relayable: bool) -> None:
    program = firewall.witness_program(A, relayable=relayable)
    instructions = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    for index, (code, true, false, _) in enumerate(instructions):
        assert code == 0x06 or index + 1 + max(true, false) < len(instructions)
