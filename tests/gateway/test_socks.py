"""SOCKS5 at the explicit proxy: dialogues, and what its reader makes of any bytes.

A dialogue says what the client sends, what it gets back, what became of the connection and what was recorded.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest
from gateway_dialogue import Dialogue, hello, rule
from gateway_stage import Stage, echo, play
from gateway_stage import rule as stage_rule
from hypothesis import given
from hypothesis import strategies as st

from ringfence.gateway.core.connection import Opening
from ringfence.gateway.core.socks import Unserved, Wanted, read_greeting, read_request, reply
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.names import canonical_host

GREETING = b"\x05\x01\x00"
METHOD = b"\x05\x00"
SUCCEEDED, FAILED, NOT_ALLOWED, NO_COMMAND, NO_ADDRESS_TYPE = map(reply, (0, 1, 2, 7, 8))


def name(host: bytes, port: int = 443, command: int = 1) -> bytes:
    return b"\x05%c\x00\x03%c%b%b" % (command, len(host), host, port.to_bytes(2, "big"))


def address(text: str, port: int = 443, command: int = 1) -> bytes:
    family, kind = (socket.AF_INET6, 4) if ":" in text else (socket.AF_INET, 1)
    return b"\x05%c\x00%c%b%b" % (command, kind, socket.inet_pton(family, text), port.to_bytes(2, "big"))


ALLOW = rule("allow", "a.test")
REQUESTS = rule("allow", "r.test", methods=["GET"])

# What is asked, the reply, and the record: host, port, verdict, reason, how its text begins.
ANSWERS: list[tuple[bytes, bytes, tuple[Any, ...] | None]] = [
    (name(b"a.test"), SUCCEEDED, None),
    (name(b"A.Test."), SUCCEEDED, None),
    (name(b"r.test"), SUCCEEDED, None),
    (name(b"a.test", 22), SUCCEEDED, None),
    (name(b"b.test"), NOT_ALLOWED, ("b.test", 443, "blocked", "default", "no matching allow rule")),
    (name(b"b.test", 22), NOT_ALLOWED, ("b.test", 22, "blocked", "default", "no matching allow rule")),
    (name(b"d.test"), NOT_ALLOWED, ("d.test", 443, "blocked", "rule", "denied by")),
    (
        name(b"gateway.docker.internal", 3128),
        NOT_ALLOWED,
        ("gateway.docker.internal", 3128, "blocked", "guard", "an e"),
    ),
    (name(b"host.docker.internal", 22), NOT_ALLOWED, ("localhost", 22, "blocked", "default", "no matching")),
    (
        address("203.0.113.7"),
        NOT_ALLOWED,
        ("203.0.113.7", 443, "blocked", "default", "no matching allow rule"),
    ),
    (address("203.0.113.8"), SUCCEEDED, None),
    (
        address("2001:db8::1"),
        NOT_ALLOWED,
        ("2001:db8::1", 443, "blocked", "default", "no matching allow rule"),
    ),
    (
        address("169.254.169.254", 80),
        NOT_ALLOWED,
        ("169.254.169.254", 80, "blocked", "guard", "cloud metadata"),
    ),
    (address("::ffff:127.0.0.1"), NOT_ALLOWED, ("::ffff:127.0.0.1", 443, "blocked", "guard", "loopback")),
    (name(b"203.0.113.8"), SUCCEEDED, None),
    # NAM-01: bytes that a name does not have, refused before anything is compared
    (name(b"b.test\x00.a.test"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"a.test\x00.b.test"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"a.test\r\n"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"a.test\n"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"a .test"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"a%2etest"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"a.test/"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"u@a.test"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name("ä.test".encode()), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"2001:db8::1"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"[2001:db8::1]"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"0x7f.1"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"2130706433"), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b"x" * 255), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    (name(b""), FAILED, ("", 0, "blocked", "failure", "a SOCKS name that is none")),
    # what is no CONNECT
    (name(b"a.test", 0), FAILED, ("", 0, "blocked", "failure", "a SOCKS request for port 0")),
    (
        name(b"a.test", command=2),
        NO_COMMAND,
        ("a.test", 443, "blocked", "failure", "SOCKS command 2 is not served"),
    ),
    (
        name(b"a.test", command=3),
        NO_COMMAND,
        ("a.test", 443, "blocked", "failure", "SOCKS command 3 is not served"),
    ),
    (
        address("0.0.0.0", 9, 3),
        NO_COMMAND,
        ("0.0.0.0", 9, "blocked", "failure", "SOCKS command 3 is not served"),
    ),
    (
        b"\x05\x01\x00\x02\x00\x00\x00\x00",
        NO_ADDRESS_TYPE,
        ("", 0, "blocked", "failure", "SOCKS address type 2"),
    ),
    (
        b"\x05\x01\x01" + name(b"a.test")[3:],
        FAILED,
        ("", 0, "blocked", "failure", "a SOCKS request that is none"),
    ),
    (
        b"\x04" + name(b"a.test")[1:],
        FAILED,
        ("", 0, "blocked", "failure", "a SOCKS request that is none"),
    ),
]


@pytest.mark.parametrize("pieces", [0, 1, 3])
@pytest.mark.parametrize(("asked", "answer", "record"), ANSWERS, ids=range(len(ANSWERS)))
def test_a_request_has_one_reply_and_a_refusal_one_record(
    asked: bytes, answer: bytes, record: tuple[Any, ...] | None, pieces: int
) -> None:
    talk = Dialogue(ALLOW, REQUESTS, rule("deny", "d.test"), rule("allow", "203.0.113.8")).proxy()
    talk.receive(GREETING + asked, pieces=pieces)
    assert talk.took() == METHOD + answer
    assert talk.dialled == 0
    if record is None:
        assert (talk.commands, talk.records) == ([], [])
        assert isinstance(talk.phase, Opening)
    else:
        *fields, text = record
        assert talk.audit("host", "port", "verdict", "reason") == [tuple(fields)]
        assert talk.records[0]["text"].startswith(text)
        assert talk.records[0]["via"] == "socks5"
        assert talk.commands == ["finish"]


@pytest.mark.parametrize(
    ("greeting", "answer", "text"),
    [
        (b"\x05\x01\x02", b"\x05\xff", "a SOCKS client that wants to authenticate"),
        (b"\x05\x02\x01\x02", b"\x05\xff", "a SOCKS client that wants to authenticate"),
        (b"\x05\x00", b"\x05\xff", "a SOCKS client that wants to authenticate"),
        (b"\x04\x01\x01\xbb\xcb\x00\x71\x07\x00", b"\x00\x5b" + bytes(6), "SOCKS4 is not served"),
        (b"\x04\x01\x01\xbb\x00\x00\x00\x01\x00a.test\x00", b"\x00\x5b" + bytes(6), "SOCKS4 is not served"),
    ],
)
def test_what_is_not_served_is_told_so_in_its_own_words(greeting: bytes, answer: bytes, text: str) -> None:
    talk = Dialogue(ALLOW).proxy().receive(greeting + b"more")
    assert (talk.took(), talk.commands) == (answer, ["finish"])
    assert talk.audit("verdict", "via", "text") == [("blocked", "socks5", text)]


def test_a_client_that_would_authenticate_need_not() -> None:
    talk = Dialogue(ALLOW).proxy().receive(b"\x05\x03\x02\x01\x00" + name(b"a.test"))
    assert talk.took() == METHOD + SUCCEEDED


def test_inside_all_is_as_inside_a_connect() -> None:
    """TLS is terminated, requests are decided one by one, other protocols are tunnelled where that is allowed."""
    talk = Dialogue(ALLOW).proxy().receive(GREETING + name(b"a.test") + hello("a.test"))
    assert ("terminate", "a.test") in talk.said
    talk.secured("http/1.1")
    talk.receive(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert ("request", "a.test", 443, "a.test", False) in talk.said
    assert talk.audit("via", "verdict", "method") == [("socks5", "allowed", "GET")]

    talk = Dialogue(REQUESTS).proxy().receive(GREETING + name(b"r.test", 80))
    talk.took()
    talk.receive(b"POST / HTTP/1.1\r\nHost: r.test\r\nContent-Length: 0\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    assert talk.audit("via", "verdict", "method", "status") == [("socks5", "blocked", "POST", 403)]

    talk = Dialogue(ALLOW).proxy().receive(GREETING + name(b"a.test", 22) + b"SSH-2.0-client\r\n")
    assert ("open", "a.test", 22) in talk.said
    assert talk.audit("via", "verdict", "protocol") == [("socks5", "allowed", "tcp")]

    talk = Dialogue(REQUESTS).proxy().receive(GREETING + name(b"r.test", 22) + b"SSH-2.0-client\r\n")
    assert (talk.dialled, talk.commands) == (0, ["reset"])
    assert talk.audit("via", "verdict", "protocol") == [("socks5", "blocked", "tcp")]

    talk = Dialogue(ALLOW).proxy().receive(GREETING + name(b"a.test") + hello("b.test"))
    talk.secured("http/1.1")
    talk.receive(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n")
    assert talk.took().removeprefix(METHOD + SUCCEEDED).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize("said", [b"\x05", GREETING, GREETING + name(b"a.test")[:9]])
def test_half_a_negotiation_is_ended_in_time(said: bytes) -> None:
    talk = Dialogue(ALLOW).proxy().receive(said)
    talk.took()
    talk.wait(9)
    assert talk.commands == []
    talk.wait(2)
    assert talk.took() == (b"\x05\xff" if said == b"\x05" else FAILED)
    assert talk.audit("verdict", "text") == [("blocked", "a SOCKS request that did not come in time")]
    assert talk.commands == ["finish"]


def test_who_says_nothing_is_let_go_and_who_leaves_is_gone() -> None:
    talk = Dialogue(ALLOW).proxy()
    talk.wait(29)
    assert talk.commands == []
    talk.wait(2)
    assert (talk.commands, talk.records) == (["finish"], [])
    for said in (b"\x05", GREETING):
        talk = Dialogue(ALLOW).proxy().receive(said)
        talk.phase.eof(talk.now)
        talk.phase.lost(talk.now)
        talk.receive(name(b"b.test"))
        assert (talk.commands, talk.records) == (["finish"], [])


def test_a_canary_is_refused_and_says_so() -> None:
    talk = Dialogue(rule("allow", "**")).proxy(canary=True).receive(GREETING + name(b"a.test"))
    assert talk.took() == METHOD + NOT_ALLOWED
    assert talk.audit("canary", "verdict") == [(True, "blocked")]


# -- any bytes -----------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.integers(0, 300))
def test_the_reader_is_total_and_splitting_changes_nothing(data: bytes, cut: int) -> None:
    def read(piece: bytes) -> Wanted | str | None:
        try:
            return read_request(piece)
        except Unserved as flaw:
            return flaw.text

    whole = read(data)
    assert read(data[:cut]) in (None, whole)
    if isinstance(whole, Wanted):
        assert whole.size <= len(data)
        assert 0 < whole.port < 65_536
        assert canonical_host(whole.host) == whole.host
    greeting = read_greeting(b"\x05" + data)
    assert greeting is None or len(greeting.methods) + 2 == greeting.size


@given(st.binary(max_size=255))
def test_a_name_is_read_as_everywhere_else(raw: bytes) -> None:
    try:
        expected: str | None = canonical_host(raw) if b":" not in raw else None
    except InvalidPolicy:
        expected = None
    try:
        wanted = read_request(name(raw))
    except Unserved:
        assert expected is None
    else:
        assert wanted is not None
        assert wanted.host == expected


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
def test_no_bytes_open_a_connection_without_a_decision(pieces: list[bytes]) -> None:
    talk = Dialogue(rule("deny", "**")).proxy()
    for piece in (b"\x05", *pieces):
        if "finish" in talk.commands or "reset" in talk.commands:
            break
        talk.receive(piece)
    assert talk.dialled == 0
    assert all(record["verdict"] == "blocked" for record in talk.records)


# -- over sockets --------------------------------------------------------------------------------------------


def test_a_synthetic_address_is_the_name_that_it_stands_for() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(stage_rule("allow", "a.test"))
        await stage.origin("a.test", echo(b"hello\n"), port=80, tls=False)
        for family in (4, 6):
            client = await stage.dial()
            client.send(GREETING + address(stage.guest.names.address("a.test", family), 80))
            assert await client.exactly(12) == METHOD + SUCCEEDED
            assert (await client.get("/", "a.test"))[2] == b"hello\n"
        client = await stage.dial()
        client.send(GREETING + address("198.18.77.77", 80))
        assert (await client.end()) == METHOD + NOT_ALLOWED
        records = await stage.settle(3, step="opened")
        assert [(each["host"], each["verdict"]) for each in records] == [
            ("a.test", "allowed"),
            ("a.test", "allowed"),
            ("198.18.77.77", "blocked"),
        ]
        assert records[2]["text"] == "a synthetic address that stands for no name"

    play(scene)


def test_connect_to_a_synthetic_address_is_the_name_too() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(stage_rule("allow", "a.test"))
        await stage.origin("a.test", echo(b"hello\n"))
        client = await stage.connect(stage.guest.names.address("a.test", 4))
        await client.start_tls("a.test", stage.certificate)
        assert (await client.get("/", "a.test"))[2] == b"hello\n"
        assert (await stage.settle(1))[0]["host"] == "a.test"

    play(scene)


def test_the_hosts_loopback_by_address_is_localhost() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(stage_rule("allow", "a.test"))
        client = await stage.dial()
        client.send(GREETING + address(stage.guest.addresses.host4, 22))
        assert (await client.end()) == METHOD + NOT_ALLOWED
        assert (await stage.settle(1))[0]["host"] == "localhost"

    play(scene)


def test_half_open_negotiations_count_as_connections() -> None:
    """DOS-02: they are bounded like all others, and end by themselves."""

    async def scene(stage: Stage) -> None:
        stage.bind(stage_rule("allow", "a.test"))
        held = [await stage.dial() for _ in range(3)]
        for client in held:
            client.send(GREETING)
            assert await client.exactly(2) == METHOD
        late = await stage.dial()
        late.send(GREETING)
        assert await late.end() == b"<reset>"
        for client in held:
            assert await client.end() == FAILED

    play(scene, connections=3, hello_time=0.5)
