"""Carries out what the lifecycle table concludes, one sandbox at a time, and keeps running ones served.

Starting is an order of proofs: the enclosure exists, the gateway answers inside it, the canaries are refused, and only
then does anything of the sandbox's own run. Stopping is the reverse. Every step is idempotent, what is wanted is in the
store before the first step, so a crash anywhere leaves something that the same loop finishes or takes down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace

from ringfence.application.errors import RingfenceError, Unavailable
from ringfence.application.heartbeat import Heartbeat
from ringfence.application.in_force import PolicyInForce
from ringfence.application.journal import Journal
from ringfence.application.lives import Life, Lives
from ringfence.application.ports import Platform, Store, Supervisors, Trust
from ringfence.application.secrets import Secrets
from ringfence.sandbox.environment import network_files
from ringfence.sandbox.lifecycle import FINAL, LONGEST, Command, conclude, resumed
from ringfence.sandbox.model import Condition, Desired, Enforcement, Observation

STOP_GRACE = 2.0
"""Seconds that what runs inside has between SIGTERM and SIGKILL."""
ANSWER = 5.0
"""Seconds that a supervisor has to say who is there."""

_log = logging.getLogger(__name__)


class LostSession(Unavailable):
    """A sandbox runs but nobody holds its agent's link any more: nothing can be run in it."""

    code = "supervisor-lost"


