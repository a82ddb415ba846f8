"""The frame codec of sessions and of the agent's link (ARCHITECTURE.md, "Frames").

A frame is twelve bytes, big-endian, and at most 64 KiB of payload. Everything that can be said about a
frame without knowing its conversation is decided here, by one table: which kinds there are, how long
their payloads may be, and that the reserved bytes are zero. What a :class:`Decoder` returns needs no
second look at its shape; what remains to its caller is whether the frame may be said *now*. A decoder
also knows which kinds its peer may say at all, and it is used up by its first error: there is no
resynchronising with a peer that does not speak the protocol.

Frames are plain tuples, and this module imports next to nothing, because every running sandbox keeps a
copy of it in memory.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

PAYLOAD_MAX = 65536
WINDOW = 262144
"""What may be sent in each direction of a channel before the first ``WINDOW`` frame; also the most that may
ever be outstanding, so that it bounds what anyone has to keep."""
GRANT = WINDOW // 4
"""A receiver gives back what it consumed in portions of this size: rarely, but before the sender stalls."""
VERSION = 1
SESSION = 1
"""The one channel of a session connection."""


class Kind(IntEnum):
    OPEN = 1
    STDIN = 2
    RESIZE = 3
    SIGNAL = 4
    HANGUP = 5
    WINDOW = 6
    HELLO = 16
    OPENED = 17
    STDOUT = 18
    STDERR = 19
    EXIT = 20
    FAIL = 21
    WATCH = 32
    SESSIONS = 33
    SHUTDOWN = 34


Frame = tuple[Kind, int, bytes]
"""Kind, channel, payload."""

_LENGTHS: dict[Kind, tuple[int, int]] = {
    Kind.OPEN: (0, PAYLOAD_MAX),
    Kind.STDIN: (0, PAYLOAD_MAX),
    Kind.RESIZE: (4, 4),
    Kind.SIGNAL: (1, 1),
    Kind.HANGUP: (0, 0),
    Kind.WINDOW: (4, 4),
    Kind.HELLO: (4, 4),
    Kind.OPENED: (4, 4),
    Kind.STDOUT: (1, PAYLOAD_MAX),
    Kind.STDERR: (1, PAYLOAD_MAX),
    Kind.EXIT: (5, 5),
    Kind.FAIL: (1, 1025),
    Kind.WATCH: (0, 0),
    Kind.SESSIONS: (5, 5),
    Kind.SHUTDOWN: (0, 0),
}

TO_AGENT = frozenset({Kind.OPEN, Kind.STDIN, Kind.RESIZE, Kind.SIGNAL, Kind.HANGUP, Kind.WINDOW})
FROM_AGENT = frozenset({Kind.HELLO, Kind.OPENED, Kind.STDOUT, Kind.STDERR, Kind.EXIT, Kind.FAIL, Kind.WINDOW})
TO_SUPERVISOR = TO_AGENT | {Kind.WATCH, Kind.SHUTDOWN}
FROM_SUPERVISOR = (FROM_AGENT - {Kind.HELLO}) | {Kind.SESSIONS}

HEADER = Struct("!BBHII")
NUMBER = Struct("!I")
"""Payload of ``WINDOW``, ``HELLO`` and ``OPENED``."""
SIZE = Struct("!HH")
"""Payload of ``RESIZE``: rows, columns."""
EXIT = Struct("!BI")
"""Payload of ``EXIT``: 0 exited or 1 signalled, number."""
SESSIONS = Struct("!IB")
"""Payload of ``SESSIONS``: open, clean."""


class FrameError(Exception):
    """The peer does not speak the protocol."""


def encode(kind: Kind, channel: int, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame. A payload that its kind cannot have is a mistake of the caller."""
    least, most = _LENGTHS[kind]
    assert least <= len(payload) <= most, (kind, len(payload))
    return HEADER.pack(kind, 0, 0, channel, len(payload)) + payload


class Decoder:
    """Turns the bytes of a peer into frames. Keeps at most one incomplete frame."""

    __slots__ = ("_accepted", "_broken", "_rest")

    def __init__(self, accepted: frozenset[Kind]) -> None:
        self._accepted: dict[int, Kind] = {int(kind): kind for kind in accepted}
        self._rest = bytearray()
        self._broken = False

    def feed(self, received: bytes) -> list[Frame]:
        """Return the frames that ``received`` completes; raise :class:`FrameError` at the first wrong one.

        Frames before the wrong one are lost with it: their connection is over in any case.
        """
        if self._broken:
            raise FrameError("the stream is broken")
        rest = self._rest
        rest += received
        frames: list[Frame] = []
        start, end = 0, len(rest)
        try:
            while end - start >= HEADER.size:
                kind, channel, length = self._header(rest, start)
                body = start + HEADER.size
                if end - body < length:
                    break
                start = body + length
                frames.append((kind, channel, bytes(rest[body:start])))
        except FrameError:
            self._broken = True
            rest.clear()
            raise
        del rest[:start]
        return frames

    def _header(self, rest: bytearray, start: int) -> tuple[Kind, int, int]:
        number, zero, zeros, channel, length = HEADER.unpack_from(rest, start)
        kind = self._accepted.get(number)
        if kind is None:
            raise FrameError(f"kind {number} is not for this direction")
        if zero or zeros:
            raise FrameError("reserved bytes are not zero")
        least, most = _LENGTHS[kind]
        if not least <= length <= most:
            raise FrameError(f"{kind.name} of {length} bytes")
        return kind, channel, length
