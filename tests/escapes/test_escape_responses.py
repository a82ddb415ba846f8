"""REQ-13 and REQ-14: hostile origins, and what two sandboxes share, which is nothing."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Callable

import pytest
from tests.escapes.escape_stage import (
    CLIENT4,
    OK,
    Ask,
    Lab,
    Outcome,
    allowed,
    forward,
    get,
    inside,
    policy,
    refused,
    rule,
)

from ringfence.application.ports import Addresses
from ringfence.gateway.core.subject import Subject
from ringfence.gateway.guest import Guest

HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", b""])


def once(reply: bytes) -> Callable[[bytes], bytes]:
    """An origin whose first answer is hostile; all others are fine."""
    replies = itertools.chain([reply], itertools.repeat(OK))
    return lambda _: next(replies)


# -- REQ-13 ---------------------------------------------------------------------------------------------------

NOT_RESPONSES: list[tuple[str, bytes]] = [
    ("no HTTP", b"SSH-2.0-x\r\n\r\n"),
    ("HTTP/2", b"HTTP/2 200 OK\r\n\r\n"),
    ("HTTP/0.9", b"<html></html>\r\n\r\n"),
    ("a status of two digits", b"HTTP/1.1 20 OK\r\n\r\n"),
    ("a status of four digits", b"HTTP/1.1 2000 OK\r\n\r\n"),
    ("a status of 600", b"HTTP/1.1 600 X\r\n\r\n"),
    ("a status of 099", b"HTTP/1.1 099 X\r\n\r\n"),
    ("no status", b"HTTP/1.1 OK\r\n\r\n"),
    ("an empty line in front", b"\r\n" + FORGED),
    ("CL and TE", head(b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + FORGED),
    ("two lengths", head(b"Content-Length: 0", b"Content-Length: 6") + b"forged"),
    ("a list of lengths", head(b"Content-Length: 2, 2") + b"ok"),
    ("a negative length", head(b"Content-Length: -1")),
    ("a length that is none", head(b"Content-Length: two") + b"ok"),
    ("xchunked", head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n" + FORGED),
    ("gzip, chunked", head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
    ("chunked twice", head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    ("an underscore for a hyphen", head(b"Transfer_Encoding: chunked") + b"0\r\n\r\n" + FORGED),
    ("a space before the colon", head(b"Content-Length : 6") + b"forged"),
    ("folding", head(b"X: y", b" Content-Length: 6") + b"forged"),
    ("a bare LF", b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok"),
    ("a bare CR in a value", head(b"X: y\rSet-Cookie: z", b"Content-Length: 2") + b"ok"),
    ("a bare LF in a value", head(b"X: y\nSet-Cookie: z", b"Content-Length: 2") + b"ok"),
    ("a NUL in a value", head(b"X: y\0", b"Content-Length: 2") + b"ok"),
    ("a field without a colon", head(b"Set-Cookie", b"Content-Length: 2") + b"ok"),
    ("a body behind 204", head(b"Content-Length: 6", status=b"204 No Content") + b"forged"),
    ("a body behind 100", head(b"Content-Length: 6", status=b"100 Continue") + b"forged" + OK),
    ("33 interim responses", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 33 + OK),
    ("201 fields", head(*(b"X-%d: y" % number for number in range(201))) + b"ok"),
    ("a head of 70 KB", head(b"X: " + b"y" * 70_000)),
    ("a first chunk that is none", head(b"Transfer-Encoding: chunked") + b"zz\r\nok\r\n0\r\n\r\n"),
]


@pytest.mark.parametrize(
    "reply", [each[1] for each in NOT_RESPONSES], ids=[each[0] for each in NOT_RESPONSES]
)
def test_req_13_what_is_no_response_is_a_502_and_its_connection_is_never_used_again(
    lab: Lab, reply: bytes
) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", reply=once(reply))
    interim = (103,) * 32 if reply.startswith(b"HTTP/1.1 103") else ()
    outcome = allowed(HEARD * 2, *interim, 502, 200, dials=2, records=2)
    records = lab.expect(inside("a.test", get("a.test") * 2), outcome)
    assert [each["ended"] for each in records if each["step"] == "closed"] == ["upstream", "done"]


SPLIT: list[tuple[str, bytes]] = [
    ("a second response", OK + FORGED),
    ("half a second response", OK + FORGED[:20]),
    ("bytes behind the length", OK + b"forged"),
    ("a line end behind the length", OK + b"\r\n"),
    (
        "a response behind the last chunk",
        head(b"Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n" + FORGED,
    ),
    ("a response behind a 304", head(status=b"304 Not Modified") + FORGED),
    ("a response behind a 204", head(status=b"204 No Content") + FORGED),
    ("close, and more", head(b"Connection: close", b"Content-Length: 2") + b"ok" + FORGED),
]


@pytest.mark.parametrize("reply", [each[1] for each in SPLIT], ids=[each[0] for each in SPLIT])
def test_req_13_what_follows_a_response_is_nobodys(lab: Lab, reply: bytes) -> None:
    """Response queue poisoning: the next request has a connection of its own, and its own answer."""
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", reply=once(reply))
    status = int(reply[9:12])
    lab.expect(inside("a.test", get("a.test") * 2), allowed(HEARD * 2, status, 200, dials=2, records=2))


TRUNCATED: list[tuple[str, bytes]] = [
    ("a length", head(b"Content-Length: 10") + b"abc"),
    ("a chunk", head(b"Transfer-Encoding: chunked") + b"a\r\nabc"),
    ("chunks without a last one", head(b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n"),
    ("a last chunk without its end", head(b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n"),
]


@pytest.mark.parametrize("reply", [each[1] for each in TRUNCATED], ids=[each[0] for each in TRUNCATED])
@pytest.mark.parametrize("door", ["intercepted", "forward"])
def test_req_13_a_truncated_response_never_looks_complete(lab: Lab, reply: bytes, door: str) -> None:
    lab.bind(rule("allow", "a.test"))
    ask: Ask = inside("a.test", get("a.test"))
    if door == "forward":
        ask = forward(get("a.test", "http://a.test/"))
    lab.serve(
        "a.test",
        port=443 if door == "intercepted" else 80,
        tls=door == "intercepted",
        reply=reply,
        hang_up=True,
    )
    lab.expect(ask, allowed(HEARD, "cut", ended="upstream"))


def test_req_13_a_head_that_breaks_off_is_a_502(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", reply=b"HTTP/1.1 200 OK\r\nContent-Le", hang_up=True)
    lab.expect(inside("a.test", get("a.test")), allowed(HEARD, 502, ended="upstream"))


def test_req_13_an_answer_before_the_question_is_nobodys(lab: Lab) -> None:
    """A pooled connection on which something arrives unasked is closed."""
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", reply=once(OK))
    lab.expect(
        inside("a.test", get("a.test") * 2), allowed(HEARD * 2, 200, 200, records=2)
    )  # one connection: pooled
    lab.serve("b.test", reply=once(OK + FORGED))
    lab.bind(rule("allow", "b.test"))
    heard = HEARD.replace(b"a.test", b"b.test")
    lab.expect(inside("b.test", get("b.test") * 3), allowed(heard * 3, 200, 200, 200, dials=2, records=3))


STRIPPED = [
    b'Alt-Svc: h3=":443"', b"Keep-Alive: timeout=5", b"Proxy-Authenticate: Basic", b"TE: trailers", b"Upgrade: h2c",
]  # fmt: skip


@pytest.mark.parametrize("line", STRIPPED, ids=lambda line: line.decode())
def test_req_13_what_belongs_to_one_hop_is_not_passed_on(lab: Lab, line: bytes) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", reply=head(line, b"X-End: y", b"Content-Length: 2") + b"ok")

    async def seen() -> dict[str, str]:
        client = await lab.stage.secure("a.test")
        _, fields, _ = await client.get("/", "a.test")
        client.close()
        return fields

    assert lab.run(seen()) == {"x-end": "y", "content-length": "2"}
    lab.sentinel()


# -- REQ-14 ---------------------------------------------------------------------------------------------------


class Neighbour:
    """A second sandbox at the same gateway."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.records: list[dict[str, object]] = []
        ids = itertools.count(1)
        subject = Subject(
            id="sandbox-2", name="next", agent="shell", user="bob",
            ids=lambda: b"11111111-%08x" % next(ids),
            sink=lambda record, _: self.records.append(json.loads(record)),
        )  # fmt: skip
        self.guest = Guest(lab.stage.services, subject, Addresses())
        self.sock = socket.socket()
        self.sock.bind((CLIENT4, 0))
        lab.run(self.guest.serve({"proxy4": self.sock}))

    def ask(self) -> Ask:
        payload = get("a.test", "http://a.test/")
        port = self.sock.getsockname()[1]
        return Ask(open=lambda lab: lab.stage._client(port), payload=payload)

    def get(self) -> int:
        async def scene() -> int:
            client = await self.ask().open(self.lab)
            client.send(self.ask().payload)
            status, _, _ = await client.response()
            client.close()
            return status

        return self.lab.run(scene())


