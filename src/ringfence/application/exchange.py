"""Policy as documents: what a person wrote goes out and comes in as text, whole, and with its tests.

A document that comes in replaces the rules of its scope. Rules that are there already (the same id, or the same words)
stay as they are, so importing what was exported changes nothing. A document's tests run against the policy that would
be in force; one that fails refuses the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from ringfence.application.errors import InvalidInput
from ringfence.application.in_force import PolicyInForce
from ringfence.application.journal import Note
from ringfence.application.lives import Life, Lives
from ringfence.application.ports import PolicyChange, PolicyRecord, RuleRecord
from ringfence.policy.document import PolicyDocument, rule_record
from ringfence.policy.effective import EffectivePolicy, compose
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.patterns import PublicSuffix
from ringfence.policy.report.checks import Failure, run_checks
from ringfence.policy.rule import Rule, warnings

SHOWN = 10
"""Failed tests that a message names."""


class DocumentText(Protocol):
    """Documents as text; raises ``InvalidPolicy``, with ``line`` and ``column`` where they are known."""

    def load(self, text: str) -> PolicyDocument: ...
    def dump(self, document: PolicyDocument) -> str: ...
    def format_text(self, text: str) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import changes, or would."""

    added: tuple[Rule, ...]
    removed: tuple[Rule, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """What there is to say about a document's text."""

    error: InvalidPolicy | None = None
    warnings: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    passed: int
    failed: tuple[Failure, ...]


class Exchange:
    """The use cases ``export``, ``import``, ``validate``, ``fmt`` and ``test``."""

    def __init__(
        self,
        policy: PolicyInForce,
        lives: Lives,
        text: DocumentText,
        *,
        clock: Callable[[], float],
        identifier: Callable[[], str],
        is_public_suffix: PublicSuffix,
    ) -> None:
        self._policy = policy
        self._lives = lives
        self._text = text
        self._clock = clock
        self._identifier = identifier
        self._is_public_suffix = is_public_suffix

    def export(self, sandbox: str = "") -> str:
        """Return the rules that a person wrote for everything, or for one sandbox."""
        life = self._lives.find(sandbox) if sandbox else None
        record = self._policy.record
        chosen = f"beside the preset {record.preset}" if record.preset else "no preset is chosen"
        off = f", without {', '.join(sorted(record.disabled))}" if record.disabled else ""
        document = PolicyDocument(
            name=f"sandbox {life.name}" if life else "local",
            description="" if life else f"{chosen}{off}",
            rules=tuple(self._policy.rule(rule) for rule in self._written(record, life)),
        )
        return self._text.dump(document)

    def _written(self, record: PolicyRecord, life: Life | None) -> Sequence[RuleRecord]:
        scope = life.id if life else ""
        return [rule for rule in record.rules if rule.sandbox == scope]

    async def put(self, text: str, *, sandbox: str = "", dry_run: bool = False) -> Imported:
        """Replace the rules of a scope by a document's."""
        life = self._lives.find(sandbox) if sandbox else None
        document = self._text.load(text)
        if failures := self._run(document, life):
            listed = "; ".join(str(failure) for failure in failures[:SHOWN])
            raise InvalidInput(
                f"{len(failures)} of the document's tests fail: {listed}",
                hint="nothing was changed; `sbx policy test FILE` shows all",
                code="policy-tests",
            )
        change = self._difference(document, life, self._policy.record)
        records = self._policy.records
        answer = Imported(
            added=tuple(self._policy.rule(rule) for rule in change.added),
            removed=tuple(self._policy.rule(records[identifier]) for identifier in change.removed),
            warnings=self._warnings(document),
        )
        if not dry_run and (change.added or change.removed):

            def propose(current: PolicyRecord) -> tuple[PolicyChange, Sequence[Note]]:
                final = self._difference(document, life, current)
                facts = {
                    "sandbox": life.id if life else "",
                    "added": [dict(rule.body) for rule in final.added],
                    "removed": list(final.removed),
                }
                return final, [Note("policy imported", facts)]

            await self._policy.change(propose)
        return answer

    def _difference(self, document: PolicyDocument, life: Life | None, current: PolicyRecord) -> PolicyChange:
        kept = {rule.id: self._policy.rule(rule) for rule in self._written(current, life)}
        foreign = {rule.id for rule in current.rules} - kept.keys()
        same = {replace(rule, id="-"): identifier for identifier, rule in kept.items()}
        now = self._clock()
        added: list[RuleRecord] = []
        for rule in document.rules:
            if kept.get(rule.id) == rule:
                del kept[rule.id]
            elif (known := same.get(replace(rule, id="-"))) in kept and known is not None:
                del kept[known]
            else:
                own = _is_identifier(rule.id) and rule.id not in foreign
                written = replace(rule, id=rule.id if own else self._identifier())
                added.append(
                    RuleRecord(
                        id=written.id,
                        sandbox=life.id if life else "",
                        created=now,
                        created_via="provisioned",
                        body=rule_record(written),
                    )
                )
        return PolicyChange(added=tuple(added), removed=tuple(kept))

    def validate(self, text: str) -> Validated:
        """Look at a text without changing anything."""
        try:
            document = self._text.load(text)
        except InvalidPolicy as error:
            return Validated(error=error)
        return Validated(warnings=self._warnings(document), failures=self._run(document, None))

    def format(self, text: str) -> str:
        return self._text.format_text(text)

    def test(self, text: str) -> Tested:
        """Run a document's tests: against its own rules, or against the policy in force if it has none."""
        document = self._text.load(text) if text.strip() else PolicyDocument()
        failed = self._run(document, None)
        return Tested(passed=len(document.checks) - len(failed), failed=failed)

    def _run(self, document: PolicyDocument, life: Life | None) -> tuple[Failure, ...]:
        if not document.checks:
            return ()
        return run_checks(self._candidate(document, life), document.checks, now=self._clock())

    def _candidate(self, document: PolicyDocument, life: Life | None) -> EffectivePolicy:
        """Compose what would be in force with a document's rules."""
        sources = self._policy.sources(life.record if life else None)
        if document.rules:
            sources = (
                replace(sources, sandbox_rules=document.rules)
                if life
                else replace(sources, local=document.rules)
            )
        return compose(
            sources,
            revision=self._policy.record.revision,
            now=self._clock(),
            is_public_suffix=self._is_public_suffix,
        )

    def _warnings(self, document: PolicyDocument) -> tuple[str, ...]:
        return tuple(
            f"{rule.title}: {warning}"
            for rule in document.rules
            for warning in warnings(rule, self._is_public_suffix)
        )


def _is_identifier(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
