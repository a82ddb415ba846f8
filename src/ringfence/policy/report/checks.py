"""A document's own tests: what must and must not pass. They run when a person writes policy, never at start-up,
so that a stale test never takes the last good policy out of force.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ringfence.policy.document import Check
from ringfence.policy.effective import EffectivePolicy
from ringfence.policy.engine import decide
from ringfence.policy.model import Decision, FilesystemAccess, Transport, Verdict
from ringfence.policy.mounts import decide_file
from ringfence.policy.targets import target_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A test that does not hold."""

    check: Check
    asked: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"asked {self.asked}, expected {self.expected}, got {self.got}"


def run_checks(
    policy: EffectivePolicy, checks: Iterable[Check], *, now: float, teams: frozenset[str] | None = None
) -> tuple[Failure, ...]:
    """Return the tests that do not hold under a policy; none is a pass."""
    failures = []
    for check in checks:
        access = check.access
        if isinstance(access, FilesystemAccess):
            decision = decide_file(policy, access, now=now, teams=teams)
        else:
            decision = decide(policy, access, now=now, teams=teams)
        if not _holds(check, decision):
            failures.append(
                Failure(check=check, asked=_asked(check), expected=_expected(check), got=_got(decision))
            )
    return tuple(failures)


def _holds(check: Check, decision: Decision) -> bool:
    passes = {Verdict.ALLOWED} if check.allow else {Verdict.BLOCKED, Verdict.APPROVAL}
    named = {name for ref in decision.rules for name in (ref.name, ref.id)}
    return decision.verdict in passes and (not check.rule or check.rule in named)


def _asked(check: Check) -> str:
    access = check.access
    if isinstance(access, FilesystemAccess):
        return f"{access.action} {access.path}"
    udp = "udp" if access.transport is Transport.UDP else ""
    return " ".join(filter(None, (udp, access.method, target_text(access))))


def _expected(check: Check) -> str:
    verdict = "allowed" if check.allow else "blocked"
    return f"{verdict} by `{check.rule}`" if check.rule else verdict


def _got(decision: Decision) -> str:
    return f"{decision.verdict} ({decision.text})"
