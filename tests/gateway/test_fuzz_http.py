"""Hostile bytes on every side: never an exception, never a connection without a decision, never two readings.

``RINGFENCE_FUZZ_EXAMPLES`` turns the number of examples up.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import Any

import h2.connection
import h11
from gateway_dialogue import Dialogue, hello, rule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringfence.gateway.core.connection import Securing

EXAMPLES = int(os.environ.get("RINGFENCE_FUZZ_EXAMPLES", "1500"))
RULES = (rule("allow", "a.test"), rule("allow", "only.test", methods=["GET"], paths=["/ok/**"]))
ALLOWED = {"a.test", "only.test"}

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

_PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /up HTTP/1.1\r\n",
        b"GET http://a.test/ HTTP/1.1\r\n",
        b"HEAD /ok/x HTTP/1.1\r\n",
        b"GET http://b.test/x HTTP/1.1\r\n",
        b"CONNECT a.test:443 HTTP/1.1\r\n",
        b"CONNECT b.test:443 HTTP/1.1\r\n",
        b"Host: a.test\r\n",
        b"Host: b.test\r\n",
        b"Host: only.test\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        hello("a.test"),
        hello("b.test"),
        hello(None),
        b"\x16\x03\x01\x00\x05",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"x" * 300,
    ]
)
_STREAMS = st.lists(st.one_of(_PIECES, st.binary(max_size=20)), max_size=14).map(b"".join)
_ORDERLY = st.lists(
    st.sampled_from(
        [
            b"GET /ok/1 HTTP/1.1\r\nHost: %b\r\n\r\n",
            b"POST /ok/2 HTTP/1.1\r\nHost: %b\r\nContent-Length: 5\r\n\r\nhello",
            b"PUT /3 HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"GET /4 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        ]
    ),
    min_size=1,
    max_size=6,
)
_ANSWERS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"HTTP/1.1 200 OK\r\n",
                b"HTTP/1.1 204 No Content\r\n",
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"HTTP/1.0 200 OK\r\n",
                b"Content-Length: 5\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"\r\n",
                b"hello",
                b"5\r\nhello\r\n",
                b"0\r\n\r\n",
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
                b"Connection: close\r\n",
                b"\n",
                b"\0",
                b"zz\r\n",
            ]
        ),
        st.binary(max_size=12),
    ),
    max_size=10,
)


def check(talk: Dialogue) -> None:
    """What holds whatever was said."""
    assert {route.host for _, route in talk.asked} <= ALLOWED
    assert all(owner.decision.allowed for owner, _ in talk.asked if hasattr(owner, "request"))
    steps = Counter((record["id"], record["step"]) for record in talk.records)
    assert set(steps.values()) <= {1}
    for record in talk.records:
        if record["verdict"] != "allowed":
            assert record["step"] == "opened"
    for upstream in talk.upstreams:
        sent_by = [record for record in talk.records if record.get("dialled") == upstream.address]
        assert sent_by or not upstream.sent


def feed(talk: Dialogue, stream: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        talk.receive(stream[start:end])
        if isinstance(talk.phase, Securing):
            talk.secured("http/1.1")


@fuzz
@given(
    _STREAMS,
    st.lists(st.integers(0, 5000), max_size=8),
    st.sampled_from(["proxy", "tunnel", "secure", "redirected"]),
)
def test_no_client_gets_anything_past_a_decision(stream: bytes, cuts: list[int], door: str) -> None:
    talk = Dialogue(*RULES)
    if door == "redirected":
        talk.redirected("a.test", 443)
    elif door == "proxy":
        talk.proxy()
    else:
        getattr(talk, door)("a.test:443")
    feed(talk, stream, cuts)
    talk.wait(1)
    talk.wait(40)
    talk.bind(*RULES, revision=2)
    talk.phase.eof(talk.now)
    talk.phase.lost(talk.now)
    check(talk)
    assert all(upstream.state != "open" for upstream in talk.upstreams)


@fuzz
@given(_ORDERLY, st.lists(st.integers(0, 5000), max_size=10), st.sampled_from([b"a.test", b"only.test"]))
def test_cutting_a_stream_into_pieces_changes_nothing(
    requests: list[bytes], cuts: list[int], host: bytes
) -> None:
    stream = b"".join(request.replace(b"%b", host) for request in requests)
    sent, said = [], []
    for pieces in ([], cuts):
        talk = Dialogue(*RULES).secure(f"{host.decode()}:443")
        feed(talk, stream, pieces)
        while any(upstream.state == "open" for upstream in talk.upstreams):
            talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        sent.append([_understood(upstream.sent) for upstream in talk.upstreams])
        said.append((talk.took(), talk.audit("id", "step", "verdict", "status", "path")))
        check(talk)
    assert sent[0] == sent[1]
    assert said[0] == said[1]


def _understood(raw: bytes) -> list[Any]:
    """What an origin reads (h11 is the oracle): requests, their Host and their bodies."""
    origin = h11.Connection(h11.SERVER)
    origin.receive_data(raw)
    seen: list[Any] = []
    body = b""
    while True:
        event = origin.next_event()
        if isinstance(event, h11.Request):
            seen.append((event.method, event.target, dict(event.headers)[b"host"]))
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            return [*seen, body]


@fuzz
@given(_ANSWERS, st.sampled_from([b"GET", b"HEAD", b"PUT"]), st.booleans())
def test_no_origin_breaks_the_gateway_or_poisons_a_connection(
    answers: list[bytes], method: bytes, clean: bool
) -> None:
    talk = Dialogue(*RULES).secure("a.test:443")
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\n" if method == b"GET" else b""
    talk.receive(method + b" / HTTP/1.1\r\nHost: a.test\r\n" + upgrade + b"\r\n")
    for answer in answers:
        if talk.upstreams[0].state != "open":
            break
        talk.answer(answer)
    if talk.upstreams[0].state == "open":
        talk.origin_ended(clean=clean)
    check(talk)
    client = h11.Connection(h11.CLIENT)
    client.send(
        h11.Request(
            method=method,
            target="/",
            headers=[
                ("Host", "a.test"),
                *([("Connection", "upgrade"), ("Upgrade", "websocket")] if upgrade else []),
            ],
        )
    )
    client.send(h11.EndOfMessage())
    client.receive_data(talk.took())
    try:
        while not isinstance(client.next_event(), h11.EndOfMessage | type(h11.NEED_DATA) | type(h11.PAUSED)):
            pass
    except h11.RemoteProtocolError as flaw:  # only by cutting may we leave a message incomplete
        raise AssertionError(f"the client cannot read what we said: {flaw}") from flaw


@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)).map(
                lambda f: len(f[3]).to_bytes(3, "big") + bytes([f[0], f[1]]) + f[2].to_bytes(4, "big") + f[3]
            ),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_no_frames_break_http_2(frames: list[bytes], preface: bool) -> None:
    talk = Dialogue(*RULES).secure("a.test:443", protocol="h2")
    if preface:
        client = h2.connection.H2Connection()
        client.initiate_connection()
        talk.receive(client.data_to_send())
    for frame in frames:
        talk.receive(frame)
    talk.wait(1)
    talk.phase.lost(talk.now)
    check(talk)
