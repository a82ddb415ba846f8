"""The gateway: some standing workers, and which sandbox is whose (docs/adr/0008-workers-by-sandbox.md).

A sandbox belongs to one worker for as long as it runs, so whatever counts per sandbox (connections, synthetic names,
budgets, pools, the order of its records) has one owner, and what happens to a worker happens to its sandboxes alone.
It goes to the worker with the fewest when it is admitted. A successor takes over the sandboxes of the one before.

Workers are begun as they are needed: one at first, then one more than have a sandbox, up to the number that is
configured. The spare one is begun a little later than the sandbox that took the last, so nobody waits for either.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from ringfence.application.errors import Unavailable
from ringfence.application.ports import Attachment
from ringfence.daemon.gateway import GatewaySettings, Records, StandingWorker
from ringfence.sandbox.credentials import Binding
from ringfence.sandbox.model import SandboxSpec

MOST = 4
"""Workers that are run unless told otherwise: each is 32 MB, and few people have five sandboxes busy at once."""
SPARE = 2.0
"""Seconds between a sandbox that takes the last idle worker and the start of the next: its own start comes first."""


def usual_count() -> int:
    """How many workers are run unless told otherwise: one per core that this process may use, not more than a few."""
    return min(len(os.sched_getaffinity(0)), MOST)


class StandingGateway:
    """Implements :class:`ringfence.application.ports.Turnstile` over the workers there are."""

    def __init__(
        self,
        directory: Path,
        settings: GatewaySettings,
        *,
        count: int,
        log: Path,
        record: Callable[[Records], Awaitable[None]],
        lost: Callable[[str, Collection[str]], Awaitable[None]],
        introduce: Callable[[Collection[str]], Coroutine[None, None, None]],
    ) -> None:
        """``record`` takes a batch and returns when it is safe. ``lost`` hears why nobody serves some sandboxes any
        more, ``introduce`` brings them to a worker that is new."""
        self._directory = directory
        self._owners: dict[str, StandingWorker] = {}
        self._spare: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[None]] = set()

        def worker(path: Path) -> StandingWorker:
            made = StandingWorker(
                path,
                settings,
                log=log,
                record=record,
                lost=lambda reason: lost(reason, self.sandboxes(made)),
                introduce=lambda: introduce(self.sandboxes(made)),
                elsewhere=lambda sandbox: self._owners.get(sandbox, made) is not made,
            )
            return made

        self._worker = worker
        self.workers = tuple(worker(directory / f"gateway-{number}.sock") for number in range(count))

    @property
    def begun(self) -> Sequence[StandingWorker]:
        """The workers that are kept standing."""
        return [worker for worker in self.workers if worker.begun]

    @property
    def alive(self) -> bool:
        """Whether every sandbox can be served."""
        return bool(self.begun) and all(worker.alive for worker in self.begun)

    def sandboxes(self, worker: StandingWorker) -> Collection[str]:
        """The sandboxes that are a worker's."""
        return frozenset(sandbox for sandbox, owner in self._owners.items() if owner is worker)

    def loads(self) -> Sequence[tuple[StandingWorker, int]]:
        """The workers that are kept standing, and how many sandboxes each has."""
        return [(worker, len(self.sandboxes(worker))) for worker in self.begun]

    async def start(self) -> None:
        """Find the workers of an earlier daemon, or begin one. Those that are too many are ended."""
        wanted = {worker.path for worker in self.workers}
        surplus = [self._worker(path) for path in self._directory.glob("gateway*.sock") if path not in wanted]
        await asyncio.gather(*(worker.find() for worker in (*self.workers, *surplus)))
        for worker in self.workers:
            for sandbox in tuple(worker.served):
                if self._owners.setdefault(sandbox, worker) is not worker:
                    await worker.release(sandbox)  # a daemon died while it moved
        await asyncio.gather(*(worker.retire() for worker in surplus))
        if not self.begun:
            await self.workers[0].begin()

    async def forget_others(self, known: Collection[str]) -> None:
        """Release what is served but is no running sandbox: a daemon died while it stopped."""
        for sandbox in self._owners.keys() - known:
            with contextlib.suppress(Unavailable):
                await self.release(sandbox)

    async def leave(self, *, end: bool) -> None:
        """Let go. The workers go on, or with ``end`` are told to end."""
        if self._spare is not None:
            self._spare.cancel()
        await asyncio.gather(*self._beginning)
        await asyncio.gather(*(worker.leave(end=end) for worker in self.begun))

    # The turnstile

    async def admit(
        self,
        spec: SandboxSpec,
        attachment: Attachment,
        policy: Mapping[str, Any],
        credentials: Sequence[Binding] = (),
    ) -> None:
        worker = self._owners.get(spec.id) or await self._place(spec.id)
        await worker.admit(spec, attachment, policy, credentials)
        if self._spare is None and self._unbegun() is not None and self._idle() is None:
            self._spare = asyncio.get_running_loop().call_later(SPARE, self._widen)

    async def arm(self, sandbox: str, credentials: Sequence[Binding]) -> None:
        await self._owner(sandbox).arm(sandbox, credentials)

    async def bind(self, sandbox: str, policy: Mapping[str, Any]) -> None:
        await self._owner(sandbox).bind(sandbox, policy)

    async def cut(self, sandbox: str, *, closed: bool) -> None:
        await self._owner(sandbox).cut(sandbox, closed=closed)

    async def release(self, sandbox: str) -> None:
        """Stop serving a sandbox; one that nobody serves is released."""
        worker = self._owners.get(sandbox)
        if worker is not None:
            await worker.release(sandbox)
            self._owners.pop(sandbox, None)

    # Whose a sandbox is

    def _owner(self, sandbox: str) -> StandingWorker:
        worker = self._owners.get(sandbox)
        if worker is None:
            raise Unavailable(
                "the gateway does not serve this sandbox; nothing leaves it", code="gateway-away"
            )
        return worker

    async def _place(self, sandbox: str) -> StandingWorker:
        """Give a sandbox to the worker with the fewest; to one that is begun for it if all have some."""
        worker = self._idle() or self._unbegun()
        if worker is not None:
            self._owners[sandbox] = (
                worker  # before anything is waited for: the next sandbox is to see it taken
            )
            await worker.begin()
        if worker is None or not worker.alive:
            load = Counter(self._owners.values())
            standing = [each for each in self.begun if each.alive] or self.begun
            worker = self._owners[sandbox] = min(standing, key=lambda each: load[each])
        return worker

    def _idle(self) -> StandingWorker | None:
        """Return a worker that stands and serves nobody."""
        taken = set(self._owners.values())
        return next((worker for worker in self.begun if worker.alive and worker not in taken), None)

    def _unbegun(self) -> StandingWorker | None:
        taken = set(self._owners.values())
        return next((worker for worker in self.workers if not worker.begun and worker not in taken), None)

    def _widen(self) -> None:
        """Begin a spare worker, if there is still none."""
        self._spare = None
        worker = self._unbegun()
        if worker is not None and self._idle() is None:
            task = asyncio.create_task(worker.begin())
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)
