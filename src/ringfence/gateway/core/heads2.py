"""HTTP/2 heads: decoded field lists in, the same ``Request`` and ``Response`` out that HTTP/1 yields; and the lists
that go to an origin.

The rules are those of :mod:`ringfence.gateway.core.heads`, in the notation of RFC 9113. All of them are checked
here, and ``h2`` checks none: it would look at every character once more, and end the connection over what
concerns one stream (section 8.1.1). What would become HTTP/1 syntax upstream (a line break in a value, a space in
a path) matters most, because that is how HTTP/2 front ends smuggle (CVE-2021-33193 and its family).

Fields repeat themselves, and a compressor makes them the same objects again; what was found to be plain is
remembered, in tables that hostile fields cannot grow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from hpack import NeverIndexedHeaderTuple

from ringfence.gateway.core.fields import trailer_lines
from ringfence.gateway.core.heads import HAS_A_BODY, REASONS
from ringfence.gateway.core.messages import CHUNKED, Malformed, Request, Response

_LINE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+: [\t -~\x80-\xff]*").fullmatch
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Z]+").fullmatch
_PATH: Final = re.compile(rb"/[!-~]*").fullmatch
_DROPPED: Final = frozenset({b"trailer", b"host", b"http2-settings"})
_OVERRIDES: Final = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
_SMUGGLED: Final = frozenset({b"content_length", b"transfer_encoding"})
_STATUS: Final = re.compile(rb"[1-5][0-9][0-9]").fullmatch
_OF_A_CONNECTION: Final = frozenset(
    {b"connection", b"transfer-encoding", b"keep-alive", b"upgrade", b"proxy-connection"}
)
"""What no HTTP/2 message has (RFC 9113 section 8.2.2)."""
_ASKING: Final = frozenset({b":method", b":scheme", b":authority", b":path"})
_SECRET: Final = frozenset({b"authorization", b"proxy-authorization", b"x-api-key", b"x-goog-api-key"})
"""Fields that stay out of compression (RFC 7541 section 7.1.3) and of every table."""
_REMEMBERED: Final = 4096
_LINE_LIMIT: Final = 128
"""Entries of a table, and bytes of one."""
_asked: dict[tuple[bytes, bytes], bytes] = {}
_answered: dict[tuple[bytes, bytes], bytes] = {}
"""Plain fields of requests and of responses, and the lines that they are. What is plain in one need not be in the
other (``host``), so they know nothing of each other. Full, a table is emptied: the common ones are soon back."""
_pairs: dict[bytes, tuple[bytes, bytes]] = {}
"""Lines, whoever said them, and the fields that they are."""


def lower_fields(lines: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Return HTTP/1 lines as HTTP/2 fields: names in lower case (section 8.2)."""
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        pair = _pairs.get(line)
        if pair is None:
            name, _, value = line.partition(b": ")
            name = name.lower()
            pair = (name, value)
            if name in _SECRET:
                pair = NeverIndexedHeaderTuple(name, value)
            elif len(line) <= _LINE_LIMIT:
                if len(_pairs) >= _REMEMBERED:
                    _pairs.clear()
                _pairs[line] = pair
        fields.append(pair)
    return fields


def _sealed_fields(request: Request) -> list[tuple[bytes, bytes]]:
    """Return the fields of a request that holds a credential: it stays out of every table too, ours included."""
    fields: list[tuple[bytes, bytes]] = []
    for line in request.lines:
        name, _, value = line.partition(b": ")
        name = name.lower()
        if name in request.sealed:
            fields.append(NeverIndexedHeaderTuple(name, value))
        else:
            fields += lower_fields((line,))
    return fields


def _line(name: bytes, value: bytes) -> bytes:
    """Return the line that a field is, or raise ``Malformed``."""
    line = b"%b: %b" % (name, value)
    if not _LINE(line) or value[:1] in (b" ", b"\t") or value[-1:] in (b" ", b"\t"):
        raise Malformed("a malformed header field")
    if name in _SMUGGLED:
        raise Malformed("a framing field in disguise")
    if name in _OF_A_CONNECTION:
        raise Malformed("a field of a connection")
    return line


def _remember(known: dict[tuple[bytes, bytes], bytes], name: bytes, value: bytes, line: bytes) -> None:
    if name not in _SECRET and len(line) <= _LINE_LIMIT:
        if len(known) >= _REMEMBERED:
            known.clear()
        known[(name, value)] = line


