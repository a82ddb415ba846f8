"""REQ-05 and REQ-06: where one request ends and the next begins has one reading, or there is no request.

Every variant carries a request for ``/smuggled`` in what one reader takes for a body and another for the next request.
"""

from __future__ import annotations

import pytest
from tests.escapes.escape_stage import Ask, Lab, Outcome, allowed, forward, inside, redirected, refused, rule

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"
OUT = b"Host: a.test\r\n"
DOORS = ["forward", "intercepted", "redirected"]


def post(
    *lines: bytes, body: bytes = b"", target: bytes = b"/", method: bytes = b"POST", version: bytes = b"1.1"
) -> bytes:
    head = [b"%b %b HTTP/%b" % (method, target, version), b"Host: a.test", *lines, b"", b""]
    return b"\r\n".join(head) + body


def through(door: str, payload: bytes, pieces: int = 0) -> Ask:
    if door == "forward":
        method, _, rest = payload.partition(b" ")
        return forward(method + b" http://a.test" + rest, pieces=pieces)
    if door == "redirected":
        return redirected("a.test", payload, pieces=pieces)
    return inside("a.test", payload, pieces=pieces)


@pytest.fixture
def world(lab: Lab) -> Lab:
    """``a.test`` takes anything, in the clear and under TLS, and works (the positive control)."""
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test")
    lab.serve("a.test", port=80, tls=False)
    heard = b"POST / HTTP/1.1\r\n" + OUT + b"Content-Length: 2\r\n\r\nhi"
    for door in DOORS:
        lab.expect(through(door, post(b"Content-Length: 2", body=b"hi")), allowed(heard))
    return lab


# -- REQ-05 ---------------------------------------------------------------------------------------------------

LENGTH = b"%d" % len(SMUGGLED)
CODING = b"Transfer-Encoding: chunked"
CHUNKS = b"0\r\n\r\n" + SMUGGLED

