"""Sandboxes from a person's point of view: create, start, stop, remove, settle, list, find.

A sandbox is kept in the store as *to be removed* until everything of it exists, so a crash in the middle of ``create``
leaves nothing that counts, and the next start of the daemon takes the pieces away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ringfence.application.creation import Creation, specify
from ringfence.application.errors import RingfenceError
from ringfence.application.in_force import PolicyInForce
from ringfence.application.journal import Journal
from ringfence.application.lives import Life, Lives
from ringfence.application.platforms import Platforms
from ringfence.application.ports import RuleRecord, SandboxRecord, Store, Supervisors, Workspaces
from ringfence.application.rules import RuleRequest, new_rule
from ringfence.application.runner import LostSession, Runner
from ringfence.application.secrets import Secrets
from ringfence.policy.model import Effect
from ringfence.sandbox.agents import AGENTS
from ringfence.sandbox.environment import USER, environment, working_directory
from ringfence.sandbox.model import Desired

ARRIVAL = 60.0
"""Seconds that a started sandbox waits for its first session."""
SETTLE = 15.0
GRACE = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """How to attach a session to a running sandbox."""

    socket: str
    command: tuple[str, ...]
    environment: dict[str, str]
    cwd: str
    user: str = USER


class Sandboxes:
    """The use cases."""

    def __init__(
        self,
        *,
        store: Store,
        lives: Lives,
        runner: Runner,
        platforms: Platforms,
        policy: PolicyInForce,
        supervisors: Supervisors,
        workspaces: Workspaces,
        secrets: Secrets,
        journal: Journal,
        clock: Callable[[], float],
        identifier: Callable[[], str],
        grace: float = GRACE,
    ) -> None:
        self._store = store
        self._lives = lives
        self._runner = runner
        self._platforms = platforms
        self._policy = policy
        self._supervisors = supervisors
        self._workspaces = workspaces
        self._secrets = secrets
        self._journal = journal
        self._clock = clock
        self._identifier = identifier
        self._grace = grace
        self._naming = asyncio.Lock()
        self._ending: dict[str, asyncio.Task[None]] = {}
        runner.attended = self._attended

    async def create(self, wish: Creation) -> Life:
        """Make a stopped sandbox, whole or not at all."""
        self._policy.require_choice()
        runtime = await self._platforms.choose(wish.runtime)
        async with self._naming:
            spec = await specify(
                wish,
                identifier=self._identifier(),
                runtime=runtime,
                taken=self._lives,
                workspaces=self._workspaces,
            )
            rules = self._ceiling(wish, spec.id)
            now = self._clock()
            record = SandboxRecord(spec=spec, desired=Desired.REMOVED, base=wish.base, created=now)
            life = Life(record=record)
            await self._policy.stored(lambda: self._store.add_sandbox(record, rules))
            self._lives.add(life)
        async with life.lock:
            try:
                await self._journal.note(
                    "sandbox created", sandbox=spec.id, sandbox_name=spec.name, agent=spec.agent
                )
                await self._runner.desire(life, Desired.STOPPED)
            except BaseException:
                await asyncio.shield(self._unmake(life))
                raise
        return life

    def _ceiling(self, wish: Creation, sandbox: str) -> tuple[RuleRecord, ...]:
        if not wish.deny_network:
            return ()
        request = RuleRequest(effect=Effect.DENY, resources=wish.deny_network)
        return (new_rule(request, identifier=self._identifier(), now=self._clock(), sandbox=sandbox),)

    async def _unmake(self, life: Life) -> None:
        try:
            await self._runner.desire(life, Desired.REMOVED)
        except RingfenceError:
            _log.exception(
                "what was made of sandbox `%s` could not be taken away; the next start does", life.name
            )

    async def start(self, name: str) -> tuple[Life, Entrance]:
        """Start a sandbox, unless it runs, and say how to attach."""
        self._policy.require_choice()
        life = self._lives.find(name)
        async with life.lock:
            self._lives.find(life.id)
            spec = life.record.spec
            if not life.running:
                await self._workspaces.admit(spec.workspaces, spec.owner)
            await self._secrets.ready(life)
            try:
                await self._runner.desire(life, Desired.RUNNING)
            except LostSession:
                await self._runner.desire(life, Desired.STOPPED)
                await self._runner.desire(life, Desired.RUNNING)
            self._expect_arrival(life)
        return life, self.entrance(life)

    def entrance(self, life: Life) -> Entrance:
        spec = life.record.spec
        return Entrance(
            socket=self._supervisors.socket_path(spec.id),
            command=AGENTS[spec.agent].entry,
            environment=environment(spec, self._secrets.variables(life.record)),
            cwd=working_directory(spec),
        )

    async def stop(self, name: str) -> Life:
        life = self._lives.find(name)
        async with life.lock:
            if life.record.desired is not Desired.REMOVED:
                await self._runner.desire(life, Desired.STOPPED)
        return life

    async def remove(self, name: str) -> None:
        """Take a sandbox away with everything in it. Its workspaces stay."""
        life = self._lives.find(name)
        async with life.lock:
            if self._lives.by_id(life.id) is not None:
                await self._runner.desire(life, Desired.REMOVED)

    async def settle(self, name: str) -> None:
        """Wait until what the end of a session brings about is done. A sandbox that is gone is settled."""
        life = self._lives.find(name)
        try:
            async with asyncio.timeout(SETTLE):
                while life.running and await self._supervisors.attendance(life.id) not in (
                    None,
                    life.attendance,
                ):
                    life.changed.clear()
                    await life.changed.wait()
                if (ending := self._ending.get(life.id)) is not None:
                    await asyncio.shield(ending)
                async with life.lock:
                    return
        except TimeoutError:
            return

    def list(self) -> Sequence[Life]:
        """Return every sandbox that counts, oldest first."""
        return sorted(self._lives, key=lambda life: (life.record.created, life.name))

    def find(self, name: str) -> Life:
        return self._lives.find(name)

    # What the end of sessions brings about

    def _attended(self, life: Life) -> None:
        """Draw the conclusion from a new attendance: hold, take away, or stop after the grace."""
        if life.attendance.open:
            life.keep_until(None)
        elif life.attended and life.attendance.clean and life.record.spec.anonymous:
            life.keep_until(None)
            self._end(life, Desired.REMOVED)
        elif life.attended:
            self._expect_end(life, self._grace)
        elif life.deadline is None:
            self._expect_arrival(life)

    def _expect_arrival(self, life: Life) -> None:
        if not life.attendance.open:
            self._expect_end(life, max(ARRIVAL, self._grace))

    def _expect_end(self, life: Life, patience: float) -> None:
        loop = asyncio.get_running_loop()
        life.keep_until(loop.call_later(patience, self._end, life, Desired.STOPPED))

    def _end(self, life: Life, desired: Desired) -> None:
        if life.id not in self._ending:
            task = self._ending[life.id] = asyncio.ensure_future(self._finish(life, desired))
            task.add_done_callback(lambda _task: self._ending.pop(life.id, None))

    async def _finish(self, life: Life, desired: Desired) -> None:
        async with life.lock:
            if life.attendance.open or not life.running:
                return
            try:
                await self._runner.desire(life, desired)
            except RingfenceError:
                _log.exception("sandbox `%s` could not become %s", life.name, desired)

    # The daemon's own beginning and end

    async def recover(self) -> None:
        """Take up what an earlier daemon left: adopt what runs, finish what was begun, sweep what nobody knows."""
        for record in await self._store.sandboxes():
            self._lives.add(Life(record=record))
        await asyncio.gather(*(self._resume(life) for life in self._lives))
        await self._platforms.sweep(
            known=frozenset(life.id for life in self._lives),
            served=frozenset(life.id for life in self._lives if life.running),
        )

    async def _resume(self, life: Life) -> None:
        async with life.lock:
            try:
                await self._runner.resume(life)
            except Exception:  # noqa: BLE001  # one sandbox's trouble is not the others'
                _log.exception(
                    "sandbox `%s` could not be taken up; `sbx start` or `sbx rm` tries again", life.name
                )

    async def lose_gateway(self, reason: str, served: Collection[str]) -> None:
        """Say of a worker's sandboxes that nobody decides for them at the moment, and so nothing leaves them."""
        await asyncio.gather(
            *(
                self._runner.lose_gateway(life, reason)
                for life in self._lives
                if life.running and life.id in served
            )
        )

    async def readmit(self, served: Collection[str]) -> None:
        """Bring sandboxes to a worker that is new: it knows none of them."""
        await asyncio.gather(*(self._readmit(life) for life in self._lives if life.id in served))

    async def _readmit(self, life: Life) -> None:
        async with life.lock:
            if life.running and life.attachment is not None:
                try:
                    await self._runner.attach(life)
                except Exception:  # noqa: BLE001  # one sandbox's trouble is not the others'
                    _log.exception("sandbox `%s` has no egress: it could not be admitted again", life.name)

    async def stop_all(self) -> None:
        await asyncio.gather(*(self.stop(life.id) for life in self._lives))
