"""Paths: of HTTP requests, and of the host's files.

One pattern language serves both: `*` is one segment (or a run inside one), `**` any number of segments, none
included, so that `/repos/**` holds `/repos` as `**.example.com` holds its apex.

A request path is *canonical* or the request is refused, on hosts where a path matters: servers disagree about what
`..`, `%2f`, `//`, `;` and `%252e` mean, and what is decided must be what is served (CVE-2021-29492,
CVE-2026-73551). Matching happens on decoded segments, so `/%61dmin` is `/admin`, and a trailing slash changes
nothing, so a deny of `/admin` is not dodged by `/admin/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ringfence.policy.errors import InvalidPolicy, quote

PATH_BYTES = 4096
"""Longest pattern, and longest path that can be judged."""

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\xff\\;?#]")
_PATTERN_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\?#\[\]{}]")


class UnclearPathError(ValueError):
    """A request path that two servers may read in two ways; ``str`` says what is wrong with it."""


def canonical_path(written: str) -> str:
    """Return a request path decoded and without trailing slash (the root is empty); raise ``UnclearPathError``."""
    path = written.partition("?")[0]
    if not path.startswith("/"):
        raise UnclearPathError("the path does not begin with a slash")
    if len(path) > PATH_BYTES:
        raise UnclearPathError(f"the path is longer than {PATH_BYTES} bytes")
    if "%" in path or _UNSAFE.search(path) or not path.isascii():
        path = _decode(path)
    body = path[:-1] if path.endswith("/") else path
    if "/." in body and any(segment in (".", "..") for segment in body.split("/")):
        raise UnclearPathError("the path has dot segments")
    if "//" in path:
        raise UnclearPathError("the path has an empty segment")
    return body


def _decode(path: str) -> str:
    if not path.isascii() or _UNSAFE.search(path):
        raise UnclearPathError(
            "the path holds a character that must be percent-encoded, a backslash or a semicolon"
        )
    raw = bytearray()
    position = 0
    for escape in _ESCAPE.finditer(path):
        if not escape[1]:
            raise UnclearPathError("the path has invalid percent-encoding")
        raw += path[position : escape.start()].encode()
        byte = int(escape[1], 16)
        if byte in b"/\\;" or byte < 0x20 or byte == 0x7F:
            raise UnclearPathError("the path has an encoded slash, backslash, semicolon or control character")
        if byte == 0x25 and re.match(r"[0-9A-Fa-f]{2}", path[escape.end() :]):
            raise UnclearPathError("the path is percent-encoded twice")
        raw.append(byte)
        position = escape.end()
    raw += path[position:].encode()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnclearPathError("the path is not UTF-8 behind its percent-encoding") from error


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A path pattern in canonical text. ``matches`` takes what :func:`canonical_path` returned."""

    text: str
    stem: str = field(init=False, compare=False, repr=False)
    """The literal segments in front, `/repos/acme` of `/repos/acme/*/pulls`: what an index is keyed by."""
    _regex: re.Pattern[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        segments = _segments(self.text)
        literal = 0
        while literal < len(segments) and "*" not in segments[literal]:
            literal += 1
        object.__setattr__(self, "stem", "".join("/" + segment for segment in segments[:literal]))
        object.__setattr__(self, "_regex", _compile(segments))

    def matches(self, path: str) -> bool:
        return self._regex.fullmatch(path) is not None


def parse_path_pattern(written: str) -> PathPattern:
    """Return the pattern of request paths that a person wrote."""
    text = written.strip()
    if not text.startswith("/"):
        raise InvalidPolicy(f"path {quote(written)} does not begin with `/`", "write it as `/repos/**`")
    if "%" in text or ";" in text:
        raise InvalidPolicy(
            f"path {quote(written)} has percent-encoding or parameters", "write the plain path"
        )
    return PathPattern(_canonical_pattern(text, written))


def _canonical_pattern(text: str, written: str) -> str:
    if len(text) > PATH_BYTES:
        raise InvalidPolicy(f"path {quote(written)} is longer than {PATH_BYTES} bytes")
    if _PATTERN_UNSAFE.search(text):
        raise InvalidPolicy(
            f"path {quote(written)} has a character that no path pattern has",
            "only `*` (one segment) and `**` (any depth) are special; queries and fragments are never matched",
        )
    body = text.rstrip("/") if text.endswith("/") and not text.endswith("//") else text
    segments = _segments(body)
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidPolicy(f"path {quote(written)} has empty or dot segments", "write the path plainly")
        if "**" in segment and segment != "**":
            raise InvalidPolicy(f"`**` in {quote(written)} is not a segment of its own", "write `/a/**`")
    if sum(segment == "**" for segment in segments) > 8:
        raise InvalidPolicy(f"path {quote(written)} has more than eight `**`")
    return body or "/"


def _segments(text: str) -> list[str]:
    return [] if text in ("", "/") else text[1:].split("/")


def _compile(segments: list[str]) -> re.Pattern[str]:
    """Compile to a pattern that runs in time linear in the path.

    Between two `**` every segment has one place, so the leftmost place is as good as any: each such run is atomic.
    """
    runs: list[str] = [""]
    for segment in segments:
        if segment == "**":
            runs.append("")
        else:
            runs[-1] += "/" + ("[^/]++" if segment == "*" else glob_regex(segment, "[^/]"))
    if len(runs) == 1:
        return re.compile(runs[0])
    middle = "".join(f"(?>(?:/[^/]++)*?{run})" for run in runs[1:-1] if run)
    return re.compile(f"{runs[0]}{middle}(?:/[^/]++)*{runs[-1]}")


def glob_regex(glob: str, single: str) -> str:
    """Translate `*`, `?`, `[...]` within one label or segment; pieces between stars are atomic, so time is linear."""
    pieces = [_piece(piece, single) for piece in glob.split("*")]
    if len(pieces) == 1:
        return pieces[0]
    middle = "".join(f"(?>{single}*?{piece})" for piece in pieces[1:-1] if piece)
    return f"{pieces[0]}{middle}{single}*{pieces[-1]}"


def _piece(piece: str, single: str) -> str:
    out, position = "", 0
    while position < len(piece):
        if piece[position] == "?" and single == "[^.]":
            out += single
        elif piece[position] == "[" and single == "[^.]":
            end = piece.index("]", position + 2)
            body = piece[position + 1 : end]
            out += f"[^.{body[1:]}]" if body.startswith("!") else f"[{body}]"
            position = end
        else:
            out += re.escape(piece[position])
        position += 1
    return out


@dataclass(frozen=True, slots=True)
class FilePattern:
    """A pattern of host paths. `~` is the home directory of whoever owns the sandbox, known only at evaluation."""

    text: str

    def expanded(self, home: str) -> PathPattern | None:
        """Return the absolute pattern on a machine, or nothing where `~` means nothing."""
        if not self.text.startswith("~"):
            return PathPattern(self.text)
        return PathPattern((home.rstrip("/") + self.text[1:]) or "/") if home.startswith("/") else None


def parse_file_pattern(written: str) -> FilePattern:
    """Return the pattern of host paths that a person wrote: absolute, `~` or `~/...`, or `**` for every path."""
    text = written.strip()
    if text in ("**", "/**"):
        return FilePattern("/**")
    if text in ("~", "~/"):
        return FilePattern("~")
    tilde = text.startswith("~/")
    if not (tilde or text.startswith("/")):
        raise InvalidPolicy(
            f"path {quote(written)} is neither absolute nor under `~`", "write `/srv/work/**` or `~/work/**`"
        )
    if "$" in text:
        raise InvalidPolicy(f"path {quote(written)} has a variable", "only `~` is expanded")
    body = _canonical_pattern(text[1:] if tilde else text, written)
    return FilePattern(f"~{body}" if tilde else body)
