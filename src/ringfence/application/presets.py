"""Presets: the choice of one, its groups and parts, and starting over.

A preset's rules cannot be removed one by one. They are named after their group (``default-package-managers``) or after
a part of it (``default-cloud-infrastructure/storage``), and a group or part is switched off as a whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ringfence.application.errors import Conflict
from ringfence.application.in_force import PolicyInForce, PresetRules
from ringfence.application.journal import Note
from ringfence.application.ports import PolicyChange, PolicyRecord
from ringfence.policy.report.presets import Group, find_preset, groups, switch
from ringfence.policy.rule import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is chosen, and what of it is on."""

    chosen: str
    groups: tuple[Group, ...]


class Presets:
    """The use cases ``init``, ``preset ls | enable | disable`` and ``reset``."""

    def __init__(
        self,
        policy: PolicyInForce,
        rules: PresetRules,
        *,
        require_init: bool,
        keep_undo: Callable[[], Awaitable[str]],
    ) -> None:
        """``keep_undo`` writes what a person wrote where it is found again, and returns the place."""
        self._policy = policy
        self._rules = rules
        self._require_init = require_init
        self._keep_undo = keep_undo

    def choice(self) -> Choice:
        record = self._policy.record
        return Choice(chosen=record.preset, groups=groups(self._shipped(record), record.disabled))

    def _shipped(self, record: PolicyRecord) -> tuple[Rule, ...]:
        return self._rules.rules(record.preset) if record.preset else ()

    async def choose(self, name: str, *, implicit: bool = False) -> Choice:
        """Make the first choice. The same again is nothing new; another one is a reset, and says so."""
        preset = find_preset(name)
        if implicit and self._require_init and not self._policy.chosen:
            self._policy.require_choice()

        def propose(current: PolicyRecord) -> tuple[PolicyChange, Sequence[Note]]:
            if current.preset and current.preset != preset.value:
                raise Conflict(
                    f"the network policy is initialized already, with `{current.preset}`",
                    hint=f"`sbx policy reset --preset {preset.value}` starts over",
                    code="policy-initialised",
                )
            note = Note("preset chosen", {"preset": preset.value, "implicit": implicit})
            return PolicyChange(preset=preset.value), [note]

        if self._policy.record.preset != preset.value:
            await self._policy.change(propose)
        return self.choice()

    async def switch(self, name: str, *, enabled: bool) -> Choice:
        """Switch a group or a part on or off. Switching a group on leaves its parts as they are."""
        self._policy.require_choice()

        def propose(current: PolicyRecord) -> tuple[PolicyChange, Sequence[Note]]:
            disabled = switch(self._shipped(current), current.disabled, name, on=enabled)
            note = Note("preset group switched", {"group": name, "enabled": enabled})
            return PolicyChange(disabled=disabled), [note]

        await self._policy.change(propose)
        return self.choice()

    def what_reset_removes(self) -> tuple[int, int]:
        """Return how many global and how many sandbox rules a reset takes away."""
        rules = self._policy.record.rules
        own = sum(1 for rule in rules if rule.sandbox)
        return len(rules) - own, own

    async def reset(self, name: str) -> tuple[str, int, str]:
        """Start over with a preset; return it, how many rules went, and where they can be had back from."""
        preset = find_preset(name)
        undo = await self._keep_undo() if self._policy.chosen else ""
        removed: tuple[str, ...] = ()

        def propose(current: PolicyRecord) -> tuple[PolicyChange, Sequence[Note]]:
            nonlocal removed
            removed = tuple(rule.id for rule in current.rules)
            facts = {"preset": preset.value, "removed": len(removed), "undo": undo}
            change = PolicyChange(preset=preset.value, disabled=frozenset(), removed=removed)
            return change, [Note("policy reset", facts)]

        await self._policy.change(propose)
        return preset.value, len(removed), undo