def test_req_14_two_sandboxes_share_no_connection_no_answer_and_no_verdict(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", port=80, tls=False)
    heard = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
    neighbour = Neighbour(lab)
    try:
        lab.expect(forward(get("a.test", "http://a.test/") * 2), allowed(heard * 2, 200, 200, records=2))
        assert neighbour.get() == 403  # not allowed there, whatever is pooled here
        neighbour.guest.bind(policy(rule("allow", "a.test")), time.time())
        lab.forget()
        assert lab.run(_shelved(lab)) == 1  # an idle connection of the first sandbox waits
        assert neighbour.get() == 200
        assert len(lab.stage.dials) == 2  # and was not taken by the second
        assert {record["sandbox"] for record in neighbour.records} == {"sandbox-2"}
        assert {record["sandbox"] for record in lab.stage.records} == {"sandbox-1"}
    finally:
        neighbour.guest.release()
    lab.sentinel()


async def _shelved(lab: Lab) -> int:
    client = await lab.stage.dial()
    client.send(get("a.test", "http://a.test/"))
    await client.response()
    client.close()
    await lab._quiet()
    return sum(len(links) for links in lab.stage.guest.upstreams.shelves.values())


def test_req_14_nothing_is_cached(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    lines = (b"Cache-Control: public, max-age=3600", b"ETag: x", b"Content-Length: 2")
    lab.serve("a.test", reply=head(*lines) + b"ok")
    lab.expect(inside("a.test", get("a.test") * 3), allowed(HEARD * 3, 200, 200, 200, records=3))


def test_req_14_a_connection_of_an_older_policy_serves_nobody(lab: Lab) -> None:
    lab.serve("a.test", port=80, tls=False)
    lab.bind(rule("allow", "a.test"))
    assert lab.run(_shelved(lab)) == 1
    lab.bind(rule("allow", "b.test"))
    assert not lab.stage.guest.upstreams.shelves
    lab.expect(forward(get("a.test", "http://a.test/")), refused())
    outcome = Outcome(seen=(403,), verdict="blocked", reason="default")
    lab.expect(forward(get("a.test", "http://a.test/")), outcome)
