"""What works here, what does not, and what to do about it. Looks; changes nothing but what a probe takes down again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ringfence.application.errors import RingfenceError
from ringfence.application.in_force import PolicyInForce
from ringfence.application.lives import Lives
from ringfence.application.platforms import AUTOMATIC, Platforms, enclosures_of
from ringfence.application.ports import Store
from ringfence.policy.model import Effect
from ringfence.sandbox.model import Enforcement, Isolation


class Status(StrEnum):
    PASS = "pass"  # noqa: S105  # nobody's password
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    message: str
    detail: str = ""
    hint: str = ""


Examination = Callable[[], Awaitable[Sequence[Check]]]


class Doctor:
    """Runs every examination at once; one that fails to examine is a failed check, not a failed doctor."""

    def __init__(
        self,
        *,
        store: Store,
        platforms: Platforms,
        policy: PolicyInForce,
        lives: Lives,
        further: Sequence[Examination] = (),
    ) -> None:
        self._store = store
        self._platforms = platforms
        self._policy = policy
        self._lives = lives
        self._further = tuple(further)

    async def examine(self) -> Sequence[Check]:
        examinations = (
            self._runtimes,
            self._enclosures,
            *self._further,
            self._data,
            self._rules,
            self._pulse,
        )
        reports = await asyncio.gather(*(_examined(examination) for examination in examinations))
        return [check for report in reports for check in report]

    async def _runtimes(self) -> Sequence[Check]:
        checks = []
        strongest = True
        shown = self._platforms.shown()
        if not any(platform.driver.isolation is Isolation.HW_VM for platform in shown.values()):
            checks.append(
                Check(
                    name="runtime microvm",
                    status=Status.SKIP,
                    message="this version has no runtime on hardware virtualisation",
                )
            )
        for name, platform in shown.items():
            isolation = platform.driver.isolation
            probe = await self._platforms.probe(name, again=True)
            if not probe.usable:
                status = Status.FAIL if isolation in AUTOMATIC else Status.SKIP
                checks.append(
                    Check(name=f"runtime {name}", status=status, message=probe.reason, hint=probe.hint)
                )
                continue
            chosen = strongest and isolation in AUTOMATIC
            strongest = strongest and not chosen
            checks.append(
                Check(
                    name=f"runtime {name}",
                    status=Status.PASS,
                    message=f"works ({isolation}){', chosen by `auto`' if chosen else ''}",
                    detail=" ".join(filter(None, (probe.version, probe.reason))),
                    hint=probe.hint,
                )
            )
        return checks

    async def _enclosures(self) -> Sequence[Check]:
        checks = []
        for enclosure in enclosures_of(self._platforms.shown()):
            probe = await enclosure.probe()
            status = Status.PASS if probe.usable else Status.FAIL
            checks.append(Check(name="enclosure", status=status, message=probe.reason, hint=probe.hint))
        return checks

    async def _data(self) -> Sequence[Check]:
        wrong = await self._store.check()
        status = Status.FAIL if wrong else Status.PASS
        return [Check(name="database", status=status, message=wrong or "is sound")]

    async def _rules(self) -> Sequence[Check]:
        if not self._policy.chosen:
            return [
                Check(
                    name="policy",
                    status=Status.WARN,
                    message="global network policy has not been initialized",
                    hint="run `sbx policy init balanced`",
                )
            ]
        return list(self._about_rules())

    def _about_rules(self) -> Iterator[Check]:
        record = self._policy.record
        entries = [entry for entry in self._policy.effective().entries if entry.active]
        yield Check(
            name="policy",
            status=Status.PASS,
            message=f"preset `{record.preset}`, {len(record.rules)} own rules, revision {record.revision}",
        )
        for entry in entries:
            wide = [resource.text for resource in entry.rule.resources if resource.broad]
            if wide and entry.rule.effect is Effect.ALLOW:
                yield Check(
                    name="catch-all",
                    status=Status.WARN,
                    message=f"`{entry.rule.title}` allows {', '.join(wide)}: default deny is off",
                    hint="`sbx policy reset` chooses a preset that denies by default",
                )
            if entry.rule.name.endswith("/storage"):
                yield Check(
                    name="storage",
                    status=Status.WARN,
                    message="data can leave through object stores, where anybody can own a bucket: "
                    + ", ".join(entry.rule.texts[:4]),
                    hint=f"`sbx policy preset disable {entry.rule.name}`",
                )

    async def _pulse(self) -> Sequence[Check]:
        running = [life for life in self._lives if life.running]
        lost = [life for life in running if life.enforcement is not Enforcement.ENFORCING]
        checks = [
            Check(
                name=f"sandbox {life.name}",
                status=Status.FAIL,
                message=f"enforcement is {life.enforcement}: it has no egress",
                hint=f"`sbx stop {life.name}`, then start it again",
            )
            for life in lost
        ]
        if running and not lost:
            checks.append(
                Check(name="sandboxes", status=Status.PASS, message=f"{len(running)} running, all enforcing")
            )
        return checks


async def _examined(examination: Examination) -> Sequence[Check]:
    try:
        return await examination()
    except Exception as error:  # noqa: BLE001  # a doctor reports what it meets
        hint = error.hint if isinstance(error, RingfenceError) else "the daemon's log has more"
        text = str(error) or type(error).__name__
        return [Check(name=examination.__name__.strip("_"), status=Status.FAIL, message=text, hint=hint)]
