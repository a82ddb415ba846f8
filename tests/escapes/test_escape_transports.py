"""SOCKS5 (NAM-01 to NAM-09 again), UDP-01, UDP-02, ICMP-01, RAW-01, SMT-01: other ways to the same decision.

That the enclosure refuses what is no TCP is proven in ``test_escape_sandbox.py`` and in
``tests/runtimes/test_enclosure.py``; here is what the record says of it.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any

import pytest
from tests.escapes.escape_stage import (
    Ask,
    Client,
    Lab,
    allowed,
    get,
    inside,
    redirected,
    refused,
    rule,
    tunnel,
    until,
)

HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
GREETING, WELCOME = b"\x05\x01\x00", b"\x05\x00"


def answer(code: int) -> bytes:
    return b"\x05%c\x00\x01" % code + bytes(6)


def socks(name: bytes | str, payload: bytes = b"", *, port: int = 80, command: int = 1, kind: int = 3) -> Ask:
    """A SOCKS5 client that names a host, or an address, and sends bytes behind its request."""
    raw = name if isinstance(name, bytes) else name.encode()
    if kind == 3:
        raw = bytes([len(raw)]) + raw
    elif isinstance(name, str):
        raw = ipaddress.ip_address(name).packed
    request = b"\x05%c\x00%c%b" % (command, kind, raw) + port.to_bytes(2, "big")
    return Ask(open=lambda lab: lab.stage.dial(), payload=GREETING + request + payload)


@pytest.fixture
def world(lab: Lab) -> Lab:
    """``a.test`` and what is below is allowed and works, also by SOCKS (the positive control)."""
    lab.bind(rule("allow", "**.a.test"))
    lab.serve("a.test")
    lab.serve("a.test", port=80, tls=False)
    fine = allowed(HEARD, WELCOME, answer(0), 200, questions=("a.test",))
    lab.expect(socks("a.test", get("a.test")), fine)
    lab.expect(socks("A.TEST.", get("a.test")), fine)
    return lab


NO_NAMES = [
    b"evil.test\x00.a.test", b"evil.test\r\n.a.test", b"evil.test .a.test", b"evil.test%00.a.test",
    b"evil.test/.a.test", b"evil.test@a.test", b"evil.test\\.a.test", b"a..test", b".a.test", b"a.test..", b"[::1]",
    b"::1", b"0177.0.0.1", b"2130706433", b"127.1", b"0x7f.1", b"a.test:80", b"\xc3\xa4.a.test", b"a" * 64 + b".a.test",
    b"*.a.test", b"x" * 255, b"",
]  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: repr(name[:30]))
def test_nam_01_strange_bytes_in_a_socks_name(world: Lab, name: bytes) -> None:
    world.expect(socks(name, get("a.test")), refused("failure", WELCOME, answer(1), "closed"))


@pytest.mark.parametrize("name", ["b.test", "evila.test", "a.test.evil", "test"])
def test_nam_06_a_socks_name_is_matched_like_every_other(world: Lab, name: str) -> None:
    world.expect(socks(name, get(name)), refused("default", WELCOME, answer(2), "closed"))


@pytest.mark.parametrize(
    ("address", "reason"),
    [("203.0.113.1", "default"), ("127.0.0.1", "guard"), ("169.254.169.254", "guard"), ("10.0.0.1", "guard")],
)
def test_nam_09_a_socks_address_is_an_address(world: Lab, address: str, reason: str) -> None:
    no = refused(reason, WELCOME, answer(2), "closed")
    world.expect(socks(address, get(address), kind=1), no)
    world.expect(socks(address, get(address)), no)  # written as a name
    mapped = socket.inet_pton(socket.AF_INET6, f"::ffff:{address}")
    world.expect(socks(mapped, get(address), kind=4), refused(reason, WELCOME, answer(2), "closed"))


UNSERVED: list[tuple[str, bytes, tuple[Any, ...]]] = [
    ("BIND", socks("a.test", command=2).payload, (WELCOME, answer(7), "closed")),
    ("UDP ASSOCIATE", socks("a.test", command=3).payload, (WELCOME, answer(7), "closed")),
    (
        "an address type that is none",
        GREETING + b"\x05\x01\x00\x02" + bytes(6),
        (WELCOME, answer(8), "closed"),
    ),
    ("port 0", socks("a.test", port=0).payload, (WELCOME, answer(1), "closed")),
    ("a reserved byte", GREETING + b"\x05\x01\x07\x03\x06a.test\0\x50", (WELCOME, answer(1), "closed")),
    (
        "another version inside",
        GREETING + b"\x04\x01\x00\x03\x06a.test\0\x50",
        (WELCOME, answer(1), "closed"),
    ),
    ("passwords only", b"\x05\x01\x02", (b"\x05\xff", "closed")),
    ("no method", b"\x05\x00", (b"\x05\xff", "closed")),
    ("SOCKS4", b"\x04\x01\0\x50\x7f\0\0\1me\0", (b"\0\x5b" + bytes(6), "closed")),
]


@pytest.mark.parametrize(
    ("payload", "seen"), [each[1:] for each in UNSERVED], ids=[each[0] for each in UNSERVED]
)
def test_req_02_what_socks_is_not_served_is_said_and_recorded_once(
    world: Lab, payload: bytes, seen: tuple[Any, ...]
) -> None:
    world.expect(Ask(open=lambda lab: lab.stage.dial(), payload=payload), refused("failure", *seen))


def test_req_02_the_door_changes_nothing(world: Lab) -> None:
    """One policy, one verdict, one destination: by CONNECT, SOCKS, a redirect; nothing is scoped to a path."""
    world.bind(rule("allow", "a.test", methods=["GET"]))
    world.expect(inside("a.test", get("a.test")), allowed(HEARD))
    world.expect(redirected("a.test", get("a.test")), allowed(HEARD))
    world.expect(socks("a.test", get("a.test")), allowed(HEARD, WELCOME, answer(0), 200))
    for ask, seen in (
        (inside("a.test", get("a.test", method="DELETE")), (403,)),
        (redirected("a.test", get("a.test", method="DELETE")), (403,)),
        (socks("a.test", get("a.test", method="DELETE")), (WELCOME, answer(0), 403)),
    ):
        world.expect(ask, refused("default", *seen))


# -- SMT-01 ---------------------------------------------------------------------------------------------------

PROTOCOLS = {
    "SSH": (22, b"SSH-2.0-x\r\n"),
    "SMTP": (25, b""),
    "IMAP": (143, b""),
    "PostgreSQL": (5432, b"\0\0\0\x08\x04\xd2\x16\x2f"),
}


@pytest.mark.parametrize(("port", "payload"), PROTOCOLS.values(), ids=PROTOCOLS.keys())
def test_smt_01_a_port_is_part_of_the_rule(world: Lab, port: int, payload: bytes) -> None:
    world.serve("a.test", port=port, tls=False, greeting=b"ready\r\n")
    world.bind(rule("allow", f"a.test:{port}"))
    world.expect(tunnel("a.test", payload, port=port), allowed(payload, b"ready\r\n"))
    world.expect(socks("a.test", payload, port=port), allowed(payload, WELCOME, answer(0), b"ready\r\n"))
    world.bind(rule("allow", "a.test:443"))
    world.expect(tunnel("a.test", payload or b"\0", port=port), refused("default", "reset"))
    world.expect(socks("a.test", payload, port=port), refused("default", WELCOME, answer(2), "closed"))
    world.expect(redirected("a.test", payload or b"\0", port=port), refused("default", "reset"))


@pytest.mark.parametrize(
    "payload", [b"SSH-2.0-x\r\n", b"\0\0\0\x08\x04\xd2\x16\x2f"], ids=["SSH", "PostgreSQL"]
)
def test_smt_01_another_protocol_on_443_is_not_what_a_request_rule_allows(world: Lab, payload: bytes) -> None:
    world.bind(rule("allow", "a.test", methods=["GET", "POST"]))
    world.expect(inside("a.test", get("a.test")), allowed(HEARD))
    world.expect(tunnel("a.test", payload), refused("failure", "reset"))
    world.expect(socks("a.test", payload, port=443), refused("failure", WELCOME, answer(0), "reset"))


# -- UDP-01, UDP-02, ICMP-01, RAW-01: the record --------------------------------------------------------------


def packet(protocol: int, port: int, destination: str = "203.0.113.9") -> bytes:
    """An IPv4 packet as the enclosure's witness sees it."""
    body = b"\x08\0\0\0secret" if protocol == 1 else struct.pack("!HHHH", 40_000, port, 8, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0)
    return head + socket.inet_aton("10.255.255.2") + socket.inet_aton(destination) + body


