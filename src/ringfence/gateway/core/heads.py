"""HTTP/1 heads: one strict reader for requests, responses and trailers, and the writers that re-frame them.

What is decided is what is forwarded: a head is parsed once, and what goes on is written anew from the parts.
Everything that two parsers could read differently is refused rather than repaired (RFC 9112 sections 2.2,
5.1, 6.3; the request-smuggling literature from CVE-2019-18277 to CVE-2025-22871 is a list of repairs that
differed).

A request that differs from the one before on its connection in its first line alone is read in a shorter way
(``parse_again``): the same bytes mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ringfence.gateway.core import fields
from ringfence.gateway.core.messages import CHUNKED, UNTIL_CLOSE, UPGRADED, Malformed, Request, Response

_START: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Z]+) ([!-~]+) HTTP/1\.([01])").fullmatch
_STATUS: Final = re.compile(rb"HTTP/1\.[01] [1-5][0-9][0-9](?: .*)?", re.DOTALL).fullmatch
_IN_A_PATH: Final = bytes(each for each in range(33, 127) if each != 35)
"""What a path may hold: visible ASCII but the ``#`` of a fragment."""
_BODILESS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE"})
_LONGEST: Final = 18
"""Digits of a Content-Length: what fits into 64 bits everywhere."""
BARE: Final = re.compile(rb"\r(?!\n)(?!\Z)|(?<!\r)\n").search
"""A CR or LF that is not half of a CRLF: no line ends there (RFC 9112 section 2.2)."""

HAS_A_BODY: Final = frozenset({b"POST", b"PUT", b"PATCH"})
"""Methods whose requests say so when they have none (RFC 9110 section 8.6)."""
END: Final = b"\r\n\r\n"
_sort_request: Final = fields.Sorter(fields.OF_REQUESTS).sort
_sort_response: Final = fields.Sorter(fields.OF_RESPONSES).sort

REASONS: Final[dict[int, bytes]] = {
    200: b"OK",
    400: b"Bad Request",
    403: b"Forbidden",
    408: b"Request Timeout",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    421: b"Misdirected Request",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}


def parse_request(head: bytes, limit: int = 200) -> Request:
    """Return the request that ``head`` (its final empty line included) is, or raise ``Malformed``."""
    lines = head.split(b"\r\n")
    start = _START(lines[0])
    if start is None or head.translate(None, fields.VISIBLE) != b"\r\n" * (len(lines) - 1):
        raise _why_not_a_request(head)
    if len(lines) - 3 > limit:
        raise Malformed(f"more than {limit} header fields", 431)
    method, target, minor = start.groups()
    request = Request(method, target)
    request.version = 1 if minor == b"1" else 0
    host: bytes | None = None
    length: bytes | None = None
    coding: bytes | None = None
    upgrade: bytes | None = None
    options: list[bytes] = []
    overrides: list[bytes] = []
    request.lines, special = _sort_request(lines[1:-2])
    for kind, name, value in special:
        if kind == fields.HOST:
            host = fields.once(host, value, "Host")
        elif kind == fields.LENGTH:
            length = fields.once(length, value, "Content-Length")
        elif kind == fields.CODING:
            coding = fields.once(coding, value, "Transfer-Encoding")
        elif kind == fields.CONNECTION:
            options += fields.connection_options(value)
        elif kind == fields.UPGRADE:
            upgrade = fields.once(upgrade, value, "Upgrade")
        elif kind == fields.EXPECT:
            if value.lower() != b"100-continue":
                raise Malformed("an Expect other than 100-continue")
            request.expect = True
        elif kind == fields.OVERRIDE:
            overrides.append(b"%b: %b" % (name, value))
        else:
            raise Malformed("a framing field in disguise")
    request.length = _framing(length, coding, request.version, 0)
    request.close = request.version == 0 or b"close" in options
    if upgrade and request.version and b"upgrade" in options:
        fields.check_upgrade(upgrade)
        request.upgrade = upgrade
    if options:
        fields.remove_named(options, request.lines, overrides)
    request.overrides = overrides
    if host is None:
        if request.version:
            raise Malformed("no Host field")
        host = b""
    request.authority = host
    if target[0] != 47:  # not an origin form
        _absolute(request, target, host)
    if b"#" in target:
        raise Malformed("a fragment in the request target")
    return request


