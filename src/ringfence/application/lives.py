"""What the daemon knows of each sandbox at this moment: what the store says, what was observed, who serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from ringfence.application.errors import NotFound
from ringfence.application.ports import Attachment, Attendance, SandboxRecord
from ringfence.sandbox.model import Condition, Desired, Enforcement, Observation

_UNSEEN = Observation(condition=Condition.UNKNOWN, time=0.0)
_NOBODY = Attendance(open=0, clean=False)


@dataclass(slots=True, eq=False)
class Life:
    """One sandbox. Whoever changes it holds ``lock``."""

    record: SandboxRecord
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    observed: Observation = _UNSEEN
    enforcement: Enforcement = Enforcement.OFF
    attachment: Attachment | None = None
    attendance: Attendance = _NOBODY
    attended: bool = False
    """Whether a session was seen since the daemon knows of it running."""
    watched: bool = False
    """Whether its attendance is being followed."""
    beating: bool = False
    """Whether its heartbeat goes."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at every change of attendance, and when the watch ends."""
    tidy: bool = False
    """Whether nothing is kept up for it: supervisor, enclosure, admission."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """Its watch and its heartbeat, while it runs."""
    deadline: asyncio.TimerHandle | None = None
    """When it is stopped for want of sessions."""

    @property
    def id(self) -> str:
        return self.record.spec.id

    @property
    def name(self) -> str:
        return self.record.spec.name

    @property
    def running(self) -> bool:
        return self.record.desired is Desired.RUNNING and self.observed.condition is Condition.RUNNING

    @property
    def status(self) -> str:
        if self.record.desired is Desired.REMOVED:
            return "removing"
        return "running" if self.running else "stopped"

    def keep_until(self, deadline: asyncio.TimerHandle | None) -> None:
        """Replace the deadline; none means that a session holds the sandbox."""
        if self.deadline:
            self.deadline.cancel()
        self.deadline = deadline


class Lives:
    """All sandboxes, by name whatever its case, and by id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Life] = {}

    def __iter__(self) -> Iterator[Life]:
        return iter(tuple(self._by_id.values()))

    def __contains__(self, name: object) -> bool:
        return any(life.name.lower() == name for life in self._by_id.values())

    def add(self, life: Life) -> None:
        self._by_id[life.id] = life

    def drop(self, life: Life) -> None:
        self._by_id.pop(life.id, None)

    def by_id(self, sandbox: str) -> Life | None:
        return self._by_id.get(sandbox)

    def find(self, name: str) -> Life:
        """Return the sandbox of this name or id."""
        wanted = name.lower()
        for life in self._by_id.values():
            if life.name.lower() == wanted or life.id == name:
                return life
        raise NotFound(
            f"sandbox `{name[:80]}` not found", hint="`sbx ls` lists sandboxes", code="sandbox-not-found"
        )
