"""The one evaluation of network access. Everything that asks what policy says asks here.

    1. a guard refuses                       blocked    guard
    2. any active matching deny              blocked    rule
    3. any active matching allow             allowed    rule
    4. any active matching approval          approval   rule
    5. otherwise                             blocked    default

Specificity, order and duplicates never matter. HTTP rules are about requests: a bare connection gets the verdict
that all its requests would share, or ``undetermined`` when HTTP rules could tell them apart. What cannot be read (a
host that is not canonical, a path that two servers read in two ways where paths matter, a policy that is not there or
has expired) is blocked as a failure.

Ceilings (a sandbox's own rules under an organisation, Balanced after signing out) are asked the same question, and
allowed is what every layer allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from ringfence.policy.addresses import DEGREES, Address, Danger, Degree, parse_address
from ringfence.policy.conclusion import (
    Circumstances,
    Finding,
    by_rule,
    conclude,
    meet,
    refusal,
    render,
    settle,
)
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.index import Bucket, Clause, Matches, NetworkIndex, Table
from ringfence.policy.model import (
    Decision,
    Effect,
    Mode,
    NetworkAccess,
    Reason,
    Spent,
    Transport,
    Verdict,
)
from ringfence.policy.names import GATEWAY_NAME, LOCALHOST, canonical_host

if TYPE_CHECKING:
    from ringfence.policy.effective import EffectivePolicy

EXPIRED_TEXT = "the organisation's policy has expired and could not be refreshed"

_NOTHING_SPENT: Mapping[str, Spent] = {}
_TRANSPORTS = frozenset(Transport)
_LOOPBACK = ("127.0.0.1", "::1")
_GUARD_TEXTS = {
    Degree.NEVER: "{danger} {address} is never reachable",
    Degree.LITERAL: "{danger} {address} is reachable neither through a name nor through a catch-all",
    Degree.NARROW: "{danger} {address} needs an address rule of its own",
}


def decide(
    policy: EffectivePolicy | None,
    access: NetworkAccess,
    *,
    now: float,
    teams: frozenset[str] | None = None,
    spent: Mapping[str, Spent] = _NOTHING_SPENT,
) -> Decision:
    """Decide a network access. Of unknown ``teams``: what denies one denies, what allows one does not."""
    if policy is None:
        return Decision()
    if now < policy.valid_until and not policy.ceilings:
        # The way of nearly every decision: what was found for this name before, or is now, once.
        matches = policy.index.known.get((access.host, access.port, access.transport))
        if matches is None:
            matches = _find_name(policy.index, access)
        if matches is not None:
            if matches.decision is not None:
                return matches.decision
            if matches.settled:
                matches.decision = settle(matches, policy.revision)
                return matches.decision
            circumstances = Circumstances(now=now, teams=teams, spent=spent)
            return render(conclude(matches, access, circumstances), policy.revision)
    host = read_host(access.host)
    if failure := _unreadable(policy, access, host, now):
        return failure
    circumstances = Circumstances(now=now, teams=teams, spent=spent)
    return _every(policy, lambda layer: _find(policy, layer, host, access, circumstances))


def judge_address(
    policy: EffectivePolicy | None,
    access: NetworkAccess,
    address: str,
    *,
    now: float,
    teams: frozenset[str] | None = None,
    spent: Mapping[str, Spent] = _NOTHING_SPENT,
) -> Decision:
    """Decide whether an address may be dialled for an access, which must be open to begin with."""
    if policy is None:
        return Decision()
    host = read_host(access.host)
    if failure := _unreadable(policy, access, host, now):
        return failure
    try:
        dialled = parse_address(address)
    except InvalidPolicy as error:
        return refusal(Reason.FAILURE, error.message, policy.revision)
    asked = _LOOPBACK if host == LOCALHOST else (str(host),) if isinstance(host, Address) else ()
    if asked:
        if str(dialled) in asked:
            return decide(policy, access, now=now, teams=teams, spent=spent)
        text = f"{dialled} is not the address that was asked for"
        return refusal(Reason.FAILURE, text, policy.revision)
    circumstances = Circumstances(now=now, teams=teams, spent=spent)
    return _every(policy, lambda layer: _dial(policy, layer, access, dialled, circumstances))


def http_sensitive(
    policy: EffectivePolicy, host: str, port: int, transport: Transport, *, now: float
) -> bool:
    """Whether requests to a destination must be seen one by one, and their paths be clear."""
    access = NetworkAccess(host=host, port=port, transport=transport)
    return decide(policy, access, now=now).verdict is Verdict.UNDETERMINED


@lru_cache(maxsize=16_384)
def read_host(host: str) -> str | Address | None:
    """Return what a host is, or nothing if it is not canonical: no deny is dodged by spelling."""
    try:
        if host == GATEWAY_NAME or canonical_host(host) != host:
            return None
        return parse_address(host) if ":" in host or host.replace(".", "").isdigit() else host
    except InvalidPolicy:
        return None


def _find_name(index: NetworkIndex, access: NetworkAccess) -> Matches | None:
    """Return the matches of an access to a name that can be read, nothing for any other."""
    host = read_host(access.host)
    if isinstance(host, str) and 0 < access.port < 65_536 and access.transport in _TRANSPORTS:
        return index.name(host, access.port, access.transport)
    return None


def _unreadable(
    policy: EffectivePolicy, access: NetworkAccess, host: str | Address | None, now: float
) -> Decision | None:
    known = host is not None and 0 < access.port < 65_536 and access.transport in _TRANSPORTS
    if known and now < policy.valid_until:
        return None
    if access.host == GATEWAY_NAME:
        text = f"`{GATEWAY_NAME}` is the gateway itself and never a destination"
        return refusal(Reason.GUARD, text, policy.revision)
    text = "the host, the port or the transport is not in canonical form"
    return refusal(Reason.FAILURE, EXPIRED_TEXT if known else text, policy.revision)


def _every(policy: EffectivePolicy, ask: Callable[[NetworkIndex], Finding]) -> Decision:
    """Ask the policy and each ceiling; the least permissive answer holds."""
    finding = ask(policy.index)
    for ceiling in policy.ceilings:
        finding = meet(finding, ask(ceiling))
    return render(finding, policy.revision)


def _find(
    policy: EffectivePolicy,
    layer: NetworkIndex,
    host: str | Address | None,
    access: NetworkAccess,
    circumstances: Circumstances,
) -> Finding:
    if isinstance(host, Address):
        return _find_address(policy, layer, host, access, circumstances)
    assert host is not None
    return conclude(layer.name(host, access.port, access.transport), access, circumstances)


def _find_address(
    policy: EffectivePolicy,
    layer: NetworkIndex,
    address: Address,
    access: NetworkAccess,
    circumstances: Circumstances,
) -> Finding:
    """Decide a literal address. Where a guard stands, only rules narrower than a catch-all speak for it."""
    table, judged = layer.table(access.transport), policy.guards.judged(address)
    hits = table.address(address, access.port)
    if judged == ((address, None),):
        return conclude(layer.combine(hits), access, circumstances)
    own = _narrow(table, address, access.port)
    for each, danger in judged:
        narrow = own + _narrow(table, each, access.port)
        if danger and (guarded := _guarded(danger, each, circumstances.live(narrow))):
            return guarded
    clauses = _clauses(hits)
    carried = [clause for each, _ in judged[1:] for clause in _clauses(table.networks(each, access.port))]
    denies = [clause for clause in clauses + carried if clause.effect is Effect.DENY]
    return conclude(Matches(denies + (own if judged[0][1] else clauses)), access, circumstances)


def _dial(
    policy: EffectivePolicy,
    layer: NetworkIndex,
    access: NetworkAccess,
    address: Address,
    circumstances: Circumstances,
) -> Finding:
    """Decide an address that a name stands for: the name's verdict, then guards, then denies of addresses."""
    table, judged = layer.table(access.transport), policy.guards.judged(address)
    found = conclude(layer.combine(table.name(access.host, access.port)), access, circumstances)
    if not found.open:
        return found
    openers: list[Clause] = []
    for each, danger in judged:
        if danger is None:
            continue
        narrow = _narrow(table, address, access.port) + _narrow(table, each, access.port)
        usable = [
            clause
            for clause in circumstances.live(narrow)
            if clause.effect is Effect.ALLOW and not circumstances.exhausted(clause)
        ]
        if guarded := _guarded(danger, each, usable if DEGREES[danger] is Degree.NARROW else []):
            return guarded
        openers += usable
    said = [
        clause
        for each, _ in judged
        for clause in circumstances.live(_clauses(table.networks(each, access.port)))
        if clause.effect is Effect.DENY
    ]
    would = found.would + tuple(clause for clause in said if clause.rule.mode is Mode.EVALUATE)
    if denies := [clause for clause in said if clause.rule.mode is Mode.ENFORCE]:
        return by_rule(Verdict.BLOCKED, denies, would)
    family = table.name(access.host, access.port, address.version)
    found = conclude(layer.combine(family), access, circumstances)
    clauses = (*found.clauses, *openers) if found.open else found.clauses
    return Finding(found.verdict, found.reason, tuple(dict.fromkeys(clauses)), found.text, would)


def _guarded(danger: Danger, address: Address, openers: Iterable[Clause]) -> Finding | None:
    """Return the guard's refusal, unless rules open what this guard lets rules open."""
    degree = DEGREES[danger]
    if degree is not Degree.NEVER and any(openers):
        return None
    text = _GUARD_TEXTS[degree].format(danger=danger, address=address)
    return Finding(Verdict.BLOCKED, Reason.GUARD, text=text)


def _narrow(table: Table, address: Address, port: int) -> list[Clause]:
    """Return what speaks for an address itself: the allows and approvals of networks that are no catch-all."""
    return [
        clause
        for clause in _clauses(table.networks(address, port, narrow=True))
        if clause.effect is not Effect.DENY and clause.rule.mode is Mode.ENFORCE
    ]


def _clauses(hits: Iterable[Bucket]) -> list[Clause]:
    return list(dict.fromkeys(clause for bucket in hits for clause in bucket.clauses))