def parse_again(line: bytes, model: Request) -> Request | None:
    """Return the request with another request line and the same fields as ``model``, which has no body.

    Clients repeat themselves: most requests of a connection differ from the one before in their path alone.
    """
    method, _, rest = line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if method not in _BODILESS or version != b"HTTP/1.1" or not target.startswith(model.origin):
        return None
    path = target[len(model.origin) :]
    if path[:1] != b"/" or path.translate(None, _IN_A_PATH):
        return None
    request = Request(method, path)
    request.scheme = model.scheme
    request.authority = model.authority
    request.lines = model.lines
    request.close = model.close
    request.tail = model.tail
    return request


def is_model(request: Request) -> bool:
    """Whether other requests may be read after this one's model."""
    simple = request.length == 0 and not (request.upgrade or request.expect or request.overrides)
    return simple and request.version == 1 and request.method in _BODILESS


def parse_response(head: bytes, method: bytes, limit: int = 200) -> Response:
    """Return the response that ``head`` is to a request with ``method``, or raise ``Malformed``."""
    lines = head.split(b"\r\n")
    start = lines[0]
    if _STATUS(start) is None or head.translate(None, fields.VISIBLE) != b"\r\n" * (len(lines) - 1):
        raise Malformed("the response's head is malformed", 502)
    if len(lines) - 3 > limit:
        raise Malformed(f"the response has more than {limit} header fields", 502)
    response = Response(int(start[9:12]), start[13:])
    minor = start[7:8]
    if minor == b"0":
        response.version = 0
    length: bytes | None = None
    coding: bytes | None = None
    options: list[bytes] = []
    try:
        response.lines, special = _sort_response(lines[1:-2])
        for kind, _, value in special:
            if kind == fields.LENGTH:
                length = fields.once(length, value, "Content-Length")
            elif kind == fields.CODING:
                coding = fields.once(coding, value, "Transfer-Encoding")
            elif kind == fields.CONNECTION:
                options += fields.connection_options(value)
            elif kind == fields.UPGRADE:
                response.upgrade = value
            else:
                raise Malformed("a framing field in disguise")
        if coding is None and length is not None and length.isdigit() and len(length) <= _LONGEST:
            response.length = int(length)  # as nearly all of them
        else:
            response.length = _framing(length, coding, response.version, UNTIL_CLOSE)
        if options:
            fields.remove_named(options, response.lines)
    except Malformed as flaw:
        raise Malformed(f"the response has {flaw.text}", 502) from None
    if options or minor == b"0":
        response.close = (minor == b"0" and b"keep-alive" not in options) or b"close" in options
    code = response.status
    if code == 101:
        if b"upgrade" not in options:
            raise Malformed("the response has a 101 without Connection: upgrade", 502)
        response.length = UPGRADED
    elif code < 200 or code == 204:
        if coding is not None or length not in (None, b"0"):
            raise Malformed("the response has a body where none may be", 502)
        response.length = 0
    elif code == 304 or method == b"HEAD":
        if length is not None:  # says what a GET would have brought (RFC 9110 section 8.6)
            response.lines.append(b"Content-Length: " + length)
        response.length = 0
    if response.length < CHUNKED:
        response.close = True
    return response


def render_request(request: Request, host: bytes) -> bytes:
    """Return the head that goes upstream: origin form, one Host, one framing, nothing hop-by-hop but an
    upgrade.
    """
    tail = request.tail or _render_tail(request, host)
    return b"%b %b%b" % (request.method, request.path, tail)