HEADS: list[tuple[str, bytes, int]] = [
    ("CL.TE", post(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=CHUNKS), 400),
    ("TE.CL", post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"5c\r\n" + CHUNKS), 400),
    ("CL: 0 and TE", post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=CHUNKS), 400),
    ("two lengths", post(b"Content-Length: 0", b"Content-Length: " + LENGTH, body=SMUGGLED), 400),
    ("two lengths that agree", post(b"Content-Length: 2", b"Content-Length: 2", body=b"hi"), 400),
    ("a list of lengths", post(b"Content-Length: 2, 2", body=b"hi"), 400),
    ("a signed length", post(b"Content-Length: +2", body=b"hi"), 400),
    ("a negative length", post(b"Content-Length: -1", body=SMUGGLED), 400),
    ("a hexadecimal length", post(b"Content-Length: 0x2", body=b"hi"), 400),
    ("a length with a space", post(b"Content-Length: 1 0", body=SMUGGLED), 400),
    ("a length with an underscore", post(b"Content-Length: 1_0", body=SMUGGLED), 400),
    ("an empty length", post(b"Content-Length:", body=SMUGGLED), 400),
    ("a length in other digits", post("Content-Length: ２".encode(), body=b"hi"), 400),
    ("a length beyond 64 bits", post(b"Content-Length: 18446744073709551618", body=b"hi"), 400),
    ("a length with a comma", post(b"Content-Length: 2,", body=b"hi"), 400),
    ("a space before the colon", post(b"Content-Length : " + LENGTH, body=SMUGGLED), 400),
    ("a tab before the colon", post(b"Transfer-Encoding\t: chunked", body=CHUNKS), 400),
    ("a space before the name", post(b" Content-Length: " + LENGTH, body=SMUGGLED), 400),
    ("a folded coding", post(b"Transfer-Encoding:\r\n chunked", body=CHUNKS), 400),
    ("an underscore for a hyphen", post(b"Transfer_Encoding: chunked", body=CHUNKS), 400),
    ("an underscore in the length", post(b"Content_Length: " + LENGTH, body=SMUGGLED), 400),
    ("xchunked", post(b"Transfer-Encoding: xchunked", body=CHUNKS), 501),
    ("chunked, identity", post(b"Transfer-Encoding: chunked, identity", body=CHUNKS), 501),
    ("identity, chunked", post(b"Transfer-Encoding: identity, chunked", body=CHUNKS), 501),
    ("gzip, chunked", post(b"Transfer-Encoding: gzip, chunked", body=CHUNKS), 501),
    ("chunked;q=1", post(b"Transfer-Encoding: chunked;q=1", body=CHUNKS), 501),
    ('"chunked"', post(b'Transfer-Encoding: "chunked"', body=CHUNKS), 501),
    ("an empty coding", post(b"Transfer-Encoding:", body=CHUNKS), 501),
    ("two codings", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKS), 400),
    ("two codings that differ", post(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=CHUNKS), 400),
    ("a vertical tab", post(b"Transfer-Encoding:\x0bchunked", body=CHUNKS), 400),
    ("a NUL behind the coding", post(b"Transfer-Encoding: chunked\0", body=CHUNKS), 400),
    ("a NUL in a name", post(b"Transfer-Encoding\0: chunked", body=CHUNKS), 400),
    ("a bare LF between lines", post(b"X: y\nTransfer-Encoding: chunked", body=CHUNKS), 400),
    ("a bare CR between lines", post(b"X: y\rTransfer-Encoding: chunked", body=CHUNKS), 400),
    ("a bare CR in a value", post(b"Transfer-Encoding: chunked\r x", body=CHUNKS), 400),
    ("LF alone everywhere", post(b"Content-Length: 0").replace(b"\r\n", b"\n") + SMUGGLED, 400),
    ("CR CR LF", post(b"X: y\r", body=b"").replace(b"\r\r\n", b"\r\r\n") + SMUGGLED, 400),
    ("an empty line in front", b"\r\n" + post(b"Content-Length: 0"), 400),
    ("a field without a colon", post(b"Transfer-Encoding chunked", body=CHUNKS), 400),
    ("a field without a name", post(b": chunked", body=CHUNKS), 400),
    ("chunked in HTTP/1.0", post(b"Transfer-Encoding: chunked", body=CHUNKS, version=b"1.0"), 400),
    ("HTTP/1.2", post(version=b"1.2", body=SMUGGLED), 505),
    ("HTTP/0.9", b"GET /\r\n\r\n" + SMUGGLED, 400),
    ("two spaces in the request line", post(target=b" /", body=b""), 400),
    ("a tab in the request line", post(target=b"\t/", body=b""), 400),
    ("a space behind the version", post(version=b"1.1 ", body=b""), 400),
    ("no Host", b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n" + SMUGGLED, 400),
    ("two Hosts", post(b"Host: a.test", b"Content-Length: 0", body=SMUGGLED), 400),
    ("an expectation that is none", post(b"Expect: 100-continue, y", b"Content-Length: 2", body=b"hi"), 400),
    ("Expect hidden by a space", post(b"Expect : 100-continue", b"Content-Length: 2", body=b"hi"), 400),
    ("Connection names the length", post(b"Connection: content-length", b"Content-Length: 2", body=b"hi"), 400),
    ("Connection names the coding", post(b"Connection: transfer-encoding", CODING, body=CHUNKS), 400),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "status"), [each[1:] for each in HEADS], ids=[each[0] for each in HEADS])
@pytest.mark.parametrize("door", ["intercepted", "redirected"])
def test_req_05_a_head_with_two_readings_is_refused_and_ends_the_connection(
    world: Lab, payload: bytes, status: int, door: str
) -> None:
    world.expect(through(door, payload), refused("failure", status, "closed"))
    world.expect(through(door, payload, pieces=1), refused("failure", status, "closed"))


PLAIN = [each for each in HEADS if each[1].startswith(b"POST / ")]


