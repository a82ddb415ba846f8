"""The daemon's inside over a world of objects, and daemons that die at a chosen step.

A :class:`Universe` is what survives a daemon: the disk, the runtime, the enclosures, the gateway, the supervisors. A
:class:`Inhabitant` is one daemon in it. Everything that it does to the universe goes through :class:`Mortal`, which
can let it die before or after any step; what is dead does nothing any more, not even clean up.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ringfence import documents
from ringfence.application.decisions import Decisions
from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.application.exchange import Exchange
from ringfence.application.heartbeat import Heartbeat
from ringfence.application.in_force import PolicyInForce
from ringfence.application.journal import Journal
from ringfence.application.lives import Lives
from ringfence.application.platforms import Platforms
from ringfence.application.ports import Attachment, Attendance, MintFailed, Platform
from ringfence.application.presets import Presets
from ringfence.application.proofs import Proofs
from ringfence.application.rules import Rules
from ringfence.application.runner import Runner
from ringfence.application.sandboxes import Sandboxes
from ringfence.application.secrets import Secrets
from ringfence.daemon.ledger import SegmentedLedger
from ringfence.daemon.rehearsal import RehearsalEnclosure, RehearsalGateway
from ringfence.policy.addresses import Guards
from ringfence.policy.model import NetworkAccess
from ringfence.runtimes.fake import FakeDriver
from ringfence.sandbox.model import Owner, SandboxSpec, Workspace
from ringfence.store.database import Database
from ringfence.store.secrets import SealedVault

OWNER = Owner(uid=1000, gid=1000, name="dev")


class Crash(BaseException):
    """The daemon is dead."""


class Fate:
    """Counts the steps of one daemon and ends it at the chosen one."""

    def __init__(self, fatal: int = 0) -> None:
        self.steps = 0
        self.fatal = fatal
        self.dead = False

    def step(self) -> None:
        self.steps += 1
        self.dead |= self.steps == self.fatal
        if self.dead:
            raise Crash


class Mortal:
    """A part of the universe in the hands of a daemon that can die before and after every call."""

    def __init__(self, target: Any, fate: Fate) -> None:
        self._target = target
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **options: Any) -> Any:
            self._fate.step()
            answer = await found(*arguments, **options)
            self._fate.step()
            return answer

        return call


class FakeSupervisors:
    """Holds links and attendance; sessions come and go by :meth:`attend`."""

    def __init__(self) -> None:
        self.links: dict[str, socket.socket] = {}
        self._attendance: dict[str, Attendance] = {}
        self._watchers: dict[str, list[asyncio.Queue[Attendance | None]]] = {}

    def socket_path(self, sandbox: str) -> str:
        return f"/run/{sandbox}/sessions.sock"

    async def launch(self, spec: SandboxSpec, link: socket.socket) -> None:
        self.links[spec.id] = link.dup()
        self._attendance[spec.id] = Attendance(open=0, clean=True)

    async def watch(self, sandbox: str) -> AsyncIterator[Attendance]:
        if sandbox not in self._attendance:
            return
        queue: asyncio.Queue[Attendance | None] = asyncio.Queue()
        self._watchers.setdefault(sandbox, []).append(queue)
        yield self._attendance[sandbox]
        while (attendance := await queue.get()) is not None:
            yield attendance

    async def attendance(self, sandbox: str) -> Attendance | None:
        return self._attendance.get(sandbox)

    async def shut_down(self, sandbox: str) -> None:
        self.end(sandbox)

    def attend(self, sandbox: str, count: int, *, clean: bool = True) -> None:
        """Say that so many sessions are open now, and how the last one ended."""
        self._attendance[sandbox] = Attendance(open=count, clean=clean)
        for queue in self._watchers.get(sandbox, ()):
            queue.put_nowait(self._attendance[sandbox])

    def end(self, sandbox: str) -> None:
        """The supervisor is gone."""
        if link := self.links.pop(sandbox, None):
            link.close()
        self._attendance.pop(sandbox, None)
        for queue in self._watchers.pop(sandbox, ()):
            queue.put_nowait(None)


class FakeTrust:
    async def files(self) -> Mapping[str, bytes]:
        return {"/etc/ssl/certs/ca-certificates.crt": b"roots"}


class FakeWorkspaces:
    """Every directory that was put here exists."""

    def __init__(self, *paths: str) -> None:
        self.paths = set(paths)

    async def admit(self, workspaces: Sequence[Workspace], owner: Owner) -> tuple[Workspace, ...]:
        for workspace in workspaces:
            if workspace.path not in self.paths:
                raise InvalidInput(f"workspace `{workspace.path}` does not exist")
        return tuple(workspaces)


class LeakyEnclosure(RehearsalEnclosure):
    """An enclosure whose canaries may get lost."""

    def __init__(self, gateway: RehearsalGateway) -> None:
        super().__init__(gateway)
        self.lost = 0
        """Rounds to come in which nothing reaches the gateway."""
        self.breach = False

    async def canaries(self, attachment: Attachment, nonce: str) -> Sequence[Any]:
        if self.breach:
            raise Unavailable("something outside answered", code="enclosure-breach")
        if self.lost:
            self.lost -= 1
            from ringfence.application.ports import Canary

            return (Canary(transport="tcp", host=f"{nonce}.invalid", port=443),)
        return await super().canaries(attachment, nonce)


class FakeHolder:
    """Has a key in memory."""

    protects = "nothing"

    def __init__(self) -> None:
        self.key = b""

    def why_not(self) -> str:
        return "this is a test"

    def fetch(self) -> bytes:
        return self.key

    def keep(self, key: bytes) -> None:
        self.key = key


class FakeMint:
    """Makes what ``prints`` says for a program: a text, or a failure. ``gate`` lets a test hold a command up."""

    def __init__(self) -> None:
        self.prints: dict[str, str | MintFailed] = {}
        self.runs: list[tuple[str, ...]] = []
        self.gate: asyncio.Event | None = None

    def finds(self, program: str) -> bool:
        return program in self.prints

    async def run(self, command: Sequence[str]) -> str:
        self.runs.append(tuple(command))
        if self.gate is not None:
            await self.gate.wait()
        printed = self.prints[command[0]]
        if isinstance(printed, MintFailed):
            raise printed
        return printed


class Universe:
    """What is there whether or not a daemon is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = 1_000_000.0
        self.record: Any = None
        self.gateway = RehearsalGateway(self._record, clock=lambda: self.now)
        self.enclosure = LeakyEnclosure(self.gateway)
        self.driver = FakeDriver()
        self.supervisors = FakeSupervisors()
        self.workspaces = FakeWorkspaces("/w", "/docs")
        self.numbers = itertools.count(1)
        self.holder = FakeHolder()
        self.mint = FakeMint()
        self.slept = asyncio.Event()
        """Set by a test that has moved the clock, so that who sleeps looks at it."""

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            await self.slept.wait()
            self.slept.clear()

    async def _record(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self.record is not None:
            await self.record(records)

    def identifier(self) -> str:
        return f"00000000-0000-4000-8000-{next(self.numbers):012d}"

    @property
    def admitted(self) -> set[str]:
        return set(self.gateway._policies)


class Inhabitant:
    """One daemon: the use cases, put together as the composition root does."""

    def __init__(self, universe: Universe, *, fatal: int = 0, grace: float = 3600.0, **timing: float) -> None:
        self.universe = universe
        self.fate = Fate(fatal)
        self.store = Database(universe.directory / "ringfence.db")
        self.ledger = SegmentedLedger(universe.directory / "ledger")
        clock = lambda: universe.now  # noqa: E731
        self.journal = Journal(self.ledger, clock=clock)
        self.proofs = Proofs(nonce=universe.identifier, patience=timing.pop("patience", 5.0))
        self.lives = Lives()
        store = Mortal(self.store, self.fate)
        gateway = Mortal(universe.gateway, self.fate)
        presets = documents.ShippedPresets()
        self.policy = PolicyInForce(
            store,
            presets,
            self.journal,
            clock=clock,
            guards=Guards,
            is_public_suffix=lambda name: name in ("com", "org", "co.uk"),
            protected=(),
            home="/home/dev",
        )
        platform = Platform(
            driver=Mortal(universe.driver, self.fate),
            enclosure=Mortal(universe.enclosure, self.fate),
            gateway=gateway,
        )
        self.platforms = Platforms({"fake": platform}, default="fake")
        supervisors = Mortal(universe.supervisors, self.fate)
        holders = dict.fromkeys(("keyring", "systemd-creds", "key-file"), universe.holder)
        self.vault = SealedVault(universe.directory / "secrets", "auto", holders)
        self.secrets = Secrets(
            Mortal(self.vault, self.fate),
            universe.mint,
            self.policy,
            self.lives,
            self.journal,
            clock=clock,
            token=lambda: f"{next(universe.numbers):016d}",
            is_public_suffix=lambda name: name in ("com", "org", "co.uk"),
            sleep=universe.sleep,
        )
        self.heartbeat = Heartbeat(self.proofs, self.journal, **timing)
        self.runner = Runner(
            platforms=self.platforms,
            store=store,
            policy=self.policy,
            heartbeat=self.heartbeat,
            supervisors=supervisors,
            trust=FakeTrust(),
            secrets=self.secrets,
            journal=self.journal,
            lives=self.lives,
        )
        self.sandboxes = Sandboxes(
            store=store,
            lives=self.lives,
            runner=self.runner,
            platforms=self.platforms,
            policy=self.policy,
            supervisors=supervisors,
            workspaces=universe.workspaces,
            secrets=self.secrets,
            journal=self.journal,
            clock=clock,
            identifier=universe.identifier,
            grace=grace,
        )
        suffix = lambda name: name in ("com", "org", "co.uk")  # noqa: E731
        self.rules = Rules(
            self.policy,
            self.lives,
            clock=clock,
            identifier=universe.identifier,
            is_public_suffix=suffix,
        )
        self.exchange = Exchange(
            self.policy,
            self.lives,
            documents,
            clock=clock,
            identifier=universe.identifier,
            is_public_suffix=suffix,
        )
        self.undone: list[str] = []
        self.presets = Presets(self.policy, presets, require_init=False, keep_undo=self._keep_undo)
        self.decisions = Decisions(self.policy, self.lives, self.journal, clock=clock)

    async def _keep_undo(self) -> str:
        self.undone.append(self.exchange.export())
        return f"/undo/{len(self.undone)}"

    async def wake(self) -> None:
        """Begin, as the composition root does."""
        self.universe.record = self._record
        await self.store.open()
        await self.policy.load()
        await self.secrets.load()
        await self.sandboxes.recover()
        await self.secrets.prune()

    async def _record(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            if record.get("canary"):
                self.proofs.observe(record)
        await self.journal.decided(records)

    async def leave(self) -> None:
        """End the process: whatever else it was, its tasks and descriptors are gone."""
        self.fate.dead = True
        self.policy.close()
        self.secrets.close()
        for life in self.lives:
            life.keep_until(None)
            for task in life.tasks:
                task.cancel()
        await asyncio.to_thread(self.ledger.close)
        await self.store.close()

    async def reach(self, sandbox: str, host: str, port: int = 443) -> bool:
        """Whether something inside a sandbox reaches a host, as the gateway decides."""
        life = self.lives.find(sandbox)
        decision = await self.universe.gateway.meet(life.id, NetworkAccess(host=host, port=port))
        return decision.allowed
