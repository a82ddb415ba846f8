"""Heads: what is read, what is refused rather than repaired, and what goes on (GATEWAY.md section 5)."""

from __future__ import annotations

import contextlib
import os

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringfence.gateway.core.fields import parse_trailers
from ringfence.gateway.core.heads import (
    is_model,
    parse_again,
    parse_request,
    parse_response,
    render_request,
    render_response,
)
from ringfence.gateway.core.messages import CHUNKED, UNTIL_CLOSE, UPGRADED, Malformed

EXAMPLES = int(os.environ.get("RINGFENCE_FUZZ_EXAMPLES", "3000"))


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([*lines, b"", b""])


GET = b"GET / HTTP/1.1"
HOST = b"Host: a.test"

REFUSED_REQUESTS: list[tuple[str, bytes, int, str]] = [
    ("bare LF", b"GET / HTTP/1.1\nHost: a.test\r\n\r\n", 400, "CR or LF"),
    ("bare CR", b"GET / HTTP/1.1\r\nHost: a.test\rX: y\r\n\r\n", 400, "CR or LF"),
    ("NUL", b"GET / HTTP/1.1\r\nHost: a.test\r\nX: a\0b\r\n\r\n", 400, "NUL"),
    ("folding", head(GET, HOST, b"X: a", b" b"), 400, "folded"),
    ("folding first", head(GET, b" X: a", HOST), 400, "folded"),
    ("space before colon", head(GET, b"Host : a.test"), 400, "white space"),
    ("space in name", head(GET, HOST, b"Content Length: 3"), 400, "white space"),
    ("tab before colon", head(GET, HOST, b"Content-Length\t: 3"), 400, "white space"),
    ("no colon", head(GET, HOST, b"nonsense"), 400, "without a colon"),
    ("empty name", head(GET, HOST, b": x"), 400, "malformed header"),
    ("control character", head(GET, HOST, b"X: \x01"), 400, "control character"),
    ("two spaces", b"GET  / HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "request line"),
    ("trailing space", b"GET / HTTP/1.1 \r\nHost: a.test\r\n\r\n", 400, "request line"),
    ("leading empty line", b"\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "request line"),
    ("no version", b"GET /\r\nHost: a.test\r\n\r\n", 400, "request line"),
    ("HTTP/0.9", b"GET / HTTP/0.9\r\nHost: a.test\r\n\r\n", 505, "version"),
    ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: a.test\r\n\r\n", 505, "version"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\n", 505, "ALPN"),
    ("lower-case method", head(b"get / HTTP/1.1", HOST), 501, "upper case"),
    ("no Host", head(GET), 400, "no Host"),
    ("two Hosts", head(GET, HOST, HOST), 400, "two Host"),
    ("both framings", head(GET, HOST, b"Content-Length: 3", b"Transfer-Encoding: chunked"), 400, "both"),
    ("two lengths", head(GET, HOST, b"Content-Length: 3", b"Content-Length: 4"), 400, "two Content-Length"),
    (
        "two equal lengths",
        head(GET, HOST, b"Content-Length: 3", b"content-length: 3"),
        400,
        "two Content-Length",
    ),
    ("list of lengths", head(GET, HOST, b"Content-Length: 3, 3"), 400, "malformed Content-Length"),
    ("signed length", head(GET, HOST, b"Content-Length: +3"), 400, "malformed Content-Length"),
    ("hexadecimal length", head(GET, HOST, b"Content-Length: 0x3"), 400, "malformed Content-Length"),
    ("empty length", head(GET, HOST, b"Content-Length:"), 400, "malformed Content-Length"),
    ("endless length", head(GET, HOST, b"Content-Length: " + b"9" * 19), 400, "malformed Content-Length"),
    ("superscript length", head(GET, HOST, "Content-Length: ²".encode()), 400, "malformed Content-Length"),
    ("gzip, chunked", head(GET, HOST, b"Transfer-Encoding: gzip, chunked"), 501, "other than chunked"),
    ("identity", head(GET, HOST, b"Transfer-Encoding: identity"), 501, "other than chunked"),
    ("quoted chunked", head(GET, HOST, b'Transfer-Encoding: "chunked"'), 501, "other than chunked"),
    ("vertical tab", head(GET, HOST, b"Transfer-Encoding: \x0bchunked"), 400, "control character"),
    (
        "two codings",
        head(GET, HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"),
        400,
        "two Transfer",
    ),
    ("chunked in 1.0", head(b"GET / HTTP/1.0", HOST, b"Transfer-Encoding: chunked"), 400, "HTTP/1.0"),
    ("underscored framing", head(GET, HOST, b"Content_Length: 3"), 400, "disguise"),
    ("strange Expect", head(GET, HOST, b"Expect: the-worst"), 400, "Expect"),
    ("h2c upgrade", head(GET, HOST, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), 400, "HTTP/2"),
    ("TLS upgrade", head(GET, HOST, b"Connection: upgrade", b"Upgrade: TLS/1.2"), 400, "TLS"),
    ("Connection names Host", head(GET, HOST, b"Connection: host"), 400, "end-to-end"),
    ("Connection names a length", head(GET, HOST, b"Connection: close, Content-Length"), 400, "end-to-end"),
    ("Connection names credentials", head(GET, HOST, b"Connection: Authorization"), 400, "end-to-end"),
    ("authority is not Host", head(b"GET http://a.test/ HTTP/1.1", b"Host: b.test"), 400, "not the Host"),
    ("fragment", head(b"GET /#x HTTP/1.1", HOST), 400, "fragment"),
    ("opaque target", head(b"GET a.test HTTP/1.1", HOST), 400, "neither a path"),
    ("other scheme", head(b"GET ftp://a.test/ HTTP/1.1", HOST), 400, "neither a path"),
    ("asterisk", head(b"OPTIONS * HTTP/1.1", HOST), 400, "neither a path"),
    ("CONNECT elsewhere", head(b"CONNECT a.test:443 HTTP/1.1", b"Host: b.test:443"), 400, "not its target"),
    ("CONNECT with a body", head(b"CONNECT a.test:443 HTTP/1.1", HOST, b"Content-Length: 3"), 400, "body"),
    ("201 fields", head(GET, HOST, *[b"X: y"] * 200), 431, "more than 200"),
]


@pytest.mark.parametrize(
    ("raw", "status", "text"), [row[1:] for row in REFUSED_REQUESTS], ids=[row[0] for row in REFUSED_REQUESTS]
)
def test_requests_refused_rather_than_repaired(raw: bytes, status: int, text: str) -> None:
    with pytest.raises(Malformed) as refused:
        parse_request(raw)
    assert (refused.value.status, text in refused.value.text) == (status, True), refused.value.text


REFUSED_RESPONSES: list[tuple[str, bytes]] = [
    ("both framings", head(b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Transfer-Encoding: chunked")),
    ("two lengths", head(b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Content-Length: 3")),
    ("gzip coding", head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: gzip")),
    ("bare LF", b"HTTP/1.1 200 OK\nContent-Length: 3\r\n\r\n"),
    ("folding", head(b"HTTP/1.1 200 OK", b"X: a", b" b")),
    ("splitting", b"HTTP/1.1 200 OK\r\nX: a\r\r\nY: b\r\n\r\n"),
    ("space before colon", head(b"HTTP/1.1 200 OK", b"Content-Length : 3")),
    ("no status", head(b"HTTP/1.1 OK")),
    ("four digits", head(b"HTTP/1.1 2000 OK")),
    ("status 600", head(b"HTTP/1.1 600 OK")),
    ("HTTP/2", head(b"HTTP/2 200 OK")),
    ("ICY", head(b"ICY 200 OK")),
    ("204 with a body", head(b"HTTP/1.1 204 No Content", b"Content-Length: 3")),
    ("204 chunked", head(b"HTTP/1.1 204 No Content", b"Transfer-Encoding: chunked")),
    ("100 with a body", head(b"HTTP/1.1 100 Continue", b"Content-Length: 3")),
    ("101 without Connection", head(b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket")),
    ("201 fields", head(b"HTTP/1.1 200 OK", *[b"X: y"] * 201)),
]


@pytest.mark.parametrize(
    "raw", [row[1] for row in REFUSED_RESPONSES], ids=[row[0] for row in REFUSED_RESPONSES]
)
def test_responses_refused_rather_than_repaired(raw: bytes) -> None:
    with pytest.raises(Malformed) as refused:
        parse_response(raw, b"GET")
    assert refused.value.status == 502


FRAMINGS: list[tuple[bytes, tuple[bytes, ...], bytes, int]] = [
    (b"200 OK", (b"Content-Length: 5",), b"GET", 5),
    (b"200 OK", (b"Transfer-Encoding: Chunked",), b"GET", CHUNKED),
    (b"200 OK", (), b"GET", UNTIL_CLOSE),
    (b"200 OK", (b"Content-Length: 5",), b"HEAD", 0),
    (b"304 Not Modified", (b"Content-Length: 5",), b"GET", 0),
    (b"204 No Content", (), b"GET", 0),
    (b"101 Switching Protocols", (b"Connection: Upgrade", b"Upgrade: websocket"), b"GET", UPGRADED),
]


@pytest.mark.parametrize(("status", "lines", "method", "length"), FRAMINGS)
def test_the_length_of_a_response(
    status: bytes, lines: tuple[bytes, ...], method: bytes, length: int
) -> None:
    assert parse_response(head(b"HTTP/1.1 " + status, *lines), method).length == length


def test_what_belongs_to_one_hop_stays_there() -> None:
    request = parse_request(
        head(
            b"POST /upload?x=1 HTTP/1.1",
            b"hOST:a.test",
            b"Connection: close, X-Private",
            b"X-Private: 1",
            b"Keep-Alive: timeout=5",
            b"Proxy-Authorization: Basic eDp5",
            b"Proxy-Connection: keep-alive",
            b"TE: trailers",
            b"Trailer: X-Sum",
            b"Accept:  */* ",
            b"Content-Length: 3",
        )
    )
    assert render_request(request, b"a.test") == head(
        b"POST /upload?x=1 HTTP/1.1", b"Host: a.test", b"Accept: */*", b"Content-Length: 3"
    )
    response = parse_response(
        head(
            b"HTTP/1.1 200 OK",
            b'Alt-Svc: h3=":443"',
            b"Connection: X-Internal",
            b"X-Internal: 1",
            b"Proxy-Authenticate: Basic",
            b"Set-Cookie: a=b",
            b"Content-Length: 0",
        ),
        b"GET",
    )
    assert render_response(response, framing=b"Content-Length: 0", close=False) == head(
        b"HTTP/1.1 200 OK", b"Set-Cookie: a=b", b"Content-Length: 0"
    )


@pytest.mark.parametrize(
    ("line", "authority", "path"),
    [
        (b"GET http://a.test HTTP/1.1", b"a.test", b"/"),
        (b"GET http://a.test?q HTTP/1.1", b"a.test", b"/?q"),
        (b"GET HTTP://a.test:80/x HTTP/1.1", b"a.test:80", b"/x"),
        (b"GET http://u:p@a.test/ HTTP/1.1", b"u:p@a.test", b"/"),
    ],
)
def test_an_absolute_form_names_its_authority(line: bytes, authority: bytes, path: bytes) -> None:
    request = parse_request(head(line, b"Host: " + authority.removesuffix(b":80")))
    assert (request.authority, request.path, request.scheme) == (authority, path, b"http")


def test_a_request_read_after_a_model_is_the_request_itself() -> None:
    fields = (HOST, b"User-Agent: x", b"Connection: X-Y", b"X-Y: 1")
    model = parse_request(head(GET, *fields))
    assert is_model(model)
    render_request(model, b"a.test")
    again = parse_again(b"HEAD /other?q=1 HTTP/1.1", model)
    whole = parse_request(head(b"HEAD /other?q=1 HTTP/1.1", *fields))
    assert again is not None
    assert render_request(again, b"a.test") == render_request(whole, b"a.test")
    assert (again.authority, again.close, again.lines) == (whole.authority, whole.close, whole.lines)


@pytest.mark.parametrize(
    "line",
    [
        b"POST / HTTP/1.1",
        b"GET / HTTP/1.0",
        b"GET /#x HTTP/1.1",
        b"CONNECT a.test:443 HTTP/1.1",
        b"get / HTTP/1.1",
        b"GET http://b.test/ HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET /\0 HTTP/1.1",
    ],
)
def test_what_is_not_plainly_alike_is_read_whole(line: bytes) -> None:
    model = parse_request(head(GET, HOST))
    assert parse_again(line, model) is None


@pytest.mark.parametrize(
    "raw",
    [
        head(b"POST / HTTP/1.1", HOST),
        head(GET, HOST, b"Content-Length: 3"),
        head(GET, HOST, b"Expect: 100-continue"),
        head(GET, HOST, b"Connection: upgrade", b"Upgrade: websocket"),
        head(b"GET / HTTP/1.0", HOST),
        head(GET, HOST, b"X-HTTP-Method-Override: DELETE"),
    ],
)
def test_only_plain_requests_are_models(raw: bytes) -> None:
    assert not is_model(parse_request(raw))


def test_trailers_that_would_change_the_message_are_dropped() -> None:
    section = b"X-Sum: 1\r\nContent-Length: 5\r\nHost: b\r\nAuthorization: x\r\nProxy-X: y\r\n\r\n"
    assert parse_trailers(section) == [b"X-Sum: 1"]


# -- the oracle -------------------------------------------------------------------------------------------------------

_NAMES = st.sampled_from(
    [
        b"Host",
        b"host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"Accept",
        b"X-A",
        b"Expect",
        b"Upgrade",
        b"Content_Length",
        b"Host ",
        b" X",
        b"X\0",
        b"\xc3\xa4",
        b"Keep-Alive",
        b"Cookie",
    ]
)
_VALUES = st.sampled_from(
    [
        b"a.test",
        b"b.test",
        b"3",
        b"0",
        b"+3",
        b"3, 3",
        b"",
        b" 3 ",
        b"chunked",
        b"Chunked",
        b"gzip, chunked",
        b"close",
        b"upgrade",
        b"x\ry",
        b"x\ny",
        b"\x7f",
        b"\xff",
        b"100-continue",
        b"websocket",
        b"h2c",
        b"a\tb",
        b"identity",
    ]
)
_LINES = st.tuples(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"get", b"G(T", b"", b"OPTIONS", b"DELETE"]),
    st.sampled_from([b" ", b"  ", b"\t"]),
    st.sampled_from(
        [b"/", b"/a?b=c", b"*", b"http://a.test/", b"", b"/\x80", b"/a b", b"/#f", b"a.test:443"]
    ),
    st.sampled_from(
        [b" HTTP/1.1", b" HTTP/1.0", b" HTTP/1.2", b" HTTP/2.0", b"", b" http/1.1", b" HTTP/1.1 "]
    ),
)
_BREAKS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n"])


@st.composite
def _heads(draw: st.DrawFn) -> bytes:
    out = b"".join(draw(_LINES)) + draw(_BREAKS)
    for name, value in draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=5)):
        out += name + draw(st.sampled_from([b": "] * 6 + [b":", b" : ", b""])) + value + draw(_BREAKS)
    return out + b"\r\n"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_heads())
def test_what_we_accept_h11_reads_in_the_same_way(raw: bytes) -> None:
    """We may refuse more than h11; what we accept, it must accept and understand alike."""
    if not raw.endswith(b"\r\n\r\n") or raw.index(b"\r\n\r\n") != len(raw) - 4:
        return
    try:
        ours = parse_request(raw)
    except Malformed:
        return
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(raw)
    theirs = oracle.next_event()
    assert isinstance(theirs, h11.Request)
    assert (ours.method, ours.target) == (theirs.method, theirs.target)
    assert ours.version == int(theirs.http_version[-1:])
    fields = dict(theirs.headers)
    assert ours.authority in (fields.get(b"host", b""), b"a.test")
    if b"transfer-encoding" in fields:
        assert ours.length == CHUNKED
    else:
        assert ours.length == int(fields.get(b"content-length", b"0"))
    end_to_end = {line.partition(b": ")[0].lower() for line in ours.lines}
    assert end_to_end <= set(fields)


@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_malformed(raw: bytes) -> None:
    for parse in (parse_request, parse_trailers, lambda head: parse_response(head, b"GET")):
        with contextlib.suppress(Malformed):
            parse(raw + b"\r\n\r\n")