def parse_trailers(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the lines of a trailer section that may be sent on, or raise ``Malformed``."""
    lines = trailer_lines([(name, value) for name, value in headers])
    if not all(_LINE(line) for line in lines):
        raise Malformed("a malformed trailer field")
    return lines


def parse_head(headers: Sequence[tuple[bytes, bytes]], ended: bool, limit: int) -> Request:
    """Return the request that a decoded head is, or raise ``Malformed``."""
    pseudo: dict[bytes, bytes] = {}
    request = Request(b"", b"/")
    request.version = 2
    length: bytes | None = None
    host: bytes | None = None
    cookies: list[bytes] = []
    lines = request.lines = []
    overrides: list[bytes] = []
    if len(headers) > limit:
        raise Malformed(f"more than {limit} header fields", 431)
    begun = False
    for pair in headers:
        line = _asked.get(pair)
        if line is not None:
            begun = True
            lines.append(line)
            continue
        name, value = pair
        if name[:1] == b":":
            if begun or name in pseudo or name not in _ASKING:
                raise Malformed("a pseudo-field that is unknown, comes twice or behind others")
            pseudo[name] = value
            continue
        begun = True
        line = _line(name, value)
        if name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 18:
                raise Malformed("a malformed Content-Length")
            length = value
        elif name == b"cookie":
            cookies.append(value)
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise Malformed("an Expect other than 100-continue")
            request.expect = not ended
        elif name == b"host":
            if host is not None:
                raise Malformed("two Host fields")
            host = value
        elif name in _OVERRIDES:
            overrides.append(line)
        elif name == b"te":
            if value.lower() != b"trailers":
                raise Malformed("a TE other than trailers")
            request.trailers = True
        elif name not in _DROPPED and not name.startswith(b"proxy-"):
            _remember(_asked, name, value, line)
            lines.append(line)
    if cookies:  # one field again, as HTTP/1 wants it (section 8.2.3)
        lines.append(b"cookie: " + b"; ".join(cookies))
    request.overrides = overrides
    request.method = pseudo.get(b":method", b"")
    request.scheme = pseudo.get(b":scheme", b"")
    request.path = request.target = pseudo.get(b":path", b"")
    request.authority = pseudo.get(b":authority", host or b"")
    if request.method == b"CONNECT":
        raise Malformed("a CONNECT inside a tunnel", 405)
    if not (request.method and request.scheme and request.path):
        raise Malformed("a pseudo-field that is missing")
    if not _METHOD(request.method):
        raise Malformed("a method that is not an upper-case token", 501)
    if request.scheme != b"https":
        raise Malformed("a scheme that is not the connection's", 421)
    if not _PATH(request.path) or b"#" in request.path:
        raise Malformed("a :path that is not one")
    if not request.authority or (host is not None and host.lower() != request.authority.lower()):
        raise Malformed("an authority that is not the Host" if request.authority else "no authority")
    if ended:
        if length not in (None, b"0"):
            raise Malformed("a Content-Length without a body")
    else:
        request.length = CHUNKED if length is None else int(length)
    return request


def parse_response(
    headers: Iterable[tuple[bytes, bytes]], method: bytes, ended: bool, limit: int
) -> Response:
    """Return the response, interim or final, that a decoded head is to a request with ``method``, or raise
    ``Malformed``. ``ended``: it has no body.
    """
    pairs = list(headers)
    if len(pairs) > limit:
        raise Malformed(f"the response has more than {limit} header fields", 502)
    name, value = pairs[0] if pairs else (b"", b"")
    if name != b":status" or not _STATUS(value) or value == b"101":
        raise Malformed("the response has no status", 502)
    code = int(value)
    response = Response(code, REASONS.get(code, b""))
    length: bytes | None = None
    lines = response.lines = []
    for name, value in pairs[1:]:
        line = _answered.get((name, value), b"")
        if line:
            lines.append(line)
            continue
        try:
            line = _line(name, value)
        except Malformed as flaw:
            raise Malformed(f"the response has {flaw.text}", 502) from None
        if name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 18:
                raise Malformed("the response has a malformed Content-Length", 502)
            length = value
        elif name not in (b"alt-svc", b"te", b"trailer", b"http2-settings") and not name.startswith(
            b"proxy-"
        ):
            _remember(_answered, name, value, line)
            lines.append(line)
    bodiless = method == b"HEAD" or code == 304
    if code < 200 or code == 204:
        if length not in (None, b"0"):
            raise Malformed("the response has a body where none may be", 502)
    elif bodiless:
        if length is not None:  # says what a GET would have brought (RFC 9110 section 8.6)
            lines.append(b"content-length: " + length)
    elif not ended:
        response.length = CHUNKED if length is None else int(length)
    elif length not in (None, b"0"):
        raise Malformed("the response has a Content-Length without a body", 502)
    return response


def render_fields(request: Request, authority: bytes) -> list[tuple[bytes, bytes]]:
    """Return the head that goes to an HTTP/2 origin: one authority, one framing, nothing hop-by-hop."""
    fields = [
        (b":method", request.method),
        (b":scheme", b"https"),
        (b":authority", authority),
        (b":path", request.path),
    ]
    fields += _sealed_fields(request) if request.sealed else lower_fields(request.lines)
    if request.length > 0 or (request.length == 0 and request.method in HAS_A_BODY):
        fields.append((b"content-length", b"%d" % request.length))
    if request.trailers:
        fields.append((b"te", b"trailers"))
    if request.expect:
        fields.append((b"expect", b"100-continue"))
    return fields
