"""Records on their way to the daemon: numbered, acknowledged, sent again after a reconnect, bounded.

Traffic goes on while the daemon restarts, so records wait here. What is allowed may be dropped when too much
waits, and a record says how many were. A refusal never is: when refusals alone fill the room, the outbox is
``congested`` and the worker stops listening to sandboxes until the daemon has caught up. Somebody who could
make us forget what was refused would only have to be loud enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

_BATCH: Final = 65_536
"""Bytes in one message, about. More would be fresh pages from the kernel each time."""
_WINDOW: Final = 64
"""Messages that may wait for their acknowledgement."""


class Outbox:
    """``ring`` is called (once, until something was taken) when there is something to send."""

    def __init__(self, limit: int, ring: Callable[[], None]) -> None:
        self._limit = limit
        self._ring = ring
        self._rung = False
        self._open = bytearray()
        """The batch that is being filled: one buffer, so that a record's memory is used again for the
        next.
        """
        self._sealed: deque[bytes] = deque()
        self._size = 0
        self._sent: deque[tuple[int, bytes]] = deque()
        self._again: deque[tuple[int, bytes]] = deque()
        self._sequence = 0
        self._dropped = 0
        self.dropped = 0
        """In all, for ``stats``."""

    def add(self, record: bytes, droppable: bool) -> None:
        """Take an encoded record."""
        if self._size >= self._limit:
            if droppable:
                self._dropped += 1
                self.dropped += 1
                return
        elif self._dropped:
            self._mark_gap()
        batch = self._open
        if batch:
            batch += b","
        batch += record
        self._size += len(record)
        if len(batch) >= _BATCH:
            self._seal()
        if not self._rung:
            self._rung = True
            self._ring()

    def _mark_gap(self) -> None:
        gap, self._dropped = b'{"dropped":%d}' % self._dropped, 0
        self.add(gap, False)

    def _seal(self) -> None:
        self._sealed.append(bytes(self._open))
        self._open = bytearray()

    @property
    def congested(self) -> bool:
        """Refusals alone fill the room twice."""
        return self._size >= 2 * self._limit

    @property
    def relieved(self) -> bool:
        return self._size < self._limit

    @property
    def waiting(self) -> int:
        """Bytes that nobody has acknowledged."""
        return self._size + sum(len(batch) for _, batch in (*self._sent, *self._again))

    def take(self) -> tuple[int, bytes] | None:
        """Return the next message (its sequence number, records joined by commas), or nothing for now."""
        if self._again:
            self._sent.append(self._again.popleft())
            return self._sent[-1]
        if len(self._sent) >= _WINDOW:
            return None
        if self._dropped and self._size < self._limit:
            self._mark_gap()
        if not self._sealed:
            if not self._open:
                self._rung = False
                return None
            self._seal()
        batch = self._sealed.popleft()
        self._size -= len(batch) if self._sealed or self._open else self._size
        self._sequence += 1
        self._sent.append((self._sequence, batch))
        return self._sent[-1]

    def acknowledge(self, sequence: int) -> None:
        """The daemon has everything up to ``sequence``."""
        while self._sent and self._sent[0][0] <= sequence:
            self._sent.popleft()

    def reconnect(self) -> None:
        """Whoever listens now has seen none of what was not acknowledged."""
        self._again = deque((*self._sent, *self._again))
        self._sent.clear()
        self._rung = True
        self._ring()
