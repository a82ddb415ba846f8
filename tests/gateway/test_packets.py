"""Copies of refused packets: what is told of each, what is nobody's business, and how a flood becomes a line."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from ringfence.gateway.packets import BATCH, Flows, RefusedPacket, dissect, watch_packets

FUZZ = Path(__file__).parents[2] / "fuzz"
fuzz_one = run_path(str(FUZZ / "packets.py"))["one"]

Loop = Callable[[Coroutine[Any, Any, None]], None]

INSIDE4, INSIDE6 = "10.255.255.2", "fd72:696e:6766::2"


def ipv4(
    protocol: int, payload: bytes, to: str = "8.8.8.8", *, fragment: int = 0, options: bytes = b""
) -> bytes:
    head = 0x45 + len(options) // 4
    return (
        struct.pack("!BBHHHBBH", head, 0, 20 + len(options) + len(payload), 1, fragment, 64, protocol, 0)
        + ipaddress.ip_address(INSIDE4).packed
        + ipaddress.ip_address(to).packed
        + options
        + payload
    )


def ipv6(following: int, payload: bytes, to: str = "2001:4860:4860::8888") -> bytes:
    return (
        struct.pack("!IHBB", 6 << 28, len(payload), following, 255)
        + ipaddress.ip_address(INSIDE6).packed
        + ipaddress.ip_address(to).packed
        + payload
    )


def ports(to: int, by: int = 40_000) -> bytes:
    return struct.pack("!HHHH", by, to, 8, 0)


def options(following: int, size: int = 8) -> bytes:
    """A hop-by-hop or destination options header full of padding."""
    return bytes((following, size // 8 - 1, 1, size - 4)) + bytes(size - 4)


def fragment(following: int, offset: int) -> bytes:
    return struct.pack("!BBHI", following, 0, offset << 3, 7)


TOLD = [
    # packet, transport, destination, port
    (ipv4(17, ports(443)), ("udp", "8.8.8.8", 443)),
    (ipv4(17, ports(5353), "224.0.0.251"), ("udp", "224.0.0.251", 5353)),
    (ipv4(17, ports(443), options=bytes(8)), ("udp", "8.8.8.8", 443)),
    (ipv4(17, ports(443), fragment=0x2000), ("udp", "8.8.8.8", 443)),
    (ipv4(17, b"\x9c"), ("udp", "8.8.8.8", 0)),
    (ipv4(1, b"\x08\0\0\0payload"), ("icmp", "8.8.8.8", 8)),
    (ipv4(1, b""), ("icmp", "8.8.8.8", 0)),
    (ipv4(132, ports(36412)), ("sctp", "8.8.8.8", 36412)),
    (ipv4(33, ports(5001)), ("dccp", "8.8.8.8", 5001)),
    (ipv4(136, ports(9)), ("udplite", "8.8.8.8", 9)),
    (ipv4(47, bytes(8)), ("gre", "8.8.8.8", 0)),
    (ipv4(50, bytes(8)), ("esp", "8.8.8.8", 0)),
    (ipv4(41, ipv6(17, ports(53))), ("ipv6-in-ip", "8.8.8.8", 0)),
    (ipv4(253, b""), ("ip-253", "8.8.8.8", 0)),
    (ipv6(17, ports(443)), ("udp", "2001:4860:4860::8888", 443)),
    (ipv6(58, b"\x80\0\0\0"), ("icmp", "2001:4860:4860::8888", 128)),
    (ipv6(0, options(17) + ports(443)), ("udp", "2001:4860:4860::8888", 443)),
    (ipv6(60, options(0, 16) + options(17) + ports(443)), ("udp", "2001:4860:4860::8888", 443)),
    (ipv6(43, options(17, 24) + ports(443)), ("udp", "2001:4860:4860::8888", 443)),
    (ipv6(51, b"\x11\x04" + bytes(22) + ports(443)), ("udp", "2001:4860:4860::8888", 443)),
    (ipv6(44, fragment(17, 0) + ports(443)), ("udp", "2001:4860:4860::8888", 443)),
    (ipv6(59, b""), ("ip-59", "2001:4860:4860::8888", 0)),
    (ipv6(0, b""), ("ip-0", "2001:4860:4860::8888", 0)),
    (ipv6(0, options(0) * 9 + options(17) + ports(443)), ("ip-0", "2001:4860:4860::8888", 0)),
]


@pytest.mark.parametrize(("packet", "told"), TOLD)
def test_a_packet_is_told_by_its_flow(packet: bytes, told: tuple[str, str, int]) -> None:
    refused = dissect(packet)
    assert refused is not None
    assert (refused.transport, refused.destination, refused.port) == told
    assert refused.source in (INSIDE4, INSIDE6)
    assert refused.packets == 1


HOUSEKEEPING = {
    "neighbour solicitation": ipv6(58, b"\x87\0\0\0", "ff02::1:ff00:1"),
    "neighbour advertisement": ipv6(58, b"\x88\0\0\0"),
    "router solicitation": ipv6(58, b"\x85\0\0\0", "ff02::2"),
    "listener report": ipv6(0, options(58) + b"\x8f\0\0\0", "ff02::16"),
    "listener report behind long options": ipv6(0, options(58, 24) + b"\x8f\0\0\0", "ff02::16"),
    "IGMP": ipv4(2, b"\x22\0\0\0", "224.0.0.22"),
    "a later fragment": ipv4(17, ports(443), fragment=0x00B9),
    "a later fragment over IPv6": ipv6(44, fragment(17, 1) + ports(443)),
    "TCP has a listener": ipv4(6, ports(443)),
    "TCP over IPv6": ipv6(6, ports(443)),
    "nothing": b"",
    "half a header": ipv4(17, b"")[:19],
    "half an IPv6 header": ipv6(17, b"")[:39],
    "an impossible header": b"\x41" + bytes(40),
    "another version": b"\x55" + bytes(40),
}


@pytest.mark.parametrize("packet", HOUSEKEEPING.values(), ids=HOUSEKEEPING.keys())
def test_what_is_no_attempt_is_not_told(packet: bytes) -> None:
    assert dissect(packet) is None


@given(st.binary(max_size=256))
def test_any_bytes_are_survived(data: bytes) -> None:
    fuzz_one(data)
    fuzz_one(b"\x45" + data)
    fuzz_one(b"\x60" + data)


def test_mutated_packets_are_survived() -> None:
    chosen = random.Random(8200)
    seeds = [packet for packet, _ in TOLD] + [packet for packet in HOUSEKEEPING.values() if packet]
    for _ in range(20_000):
        data = bytearray(chosen.choice(seeds))
        for _ in range(chosen.randint(1, 4)):
            data[chosen.randrange(len(data))] = chosen.choice((0, 6, 44, 51, 60, 255, chosen.randrange(256)))
        fuzz_one(bytes(data[: chosen.randint(0, len(data))]))


# -- flows ---------------------------------------------------------------------------------------------------


def packet(port: int = 443, transport: str = "udp", source: str = INSIDE4) -> RefusedPacket:
    return RefusedPacket(transport=transport, source=source, destination="8.8.8.8", port=port)


def test_a_flood_is_a_line_per_interval() -> None:
    told: list[RefusedPacket] = []
    flows = Flows(told.append)
    for _ in range(10_000):
        flows.add(packet())
    assert told == [packet()], "the first is told at once"
    flows.turn()
    assert [(each.port, each.packets) for each in told[1:]] == [(443, 9_999)]
    flows.turn()
    assert len(told) == 2
    assert len(flows) == 0, "a flow that has ended is forgotten"
    flows.add(packet())
    assert told[2:] == [packet()]


def test_flows_are_told_apart() -> None:
    told: list[RefusedPacket] = []
    flows = Flows(told.append)
    different = [packet(), packet(53), packet(transport="icmp"), packet(source=INSIDE6)]
    for _ in range(3):
        for each in different:
            flows.add(each)
    assert told == different
    flows.turn()
    assert [each.packets for each in told[4:]] == [2, 2, 2, 2]


def test_more_flows_than_are_told_apart_are_counted() -> None:
    told: list[RefusedPacket] = []
    flows = Flows(told.append, capacity=8)
    for port in range(100):
        flows.add(packet(port))
        flows.add(packet(port, "icmp"))
    flows.add_unread(50)
    assert len(flows) == len(told) == 8
    flows.turn()
    assert told[8:] == [
        RefusedPacket(transport="udp", packets=96),
        RefusedPacket(transport="icmp", packets=96),
        RefusedPacket(transport="ip", packets=50),
    ]


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 12)), max_size=200),
    st.integers(1, 10),
)
def test_every_packet_is_told_exactly_once(steps: list[int | None], capacity: int) -> None:
    """Whatever comes between the turns: the counts of all records add up to the packets."""
    told: list[RefusedPacket] = []
    flows = Flows(told.append, capacity=capacity)
    for step in steps:
        if step is None:
            flows.turn()
        else:
            flows.add(packet(step))
        assert len(flows) <= capacity
    flows.turn()
    assert sum(each.packets for each in told) == sum(step is not None for step in steps)


# -- the socket ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Loop:
    return request.param  # type: ignore[no-any-return]


def test_what_arrives_is_reported_until_the_end(run: Loop) -> None:
    async def dialogue() -> None:
        told: asyncio.Queue[RefusedPacket] = asyncio.Queue()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        close = watch_packets(asyncio.get_running_loop(), ours, told.put_nowait, interval=0.01)
        for each in (b"", b"\xff" * 300, ipv4(6, ports(80)), ipv4(17, ports(443)), ipv4(17, ports(443))):
            theirs.send(each)
        first = await asyncio.wait_for(told.get(), 10)
        assert (first.destination, first.port, first.packets) == ("8.8.8.8", 443, 1)
        second = await asyncio.wait_for(told.get(), 10)
        assert (second.destination, second.port, second.packets) == ("8.8.8.8", 443, 1)
        close()
        theirs.send(ipv4(17, ports(80)))
        assert await asyncio.get_running_loop().sock_recv(ours, 256), "the socket is still the caller's"
        assert told.empty()
        for sock in (ours, theirs):
            sock.close()

    run(dialogue())


def test_a_flood_is_read_in_portions_and_nothing_of_it_is_lost(run: Loop) -> None:
    async def dialogue() -> None:
        told: asyncio.Queue[RefusedPacket] = asyncio.Queue()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        loop = asyncio.get_running_loop()
        theirs.setblocking(False)
        close = watch_packets(loop, ours, told.put_nowait, interval=0.01)
        sent = BATCH * 5
        for _ in range(sent):
            await loop.sock_sendall(theirs, ipv4(17, ports(443)))
        counted = 0
        while counted < sent:
            counted += (await asyncio.wait_for(told.get(), 10)).packets
        assert counted == sent
        close()
        for sock in (ours, theirs):
            sock.close()

    run(dialogue())


@pytest.mark.live
def test_a_packet_socket_tells_what_was_refused_and_what_was_dropped() -> None:
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("ip or unshare missing")
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, timeout=20).returncode:
        pytest.skip("namespaces cannot be made here")
    program = textwrap.dedent("""
        import asyncio, socket, subprocess
        from ringfence.gateway.packets import watch_packets

        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=20)
        witness = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        witness.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
        witness.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        witness.bind(("lo", 3))

        async def main():
            told = asyncio.Queue()
            close = watch_packets(asyncio.get_running_loop(), witness, told.put_nowait, interval=0.05)
            for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                with socket.socket(family, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"payload", (host, 4433))
                    first = await asyncio.wait_for(told.get(), 10)
                    while first.transport != "udp" or first.destination != host:
                        first = await asyncio.wait_for(told.get(), 10)
                    assert (first.source, first.port) == (host, 4433), first
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _ in range(2_000):
                    sock.sendto(b"x" * 100, ("127.0.0.1", 9999))
            while True:
                record = await asyncio.wait_for(told.get(), 10)
                if not record.destination:
                    break
            assert record.packets > 100, record
            close()

        asyncio.run(main())
        witness.close()
    """)
    ran = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
