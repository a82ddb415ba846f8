"""A person at a terminal: a program on a pseudo-terminal, lines typed into it, what it showed.

The shell inside is asked once to put a mark and the last exit code before every prompt, and a sign after it.
From then on each line is typed exactly as a person would type it: when the sign says that the shell reads keys
(typed earlier, they would be echoed twice); its output is what appears until the next mark. Marks and signs
are control characters that no typed text contains, so an echo of the typing cannot be taken for one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

ROWS: Final = 50
COLUMNS: Final = 400
"""Wide, so that no line of output is wrapped."""

_MARK: Final = re.compile(rb"\x1e([0-9]{1,3})\x1e[^\x1e\x1f]*\x1f")
_ASK_FOR_MARKS: Final = r"""PROMPT_COMMAND='printf "\036%s\036" "$?"' PS1='$ \[\037\]'"""
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_=>])")
_LIMIT: Final = 4 << 20
_NUDGE: Final = 1.0


class SilenceError(Exception):
    """The program did not say what was waited for; the message ends with what it did say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """One line that was typed, and what came of it."""

    line: str
    code: int
    output: str


def plain(shown: bytes) -> str:
    """Return terminal output as text: no escape sequences, one newline for whatever begins a line."""
    return re.sub(r"\r*\n\r*|\r+", "\n", _ESCAPES.sub("", shown.decode(errors="replace")))


def _take_the_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A program on a terminal of its own. Use it as a context manager."""

    def __init__(self, argv: Sequence[str], *, environment: Mapping[str, str]) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._program = subprocess.Popen(
            list(argv),
            env=dict(environment),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_the_terminal,  # noqa: PLW1509 - one ioctl, which takes no lock
        )
        os.close(slave)
        self._shown = bytearray()
        self.greeting = ""

    def resize(self, rows: int, columns: int) -> None:
        """Change the terminal's size, as dragging a window does."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        """Send keys as they are."""
        while keys:
            keys = keys[os.write(self._master, keys) :]

    def _read(self, seconds: float) -> bool:
        """Take what is there within some seconds; return False when the program has left."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, seconds))
        if not ready:
            return True
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self._shown += piece
        if len(self._shown) > _LIMIT:
            raise SilenceError(f"the terminal showed more than {_LIMIT} bytes")
        return bool(piece)

    def wait_for(self, pattern: bytes, *, timeout: float = 30.0) -> str:
        """Wait until something is shown; return everything up to and with it."""
        deadline = time.monotonic() + timeout
        while (match := re.search(pattern, self._shown)) is None:
            if time.monotonic() > deadline or not self._read(deadline - time.monotonic()):
                raise SilenceError(f"waited for {pattern!r}, saw `{plain(bytes(self._shown))[-2000:]}`")
        shown = bytes(self._shown[: match.end()])
        del self._shown[: match.end()]
        return shown.decode(errors="replace")

    def await_shell(self, *, timeout: float = 60.0) -> None:
        """Wait until a shell answers. Keys typed before it listens may be thrown away, so ask again."""
        deadline = time.monotonic() + timeout
        while not _MARK.search(self._shown):
            if time.monotonic() > deadline:
                raise SilenceError(f"no shell answered: `{plain(bytes(self._shown))[-2000:]}`")
            if self._shown:
                self.press(_ASK_FOR_MARKS.encode() + b"\r")
            nudge = min(deadline, time.monotonic() + _NUDGE)
            while time.monotonic() < nudge and not _MARK.search(self._shown):
                if not self._read(nudge - time.monotonic()):
                    raise SilenceError(
                        f"it left before a shell answered: `{plain(bytes(self._shown))[-2000:]}`"
                    )
        self.greeting = plain(bytes(self._shown)).partition("PROMPT_COMMAND")[0]
        self.press(b"echo ready-$((40 + 2))\r")
        self.wait_for(rb"ready-42[^\x1e]*" + _MARK.pattern, timeout=timeout)

    def enter(self, line: str, *, timeout: float = 30.0) -> Typed:
        """Type a line at the shell's prompt; return what it showed and its exit code."""
        self.press(line.encode() + b"\r")
        shown = plain(self.wait_for(_MARK.pattern, timeout=timeout).encode())
        text, code, _ = shown.split("\x1e")
        echoed = text.rpartition("\x1f")[2]  # the shell may have drawn its prompt again, after a resize
        return Typed(line=line, code=int(code), output=echoed.partition("\n")[2])

    def leave(self, line: str = "exit", *, timeout: float = 30.0) -> int:
        """Type a last line and wait for the program to leave; return its exit code."""
        self.press(line.encode() + b"\r")
        return self.wait(timeout=timeout)

    def wait(self, *, timeout: float = 30.0) -> int:
        """Wait for the program to leave; return its exit code."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._read(deadline - time.monotonic()):
            pass
        return self._program.wait(max(1.0, deadline - time.monotonic()))

    @property
    def shown(self) -> str:
        """What has been shown and not yet been taken."""
        return plain(bytes(self._shown))

    def close(self) -> None:
        """Close the terminal: the program gets SIGHUP, and SIGKILL if it is still there."""
        with contextlib.suppress(OSError):
            os.close(self._master)
        try:
            self._program.wait(5.0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._program.pid, signal.SIGKILL)
            self._program.wait(5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
