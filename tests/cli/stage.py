"""What a test sees of a command line: what a run left behind, and a terminal to sit at."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

PATIENCE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Sbx = Callable[..., Ran]


@dataclass(slots=True, kw_only=True)
class Terminal:
    """A command in a pseudo-terminal; reads wait for what they expect, never for a time."""

    child: subprocess.Popen[bytes]
    descriptor: int
    screen: str = ""
    _seen: int = field(default=0)

    def expect(self, text: str) -> str:
        """Wait until ``text`` appears after what was expected before; return everything up to it."""
        deadline = time.monotonic() + PATIENCE
        while (at := self.screen.find(text, self._seen)) < 0:
            if time.monotonic() > deadline or not self._read(deadline):
                raise AssertionError(f"{text!r} never came; the screen is:\n{self.screen}")
        before = self.screen[self._seen : at]
        self._seen = at + len(text)
        return before

    def _read(self, deadline: float) -> bool:
        if not select.select([self.descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
            return False
        try:
            content = os.read(self.descriptor, 65536)
        except OSError:  # the other end is closed: the command has ended
            return False
        self.screen += content.decode(errors="replace").replace("\r\n", "\n")
        return bool(content)

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def interrupt(self) -> None:
        self.type("\x03")

    def end(self) -> int:
        while self._read(time.monotonic() + PATIENCE):
            pass
        return self.child.wait(PATIENCE)


OpenTerminal = Callable[..., Terminal]
