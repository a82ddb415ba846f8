"""What follows from the clauses that match: verdict, reason, and the words for it.

Nothing here knows how clauses are found, which address is asked for, or what else a policy holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ringfence.policy.index import Clause, Matches
from ringfence.policy.model import Decision, Effect, Inspect, Mode, NetworkAccess, Reason, Spent, Verdict
from ringfence.policy.paths import UnclearPathError, canonical_path

DEFAULT_TEXT = "no matching allow rule — default deny"
REQUESTS_TEXT = "its HTTP requests decide"
COUNTED_TEXT = "its HTTP requests are counted"

_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_VERBS = {Verdict.BLOCKED: "denied", Verdict.ALLOWED: "allowed", Verdict.APPROVAL: "approval required"}
_VERDICTS = {
    Effect.DENY: Verdict.BLOCKED,
    Effect.ALLOW: Verdict.ALLOWED,
    Effect.APPROVAL: Verdict.APPROVAL,
}
_EFFECTS = (Effect.DENY, Effect.ALLOW, Effect.APPROVAL)
_PERMISSIVENESS = (Verdict.BLOCKED, Verdict.UNDETERMINED, Verdict.APPROVAL, Verdict.ALLOWED)
_WISHES = (Inspect.ALWAYS, Inspect.NEVER)
"""Whose wish holds: one rule that says always, else one that says never. `auto` leaves it to the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What an evaluation knows beside the policy and the access."""

    now: float
    teams: frozenset[str] | None
    spent: Mapping[str, Spent]

    def live(self, clauses: Iterable[Clause]) -> list[Clause]:
        """Return the clauses that say anything now, to this person."""
        return [clause for clause in clauses if clause.applies(self.now, self.teams)]

    def exhausted(self, clause: Clause) -> str:
        """Return what of an allow's budget is spent, so that it allows nothing more; nothing if it does."""
        budget = clause.rule.budget
        if budget is None:
            return ""
        spent = self.spent.get(clause.rule.id)
        return budget.exhausted(spent) if spent is not None else ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one layer says, before it is rendered as a decision."""

    verdict: Verdict
    reason: Reason
    clauses: tuple[Clause, ...] = ()
    text: str = ""
    would: tuple[Clause, ...] = ()

    @property
    def open(self) -> bool:
        """Whether anything may pass."""
        return self.verdict in (Verdict.ALLOWED, Verdict.UNDETERMINED)


_ANYTHING = NetworkAccess(host="", port=0)
_ANYWHERE = Circumstances(now=0.0, teams=None, spent={})
"""Settled matches come to the same whatever is asked, and whenever."""


def conclude(matches: Matches, access: NetworkAccess, circumstances: Circumstances) -> Finding:
    """Draw the conclusion from the clauses of a destination, and for a request from its method and path."""
    network: Sequence[Clause] = matches.network
    if matches.conditional:
        network = circumstances.live(network)
    would, said = _sort(network)
    denies, allows, approvals = said[Effect.DENY], said[Effect.ALLOW], said[Effect.APPROVAL]
    counted = all(_counted(clause) for clause in allows)
    if matches.http is not None:
        effects = matches.http.effects.union(
            clause.effect for clause in circumstances.live(matches.http.conditional)
        )
        decisive = not denies and _could_differ(effects, allows, approvals)
        if decisive and not access.method:
            return Finding(Verdict.UNDETERMINED, Reason.RULE, tuple(allows), REQUESTS_TEXT, would)
        if access.method:
            try:
                requests = circumstances.live(matches.http.at(*_request(access, strict=decisive)))
            except UnclearPathError as error:
                if decisive:
                    return Finding(Verdict.BLOCKED, Reason.FAILURE, text=str(error), would=would)
                requests = []
            more, said = _sort(requests)
            would += more
            denies, allows, approvals = (
                known + said[effect]
                for known, effect in zip((denies, allows, approvals), _EFFECTS, strict=True)
            )
    if denies:
        return by_rule(Verdict.BLOCKED, denies, would)
    if left := [clause for clause in allows if not circumstances.exhausted(clause)]:
        if counted and not access.method:
            return Finding(Verdict.UNDETERMINED, Reason.RULE, tuple(left), COUNTED_TEXT, would)
        return by_rule(Verdict.ALLOWED, left, would)
    if approvals:
        return by_rule(Verdict.APPROVAL, approvals, would)
    if allows:
        text = f"the budget of {_named(allows)} is spent: {circumstances.exhausted(allows[0])}"
        return Finding(Verdict.BLOCKED, Reason.RULE, tuple(allows), text, would)
    return default(would)


def settle(matches: Matches, revision: int) -> Decision:
    """Return the decision that settled matches always come to. One clause that is enforced is the usual case."""
    if len(matches.network) == 1 and matches.network[0].rule.mode is Mode.ENFORCE:
        clause = matches.network[0]
        verdict = _VERDICTS[clause.effect]
        return Decision(
            verdict=verdict,
            reason=Reason.RULE,
            rules=(clause.ref,),
            revision=revision,
            text=f"{_VERBS[verdict]} by {_named(matches.network)}",
            inspect=_inspected(verdict, {clause.rule.inspect}),
        )
    return render(conclude(matches, _ANYTHING, _ANYWHERE), revision)


def by_rule(verdict: Verdict, clauses: Iterable[Clause], would: tuple[Clause, ...] = ()) -> Finding:
    """Return the verdict of these clauses, which are the determining ones."""
    ordered = tuple(sorted(dict.fromkeys(clauses), key=lambda clause: clause.order))
    text = f"{_VERBS[verdict]} by {_named(ordered)}" if verdict in _VERBS else REQUESTS_TEXT
    return Finding(verdict, Reason.RULE, ordered, text, would)


def default(would: tuple[Clause, ...] = ()) -> Finding:
    """Return what holds where no rule says anything."""
    return Finding(Verdict.BLOCKED, Reason.DEFAULT, text=DEFAULT_TEXT, would=would)


def meet(one: Finding, other: Finding) -> Finding:
    """Return what two layers allow together: the less permissive answer, or both where they agree."""
    would = one.would + other.would
    if one.verdict is other.verdict is not Verdict.BLOCKED:
        return by_rule(one.verdict, one.clauses + other.clauses, would)
    least = min(one, other, key=lambda finding: _PERMISSIVENESS.index(finding.verdict))
    return Finding(least.verdict, least.reason, least.clauses, least.text, would)


def render(finding: Finding, revision: int) -> Decision:
    """Return a finding as everybody outside sees it."""
    return Decision(
        verdict=finding.verdict,
        reason=finding.reason,
        rules=tuple(clause.ref for clause in finding.clauses),
        revision=revision,
        text=finding.text,
        would=tuple(clause.ref for clause in finding.would),
        inspect=_inspected(finding.verdict, {clause.rule.inspect for clause in finding.clauses}),
    )


def _inspected(verdict: Verdict, wishes: set[Inspect | None]) -> Inspect:
    """Return whether TLS is terminated: always where nothing is allowed, or where requests decide."""
    if verdict is not Verdict.ALLOWED:
        return Inspect.ALWAYS
    return next((wish for wish in _WISHES if wish in wishes), Inspect.AUTO)


def refusal(reason: Reason, text: str, revision: int) -> Decision:
    """Return a refusal that no rule made."""
    return Decision(verdict=Verdict.BLOCKED, reason=reason, text=text, revision=revision)


def _sort(clauses: Iterable[Clause]) -> tuple[tuple[Clause, ...], dict[Effect, list[Clause]]]:
    """Return the clauses that are only evaluated, and the others by effect."""
    would, said = [], {effect: [] for effect in Effect}  # type: tuple[list[Clause], dict[Effect, list[Clause]]]
    for clause in clauses:
        (would if clause.rule.mode is Mode.EVALUATE else said[clause.effect]).append(clause)
    return tuple(would), said


def _request(access: NetworkAccess, *, strict: bool) -> tuple[str, str]:
    if strict and not _METHOD.fullmatch(access.method):
        raise UnclearPathError("the method is not an upper-case token")
    return access.method, canonical_path(access.path)


def _could_differ(effects: frozenset[Effect], allows: Sequence[Clause], approvals: Sequence[Clause]) -> bool:
    """Whether HTTP rules of these effects could give two requests of one connection two verdicts."""
    if allows:
        return Effect.DENY in effects
    if Effect.ALLOW in effects:
        return True
    return Effect.DENY in effects if approvals else Effect.APPROVAL in effects


def _counted(clause: Clause) -> bool:
    """Whether requests must be seen to be counted, so that no bare connection can be allowed for good."""
    budget = clause.rule.budget
    return budget is not None and (
        budget.tokens_per_day is not None or budget.requests_per_minute is not None
    )


def _named(clauses: Sequence[Clause]) -> str:
    first = clauses[0].ref
    more = f" and {len(clauses) - 1} more" if len(clauses) > 1 else ""
    return f"rule `{first.name}` ({first.origin}){more}"