class Runner:
    """Brings sandboxes from what is observed to what is desired. Callers hold the sandbox's lock."""

    def __init__(
        self,
        *,
        platforms: Mapping[str, Platform],
        store: Store,
        policy: PolicyInForce,
        heartbeat: Heartbeat,
        supervisors: Supervisors,
        trust: Trust,
        secrets: Secrets,
        journal: Journal,
        lives: Lives,
    ) -> None:
        self._platforms = platforms
        self._store = store
        self._policy = policy
        self._heartbeat = heartbeat
        self._supervisors = supervisors
        self._trust = trust
        self._secrets = secrets
        self._journal = journal
        self._lives = lives
        self.attended: Callable[[Life], None] = lambda _life: None
        """Told of every change of a sandbox's attendance."""
        self._acts: Mapping[Command, Callable[[Life], Awaitable[None]]] = {
            Command.REST: self._rest,
            Command.CREATE: self._create,
            Command.START: self._start,
            Command.ADOPT: self._adopt,
            Command.STOP: self._stop,
            Command.REMOVE: self._remove,
            Command.FORGET: self._forget,
        }

    def platform(self, life: Life) -> Platform:
        runtime = life.record.spec.runtime
        try:
            return self._platforms[runtime]
        except KeyError:
            raise Unavailable(
                f"sandbox `{life.name}` was made for the runtime `{runtime}`, which is not here"
            ) from None

    async def desire(self, life: Life, desired: Desired) -> None:
        """Write down what is wanted, then bring it about. A start that fails is taken back.

        What ends goes on ending when it cannot be written down, on a full disk most of all: removing makes room.
        """
        if life.record.desired is not desired:
            try:
                await self._store.desire(life.id, desired)
            except RingfenceError:
                if desired is Desired.RUNNING:
                    raise
                _log.exception("the store does not have that sandbox `%s` is to be %s", life.name, desired)
            life.record = replace(life.record, desired=desired)
        try:
            await self.settle(life)
        except BaseException as error:
            if desired is Desired.RUNNING:
                await asyncio.shield(self._take_back(life, error))
            raise

    async def _take_back(self, life: Life, error: BaseException) -> None:
        _log.warning("sandbox `%s` did not start: %s", life.name, error)
        life.tidy = False
        try:
            await self.desire(life, Desired.STOPPED)
        except RingfenceError:
            _log.exception("and what was begun could not be taken down; the next start does")

    async def settle(self, life: Life) -> None:
        """Go through the lifecycle table until there is nothing left to do."""
        for _ in range(LONGEST):
            await self.observe(life)
            command = conclude(life.record.desired, life.observed.condition)
            await self._acts[command](life)
            if command in FINAL:
                return
        raise Unavailable(
            f"the runtime says that sandbox `{life.name}` is {life.observed.condition} whatever is done",
            hint="`sbx doctor` tests the runtime; the daemon's log has its words",
        )

    async def observe(self, life: Life) -> Observation:
        life.observed = await self.platform(life).driver.observe(life.record.spec)
        return life.observed

    async def resume(self, life: Life) -> None:
        """Take up a sandbox after the daemon or the host was away."""
        await self.observe(life)
        desired = resumed(life.record.desired, life.observed.condition)
        try:
            await self.desire(life, desired)
        except LostSession:
            _log.warning("sandbox `%s` outlived its supervisor and is stopped", life.name)
            await self.desire(life, Desired.STOPPED)

    # The commands

    async def _create(self, life: Life) -> None:
        driver = self.platform(life).driver
        await driver.prepare(life.record.spec.template)
        await driver.create(life.record.spec)
        life.tidy = True

    async def _start(self, life: Life) -> None:
        platform, spec = self.platform(life), life.record.spec
        life.tidy = life.attended = False
        life.attachment = await platform.enclosure.open(spec.id)
        await self._policy.admit(life.record, platform.gateway, life.attachment)
        await self._heartbeat.prove(life, platform)
        addresses = life.attachment.addresses
        files = {**await self._trust.files(), **self._secrets.files(life.record)}
        files |= network_files(
            spec, gateway=addresses.gateway4, host=addresses.host4, gateway6=addresses.gateway6
        )
        link = await platform.driver.start(spec, life.attachment, files)
        try:
            await self._supervisors.launch(spec, link)
        finally:
            link.close()
        await self._journal.note("sandbox started", sandbox=spec.id, sandbox_name=spec.name, agent=spec.agent)

    async def _adopt(self, life: Life) -> None:
        """Serve a sandbox that runs: what serves it already is left alone."""
        platform = self.platform(life)
        life.tidy = False
        if not life.watched:
            await self._begin_watch(life)
        if life.attachment is None:
            await self.attach(life)
        if not life.beating:
            self._keep(life, self._beat(life, platform))

    async def _begin_watch(self, life: Life) -> None:
        """Follow the attendance from here on, so that no session comes and goes unseen."""
        life.changed.clear()
        self._keep(life, self._watch(life))
        try:
            async with asyncio.timeout(ANSWER):
                await life.changed.wait()
        except TimeoutError:
            pass  # then it is not watched
        if not life.watched:
            raise LostSession(
                f"sandbox `{life.name}` runs, but its sessions are lost",
                hint=f"`sbx stop {life.name}` ends it",
            )

    async def attach(self, life: Life) -> None:
        """Give the gateway listeners of a running sandbox: it has none, or the daemon does not know which."""
        platform = self.platform(life)
        life.attachment = await platform.enclosure.open(life.id)
        await self._policy.admit(life.record, platform.gateway, life.attachment)
        await self._heartbeat.check(life, platform)

    async def lose_gateway(self, life: Life, reason: str) -> None:
        """Take note that a sandbox has no gateway, until it is attached to the next."""
        await self._heartbeat.lose(life, reason)

    async def _stop(self, life: Life) -> None:
        platform, spec = self.platform(life), life.record.spec
        await self._leave(life)
        await self._supervisors.shut_down(spec.id)
        await platform.driver.stop(spec, grace=STOP_GRACE)
        await self._detach(life)
        await self._say("sandbox stopped", life)

    async def _rest(self, life: Life) -> None:
        if life.tidy:
            return
        await self._leave(life)
        await self._supervisors.shut_down(life.id)
        if life.observed.condition is Condition.EXITED:
            await self.platform(life).driver.stop(life.record.spec, grace=0.0)
        await self._detach(life)

    async def _remove(self, life: Life) -> None:
        await self._rest(life)
        await self.platform(life).driver.remove(life.record.spec)

    async def _forget(self, life: Life) -> None:
        await self._rest(life)
        await self._policy.stored(lambda: self._store.forget(life.id))
        try:
            await self._secrets.forget(life.id)
        except RingfenceError:
            _log.exception("the secrets of sandbox `%s` are kept until the next start", life.name)
        self._lives.drop(life)
        await self._say("sandbox removed", life)

    async def _detach(self, life: Life) -> None:
        platform = self.platform(life)
        await self._policy.release(life.id, platform.gateway)
        await platform.enclosure.close(life.id)
        life.attachment = None
        life.enforcement = Enforcement.OFF
        life.tidy = True

    async def _say(self, what: str, life: Life) -> None:
        """Record an end. Ending goes on when there is no room for the record; beginning does not."""
        spec = life.record.spec
        try:
            await self._journal.note(what, sandbox=spec.id, sandbox_name=spec.name, agent=spec.agent)
        except RingfenceError:
            _log.exception("the ledger does not have: %s `%s`", what, life.name)

    # What accompanies a running sandbox

    def _keep(self, life: Life, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        life.tasks.add(task)
        task.add_done_callback(life.tasks.discard)

    async def _leave(self, life: Life) -> None:
        """End what accompanies a sandbox, and wait until it has: the next start begins with its own."""
        life.keep_until(None)
        others = [task for task in life.tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _beat(self, life: Life, platform: Platform) -> None:
        life.beating = True
        try:
            await self._heartbeat.beat(life, platform)
        finally:
            life.beating = False

    async def abandon(self) -> None:
        """Stop accompanying, for the end of the daemon: sandboxes, supervisors and gateway go on."""
        for life in self._lives:
            await self._leave(life)

    async def _watch(self, life: Life) -> None:
        """Follow the attendance; the end of the supervisor is the end of the sandbox."""
        try:
            async for attendance in self._supervisors.watch(life.id):
                life.watched = True
                life.attendance = attendance
                life.attended |= attendance.open > 0
                life.changed.set()
                self.attended(life)
        finally:
            life.watched = False
            life.changed.set()
        async with life.lock:
            if life.record.desired is Desired.RUNNING:
                _log.warning("the supervisor of sandbox `%s` ended; the sandbox is stopped", life.name)
                try:
                    await self.desire(life, Desired.STOPPED)
                except RingfenceError:
                    _log.exception("sandbox `%s` could not be stopped", life.name)
