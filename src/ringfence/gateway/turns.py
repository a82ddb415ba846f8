"""Turns: who reads and who writes when, in one round of the event loop.

*Reading.* The event loop serves whatever is readable, and a connection may bring megabytes at once, so a sandbox with
many busy connections would have nearly all of the worker. What a sandbox reads is counted over all of its
connections; beyond a quantum, each of them that brings more is put aside until the loop has been round once.
Nobody is slowed who has no neighbours waiting: a round with nothing else to do takes no time.

*Writing.* What is sent in a round is written at its end, one connection after the other. Sandboxes and often origins
are on this machine, asleep until their bytes come; answered one by one, each is woken and falls asleep again before
the next is, and the waking costs more than all the rest of a short exchange (half of the worker's time, measured).
Where only one writes, nobody gains by waiting: then writes go out at once, and now and then one waits to see
whether it has company.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

QUANTUM: Final = 1_048_576
"""Bytes that a sandbox may bring in one round of the loop: about a millisecond's work."""


SAMPLE: Final = 16
"""Writes of a lonely writer before one waits again for company."""


class Reader(Protocol):
    """Something that can stop reading for a while."""

    def stall(self, stalled: bool) -> None: ...


class Turns:
    """The account of one sandbox. Whoever reads adds to ``spent`` and calls ``give_way`` beyond the
    quantum.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.spent = 0
        self.hushed = False
        """Nobody reads until further notice."""
        self._loop = loop
        self._waiting: list[Reader] = []

    def give_way(self, reader: Reader) -> None:
        """Put a reader aside until the others have had their turn."""
        if not self._waiting:
            self._loop.call_soon(self._next)
        self._waiting.append(reader)
        reader.stall(True)

    def _next(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.spent = 0
        for reader in waiting:
            reader.stall(self.hushed)


class Writer(Protocol):
    """Something that holds bytes back until the round is over."""

    def flush(self) -> None: ...


class Round:
    """Everybody who has something to write in this round of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._writers: list[Writer] = []
        self._at_once = 0
        """Writes that still go out at once: the last round had one writer."""

    def is_lonely(self) -> bool:
        """Whether a write would wait for nobody."""
        if self._at_once and not self._writers:
            self._at_once -= 1
            return True
        return False

    def add(self, writer: Writer) -> None:
        if not self._writers:
            self._loop.call_soon(self._end)
        self._writers.append(writer)

    def _end(self) -> None:
        writers, self._writers = self._writers, []
        if len(writers) == 1:
            self._at_once = SAMPLE
        for writer in writers:
            writer.flush()
