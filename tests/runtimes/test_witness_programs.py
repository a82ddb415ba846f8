"""The two packet filters of a gate, run here: what one of them leaves to the other, and what neither keeps."""

from __future__ import annotations

import ipaddress
import random
import struct

import pytest

from ringfence.application.ports import Addresses
from ringfence.runtimes import firewall

A = Addresses()


def run(program: bytes, packet: bytes) -> int:
    """Classic BPF, as far as the programs use it: how many bytes are kept."""
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = index = at = 0
    while True:
        operation, true, false, operand = code[at]
        at += 1
        sizes = {0x20: 4, 0x28: 2, 0x30: 1, 0x48: 2}
        if operation in sizes:
            size = sizes[operation]
            start = operand + (index if operation == 0x48 else 0)
            if operand == 0xFFFF_F004:
                accumulator = 0  # PACKET_HOST
            elif start + size > len(packet):
                return 0
            else:
                accumulator = int.from_bytes(packet[start : start + size], "big")
        elif operation == 0xB1:
            index = (packet[operand] & 15) * 4
        elif operation == 0x06:
            return operand
        else:
            holds = {
                0x15: accumulator == operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }
            at += true if holds[operation] else false


REST, RELAYABLE = (firewall.witness_program(A, relayable=relayable) for relayable in (False, True))


def four(protocol: int, to: str, *, by: str = A.sandbox4, port: int = 443, fragment: int = 0) -> bytes:
    addresses = ipaddress.ip_address(by).packed + ipaddress.ip_address(to).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 60, 1, fragment, 64, protocol, 0)
    return head + addresses + struct.pack("!HHHH", 1234, port, 40, 0) + bytes(32)


def six(following: int, to: str, *, by: str = A.sandbox6, port: int = 443, before: bytes = b"") -> bytes:
    addresses = ipaddress.ip_address(by).packed + ipaddress.ip_address(to).packed
    head = struct.pack("!IHBB", 6 << 28, 40 + len(before), following, 64)
    return head + addresses + before + struct.pack("!HHHH", 1234, port, 40, 0) + bytes(32)


def piece(offset: int) -> bytes:
    return struct.pack("!BBHI", 17, 0, offset << 3 | (not offset), 7)


TOLD = [
    # what, packet, by which program
    ("a datagram", four(17, "198.18.0.1"), "relayable"),
    ("to the gateway itself", four(17, A.gateway4), "relayable"),
    ("its later fragment", four(17, "198.18.0.1", fragment=100), "relayable"),
    ("over IPv6", six(17, "2001:db8::1"), "relayable"),
    ("to a synthetic address", six(17, "fd72:696e:6766:5359::7"), "relayable"),
    ("its first fragment", six(44, "2001:db8::1", before=piece(0)), "relayable"),
    ("its later fragment over IPv6", six(44, "2001:db8::1", before=piece(100)), "relayable"),
    ("DNS", four(17, "8.8.8.8", port=53), ""),
    ("DNS over IPv6", six(17, "2001:db8::8", port=53), ""),
    ("DNS in fragments", six(44, "2001:db8::8", port=53, before=piece(0)), ""),
    ("TCP", four(6, "198.18.0.1"), ""),
    ("TCP over IPv6", six(6, "2001:db8::1"), ""),
    ("a canary", four(17, "192.0.2.80", by=A.canary4), "rest"),
    ("a canary over IPv6", six(17, "2001:db8::80", by=A.canary6), "rest"),
    ("somebody else's address", four(17, "198.18.0.1", by="10.255.255.4"), "rest"),
    ("multicast", four(17, "224.0.0.251"), "rest"),
    ("broadcast", four(17, "255.255.255.255"), "rest"),
    ("loopback", four(17, "127.0.0.1"), "rest"),
    ("no address", four(17, "0.0.0.1"), "rest"),
    ("multicast over IPv6", six(17, "ff02::fb"), "rest"),
    ("link-local", six(17, "fe80::1"), "rest"),
    ("loopback over IPv6", six(17, "::1"), "rest"),
    ("a translator's prefix", six(17, "64:ff9b::1"), "rest"),
    ("behind hop-by-hop options", six(0, "2001:db8::1", before=b"\x11\0\1\4\0\0\0\0"), "rest"),
    ("behind destination options", six(60, "2001:db8::1", before=b"\x11\0\1\4\0\0\0\0"), "rest"),
    ("ICMP", four(1, "8.8.8.8"), "rest"),
    ("SCTP", six(132, "2001:db8::1"), "rest"),
    ("a fragment of SCTP", six(44, "2001:db8::1", before=b"\x84" + piece(0)[1:]), "rest"),
]


@pytest.mark.parametrize(("what", "packet", "program"), TOLD, ids=[each[0] for each in TOLD])
def test_each_packet_is_told_by_one_program_at_most(what: str, packet: bytes, program: str) -> None:
    kept = {name: run(code, packet) for name, code in (("rest", REST), ("relayable", RELAYABLE))}
    assert {name for name, size in kept.items() if size} == ({program} - {""})
    assert set(kept.values()) <= {0, firewall.SNAPSHOT}


def test_no_packet_is_told_twice() -> None:
    chosen = random.Random(3130)
    for _ in range(20_000):
        packet = bytearray(chosen.choice(TOLD)[1])
        for _ in range(chosen.randint(0, 4)):
            packet[chosen.randrange(len(packet))] = chosen.choice(
                (0, 17, 44, 53, 58, 255, chosen.randrange(256))
            )
        cut = bytes(packet[: chosen.randint(20, len(packet))])
        assert not (run(REST, cut) and run(RELAYABLE, cut))