@pytest.mark.parametrize(("payload", "status"), [each[1:] for each in PLAIN], ids=[each[0] for each in PLAIN])
def test_req_05_the_explicit_proxy_reads_as_strictly(world: Lab, payload: bytes, status: int) -> None:
    world.expect(through("forward", payload), refused("failure", status, "closed"))


CHUNKED: list[tuple[str, bytes]] = [
    ("a size that is none", b"zz\r\nhi\r\n0\r\n\r\n"),
    ("a signed size", b"+2\r\nhi\r\n0\r\n\r\n"),
    ("0x", b"0x2\r\nhi\r\n0\r\n\r\n"),
    ("a size with an underscore", b"0_2\r\nhi\r\n0\r\n\r\n"),
    ("a size with a space in front", b" 2\r\nhi\r\n0\r\n\r\n"),
    ("a size of 2**64 + 2", b"10000000000000002\r\nhi\r\n0\r\n\r\n"),
    ("an empty size", b"\r\nhi\r\n0\r\n\r\n"),
    ("LF behind the size", b"2\nhi\r\n0\r\n\r\n"),
    ("CR behind the size", b"2\rhi\r\n0\r\n\r\n"),
    ("a LF in an extension", b"2;a\nb\r\nhi\r\n0\r\n\r\n"),
    ("a CR in an extension", b"2;a\rb\r\nhi\r\n0\r\n\r\n"),
    ("LF behind the data", b"2\r\nhi\n0\r\n\r\n"),
    ("more data than the size", b"2\r\nhi!\r\n0\r\n\r\n"),
    ("another two bytes for CRLF", b"2\r\nhixx0\r\n\r\n"),
    ("an extension of a megabyte", b"2;" + b"x" * 1_000_000 + b"\r\nhi\r\n0\r\n\r\n"),
    ("a trailer without a colon", b"0\r\nX\r\n\r\n"),
    ("a trailer with a space before the colon", b"0\r\nX : y\r\n\r\n"),
    ("a bare LF in the trailers", b"0\r\nX: y\n\r\n\r\n"),
]


@pytest.mark.parametrize("body", [each[1] for each in CHUNKED], ids=[each[0] for each in CHUNKED])
@pytest.mark.parametrize("door", DOORS)
def test_req_05_chunks_with_two_readings_end_the_connection(world: Lab, body: bytes, door: str) -> None:
    """The head was allowed, so there are two records: of what was let through, and of what was not."""
    head = b"POST / HTTP/1.1\r\n" + OUT + b"Transfer-Encoding: chunked\r\n\r\n"
    ask = through(door, post(b"Transfer-Encoding: chunked", body=body + SMUGGLED))
    world.forget()
    client = world.run(ask.open(world))
    assert world.run(world.talk(client, ask, (400, "closed"))) == [400, "closed"]
    client.close()
    world.run(world._quiet())
    opened = [(each["verdict"], each["reason"]) for each in world.stage.recorded("opened")]
    assert opened == [("allowed", "rule"), ("blocked", "failure")]
    assert world.upstream in (b"", head)  # the head may have left before the body was read
    world.sentinel()


