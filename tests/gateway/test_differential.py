"""Our reader of HTTP/1 heads beside h11, over generated and mutated heads: whatever ours lets through, h11 reads as the
same message.

Ours may refuse more (that is its business); it may never accept what h11 refuses, or find another method, target, host
or end of the message in it: two readings of one head are what request smuggling lives on (RFC 9112 section 11.2).
``RINGFENCE_HEADS`` turns the number of heads up.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Final

import h11
import pytest

from ringfence.gateway.core.bodies import Chunked
from ringfence.gateway.core.heads import parse_request, parse_response
from ringfence.gateway.core.messages import CHUNKED, UNTIL_CLOSE, Malformed, Request

HEADS: Final = int(os.environ.get("RINGFENCE_HEADS", "104000"))
SHARES: Final = 8

METHODS: Final = b"GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|PROPFIND|get|G ET|".split(b"|")
TARGETS: Final = (
    b"/|/a|/a?b=c|/a%20b|//x|/a/../b|*|http://a.test/|http://a.test|http://a.test?x|https://a.test/y|http://b.test/|"
    b"http://u@a.test/|a.test:443|/\xc3\xa9|/a#b|/ |\\x|"
).split(b"|")
VERSIONS: Final = b"HTTP/1.0|HTTP/1.0|HTTP/2.0|HTTP/1.2|http/1.1|HTTP/1.1 |".split(b"|")
NAMES: Final = (
    b"Host|host|HOST|Content-Length|content-length|Transfer-Encoding|transfer-encoding|Accept|Connection|Cookie|X-A|TE|"
    b"Trailer|Expect|Upgrade|Proxy-Connection|Keep-Alive|X-HTTP-Method-Override|Content_Length|Authorization|X\x80|"
    b"|Host | Host|Transfer-Encoding\t"
).split(b"|")
VALUES: Final = (
    b"a.test|b.test|a.test:80|0|5|+5|-1|5, 5|05|0x5|5 | 5|5\t|99999999999999999999|chunked|Chunked|gzip, chunked|"
    b"chunked, chunked|identity|xchunked|chunked;q=1|close|keep-alive|upgrade|keep-alive, x-a|host|websocket|h2c|"
    b"100-continue|trailers||a\0b|a\rb|a\nb|a\x0bb|\xff\xfe|DELETE|"
).split(b"|")
SPICE: Final = b"\r\n|\n|\r|\0| |\t|:|,|;|\x0b|\x0c|\x7f|\x80|\xa0|%|@|#|5|chunked".split(b"|")
SOUND: Final = ((b"Accept", b"*/*"), (b"User-Agent", b"x"), (b"Cookie", b"a=b"), (b"X-A", b"b"))
FRAMING: Final = ((b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked"))


def request_head(dice: random.Random) -> bytes:
    """A request head: mostly sound, with a few odd choices and, one time in three, a few bytes changed."""
    method = dice.choice(METHODS if dice.random() < 0.1 else METHODS[:6])
    target = dice.choice(TARGETS) if dice.random() < 0.2 else b"/a"
    version = dice.choice(VERSIONS) if dice.random() < 0.1 else b"HTTP/1.1"
    return mutated(dice, _head(dice, b"%b %b %b" % (method, target, version), host=dice.random() < 0.95))


def response_head(dice: random.Random) -> bytes:
    """A response head, made in the same way."""
    status = (
        dice.choice(b"204 304 404 500 100 101 20 2000 0200 abc".split()) if dice.random() < 0.2 else b"200"
    )
    version = dice.choice(VERSIONS) if dice.random() < 0.1 else b"HTTP/1.1"
    reason = (
        dice.choice((b" OK", b" ", b"", b" \xff", b" a\0b", b" Not Found")) if dice.random() < 0.2 else b" OK"
    )
    return mutated(dice, _head(dice, version + b" " + status + reason, host=False))


def _head(dice: random.Random, line: bytes, *, host: bool) -> bytes:
    pairs = [(b"Host", b"a.test")] if host else []
    pairs += dice.choices(SOUND, k=dice.randrange(3))
    if dice.random() < 0.5:
        pairs.append(dice.choice(FRAMING))
    if dice.random() < 0.4:
        pairs.append((dice.choice(NAMES), dice.choice(VALUES)))
    dice.shuffle(pairs)
    colon = dice.choice((b": ", b": ", b": ", b":", b":\t "))
    return b"\r\n".join([line, *(name + colon + value for name, value in pairs), b"", b""])


def mutated(dice: random.Random, head: bytes) -> bytes:
    """Perhaps change a few bytes. What is read is a head: it ends at its first empty line."""
    if dice.random() < 0.33:
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(head))
            end = at + dice.choice((0, 0, 1, 2))
            head = head[:at] + dice.choice(SPICE) + head[end:]
    return head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def h11_request(head: bytes) -> h11.Request | None:
    """What h11 reads; nothing if it refuses."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    server.receive_data(head)
    try:
        event = server.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, h11.Request) else None


