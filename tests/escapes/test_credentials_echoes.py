"""CRD-01: an origin that tells what it was told. The value comes back as asterisks, in every form, place and piece."""

from __future__ import annotations

import base64
import gzip
import json
import urllib.parse
from collections.abc import Iterator

import pytest
from tests.escapes.credential_stage import KEY, TOKEN, VALUE, arm, ask, custom, service
from tests.escapes.escape_stage import Lab, get, rule

HOST = "api.anthropic.com"


@pytest.fixture(autouse=True)
def armed(lab: Lab) -> Iterator[None]:
    lab.bind(rule("allow", HOST), rule("allow", "github.com"), rule("allow", "api.test"))
    arm(lab, service("anthropic"), service("github", TOKEN), custom())
    yield
    arm(lab)


def answer(body: bytes, *lines: str, kind: str = "application/json") -> bytes:
    head = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def chunked(*pieces: bytes, kind: str = "text/event-stream") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


BASIC = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
BODIES = [
    ("as it is", f"you sent {KEY}"),
    ("rendered", f"authorization: Bearer {KEY}, x-api-key: {KEY}"),
    ("JSON", json.dumps({"headers": {"x-api-key": KEY}})),
    ("percent-encoded", "".join(f"%{byte:02x}" for byte in KEY.encode())),
    ("base64", base64.b64encode(f"{{{KEY}}}".encode()).decode()),
    ("hexadecimal", KEY.encode().hex()),
]


@pytest.mark.parametrize("echo", [row[1] for row in BODIES], ids=[row[0] for row in BODIES])
@pytest.mark.parametrize("kind", ["application/json", "text/html; charset=utf-8", "application/octet-stream"])
def test_crd_01_a_body_that_echoes(lab: Lab, echo: str, kind: str) -> None:
    lab.serve(HOST, reply=answer(echo.encode(), kind=kind))
    status, fields, body = ask(lab, HOST, get(HOST))
    assert (status, int(fields["content-length"])) == (200, len(echo))
    assert body.count(b"*") >= len(KEY) - 2
    assert KEY.encode() not in body
    # Positive control: the origin was given it.
    assert f"x-api-key: {KEY}".encode() in lab.upstream


def test_crd_01_a_body_that_does_not_echo_is_untouched(lab: Lab) -> None:
    lab.serve(HOST, reply=answer(b'{"key": "proxy-managed"}'))
    assert ask(lab, HOST, get(HOST))[2] == b'{"key": "proxy-managed"}'


def test_crd_01_basic_credentials_are_masked_with_their_user(lab: Lab) -> None:
    lab.serve("github.com", reply=answer(f"Authorization: Basic {BASIC}".encode()))
    assert ask(lab, "github.com", get("github.com"))[2] == b"Authorization: Basic " + b"*" * len(BASIC)


def test_crd_01_a_custom_value_that_needs_escapes(lab: Lab) -> None:
    echo = json.dumps({"url": "https://api.test/?k=" + urllib.parse.quote(VALUE, safe="")}) + json.dumps(
        VALUE
    )
    lab.serve("api.test", reply=answer(echo.encode()))
    body = ask(lab, "api.test", get("api.test"))[2]
    assert VALUE.encode() not in body
    assert b"custom" not in body


def test_crd_01_headers_reasons_and_redirects_that_echo(lab: Lab) -> None:
    reply = (
        f"HTTP/1.1 302 Found {KEY}\r\nLocation: https://evil.test/?k={KEY}\r\nSet-Cookie: a={KEY.encode().hex()}\r\n"
        "Content-Length: 0\r\n\r\n"
    )
    lab.serve(HOST, reply=reply.encode())
    status, fields, _ = ask(lab, HOST, get(HOST))
    assert status == 302
    assert fields["location"] == "https://evil.test/?k=" + "*" * len(KEY)
    assert fields["set-cookie"] == "a=" + "*" * (2 * len(KEY))


def test_crd_01_an_interim_response_that_echoes(lab: Lab) -> None:
    lab.serve(HOST, reply=b"HTTP/1.1 103 Early Hints\r\nLink: <%b>\r\n\r\n" % KEY.encode() + answer(b"{}"))
    status, fields, _ = ask(lab, HOST, get(HOST))
    assert (status, fields["link"]) == (103, "<" + "*" * len(KEY) + ">")


def test_crd_01_trailers_that_echo(lab: Lab) -> None:
    reply = chunked(b"data: x\n\n")[:-2] + f"X-Echo: {KEY}\r\n\r\n".encode()
    lab.serve(HOST, reply=reply)

    async def scene() -> bytes:
        client = await lab.stage.secure(HOST, 443)
        client.send(get(HOST))
        seen = await client.until(b"X-Echo: ") + await client.until(b"\r\n\r\n")
        client.close()
        return bytes(seen)

    assert KEY.encode() not in lab.run(scene())


@pytest.mark.parametrize("size", [1, 2, 5, len(KEY) - 1])
def test_crd_01_an_echo_in_pieces(lab: Lab, size: int) -> None:
    text = f'data: {{"echo": "{KEY}"}}\n\n'.encode()
    lab.serve(HOST, reply=chunked(*(text[at : at + size] for at in range(0, len(text), size))))
    assert ask(lab, HOST, get(HOST))[2] == text.replace(KEY.encode(), b"*" * len(KEY))


def test_crd_01_an_answer_is_asked_for_unencoded_and_whole(lab: Lab) -> None:
    """Compression would hide an echo, and three ranges would tell it in three thirds."""
    lab.serve(HOST, reply=answer(b"{}"))
    ask(lab, HOST, get(HOST, "/", "Accept-Encoding: gzip, br", "Range: bytes=0-9", "If-Range: x"))
    heard = lab.upstream.lower()
    assert b"accept-encoding: identity\r\n" in heard
    assert b"range" not in heard


def test_crd_01_an_origin_that_encodes_all_the_same(lab: Lab) -> None:
    packed = gzip.compress(KEY.encode())
    lab.serve(HOST, reply=answer(packed, "Content-Encoding: gzip"))
    status, _, body = ask(lab, HOST, get(HOST))
    assert status == 502
    assert b"encoded" in body
    assert packed not in body
    closed = lab.stage.records[-1]
    assert (closed["step"], closed["status"], closed["ended"]) == ("closed", 502, "upstream")


def test_crd_01_a_websocket_that_echoes(lab: Lab) -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    lab.serve(HOST, reply=switch + b"\x81\x1c" + KEY.encode())

    async def scene() -> bytes:
        client = await lab.stage.secure(HOST, 443)
        client.send(get(HOST, "/", "Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"))
        await client.until(b"\r\n\r\n")
        seen = await client.exactly(2 + len(KEY))
        client.close()
        return bytes(seen)

    assert lab.run(scene()) == b"\x81\x1c" + b"*" * len(KEY)
    assert f"x-api-key: {KEY}".encode() in lab.upstream


def test_crd_01_an_event_is_not_delayed(lab: Lab) -> None:
    """Only what could begin a form is held back, and no form has a line end in it."""
    first = b'data: {"text": "sk-"}\n\n'
    head = chunked(first)[:-5]
    lab.serve(HOST, reply=head)

    async def scene() -> bytes:
        client = await lab.stage.secure(HOST, 443)
        client.send(get(HOST))
        seen = await client.until(b"\n\n")
        client.close()
        return bytes(seen)

    assert lab.run(scene()).endswith(first)
