"""The rows of `sbx policy ls`: one for each rule, and one for each group of the preset, in the order of printing.

Nothing is reachable that these rows do not show. Preset rules stand above, what a person added at the bottom; under
an organisation its rules come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ringfence.policy.effective import EffectivePolicy, Entry
from ringfence.policy.governance import ACTIVE, LOCAL, PRESET, REMOTE, SANDBOX, TEMPLATE, origin_class
from ringfence.policy.model import Effect, Kind
from ringfence.policy.patterns import PublicSuffix, bare_suffix
from ringfence.policy.report.presets import group_of
from ringfence.policy.rule import warnings

STORAGE = "storage"
"""The part of a group that holds stores where anybody can own a bucket."""
PARTLY = "active (switched off: {})"
STORAGE_WARNING = (
    "anybody can own a bucket in {}: data can leave through it; "
    "`sbx policy preset disable {}` switches it off"
)

_LAYERS = {REMOTE: "org", PRESET: "local", LOCAL: "local", SANDBOX: "scoped", TEMPLATE: "kit"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line, or under an organisation as many as it has resources."""

    entry: Entry
    """The rule, or of a group the first one."""
    name: str
    status: str
    active: bool
    resources: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def record(self, *, sandbox_id: str = "", created_via: str = "") -> dict[str, Any]:
        """Return the row in the stable form of `--json`."""
        rule, origin = self.entry.rule, self.entry.origin
        kind = origin_class(origin)
        scope = origin if kind == SANDBOX else "global"
        record: dict[str, Any] = {
            "id": self.name if kind == PRESET else rule.id,
            "name": self.name,
            "policy_id": f"{_LAYERS[kind]}-policy",
            "scope": scope,
            "applies_to": "all" if scope == "global" else scope,
            "resource_type": "http" if rule.http else str(rule.kind),
            "decision": str(rule.effect),
            "resources": list(self.resources),
            "origin": origin,
            "layer": _LAYERS[kind],
            "status": self.status,
            "active": self.active,
            "editable": kind in (LOCAL, SANDBOX),
            "provenance": {"created_via": created_via or ("default" if kind == PRESET else "added")},
            "actions": _actions(self.entry),
            "transports": [str(transport) for transport in rule.transports],
            "mode": str(rule.mode),
            "methods": list(rule.methods),
            "paths": [path.text for path in rule.paths],
            "http_targets": [{"host": text} for text in self.resources] if rule.http else [],
            "expires_at": rule.expires_at,
            "inspect": str(rule.inspect) if rule.inspect else "",
            "warnings": list(self.warnings),
        }
        if kind == SANDBOX and sandbox_id:
            record["sandbox_id"] = sandbox_id
        return record


def rows(policy: EffectivePolicy, *, is_public_suffix: PublicSuffix = bare_suffix) -> tuple[Row, ...]:
    """Return the rows in order. Groups keep the order of their document."""
    found: dict[object, list[Entry]] = {}
    for entry in policy.entries:
        preset = entry.origin == PRESET
        key = ("group", group_of(entry.rule.title)) if preset else (entry.origin, entry.rule.id)
        found.setdefault(key, []).append(entry)
    return tuple(
        _group(entries, is_public_suffix)
        if entries[0].origin == PRESET
        else _single(entries[0], is_public_suffix)
        for entries in found.values()
    )


def totals(policy: EffectivePolicy) -> Mapping[str, int]:
    """Return how many active rules there are of each effect; for headers and summaries."""
    return {
        str(effect): sum(entry.rule.effect is effect for entry in policy.entries if entry.active)
        for effect in Effect
    }


def _single(entry: Entry, is_public_suffix: PublicSuffix) -> Row:
    return Row(
        entry=entry,
        name=entry.rule.title,
        status=entry.status,
        active=entry.active,
        resources=entry.rule.texts,
        warnings=warnings(entry.rule, is_public_suffix) if entry.active else (),
    )


def _group(entries: Sequence[Entry], is_public_suffix: PublicSuffix) -> Row:
    name = group_of(entries[0].rule.title)
    on = [entry for entry in entries if entry.active] or entries
    off = [entry.rule.name.partition("/")[2] for entry in entries if not entry.active]
    first = on[0]
    status = (
        PARTLY.format(", ".join(off)) if first.active and off and first.status == ACTIVE else first.status
    )
    return Row(
        entry=first,
        name=name,
        status=status,
        active=first.active,
        resources=tuple(dict.fromkeys(text for entry in on for text in entry.rule.texts)),
        warnings=tuple(
            warning for entry in on if entry.active for warning in _preset_warnings(entry, is_public_suffix)
        ),
    )


def _preset_warnings(entry: Entry, is_public_suffix: PublicSuffix) -> tuple[str, ...]:
    rule = entry.rule
    if rule.name.partition("/")[2] == STORAGE:
        stores = ", ".join(f"`{text}`" for text in rule.texts)
        return (STORAGE_WARNING.format(stores, rule.name),)
    return warnings(rule, is_public_suffix)


def _actions(entry: Entry) -> list[str]:
    rule = entry.rule
    if rule.kind is Kind.FILESYSTEM:
        return [f"fs:mount:{action}" for action in rule.actions]
    if rule.http:
        return [f"http:request:{method.lower()}" for method in rule.methods]
    return [f"net:connect:{transport}" for transport in rule.transports]
