"""Header fields as HTTP/1 writes them: cut into lines, checked, and sorted into what is sent on and what is
not.

A section of fields is checked as a whole first: what is left of it when every visible character is taken out
must be nothing but line ends, and as many as there are lines. So no CR, LF, NUL or other control character
hides anywhere, at the price of one pass in C. Then every line must be a token, a colon and a value (RFC 9112
section 5.1): no white space before the colon, no folding.

Names come in few spellings; what was concluded about one is remembered, in a table that hostile names cannot
grow.
"""

from __future__ import annotations

import re
from typing import Final

from ringfence.gateway.core.messages import Malformed

PLAIN, HOST, LENGTH, CODING, CONNECTION, UPGRADE, EXPECT, DROP, OVERRIDE, SMUGGLED = range(10)
"""What a field is to a proxy. ``PLAIN`` is sent on; ``DROP`` belongs to one hop; the others are looked at."""

VISIBLE: Final = bytes((9, *range(32, 127), *range(128, 256)))
"""What a head may hold beside its line ends."""
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_REMEMBERED: Final = 4096
_LINE_LIMIT: Final = 128
"""Bytes of a line that is remembered."""

_SHARED: Final[dict[bytes, int]] = {
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
    **dict.fromkeys((b"keep-alive", b"te", b"trailer", b"http2-settings"), DROP),
    # Gateways and CGI read `_` as `-` (CVE-2015-3165 and its many siblings): framing has one spelling.
    b"content_length": SMUGGLED,
    b"transfer_encoding": SMUGGLED,
}
OF_REQUESTS: Final[dict[bytes, int]] = {
    **_SHARED,
    b"host": HOST,
    b"expect": EXPECT,
    b"x-http-method-override": OVERRIDE,
    b"x-http-method": OVERRIDE,
    b"x-method-override": OVERRIDE,
}
OF_RESPONSES: Final[dict[bytes, int]] = {**_SHARED, b"alt-svc": DROP}

_NOT_A_TRAILER: Final = frozenset(OF_REQUESTS) | {
    b"authorization",
    b"set-cookie",
    b"content-type",
    b"content-encoding",
}
_MAY_NOT_BE_NAMED: Final = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"cookie",
        b"content-type",
        b"expect",
    }
)
"""Fields that Connection may not remove: to drop one of these is to change the message (CVE-2021-33197)."""


class Sorter:
    """Sorts the fields of requests, or of responses."""

    __slots__ = ("_kinds", "_known", "_lines")

    def __init__(self, kinds: dict[bytes, int]) -> None:
        self._kinds = kinds
        self._lines: set[bytes] = set()
        """Plain lines that are sent on as they are. Full, it is emptied: the common ones are soon back."""
        self._known: dict[bytes, int] = {}
        """By spelling. Filled as spellings come; full, it stays as it is."""

    def sort(self, lines: list[bytes]) -> tuple[list[bytes], list[tuple[int, bytes, bytes]]]:
        """Return the lines that are sent on, and of the others the kind, name and value."""
        known, usual = self._known, self._lines
        plain: list[bytes] = []
        special: list[tuple[int, bytes, bytes]] = []
        for line in lines:
            if line in usual:
                plain.append(line)
                continue
            name, colon, raw = line.partition(b":")
            kind = known.get(name)
            if kind is None:
                kind = self._learn(name)
            value = raw.strip(b" \t")
            if kind == PLAIN and colon:
                if len(raw) - len(value) == 1 and raw[0] == 32:
                    plain.append(line)
                    if len(line) <= _LINE_LIMIT:
                        self._remember(line)
                else:
                    plain.append(b"%b: %b" % (name, value))
            elif not colon:
                raise Malformed("a header field without a colon")
            elif kind != DROP:
                special.append((kind, name, value))
        return plain, special

    def _remember(self, line: bytes) -> None:
        if len(self._lines) >= _REMEMBERED:
            self._lines.clear()
        self._lines.add(line)

    def _learn(self, name: bytes) -> int:
        if not _TOKEN(name):
            raise Malformed(_why_no_name(name))
        lower = name.lower()
        kind = self._kinds.get(lower, DROP if lower.startswith(b"proxy-") else PLAIN)
        if len(self._known) < _REMEMBERED:
            self._known[name] = kind
        return kind


def _why_no_name(name: bytes) -> str:
    if name[:1] in (b" ", b"\t"):
        return "a folded line or leading white space"
    if b" " in name or b"\t" in name:
        return "white space in a field name"
    return "a malformed header field name"


def trailer_lines(pairs: list[tuple[bytes, bytes]], limit: int = 200) -> list[bytes]:
    """Return the lines of trailer fields that may be sent on: none that would change the message."""
    if len(pairs) > limit:
        raise Malformed(f"more than {limit} trailer fields", 431)
    return [
        b"%b: %b" % (name, value)
        for name, value in pairs
        if name.lower() not in _NOT_A_TRAILER and not name.lower().startswith(b"proxy-")
    ]


def parse_trailers(section: bytes, limit: int = 200) -> list[bytes]:
    """Return the lines of a trailer section (its final empty line included) that may be sent on."""
    lines = section.split(b"\r\n")
    if section.translate(None, VISIBLE) != b"\r\n" * (len(lines) - 1):
        raise Malformed("a malformed trailer section")
    pairs: list[tuple[bytes, bytes]] = []
    for line in lines[:-2]:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN(name):
            raise Malformed("a malformed trailer field")
        pairs.append((name, value.strip(b" \t")))
    return trailer_lines(pairs, limit)


def connection_options(value: bytes) -> list[bytes]:
    """Return what a Connection field says, in lower case."""
    options = [option.strip(b" \t").lower() for option in value.split(b",")]
    for option in options:
        if option in _MAY_NOT_BE_NAMED or option.startswith(b"proxy-auth"):
            raise Malformed("a Connection field that names an end-to-end field")
        if option and not _TOKEN(option):
            raise Malformed("a malformed Connection field")
    return options


def remove_named(options: list[bytes], *sections: list[bytes]) -> None:
    """Everything that Connection names belongs to this hop (RFC 9110 section 7.6.1)."""
    gone = {name + b":" for name in options if name not in (b"close", b"keep-alive", b"upgrade", b"")}
    if gone:
        for lines in sections:
            lines[:] = [line for line in lines if line[: line.index(b":") + 1].lower() not in gone]


def once(seen: bytes | None, value: bytes, name: str) -> bytes:
    """Return the value of a field that may come once."""
    if seen is not None:
        raise Malformed(f"two {name} fields")
    return value


def check_upgrade(value: bytes) -> None:
    """Refuse upgrades that would take the connection out of what is inspected."""
    names = [name.strip(b" \t").partition(b"/")[0].lower() for name in value.split(b",")]
    if not all(_TOKEN(name) for name in names):
        raise Malformed("a malformed Upgrade field")
    if b"h2c" in names or b"h2" in names:
        raise Malformed("an upgrade to HTTP/2, which is negotiated by ALPN alone")
    if b"tls" in names:
        raise Malformed("an upgrade to TLS inside HTTP")
