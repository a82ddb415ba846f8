"""Budgets: what rules may still spend in one sandbox (POLICY.md section 1, the field ``budget``).

A rule that allows may carry three limits. Requests are counted over a sliding minute; bytes, both ways, and a model's
tokens over the day, which begins at midnight UTC. ``decide`` is told what is spent and does the rest: a rule whose
budget is spent allows nothing more, other rules go on allowing. What an access may spend is booked on every rule
that allowed it.

A request is counted when it is allowed, bytes as they move, tokens when the answer says them. So requests and bytes
never exceed their limit by more than what one read brings, tokens by what the answers under way still cost.

Days survive the worker: every record that closes says in ``charged`` whose budgets paid, and whoever keeps the records
hands the day's sums back when it introduces the sandbox again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ringfence.policy.effective import EffectivePolicy
from ringfence.policy.model import Budget, Decision, Effect, Reason, RuleRef, Spent, Verdict

DAY: Final = 86_400
MINUTE: Final = 60


class Account:
    """What was spent under one rule."""

    __slots__ = ("_minute", "budget", "bytes", "day", "id", "requests", "tokens")

    def __init__(self, id_: str, budget: Budget) -> None:
        self.id = id_
        self.budget = budget
        self.day = 0
        self.tokens = 0
        self.bytes = 0
        self.requests = 0
        """In the last minute."""
        self._minute: deque[tuple[int, int]] = deque()
        """Seconds, and the requests in each: never more than a minute's worth of them."""

    def turn(self, now: float) -> None:
        """Forget what is past."""
        day = int(now // DAY)
        if day > self.day:
            self.day, self.tokens, self.bytes = day, 0, 0
        minute = self._minute
        while minute and minute[0][0] <= now - MINUTE:
            self.requests -= minute.popleft()[1]

    def ask(self, now: float) -> None:
        """A request is let through."""
        second = int(now)
        minute = self._minute
        if minute and minute[-1][0] >= second:
            minute[-1] = (minute[-1][0], minute[-1][1] + 1)
        else:
            minute.append((second, 1))
        self.requests += 1

    @property
    def drained(self) -> bool:
        """Whether no more bytes may move."""
        limit = self.budget.bytes_per_day
        return limit is not None and self.bytes >= limit

    def renewal(self, now: float) -> float:
        """Return in how many seconds a spent budget has room again, as far as that is a matter of a minute; 0 if
        it is one of the day.
        """
        budget, minute = self.budget, self._minute
        by_day = self.drained or (budget.tokens_per_day is not None and self.tokens >= budget.tokens_per_day)
        return 0.0 if by_day or not minute else max(minute[0][0] + MINUTE - now, 1.0)


class Budgets(Mapping[str, Spent]):
    """The accounts of one sandbox, by rule. As a mapping it is what ``decide`` wants to know."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._kept: dict[str, tuple[int, int, int]] = {}
        """Day, tokens and bytes of rules that are not in force, or not yet."""
        self._day = 0
        self._now = 0.0
        self._counted = True

    # -- what is spent ------------------------------------------------------------------------------------

    def at(self, now: float, *, counted: bool) -> Budgets:
        """Return what is spent now. Only requests that ask to be let through are ``counted``: for what is let through
        already, and for bare connections, the bytes alone are spent.
        """
        self._now = now
        self._counted = counted
        return self

    def __getitem__(self, rule: str) -> Spent:
        account = self._accounts[rule]
        account.turn(self._now)
        if self._counted:
            return Spent(tokens=account.tokens, requests=account.requests, bytes=account.bytes)
        return Spent(bytes=account.bytes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._accounts)

    def __len__(self) -> int:
        return len(self._accounts)

    # -- what is in force ---------------------------------------------------------------------------------

    def bind(self, policy: EffectivePolicy | None, now: float) -> None:
        """Keep accounts for the budgets of a policy. A rule that stays keeps what was spent."""
        before = self._accounts
        self._accounts = {}
        for rule, budget in _budgets(policy).items():
            account = before.pop(rule, None)
            if account is None:
                account = Account(rule, budget)
                account.day, account.tokens, account.bytes = self._kept.pop(rule, (0, 0, 0))
            account.budget = budget
            account.turn(now)
            self._accounts[rule] = account
        self._kept |= {each.id: (each.day, each.tokens, each.bytes) for each in before.values()}
        self._forget(int(now // DAY))

    def restore(self, spent: Mapping[str, tuple[int, int, int]], now: float) -> None:
        """Take over what an earlier worker let be spent: by rule the day, tokens and bytes. What is known here may be
        newer, and never is less.
        """
        for rule, (day, tokens, size) in spent.items():
            account = self._accounts.get(rule)
            if account is None:
                known = self._kept.get(rule, (0, 0, 0))
                same = known[0] == day
                kept = (day, max(tokens, known[1]), max(size, known[2])) if same else (day, tokens, size)
                self._kept[rule] = max(known, kept)
                continue
            account.turn(now)
            if day == account.day:
                account.tokens, account.bytes = max(tokens, account.tokens), max(size, account.bytes)
        self._forget(int(now // DAY))

    def sums(self) -> dict[str, tuple[int, int, int]]:
        """Return what was spent, as ``restore`` takes it over."""
        return self._kept | {each.id: (each.day, each.tokens, each.bytes) for each in self._accounts.values()}

    def _forget(self, today: int) -> None:
        self._day = today
        self._kept = {rule: kept for rule, kept in self._kept.items() if kept[0] >= today}

    def renewed(self, now: float) -> bool:
        """Return whether a day began that lets something through again."""
        today = int(now // DAY)
        if today == self._day:
            return False
        drained = any(account.drained for account in self._accounts.values())
        for account in self._accounts.values():
            account.turn(now)
        self._forget(today)
        return drained

    # -- spending -----------------------------------------------------------------------------------------

    def charged(self, decision: Decision) -> tuple[Account, ...]:
        """Return the accounts that pay for what a decision allows."""
        return tuple(filter(None, (self._accounts.get(rule.id) for rule in decision.rules)))

    def counts_tokens(self, rules: Iterable[RuleRef]) -> bool:
        """Whether any of these rules has a budget of tokens."""
        accounts = filter(None, (self._accounts.get(rule.id) for rule in rules))
        return any(account.budget.tokens_per_day is not None for account in accounts)

    def refused(self, decision: Decision) -> tuple[Account, ...]:
        """Return the spent accounts for which an access is refused; none if it is refused for another reason."""
        if decision.verdict is not Verdict.BLOCKED or decision.reason is not Reason.RULE:
            return ()
        if any(rule.effect is not Effect.ALLOW for rule in decision.rules):
            return ()
        return self.charged(decision)


def spend(accounts: Iterable[Account], size: int, tokens: int, now: float) -> bool:
    """Book bytes and tokens; return whether that used up the bytes of any account."""
    drained = False
    for account in accounts:
        account.turn(now)
        before = account.drained
        account.bytes += size
        account.tokens += tokens
        drained = drained or (account.drained and not before)
    return drained


def retry_after(accounts: Iterable[Account], now: float) -> float:
    """Return in how many seconds it is worth to ask again; 0 if that is not a matter of a minute."""
    return min(filter(None, (account.renewal(now) for account in accounts)), default=0.0)


def names(accounts: Iterable[Account]) -> str:
    """Return how a record says who pays."""
    return ",".join(account.id for account in accounts)


def _budgets(policy: EffectivePolicy | None) -> dict[str, Budget]:
    if policy is None:
        return {}
    layers = (policy.index, *policy.ceilings)
    return {
        clause.rule.id: clause.rule.budget
        for layer in layers
        for clause in layer.clauses
        if clause.rule.budget is not None
    }