async def witnessed(lab: Lab, packets: list[bytes]) -> list[dict[str, Any]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    await lab.stage.guest.serve({"packets": ours})
    try:
        for each in packets:
            theirs.send(each)
        await until(lambda: lab.stage.records)
        return list(lab.stage.records)
    finally:
        for _ in range(2):  # what `serve` added for this socket, last in, first out
            lab.stage.guest._closers.pop()()
        theirs.close()


def one_record(lab: Lab, protocol: int, port: int, transport: str, count: int = 1) -> None:
    (record,) = lab.run(witnessed(lab, [packet(protocol, port)] * count))
    told = {name: record[name] for name in ("verdict", "transport", "host", "port", "step")}
    assert told == {
        "verdict": "blocked",
        "transport": transport,
        "host": "203.0.113.9",
        "port": port,
        "step": "opened",
    }
    assert (lab.stage.dialer.asked, lab.stage.dials) == ([], [])
    lab.sentinel()


@pytest.mark.parametrize("port", [443, 853, 4433])
def test_udp_01_quic_to_a_host_that_no_rule_allows_is_on_record(world: Lab, port: int) -> None:
    world.forget()
    one_record(world, 17, port, "udp")


def test_udp_01_http_3_is_not_advertised(world: Lab) -> None:
    """An origin's ``Alt-Svc`` would send its clients to UDP."""
    reply = b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"; ma=86400\r\nContent-Length: 0\r\n\r\n'
    world.serve("alt.a.test", reply=reply)

    async def fields() -> dict[str, str]:
        client: Client = await world.stage.secure("alt.a.test")
        _, seen, _ = await client.get("/", "alt.a.test")
        client.close()
        return seen

    assert world.run(fields()) == {"content-length": "0"}
    world.sentinel()


def test_udp_02_connectionless_sends_are_one_record_a_flow(world: Lab) -> None:
    world.forget()
    one_record(world, 17, 9, "udp", count=50)


def test_icmp_01_an_echo_is_on_record(world: Lab) -> None:
    world.forget()
    one_record(world, 1, 8, "icmp")


@pytest.mark.parametrize(("protocol", "transport"), [(132, "sctp"), (136, "udplite"), (33, "dccp")])
def test_raw_01_other_transports_are_on_record(world: Lab, protocol: int, transport: str) -> None:
    world.forget()
    one_record(world, protocol, 443, transport)


def test_v6_01_a_name_with_ipv6_alone_gets_the_same_verdict(world: Lab) -> None:
    world.serve("six.a.test", port=80, tls=False, address="2001:db8::6")
    heard = HEARD.replace(b"a.test", b"six.a.test")
    world.expect(redirected("six.a.test", get("six.a.test")), allowed(heard, questions=("six.a.test",)))
    world.expect(redirected("2001:db8::6", get("[2001:db8::6]")), refused())
    world.bind(rule("deny", "six.a.test"), rule("allow", "**"))
    world.expect(redirected("six.a.test", get("six.a.test")), refused("rule"))
