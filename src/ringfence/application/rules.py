"""Rules as people write, list and remove them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ringfence.application.errors import InvalidInput, NotFound
from ringfence.application.in_force import PolicyInForce
from ringfence.application.journal import Note
from ringfence.application.lives import Lives
from ringfence.application.ports import PolicyChange, PolicyRecord, RuleRecord
from ringfence.policy.document import parse_rule, rule_record
from ringfence.policy.effective import EffectivePolicy, Entry
from ringfence.policy.governance import LOCAL, PRESET, REMOTE, SANDBOX, TEMPLATE, origin_class
from ringfence.policy.model import Effect
from ringfence.policy.patterns import PublicSuffix, split_resources
from ringfence.policy.report.listing import Row, rows

Json = dict[str, Any]

LONGEST = 10 * 366 * 86_400.0
"""Seconds that a rule with an end may last."""
OWN_PREFIX = "local:"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleRequest:
    """A rule as it was typed."""

    effect: Effect
    resources: tuple[str, ...]
    name: str = ""
    sandbox: str = ""
    """The sandbox's name; empty is global."""
    transports: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    expires_in: float | None = None
    mode: str = ""
    inspect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The whole policy as one consistent reading."""

    preset: str
    revision: int
    rules: tuple[Json, ...]
    """In the stable form of ``policy ls --json``."""


def new_rule(request: RuleRequest, *, identifier: str, now: float, sandbox: str = "") -> RuleRecord:
    """Return what is stored of a request; raises ``InvalidPolicy`` with what is wrong."""
    written: dict[str, Any] = {
        "id": identifier,
        "effect": request.effect.value,
        "resources": [
            resource.text for text in request.resources or ("",) for resource in split_resources(text)
        ],
    }
    optional: dict[str, Any] = {
        "name": request.name,
        "transports": list(request.transports),
        "methods": [method.upper() for method in request.methods],
        "paths": list(request.paths),
        "mode": request.mode,
        "inspect": request.inspect,
        "expires_at": None if request.expires_in is None else now + _lasting(request.expires_in),
    }
    written |= {key: value for key, value in optional.items() if value}
    body = rule_record(parse_rule(written))
    return RuleRecord(id=identifier, sandbox=sandbox, created=now, body=body)


def _lasting(seconds: float) -> float:
    if not 0.0 < seconds <= LONGEST:
        raise InvalidInput(
            f"`{seconds:g}` seconds is not a time that a rule can last", hint="write `--for 2h`"
        )
    return float(round(seconds, 3))


class Rules:
    """The use cases ``ls``, ``allow``, ``deny`` and ``rm``."""

    def __init__(
        self,
        policy: PolicyInForce,
        lives: Lives,
        *,
        clock: Callable[[], float],
        identifier: Callable[[], str],
        is_public_suffix: PublicSuffix,
    ) -> None:
        self._policy = policy
        self._lives = lives
        self._clock = clock
        self._identifier = identifier
        self._is_public_suffix = is_public_suffix

    def listing(self, sandbox: str = "") -> Listing:
        """Return the rules that count for a sandbox; without one, the global rules and every sandbox's own."""
        record = self._policy.record
        if sandbox:
            found = self._rows(self._policy.effective(self._lives.find(sandbox).record))
        else:
            found = self._rows(self._policy.effective())
            owners = {rule.sandbox for rule in record.rules if rule.sandbox}
            for life in self._lives:
                if life.id in owners:
                    own = self._rows(self._policy.effective(life.record))
                    found += (row for row in own if row.entry.origin.startswith(SANDBOX))
        written = {rule.id: number for number, rule in enumerate(record.rules)}
        found.sort(key=lambda row: (_place(row.entry), written.get(row.entry.rule.id, -1)))
        return Listing(
            preset=record.preset, revision=record.revision, rules=tuple(self._shown(row) for row in found)
        )

    def _rows(self, policy: EffectivePolicy) -> list[Row]:
        return list(rows(policy, is_public_suffix=self._is_public_suffix))

    def _shown(self, row: Row) -> Json:
        record = self._records.get(row.entry.rule.id)
        if record is None:
            return row.record()
        return row.record(sandbox_id=record.sandbox, created_via=record.created_via)

    @property
    def _records(self) -> Mapping[str, RuleRecord]:
        return self._policy.records

    def show(self, entry: Entry, policy: EffectivePolicy) -> Json:
        """Return one rule as the listing shows it; of a preset, the group that it is part of."""
        found = self._rows(replace(policy, entries=(entry,)))
        return self._shown(found[0])

    async def add(self, request: RuleRequest) -> Json:
        """Write a rule. When this returns, running sandboxes are under it."""
        life = self._lives.find(request.sandbox) if request.sandbox else None
        record = new_rule(
            request, identifier=self._identifier(), now=self._clock(), sandbox=life.id if life else ""
        )
        await self._policy.change(
            lambda _current: (PolicyChange(added=(record,)), [_note("rule added", record)])
        )
        policy = self._policy.effective(life.record if life else None)
        return self.show(next(entry for entry in policy.entries if entry.rule.id == record.id), policy)

    async def remove(
        self, *, identifier: str = "", resources: Sequence[str] = (), sandbox: str = ""
    ) -> Sequence[Json]:
        """Remove the rules that all of what is given names."""
        if not identifier and not resources:
            raise InvalidInput(
                "no rule is named", hint="give `--id` or `--resource`; `sbx policy ls` shows both"
            )
        scope = self._lives.find(sandbox).id if sandbox else None
        wanted = {resource.text for text in resources for resource in split_resources(text)}
        shown: list[Json] = []

        def propose(current: PolicyRecord) -> tuple[PolicyChange, Sequence[Note]]:
            identity = identifier.removeprefix(OWN_PREFIX)
            found = [
                rule
                for rule in current.rules
                if (not identifier or rule.id == identity)
                and (scope is None or rule.sandbox == scope)
                and (bool(identifier) or scope is not None or not rule.sandbox)
                and (not wanted or set(self._policy.rule(rule).texts) <= wanted)
            ]
            if not found:
                raise self._not_found(identifier, wanted, scope or "", current)
            shown.extend(self._shown(row) for rule in found for row in self._rows(self._alone(rule)))
            notes = [_note("rule removed", rule) for rule in found]
            return PolicyChange(removed=tuple(rule.id for rule in found)), notes

        await self._policy.change(propose)
        return shown

    def _alone(self, record: RuleRecord) -> EffectivePolicy:
        owner = self._lives.by_id(record.sandbox)
        origin = f"{SANDBOX}{owner.name}" if owner else LOCAL
        return EffectivePolicy(entries=(Entry(rule=self._policy.rule(record), origin=origin),))

    def _not_found(
        self, identifier: str, wanted: set[str], scope: str, current: PolicyRecord
    ) -> InvalidInput | NotFound:
        """Say what is there instead of what was named."""
        for entry in self._policy.effective().entries:
            name, group = entry.rule.name, entry.rule.name.partition("/")[0]
            named = (
                identifier in (entry.rule.id, name, group) if identifier else wanted & set(entry.rule.texts)
            )
            if entry.origin == PRESET and named:
                return InvalidInput(
                    f"`{name}` is a default rule and cannot be removed",
                    hint=f"`sbx policy preset disable {group if identifier == group else name}` switches it off",
                    code="preset-rule",
                )
        for rule in current.rules if wanted and not identifier else ():
            texts = set(self._policy.rule(rule).texts)
            if texts & wanted and rule.sandbox == scope:
                return InvalidInput(
                    f"rule `{rule.id}` is also about {', '.join(sorted(texts - wanted)[:5])}",
                    hint=f"remove it whole with `--id {rule.id}`",
                    code="rule-wider",
                )
            if texts & wanted and (owner := self._lives.by_id(rule.sandbox)):
                return NotFound(
                    "rule not found",
                    hint=f"sandbox `{owner.name}` has one like it: `--sandbox {owner.name}`",
                    code="rule-not-found",
                )
        return NotFound("rule not found", hint="`sbx policy ls` lists rules", code="rule-not-found")


def _note(kind: str, record: RuleRecord) -> Note:
    return Note(kind, {"rule_id": record.id, "sandbox": record.sandbox, "rule": dict(record.body)})


_PLACES = {REMOTE: 0, PRESET: 1, TEMPLATE: 2, SANDBOX: 3, LOCAL: 4}
"""Default rules above, what a person wrote last at the bottom."""


def _place(entry: Entry) -> tuple[int, str]:
    return _PLACES[origin_class(entry.origin)], entry.origin
