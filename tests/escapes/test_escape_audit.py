"""AUD-01 to AUD-03: one decision, one record, one line, whatever the sandbox says."""

from __future__ import annotations

import json

import pytest
from tests.escapes.escape_stage import (
    Ask,
    Lab,
    Outcome,
    allowed,
    connect,
    forward,
    get,
    inside,
    redirected,
    refused,
    rule,
    tunnel,
)

from ringfence.audit.events import TEXT_LIMIT

HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


@pytest.fixture
def raw(lab: Lab):
    """The records of the stage as they leave the gateway, in bytes."""
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test")
    subject, written = lab.stage.guest.subject, []
    sink = subject.sink

    def keep(record: bytes, droppable: bool) -> None:
        written.append(record)
        sink(record, droppable)

    subject.sink = keep
    yield written
    subject.sink = sink


# -- AUD-01 ---------------------------------------------------------------------------------------------------

FORGERIES: list[tuple[str, bytes]] = [
    ("a path that ends a record", get("a.test", '/"},{"verdict":"allowed"}')),
    ("an escaped line break", get("a.test", "/%0d%0aALLOWED%20evil.test")),
    ("a backslash", get("a.test", '/\\"\\n')),
    ("an escape sequence in percent", get("a.test", "/%1b[2J%1b]0;x%07")),
    ("bidirectional overrides in percent", get("a.test", "/%e2%80%ae")),
    ("markup", get("a.test", "/<script>&amp;")),
    ("60 KiB of path", get("a.test", "/" + "a" * 60_000)),
    ("60 KiB of query", get("a.test", "/?" + "a" * 60_000)),
    ("a method of 200 letters", get("a.test", method="A" * 200)),
]


@pytest.mark.parametrize("payload", [each[1] for each in FORGERIES], ids=[each[0] for each in FORGERIES])
def test_aud_01_a_record_is_one_bounded_line(lab: Lab, raw: list[bytes], payload: bytes) -> None:
    lab.expect(inside("a.test", payload), allowed(payload))
    raw.clear()
    (opened, closed) = lab.expect(inside("a.test", payload), allowed(payload))[:2]
    assert opened["id"] == closed["id"]
    for record in raw[:2]:
        assert json.loads(record)
        assert all(0x20 <= each < 0x7F for each in record)
        assert len(record) < 3 * TEXT_LIMIT
    assert "?" not in opened["path"]


MALFORMED: list[tuple[str, bytes]] = [
    ("a line break in a name", connect(b"evil.test\nALLOWED a.test:443")),
    ("an escape sequence in a name", connect(b"\x1b[2Jevil.test:443")),
    ("C1 in a name", connect(b"\x9b2Jevil.test:443")),
    ("a bidirectional override in a name", connect("\u202etset.live:443".encode())),
    ("a NUL", connect(b"a.test\0:443")),
    ("quotes", connect(b'a","verdict":"allowed:443')),
    ("a name of 60 KB", connect(b"a" * 30_000 + b":443")),
    ("a field of 60 KB", get("a.test", "http://a.test/", "X\x01: " + "y" * 60_000)),
]


@pytest.mark.parametrize("payload", [each[1] for each in MALFORMED], ids=[each[0] for each in MALFORMED])
def test_aud_01_what_is_refused_for_its_bytes_does_not_write_them(
    lab: Lab, raw: list[bytes], payload: bytes
) -> None:
    lab.expect(inside("a.test", get("a.test")), allowed(HEARD))
    lab.expect(forward(payload), refused("failure", 400))
    for record in raw:
        assert json.loads(record)
        assert all(0x20 <= each < 0x7F for each in record)
        assert len(record) < 3 * TEXT_LIMIT


def test_aud_01_a_refusal_repeats_nothing_of_the_request_but_its_host(lab: Lab, raw: list[bytes]) -> None:
    async def body() -> bytes:
        client = await lab.stage.secure("b.test")
        _, _, text = await client.get('/"><script>', "b.test")
        client.close()
        return text

    told = lab.run(body())
    assert b"<script>" not in told  # the page of a refusal repeats nothing of the request but its host
    assert b"b.test:443" in told
    lab.sentinel()


# -- AUD-03 ---------------------------------------------------------------------------------------------------

DOORS: list[tuple[str, Ask, int | str, str]] = [
    ("CONNECT that is malformed", forward(connect("a..test:443")), 400, "failure"),
    ("a request that is malformed", forward(b"GET http://a.test/ HTTP/1.1\r\n\r\n"), 400, "failure"),
    ("a refused request", forward(get("b.test", "http://b.test/")), 403, "default"),
    ("a refused request in TLS", inside("b.test", get("b.test")), 403, "default"),
    ("a name that disagrees", inside("a.test", get("b.test")), 421, "guard"),
    ("bytes that nobody knows", tunnel("b.test", b"\0\1\2"), "reset", "default"),
    ("a malformed hello", tunnel("a.test", b"\x16\x03\x01\0\x05\x02\0\0\1\0"), "reset", "failure"),
    ("a redirected request", redirected("b.test", get("b.test")), 403, "default"),
    ("a redirected stranger", redirected("203.0.113.9", b"\0\1\2", port=22), "reset", "default"),
    ("an address of nobody", redirected("198.18.99.99", get("198.18.99.99")), 403, "guard"),
    ("SOCKS4", forward(b"\x04\x01\0\x50\x7f\0\0\1me\0"), "closed", "failure"),
]


@pytest.mark.parametrize(
    ("ask", "seen", "reason"), [each[1:] for each in DOORS], ids=[each[0] for each in DOORS]
)
def test_aud_03_every_refusal_is_one_record(lab: Lab, ask: Ask, seen: int | str, reason: str) -> None:
    lab.bind(rule("allow", "a.test"))
    if seen == "closed":
        lab.expect(ask, refused(reason, b"\0\x5b" + bytes(6), "closed"))
        return
    lab.expect(ask, refused(reason, seen))


def test_aud_03_a_blocked_attempt_that_says_nothing_is_on_record(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.expect(inside("b.test", b""), Outcome(seen=(), verdict="blocked", reason="default"))


def test_aud_03_decisions_and_records_are_as_many(lab: Lab) -> None:
    """A hundred attempts of all kinds: every decision has its ``opened``, everything that was opened its ``closed``."""
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test")
    decisions, opened, closed = 0, set(), set()
    for number in range(9):
        for _, ask, seen, reason in DOORS[:-1]:
            records = lab.expect(ask, refused(reason, seen))
            decisions += 1
            opened |= {(number, each["id"]) for each in records if each["step"] == "opened"}
        records = lab.expect(inside("a.test", get("a.test") * 2), allowed(HEARD * 2, 200, 200, records=2))
        decisions += 2
        opened |= {(number, each["id"]) for each in records if each["step"] == "opened"}
        closed |= {(number, each["id"]) for each in records if each["step"] == "closed"}
    assert len(opened) == decisions
    assert len(closed) == 18
