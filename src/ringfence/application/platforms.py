"""Which runtime a sandbox gets. Nothing weaker than what was asked for, ever.

``auto`` takes the strongest runtime that is proven to work here. Runtimes that share the host's kernel, or isolate
nothing, are never chosen: a person names them. A runtime that does not work is an error with the command that
installs what is missing, not a reason to take another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.application.ports import EnclosureDriver, Platform, Probe
from ringfence.sandbox.model import Isolation

AUTOMATIC = frozenset({Isolation.HW_VM, Isolation.USER_KERNEL})
"""What ``auto`` may choose from, in the order of :class:`Isolation`. Emulation is on request: it is slow."""
_STRENGTH = tuple(Isolation)


class Platforms(Mapping[str, Platform]):
    """The runtimes of this installation, and what each was proven to be able to."""

    def __init__(self, platforms: Mapping[str, Platform], *, default: str = "auto") -> None:
        self._platforms = dict(platforms)
        self._default = default
        self._proven: dict[str, Probe] = {}
        self._probing = asyncio.Lock()

    def __getitem__(self, name: str) -> Platform:
        return self._platforms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._platforms)

    def __len__(self) -> int:
        return len(self._platforms)

    async def choose(self, asked: str) -> str:
        """Return the name of a runtime that works, as asked for; ``auto`` means the configured one."""
        wanted = self._default if asked == "auto" else asked
        if wanted != "auto":
            if wanted not in self._platforms:
                listed = ", ".join(sorted(self._platforms))
                raise InvalidInput(
                    f"unknown runtime `{wanted[:80]}`", hint=f"runtimes are {listed}", code="runtime"
                )
            probe = await self.probe(wanted)
            if not probe.usable:
                raise Unavailable(
                    f"runtime `{wanted}` does not work here: {probe.reason}", hint=probe.hint, code="runtime"
                )
            return wanted
        reasons = []
        hint = ""
        for name in self._candidates():
            probe = await self.probe(name)
            if probe.usable:
                return name
            reasons.append(f"{name}: {probe.reason}")
            hint = hint or probe.hint
        raise Unavailable(
            f"no runtime with a kernel of its own works here ({'; '.join(reasons) or 'none is there'})",
            hint=hint
            or "`sbx doctor` shows what is missing; `--runtime namespaces` shares the host's kernel",
            code="runtime",
        )

    def _candidates(self) -> list[str]:
        found = [name for name, platform in self._platforms.items() if platform.driver.isolation in AUTOMATIC]
        return sorted(found, key=lambda name: _STRENGTH.index(self._platforms[name].driver.isolation))

    async def probe(self, name: str, *, again: bool = False) -> Probe:
        """Return what is proven of a runtime. Success is remembered, failure is tried again."""
        async with self._probing:
            known = self._proven.get(name)
            if known is None or not known.usable or again:
                known = self._proven[name] = await self._platforms[name].driver.probe()
            return known

    def shown(self) -> Mapping[str, Platform]:
        """Return the runtimes that a person is told about: what isolates nothing is for tests, unless configured."""
        return {
            name: platform
            for name, platform in self._platforms.items()
            if platform.driver.isolation is not Isolation.NONE or name == self._default
        }

    async def sweep(self, *, known: frozenset[str], served: frozenset[str]) -> None:
        """Remove sandboxes that are not ``known``, and the networks of all that are not ``served``."""
        for platform in self._platforms.values():
            for orphan in await platform.driver.orphans(known):
                await platform.driver.sweep(orphan)
        for enclosure in enclosures_of(self._platforms):
            for sandbox in await enclosure.known():
                if sandbox not in served:
                    await enclosure.close(sandbox)


def enclosures_of(platforms: Mapping[str, Platform]) -> list[EnclosureDriver]:
    """Return the enclosure drivers of some runtimes, each once."""
    return list({id(platform.enclosure): platform.enclosure for platform in platforms.values()}.values())
