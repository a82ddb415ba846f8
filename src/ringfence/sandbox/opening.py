"""What a session asks the agent to run: the payload of ``OPEN`` as a value (ARCHITECTURE.md, "Frames").

Records are ``tag:u8, length:u32, bytes``. :func:`parse` is as strict as the agent, so that a fake agent
in a test refuses what the real one refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from ringfence.sandbox.frames import PAYLOAD_MAX, SIZE

_RECORD = Struct("!BI")
_ARGUMENT, _VARIABLE, _DIRECTORY, _USER, _TERMINAL, _NO_INPUT = range(1, 7)


class OpeningError(ValueError):
    """The request cannot be said, or is not one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One command. Strings are those of the operating system: surrogate escapes stand for bytes."""

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    cwd: str = ""
    """Empty: the user's home, or ``/``."""
    user: str = ""
    """``name``, ``uid``, ``name:group``, ``uid:gid``; empty: whoever the agent is."""
    terminal: tuple[int, int] | None = None
    """Rows and columns; None: pipes."""
    stdin: bool = True

    def encode(self) -> bytes:
        records = [(_ARGUMENT, _bytes(argument)) for argument in self.argv]
        records += [(_VARIABLE, _bytes(f"{name}={value}")) for name, value in self.environment]
        if self.cwd:
            records.append((_DIRECTORY, _bytes(self.cwd)))
        if self.user:
            records.append((_USER, _bytes(self.user)))
        if self.terminal is not None:
            records.append((_TERMINAL, SIZE.pack(*self.terminal)))
        if not self.stdin:
            records.append((_NO_INPUT, b""))
        payload = b"".join(_RECORD.pack(tag, len(value)) + value for tag, value in records)
        if len(payload) > PAYLOAD_MAX:
            raise OpeningError("the arguments and the environment are longer than 64 KiB together")
        return payload


def parse(payload: bytes) -> Opening:
    argv: list[str] = []
    environment: list[tuple[str, str]] = []
    last: dict[int, bytes] = {}
    at = 0
    while at < len(payload):
        if at + _RECORD.size > len(payload):
            raise OpeningError("a record is cut short")
        tag, length = _RECORD.unpack_from(payload, at)
        at += _RECORD.size
        value = payload[at : at + length]
        if len(value) != length or not _ARGUMENT <= tag <= _NO_INPUT:
            raise OpeningError("a record is wrong")
        at += length
        if tag == _ARGUMENT:
            argv.append(_text(value))
        elif tag == _VARIABLE:
            name, equals, content = _text(value).partition("=")
            if not name or not equals:
                raise OpeningError("an environment record is not `NAME=VALUE`")
            environment.append((name, content))
        else:
            last[tag] = value
    if not argv or len(last.get(_TERMINAL, b"1234")) != SIZE.size or last.get(_NO_INPUT):
        raise OpeningError("not a command")
    terminal = last.get(_TERMINAL)
    return Opening(
        argv=tuple(argv),
        environment=tuple(environment),
        cwd=_text(last.get(_DIRECTORY, b"")),
        user=_text(last.get(_USER, b"")),
        terminal=None if terminal is None else SIZE.unpack(terminal),
        stdin=_NO_INPUT not in last,
    )


def _bytes(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise OpeningError(f"`{text!r}` has a zero byte")
    return raw


def _text(raw: bytes) -> str:
    if b"\0" in raw:
        raise OpeningError("a record has a zero byte")
    return raw.decode("utf-8", "surrogateescape")