def h11_body(head: bytes, tail: bytes) -> tuple[bytes, bool, bytes]:
    """The body that h11 finds behind a request head, whether it is complete, and what is left over."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    server.receive_data(head + tail)
    body = b""
    while True:
        event = server.next_event()
        if isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return body, True, server.trailing_data[0]
        elif not isinstance(event, h11.Request):
            return body, False, b""


TAIL: Final = b"5\r\nhello\r\n0\r\n\r\nGET /next HTTP/1.1\r\nHost: a.test\r\n\r\n"
"""Five bytes of it, or its two chunks, are a body; the rest is another message."""


def our_body(request: Request) -> tuple[bytes, bool, bytes]:
    if request.length == CHUNKED:
        reader = Chunked()
        payload, rest = reader.feed(TAIL)
        return payload, reader.done, rest
    body = TAIL[: request.length]
    return body, len(body) == request.length, TAIL[request.length :]


@pytest.mark.parametrize("share", range(SHARES))
def test_no_request_head_has_two_readings(share: int) -> None:
    dice = random.Random(share)
    seen: Counter[str] = Counter()
    for _ in range(HEADS // SHARES // 2):
        head = request_head(dice)
        theirs = h11_request(head)
        try:
            ours = parse_request(head)
        except Malformed:
            seen["refused by both" if theirs is None else "refused by us alone"] += 1
            continue
        assert theirs is not None, head
        seen["accepted"] += 1
        assert ours.method == theirs.method, head
        assert ours.target == theirs.target, head
        fields = list(theirs.headers)
        hosts = [value for name, value in fields if name == b"host"]
        if not ours.scheme:
            assert hosts in ([], [ours.authority]), head
        for line in ours.lines:
            name, _, value = line.partition(b": ")
            assert (name.lower(), value) in fields, head
        if ours.method != b"CONNECT":
            assert our_body(ours) == h11_body(head, TAIL), head
    assert seen["accepted"] > HEADS // SHARES // 2 // 5, seen
    assert seen["refused by both"] > HEADS // SHARES // 2 // 10, seen


@pytest.mark.parametrize("share", range(SHARES))
def test_no_response_head_has_two_readings(share: int) -> None:
    dice = random.Random(1000 + share)
    seen: Counter[str] = Counter()
    for _ in range(HEADS // SHARES // 2):
        head = response_head(dice)
        client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "a.test")]))
        client.send(h11.EndOfMessage())
        client.receive_data(head)
        try:
            theirs = client.next_event()
        except h11.RemoteProtocolError:
            theirs = None
        try:
            ours = parse_response(head, b"GET")
        except Malformed:
            seen["refused by both" if theirs is None else "refused by us alone"] += 1
            continue
        if ours.status == 101:  # h11 refuses one that the request did not propose; here the exchange does
            continue
        assert isinstance(theirs, h11.Response | h11.InformationalResponse), head
        seen["accepted"] += 1
        assert ours.status == theirs.status_code, head
        assert ours.reason == bytes(theirs.reason), head
        fields = list(theirs.headers)
        for line in ours.lines:
            name, _, value = line.partition(b": ")
            assert (name.lower(), value) in fields, head
        if isinstance(theirs, h11.Response):
            client.receive_data(TAIL)
            body = b""
            while isinstance(event := client.next_event(), h11.Data):
                body += event.data
            if ours.length == UNTIL_CLOSE:
                assert body == TAIL, head
            elif ours.length == CHUNKED:
                assert body == b"hello", head
            else:
                assert body == TAIL[: ours.length], head
                assert isinstance(event, h11.EndOfMessage) is (ours.length <= len(TAIL)), head
    assert seen["accepted"] > HEADS // SHARES // 2 // 5, seen
    assert seen["refused by both"] > HEADS // SHARES // 2 // 10, seen
