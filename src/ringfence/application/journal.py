"""Everything that is recorded goes through here: into the ledger first, then to whoever watches.

A record counts when the ledger has it; watchers and the index of recent decisions never know more than the ledger. A
watcher that is slow loses records and is told how many: the queue is bounded, the ledger is complete. Canaries are
proof and not traffic: they are taken out before the ledger.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ringfence.application.ports import Ledger

Record = Mapping[str, Any]

RECENT = 10_000
"""Decisions that ``explain`` finds without reading the ledger."""
REMEMBERED = 4_096
"""Records of an earlier daemon that are looked at again; more than a gateway holds unheard."""
QUEUE = 4_096
"""Records that a watcher may lag behind."""
NETWORK = "network"
"""The kind of a decision about network access; all other kinds are acts of the product itself."""


@dataclass(frozen=True, slots=True)
class Note:
    """An act of the product: what it is (``rule added``), and the facts."""

    kind: str
    facts: Mapping[str, object]


class Watcher:
    """One live reader. Iterating yields records, and ``{"dropped": n}`` where it was too slow, until it is ended."""

    def __init__(self, wanted: Callable[[Record], bool]) -> None:
        self._wanted = wanted
        self._queue: deque[Record] = deque()
        self._dropped = 0
        self._arrived = asyncio.Event()
        self._ended = False

    def end(self) -> None:
        """Nothing comes any more."""
        self._ended = True
        self._arrived.set()

    def offer(self, record: Record) -> None:
        if not self._wanted(record):
            return
        if len(self._queue) >= QUEUE:
            self._dropped += 1
        else:
            self._queue.append(record)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Record]:
        while True:
            await self._arrived.wait()
            while self._queue:
                yield self._queue.popleft()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                yield {"kind": NETWORK, "dropped": dropped}
            if self._ended:
                return
            if not self._queue:
                self._arrived.clear()


class Journal:
    """Writes records, finds them again, and shows them as they come."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._watchers: set[Watcher] = set()
        self._recent: OrderedDict[str, list[Record]] = OrderedDict()

    def close(self) -> None:
        """End every watcher, for the end of the daemon."""
        for watcher in self._watchers:
            watcher.end()

    async def load(self) -> None:
        """Learn what was recorded last, so that nothing is recorded again that a gateway repeats."""
        needle = f'"kind":"{NETWORK}"'.encode()
        async for record in self._ledger.read(newest=REMEMBERED, matching=(needle,)):
            self._remember(record)

    def recent(self) -> Iterator[Record]:
        """The records of the decisions that are remembered."""
        return (record for steps in self._recent.values() for record in steps)

    async def decided(self, records: Sequence[Record]) -> Sequence[Record]:
        """Record decisions about network access, in order; return those that are new. Raises if the ledger cannot be
        written.

        A gateway that was not heard repeats itself; what is known already is not recorded twice.
        """
        new = [record for record in records if not record.get("canary") and not self._known(record)]
        await self._append([{"kind": NETWORK, **record} for record in new])
        return new

    def _known(self, record: Record) -> bool:
        steps = self._recent.get(record.get("id", ""), ())
        return any(known.get("step") == record.get("step") for known in steps)

    def _remember(self, record: Record) -> None:
        if record["kind"] == NETWORK and (identifier := record.get("id")):
            self._recent.setdefault(identifier, []).append(record)
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)

    async def note(self, kind: str, **fields: object) -> None:
        """Record an act of the product: what it is (``sandbox started``), and the facts."""
        await self._append([{"kind": kind, "time": self._clock(), **fields}])

    async def _append(self, records: Sequence[Record]) -> None:
        if not records:
            return
        for record in await self._ledger.append(records):
            self._remember(record)
            for watcher in self._watchers:
                watcher.offer(record)

    async def explain(self, identifier: str) -> Sequence[Record]:
        """Return both steps of a decision, or nothing."""
        if identifier in self._recent:
            return tuple(self._recent[identifier])
        needle = f'"id":"{identifier}"'.encode()
        return [record async for record in self._ledger.read(newest=2, matching=(needle,))]

    async def log(self, *, sandbox: str, newest: int, follow: bool) -> AsyncIterator[Record]:
        """Yield decisions (of one sandbox's id, or all): the newest so many, then the live ones as they come.

        The watcher is there before the ledger is read, so nothing falls between; what is seen twice is shown once.
        """
        needles = [f'"kind":"{NETWORK}"'.encode()]
        if sandbox:
            needles.append(f'"sandbox":"{sandbox}"'.encode())

        def wanted(record: Record) -> bool:
            return record["kind"] == NETWORK and (not sandbox or record.get("sandbox") == sandbox)

        watcher = Watcher(wanted)
        if follow:
            self._watchers.add(watcher)
        try:
            last = 0
            async for record in self._ledger.read(newest=newest, matching=needles):
                last = record["sequence"]
                yield record
            if not follow:
                return
            async for record in watcher:
                if record.get("sequence", last + 1) > last:
                    yield record
        finally:
            self._watchers.discard(watcher)