REFRAMED: list[tuple[str, bytes, bytes]] = [
    ("a chunk", b"2\r\nhi\r\n0\r\n\r\n", b"2\r\nhi\r\n0\r\n\r\n"),
    ("an extension", b"2;a=b\r\nhi\r\n0;c\r\n\r\n", b"2\r\nhi\r\n0\r\n\r\n"),
    ("leading zeros", b"00002\r\nhi\r\n000\r\n\r\n", b"2\r\nhi\r\n0\r\n\r\n"),
    ("a trailer", b"2\r\nhi\r\n0\r\nX: y\r\n\r\n", b"2\r\nhi\r\n0\r\nX: y\r\n\r\n"),
    ("framing in the trailers", b"2\r\nhi\r\n0\r\nContent-Length: 9\r\nX: y\r\n\r\n", b"2\r\nhi\r\n0\r\nX: y\r\n\r\n"),
    ("Host in the trailers", b"2\r\nhi\r\n0\r\nHost: b.test\r\n\r\n", b"2\r\nhi\r\n0\r\n\r\n"),
    ("a secret in the trailers", b"2\r\nhi\r\n0\r\nAuthorization: x\r\n\r\n", b"2\r\nhi\r\n0\r\n\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "heard"), [each[1:] for each in REFRAMED], ids=[each[0] for each in REFRAMED]
)
@pytest.mark.parametrize("door", DOORS)
def test_req_05_what_has_one_reading_is_framed_anew(world: Lab, body: bytes, heard: bytes, door: str) -> None:
    head = b"POST / HTTP/1.1\r\n" + OUT + b"Transfer-Encoding: chunked\r\n\r\n"
    world.expect(through(door, post(b"Transfer-Encoding: chunked", body=body)), allowed(head + heard))


@pytest.mark.parametrize(
    ("method", "heard"),
    [
        (b"GET", b"GET / HTTP/1.1\r\n" + OUT + b"\r\n"),
        (b"POST", b"POST / HTTP/1.1\r\n" + OUT + b"Content-Length: 0\r\n\r\n"),
    ],
)
def test_req_05_a_request_without_a_length_has_no_body(world: Lab, method: bytes, heard: bytes) -> None:
    """CL.0 and 0.CL: what follows is a request of its own, read and decided as one."""
    second = SMUGGLED
    outcome = allowed(heard + second, 200, 200, records=2)
    world.expect(through("intercepted", post(method=method, body=SMUGGLED)), outcome)


def test_req_05_an_expectation_passes_as_it_is(world: Lab) -> None:
    heard = b"POST / HTTP/1.1\r\n" + OUT + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\nhi"
    world.expect(
        through("intercepted", post(b"Expect: 100-continue", b"Content-Length: 2", body=b"hi")),
        allowed(heard),
    )


# -- REQ-06 ---------------------------------------------------------------------------------------------------


def test_req_06_the_second_request_of_a_write_is_decided(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test", methods=["GET"], paths=["/open/**"]))
    lab.serve("a.test")
    fine = b"GET /open/x HTTP/1.1\r\nHost: a.test\r\n\r\n"
    lab.expect(inside("a.test", fine + fine), allowed(fine * 2, 200, 200, records=2))
    for second in (SMUGGLED, b"POST /open/x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n"):
        outcome = Outcome(
            seen=(200, 403, 200), verdict="allowed", reason="rule", upstream=fine * 2, dials=1, records=3
        )
        for pieces in (0, 1):
            lab.expect(inside("a.test", fine + second + fine, pieces=pieces), outcome)


def test_req_06_the_second_destination_of_a_write_is_decided(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", port=80, tls=False)
    lab.serve("b.test", port=80, tls=False)
    one = b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n"
    two = b"GET http://b.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n"
    heard = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
    outcome = Outcome(
        seen=(200, 403, 200), verdict="allowed", reason="rule", upstream=heard * 2, dials=1, records=3
    )
    lab.expect(forward(one + two + one), outcome)


def test_req_06_what_follows_a_body_never_belongs_to_it(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test", methods=["POST"]))
    lab.serve("a.test")
    for lines, body in (
        ((b"Content-Length: 2",), b"hi"),
        ((b"Transfer-Encoding: chunked",), b"2\r\nhi\r\n0\r\n\r\n"),
    ):
        heard = b"POST / HTTP/1.1\r\n" + OUT + lines[0] + b"\r\n\r\n" + body
        outcome = Outcome(
            seen=(200, 403), verdict="blocked", reason="default", upstream=heard, dials=1, records=2
        )
        for pieces in (0, 1, 7):
            lab.expect(inside("a.test", post(*lines, body=body) + SMUGGLED, pieces=pieces), outcome)
