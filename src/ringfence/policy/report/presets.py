"""The presets a person chooses from, and the groups and parts that a preset's document is made of.

A preset is an ordinary document whose rules have names that begin with `default-`. A rule `group/part` is a part of a
group: both switch off and on, and neither can be removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ringfence.policy.errors import InvalidPolicy, quote
from ringfence.policy.rule import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One choice. ``value`` is what the command line says, and what the document is called."""

    value: str
    name: str
    line: str
    aliases: tuple[str, ...] = ()


PRESETS = (
    Preset(
        value="allow-all",
        name="Open",
        aliases=("open",),
        line="All network traffic allowed, no restrictions.",
    ),
    Preset(value="balanced", name="Balanced", line="Default deny, with common dev sites allowed."),
    Preset(
        value="deny-all",
        name="Locked Down",
        aliases=("locked-down",),
        line="All network traffic blocked unless you allow it.",
    ),
)
DEFAULT_PRESET = "balanced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group of a preset, or a part of one: what it covers, and whether it is on."""

    name: str
    enabled: bool
    description: str = ""
    resources: tuple[str, ...] = ()
    parts: tuple[Group, ...] = ()


def find_preset(text: str) -> Preset:
    """Return the preset of this value or alias, in any case."""
    wanted = text.strip().lower()
    for preset in PRESETS:
        if wanted in (preset.value, preset.name.lower(), *preset.aliases):
            return preset
    values = ", ".join(f"`{preset.value}`" for preset in PRESETS)
    raise InvalidPolicy(f"{quote(text)} is no preset", f"choose one of {values}")


def group_of(name: str) -> str:
    """Return the group that a rule of a preset belongs to."""
    return name.partition("/")[0]


def groups(rules: Iterable[Rule], disabled: frozenset[str]) -> tuple[Group, ...]:
    """Return the groups of a preset in the order of its document. A part is on only while its group is."""
    by_group: dict[str, list[Rule]] = {}
    for rule in rules:
        by_group.setdefault(group_of(rule.name), []).append(rule)
    return tuple(
        Group(
            name=name,
            enabled=name not in disabled,
            description=" ".join(rule.description for rule in members if rule.name == name),
            resources=tuple(text for rule in members if rule.name == name for text in rule.texts),
            parts=tuple(
                Group(
                    name=rule.name,
                    enabled=disabled.isdisjoint((name, rule.name)),
                    description=rule.description,
                    resources=rule.texts,
                )
                for rule in members
                if rule.name != name
            ),
        )
        for name, members in by_group.items()
    )


def switch(rules: Iterable[Rule], disabled: frozenset[str], name: str, *, on: bool) -> frozenset[str]:
    """Return what is switched off after switching a group or a part. Switching a group on leaves its parts alone."""
    known = {rule.name for rule in rules} | {group_of(rule.name) for rule in rules}
    if name not in known:
        raise InvalidPolicy(
            f"the preset in force has no group {quote(name)}", "`sbx policy preset ls` shows what there is"
        )
    return disabled - {name} if on else disabled | {name}
