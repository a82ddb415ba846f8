"""The one evaluation of filesystem access: what a sandbox may mount. Asked when it is created and at every start.

A mount shows everything below it, so a deny of `~/.ssh/**` also denies mounting `~`. Where no organisation governs
the filesystem a mount is allowed unless a rule denies it, but never the product's own directories, nor what they lie
in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringfence.policy.conclusion import Finding, by_rule, default, refusal, render
from ringfence.policy.engine import EXPIRED_TEXT
from ringfence.policy.index import Clause
from ringfence.policy.model import Decision, Effect, FilesystemAccess, Kind, Mode, Reason, Verdict

if TYPE_CHECKING:
    from ringfence.policy.effective import EffectivePolicy

UNGOVERNED_TEXT = "no organisation governs the filesystem"


def decide_file(
    policy: EffectivePolicy | None,
    access: FilesystemAccess,
    *,
    now: float,
    teams: frozenset[str] | None = None,
) -> Decision:
    """Decide a mount. ``access.path`` is absolute, without links, dots or doubled slashes."""
    if policy is None:
        return Decision()
    parts = access.path.split("/")
    path = access.path.rstrip("/")
    if parts[0] or {".", ".."} & set(parts) or "//" in access.path or "\x00" in path:
        return refusal(Reason.FAILURE, "the path is not canonical", policy.revision)
    for protected in policy.protected:
        own = protected.rstrip("/")
        if _within(path, own) or _within(own, path):
            return refusal(Reason.GUARD, f"`{protected}` is the product's own", policy.revision)
    governed = Kind.FILESYSTEM in policy.governs
    if governed and now >= policy.bundle_expires_at:
        return refusal(Reason.FAILURE, EXPIRED_TEXT, policy.revision)
    return render(_conclude(_matching(policy, access, path, now, teams), governed=governed), policy.revision)


def _matching(
    policy: EffectivePolicy,
    access: FilesystemAccess,
    path: str,
    now: float,
    teams: frozenset[str] | None,
) -> list[Clause]:
    return [
        clause
        for clause, patterns in policy.files
        if access.action in clause.rule.actions
        and clause.applies(now, teams)
        and any(
            pattern.matches(path) or (clause.effect is Effect.DENY and _within(pattern.stem, path))
            for pattern in patterns
        )
    ]


def _conclude(clauses: list[Clause], *, governed: bool) -> Finding:
    would = tuple(clause for clause in clauses if clause.rule.mode is Mode.EVALUATE)
    for effect, verdict in ((Effect.DENY, Verdict.BLOCKED), (Effect.ALLOW, Verdict.ALLOWED)):
        said = [clause for clause in clauses if clause.effect is effect and clause not in would]
        if said:
            return by_rule(verdict, said, would)
    if governed:
        return default(would)
    return Finding(Verdict.ALLOWED, Reason.DEFAULT, text=UNGOVERNED_TEXT, would=would)


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")
