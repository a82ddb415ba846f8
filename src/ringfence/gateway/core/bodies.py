"""Bodies: how many of the next bytes belong to the message, and nothing else.

Three readers, one for each framing. ``feed`` returns the payload in the bytes and what lies behind the
message's end (only meaningful once ``done``). A chunked body is taken apart here and put together again by
whoever writes it, so no chunk extension and no odd chunk header of one side ever reaches the other (RFC 9112
section 7.1; CVE-2025-22871).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from ringfence.gateway.core.fields import parse_trailers
from ringfence.gateway.core.heads import BARE, END
from ringfence.gateway.core.messages import CHUNKED, Malformed

_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n").match
_LINE_LIMIT: Final = 1024
"""A chunk's size line, extensions included: a megabyte of extension is an attack, not a message."""


class Body(Protocol):
    done: bool
    trailers: list[bytes]

    def feed(self, received: bytes) -> tuple[bytes, bytes]: ...


class Sized:
    """So many bytes."""

    __slots__ = ("done", "left", "trailers")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0
        self.trailers: list[bytes] = []

    def feed(self, received: bytes) -> tuple[bytes, bytes]:
        left = self.left - len(received)
        if left > 0:
            self.left = left
            return received, b""
        self.left = 0
        self.done = True
        if left == 0:
            return received, b""
        return received[:left], received[left:]


class Endless:
    """Everything until the connection ends."""

    __slots__ = ("done", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.trailers: list[bytes] = []

    def feed(self, received: bytes) -> tuple[bytes, bytes]:
        return received, b""


class Chunked:
    """Chunks, a last chunk, a trailer section."""

    __slots__ = ("_held", "_in_trailers", "_left", "_limit", "done", "trailers")

    def __init__(self, trailer_limit: int = 65_536) -> None:
        self.done = False
        self.trailers: list[bytes] = []
        self._left = 0
        """Bytes of the current chunk and its CRLF still to come."""
        self._held = b""
        self._in_trailers = False
        self._limit = trailer_limit

    def feed(self, received: bytes) -> tuple[bytes, bytes]:
        pieces: list[bytes] = []
        buffer = self._held + received if self._held else received
        at = 0
        size = len(buffer)
        while not self._in_trailers:
            left = self._left
            if left:
                if left > 2:
                    piece = buffer[at : at + left - 2]
                    if piece:
                        pieces.append(piece)
                        at += len(piece)
                        left = self._left = left - len(piece)
                if left > 2 or size - at < left:
                    self._held = buffer[at:]
                    return b"".join(pieces), b""
                if buffer[at : at + 2] != b"\r\n":
                    raise Malformed("a chunk that is longer than its size")
                at += 2
                self._left = 0
            match = _CHUNK(buffer, at)
            if match is None or match.end() - at > _LINE_LIMIT:
                line = buffer[at : at + _LINE_LIMIT]
                if b"\r\n" in line or size - at >= _LINE_LIMIT or BARE(line):
                    raise Malformed("a malformed chunk size")
                self._held = buffer[at:]
                return b"".join(pieces), b""
            at = match.end()
            length = int(match[1], 16)
            if length:
                self._left = length + 2
            else:
                self._in_trailers = True
        return b"".join(pieces), self._finish(buffer[at:])

    def _finish(self, buffer: bytes) -> bytes:
        self._held = buffer
        if buffer[:2] == b"\r\n":
            end = 2
        else:
            end = buffer.find(END) + 4
            if end < 4:
                if len(buffer) > self._limit:
                    raise Malformed("a trailer section that is too long", 431)
                if BARE(buffer):
                    raise Malformed("a CR or LF that is not a CRLF")
                return b""
            self.trailers = parse_trailers(buffer[:end])
        self.done = True
        self._held = b""
        return buffer[end:]


def chunk(payload: bytes) -> bytes:
    """Return a payload as a chunk; an empty one is nothing, for an empty chunk is the last."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


def last_chunk(trailers: Sequence[bytes]) -> bytes:
    return b"0\r\n%b\r\n" % b"".join(line + b"\r\n" for line in trailers)


def body_of(length: int) -> Body:
    """Return the reader for a body of a known length, or one that is chunked or endless."""
    if length >= 0:
        return Sized(length)
    return Chunked() if length == CHUNKED else Endless()
