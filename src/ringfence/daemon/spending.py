"""What the sandboxes have spent of rules' budgets today, as the ledger has it.

A gateway worker counts by itself. But a worker may die, and a sandbox that is started again is a new one to it; so
whoever introduces a sandbox says what it has spent. The sums are those of the records that closed: each says in
``charged`` whose budgets paid. What an exchange moved that was under way when its worker was killed is not among them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

DAY = 86_400

Spent = tuple[int, int, int]
"""The day (since the epoch), tokens, bytes."""
_NEEDLES = (b'"step":"closed"', b'"charged":"')


class Recorded(Protocol):
    """The part of a ledger that is needed here."""

    def read(
        self, *, newest: int, matching: tuple[bytes, ...], since: float
    ) -> AsyncIterator[Mapping[str, Any]]: ...


class Spending:
    """Sums by sandbox and rule, of one day."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._day = 0
        self._sums: dict[str, dict[str, Spent]] = {}

    async def load(self, ledger: Recorded) -> None:
        """Learn what was recorded today."""
        midnight = self._clock() // DAY * DAY
        async for record in ledger.read(newest=0, matching=_NEEDLES, since=midnight):
            self.heed(record)

    def heed(self, record: Mapping[str, Any]) -> None:
        """A decision about network access was recorded."""
        charged = record.get("charged")
        if not charged or record.get("step") != "closed":
            return
        self._turn(int(record["time"] // DAY))
        if record["time"] // DAY != self._day:
            return
        size = record.get("bytes_out", 0) + record.get("bytes_in", 0)
        cost = record.get("tokens_in", 0) + record.get("tokens_out", 0)
        sums = self._sums.setdefault(record["sandbox"], {})
        for rule in charged.split(","):
            _, tokens, moved = sums.get(rule, (0, 0, 0))
            sums[rule] = (self._day, tokens + cost, moved + size)

    def of(self, sandbox: str) -> Mapping[str, Spent]:
        """Return what a sandbox has spent today, by rule."""
        self._turn(int(self._clock() // DAY))
        return dict(self._sums.get(sandbox, {}))

    def _turn(self, day: int) -> None:
        if day > self._day:
            self._day = day
            self._sums.clear()
