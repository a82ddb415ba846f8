"""Asking what policy would say, and why it said what it said. Everything renders the engine's own decision."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ringfence.application.errors import NotFound
from ringfence.application.in_force import PolicyInForce
from ringfence.application.journal import Journal
from ringfence.application.lives import Lives
from ringfence.policy import engine
from ringfence.policy.effective import EffectivePolicy, Entry
from ringfence.policy.model import Decision, Effect, NetworkAccess, Reason, Transport, Verdict
from ringfence.policy.report.explain import MATCHES, advice, consider
from ringfence.policy.targets import authority_text, parse_target

NEAR = 8
"""Rules named as near misses."""
ELSEWHERE = "it names other hosts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A decision, the access it is about, and what else a person would want to know."""

    target: str
    access: NetworkAccess
    decision: Decision
    context: str
    """``global`` or ``sandbox:X``."""
    why_not: tuple[str, ...]
    """Of a refusal: rules that a person may have counted on, and why each did not count."""
    advice: str

    @property
    def deny_kind(self) -> str | None:
        if self.decision.allowed:
            return None
        return "implicit" if self.decision.reason is Reason.DEFAULT else "explicit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A decision as it was recorded, the rule that made it if it still exists, and what to do about it."""

    records: tuple[Mapping[str, Any], ...]
    entry: Entry | None
    policy: EffectivePolicy
    advice: str


class Decisions:
    """The use cases ``check``, ``explain`` and ``log``."""

    def __init__(
        self, policy: PolicyInForce, lives: Lives, journal: Journal, *, clock: Callable[[], float]
    ) -> None:
        self._policy = policy
        self._lives = lives
        self._journal = journal
        self._clock = clock

    def check(
        self,
        target: str,
        *,
        sandbox: str = "",
        transport: Transport = Transport.TCP,
        method: str = "",
        path: str = "",
    ) -> Checked:
        """Say what would be decided. With a method or a path it is about a request, else about a connection."""
        life = self._lives.find(sandbox) if sandbox else None
        policy = self._policy.effective(life.record if life else None)
        access = parse_target(target, method=method, transport=transport)
        if path:
            access = replace(access, method=access.method or "GET", path=path)
        decision = engine.decide(policy, access, now=self._clock())
        return Checked(
            target=authority_text(access.host, access.port),
            access=access,
            decision=decision,
            context=f"sandbox:{life.name}" if life else "global",
            why_not=() if decision.allowed else self._near(policy, access),
            advice=advice(decision, access, policy),
        )

    def _near(self, policy: EffectivePolicy, access: NetworkAccess) -> tuple[str, ...]:
        considered = consider(policy, access, now=self._clock())
        return tuple(
            f"`{each.entry.rule.title}`: {each.says}"
            for each in considered
            if each.says not in (MATCHES, ELSEWHERE) and each.entry.rule.effect is not Effect.DENY
        )[:NEAR]

    async def explain(self, identifier: str) -> Explanation:
        """Return what was recorded of a decision."""
        records = tuple(await self._journal.explain(identifier))
        if not records:
            raise NotFound(
                f"decision `{identifier[:80]}` is not in the ledger",
                hint="the id is in the refusal's `X-Sbx-Decision` header and in `sbx policy log --json`",
                code="decision-not-found",
            )
        first = records[0]
        life = self._lives.by_id(first["sandbox"])
        policy = self._policy.effective(life.record if life else None)
        rule_id = first.get("rule_id")
        entry = next((each for each in policy.entries if each.rule.id == rule_id), None) if rule_id else None
        return Explanation(records=records, entry=entry, policy=policy, advice=self._advice(first, policy))

    def _advice(self, record: Mapping[str, Any], policy: EffectivePolicy) -> str:
        """Return what would change the answer, as policy stands now."""
        try:
            access = NetworkAccess(
                host=str(record["host"]),
                port=int(record["port"]),
                transport=Transport(record.get("transport", Transport.TCP)),
                method=str(record.get("method", "")),
                path=str(record.get("path", "")),
            )
        except (KeyError, ValueError):
            return ""  # a refusal of something that is no access: nothing to ask for
        now = engine.decide(policy, access, now=self._clock())
        if now.allowed and record.get("verdict") == Verdict.BLOCKED and record.get("reason") != Reason.GUARD:
            return "policy has changed since: it is allowed now"
        return advice(now, access, policy, address=str(record.get("dialled", "")))

    def log(
        self, *, sandbox: str = "", newest: int = 0, follow: bool = False
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Yield recorded decisions, oldest first, then live ones."""
        identifier = self._lives.find(sandbox).id if sandbox else ""
        return self._journal.log(sandbox=identifier, newest=newest, follow=follow)
