"""HTTP/2 heads: decoded field lists in, the same ``Request`` out that HTTP/1 yields.

The rules are those of :mod:`ringfence.gateway.core.heads`, in the notation of RFC 9113. ``h2`` has checked
the order and number of pseudo-fields already; what would become HTTP/1 syntax upstream (a line break in a
value, a space in a path) is checked here, because that is how HTTP/2 front ends smuggle (CVE-2021-33193 and
its family).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ringfence.gateway.core.fields import trailer_lines
from ringfence.gateway.core.messages import CHUNKED, Malformed, Request

_LINE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+: [\t -~\x80-\xff]*").fullmatch
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Z]+").fullmatch
_PATH: Final = re.compile(rb"/[!-~]*").fullmatch
_DROPPED: Final = frozenset({b"te", b"trailer", b"host", b"http2-settings"})
_OVERRIDES: Final = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
_SMUGGLED: Final = frozenset({b"content_length", b"transfer_encoding"})


def parse_trailers(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the lines of a trailer section that may be sent on, or raise ``Malformed``."""
    lines = trailer_lines([(name, value) for name, value in headers])
    if not all(_LINE(line) for line in lines):
        raise Malformed("a malformed trailer field")
    return lines


def parse_head(headers: list[tuple[bytes, bytes]], ended: bool, limit: int) -> Request:
    """Return the request that a decoded head is, or raise ``Malformed``. ``h2`` has checked the
    pseudo-fields.
    """
    pseudo: dict[bytes, bytes] = {}
    request = Request(b"", b"/")
    request.version = 2
    length: bytes | None = None
    host: bytes | None = None
    lines = request.lines = []
    overrides: list[bytes] = []
    if len(headers) > limit:
        raise Malformed(f"more than {limit} header fields", 431)
    for name, value in headers:
        if name[:1] == b":":
            pseudo[name] = value
            continue
        line = b"%b: %b" % (name, value)
        if not _LINE(line) or value[:1] in (b" ", b"\t") or value[-1:] in (b" ", b"\t"):
            raise Malformed("a malformed header field")
        if name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 18:
                raise Malformed("a malformed Content-Length")
            length = value
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
        elif name in _SMUGGLED:
            raise Malformed("a framing field in disguise")
        elif name not in _DROPPED and not name.startswith(b"proxy-"):
            lines.append(line)
    request.overrides = overrides
    request.method = pseudo.get(b":method", b"")
    request.scheme = pseudo.get(b":scheme", b"")
    request.path = request.target = pseudo.get(b":path", b"")
    request.authority = pseudo.get(b":authority", host or b"")
    if request.method == b"CONNECT":
        raise Malformed("a CONNECT inside a tunnel", 405)
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
