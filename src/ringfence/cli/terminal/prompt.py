"""Questions to a person at a terminal. Cancelling (Ctrl-C, Esc, end of input) answers nothing and changes
nothing.

A digit moves the mark and Enter confirms, so that `2` and Enter does what it says however fast it is typed,
and no key is left over for the next question. The terminal is read one byte at a time for the same reason.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ringfence.cli.terminal.screen import BOLD, err, paint

FOOTER = "Use ↑/↓ to navigate, Enter to select, or press 1–{count}."
LONG_FOOTER = "Use ↑/↓ to navigate, Enter to select."
DIGITS = 9
"""Choices that one key can name."""
_UP, _DOWN, _ENTER, _CANCEL = "up", "down", "enter", "cancel"
_KEYS = {
    b"\r": _ENTER,
    b"\n": _ENTER,
    b"\x04": _CANCEL,
    b"\x00": _CANCEL,
    b"\x1b": _CANCEL,
    b"": _CANCEL,
    b"k": _UP,
    b"j": _DOWN,
}
"""A NUL is how the kernel keeps an end of input that was typed before the keys were ours (n_tty)."""
_SEQUENCES = {b"[A": _UP, b"OA": _UP, b"[B": _DOWN, b"OB": _DOWN}


def choose(title: str, lines: Sequence[tuple[str, str]], *, default: int) -> int | None:
    """Ask for one of ``lines`` (name, what it means); return its index, ``None`` when the person cancels."""
    mark = default
    with _keys() as descriptor:
        err(f"{title}\n")
        _draw(lines, mark)
        footer = FOOTER.format(count=len(lines)) if len(lines) <= DIGITS else LONG_FOOTER
        err(f"\n  {footer}")
        while (key := _key(descriptor)) != _ENTER:
            if key == _CANCEL:
                return None
            if key in (_UP, _DOWN):
                mark = (mark + (1 if key == _DOWN else -1)) % len(lines)
            elif key.isdigit() and 1 <= int(key) <= len(lines) <= DIGITS:
                mark = int(key) - 1
            else:
                continue
            _redraw(lines, mark)
    return mark


def confirm(question: str) -> bool:
    """Ask for a yes; anything else, and no answer, is a no."""
    sys.stdout.flush()
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        err()
    return answer.strip().lower() in ("y", "yes")


def hidden(question: str) -> str:
    """Ask for a line that is not shown as it is typed; empty when the person cancels."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = termios.tcgetattr(descriptor)
    silent[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, silent)
        sys.stdout.flush()
        sys.stderr.write(f"{question}: ")
        sys.stderr.flush()
        return sys.stdin.readline().rstrip("\r\n")
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        err()


def _draw(lines: Sequence[tuple[str, str]], mark: int) -> None:
    span = max(len(name) for name, _ in lines)
    digits = len(str(len(lines)))
    for index, (name, meaning) in enumerate(lines):
        marker = "❯" if index == mark else " "
        line = f"  {marker}  {index + 1:>{digits}}. {name:<{span}} — {meaning}"
        err(paint(line, BOLD, sys.stderr) if index == mark else line)


def _redraw(lines: Sequence[tuple[str, str]], mark: int) -> None:
    """Draw the choices over the ones on the screen; where the cursor cannot move, say the choice alone."""
    if os.environ.get("TERM", "dumb") == "dumb":
        err(f"  {mark + 1}. {lines[mark][0]}")
        return
    sys.stderr.write(f"\x1b[{len(lines) + 2}A")
    _draw(lines, mark)
    sys.stderr.write("\x1b[2B")
    sys.stderr.flush()


@contextmanager
def _keys() -> Iterator[int]:
    """Keys as they are pressed, unechoed; Ctrl-C interrupts. What is typed ahead is left unread."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSADRAIN)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _key(descriptor: int) -> str:
    byte = os.read(descriptor, 1)
    if byte == b"\x1b" and select.select([descriptor], [], [], 0.05)[0]:
        return _SEQUENCES.get(os.read(descriptor, 2), "")
    return _KEYS.get(byte) or byte.decode("ascii", "replace")