def _render_tail(request: Request, host: bytes) -> bytes:
    parts = [b" HTTP/1.1\r\nHost: " + host]
    parts += request.lines
    if request.length > 0 or (request.length == 0 and request.method in HAS_A_BODY):
        parts.append(b"Content-Length: %d" % request.length)
    elif request.length == CHUNKED:
        parts.append(b"Transfer-Encoding: chunked")
    if request.expect:
        parts.append(b"Expect: 100-continue")
    if request.upgrade:
        parts.append(b"Connection: upgrade\r\nUpgrade: " + request.upgrade)
    parts.append(END[2:])
    tail = request.tail = b"\r\n".join(parts)
    return tail


def render_response(response: Response, *, framing: bytes, close: bool) -> bytes:
    """Return a response's head towards an HTTP/1 client; ``framing`` is the line that frames it, or empty."""
    parts = [b"HTTP/1.1 %d %b" % (response.status, response.reason)]
    parts += response.lines
    if framing:
        parts.append(framing)
    if close:
        parts.append(b"Connection: close")
    parts.append(END[2:])
    return b"\r\n".join(parts)


def _framing(length: bytes | None, coding: bytes | None, version: int, absent: int) -> int:
    if coding is not None:
        if length is not None:
            raise Malformed("both Content-Length and Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise Malformed("a transfer coding other than chunked", 501)
        if version == 0:
            raise Malformed("Transfer-Encoding in HTTP/1.0")
        return CHUNKED
    if length is None:
        return absent
    if not length.isdigit() or len(length) > _LONGEST:
        raise Malformed("a malformed Content-Length")
    return int(length)


_ABSOLUTE: Final = re.compile(rb"(https?)://([^/?#]*)([/?][!-~]*)?", re.IGNORECASE).fullmatch
_DEFAULT_PORT: Final = {b"http": b":80", b"https": b":443"}


def _absolute(request: Request, target: bytes, host: bytes) -> None:
    """Take apart a target that is not an origin form; its authority and Host must be the same bytes."""
    if request.method == b"CONNECT":
        # Some clients leave the port out of Host.
        if host and host.lower() not in (target.lower(), target.lower().rpartition(b":")[0]):
            raise Malformed("a CONNECT whose Host is not its target")
        if request.length:
            raise Malformed("a CONNECT with a body")
        request.authority = target
        return
    match = _ABSOLUTE(target)
    if match is None:
        raise Malformed("a request target that is neither a path nor an http URL")
    scheme, authority, path = match.groups()
    port = _DEFAULT_PORT[scheme.lower()]
    if host and host.lower().removesuffix(port) != authority.lower().removesuffix(port):
        raise Malformed("an authority that is not the Host")
    request.scheme = scheme.lower()
    request.authority = authority
    request.path = b"/" if not path else path if path[:1] == b"/" else b"/" + path
    request.origin = target[: match.end(2)]


def _why_not_a_request(head: bytes) -> Malformed:
    """Say what is wrong with a head that was refused."""
    line = head.partition(b"\r\n")[0]
    table: tuple[tuple[Callable[[], object], str, int], ...] = (
        (lambda: head[:4] == b"PRI ", "HTTP/2 without ALPN", 505),
        (lambda: BARE(head), "a CR or LF that is not a CRLF", 400),
        (lambda: b"\0" in head, "a NUL", 400),
        (lambda: line.count(b" ") != 2, "a malformed request line", 400),
        (lambda: re.search(rb" HTTP/(?!1\.[01]\Z)", line), "a version other than HTTP/1.0 and HTTP/1.1", 505),
        (lambda: re.match(rb"[^ ]*[a-z]", line), "a method that is not upper case", 501),
        (lambda: not _START(line), "a malformed request line", 400),
    )
    found = (Malformed(text, status) for test, text, status in table if test())
    return next(found, Malformed("a control character in a header field"))
