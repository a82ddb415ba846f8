"""Why a decision came out as it did, and what would change it. Pure: the words are drawn from the values alone.

Whether a rule matches is asked of the index that decides, with one condition loosened at a time. There is no second
opinion here that could differ from the first.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from ringfence.policy.addresses import DEGREES, Address, Danger, Degree, Guards, parse_address
from ringfence.policy.effective import EffectivePolicy, Entry
from ringfence.policy.engine import read_host
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.governance import PRESET, REMOTE, SANDBOX, TEMPLATE, origin_class
from ringfence.policy.index import Clause, NetworkIndex
from ringfence.policy.model import (
    Decision,
    Effect,
    Kind,
    Mode,
    NetworkAccess,
    Reason,
    RuleRef,
    Transport,
    Verdict,
)
from ringfence.policy.names import HOST_NAME, LOCALHOST
from ringfence.policy.paths import UnclearPathError, canonical_path
from ringfence.policy.patterns import PORTS
from ringfence.policy.rule import Rule
from ringfence.policy.targets import authority_text

MATCHES = "matches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """A rule, and what it says to an access: ``matches``, or why not."""

    entry: Entry
    says: str


def advice(
    decision: Decision, access: NetworkAccess, policy: EffectivePolicy | None = None, *, address: str = ""
) -> str:
    """Return the command or the contact that would change a refusal; empty where nothing would, or nothing must.

    ``address`` is the one that a guard refused to dial for a name.
    """
    if decision.verdict in (Verdict.ALLOWED, Verdict.UNDETERMINED):
        return ""
    governed = policy is not None and Kind.NETWORK in policy.governs
    organisation = policy.organisation if policy else ""
    if decision.reason is Reason.RULE and decision.rules:
        return _lift(decision.rules[0], access, organisation)
    if governed:
        return _contact(organisation) if decision.reason is not Reason.FAILURE else ""
    if decision.reason is Reason.DEFAULT:
        return _allow(access)
    if decision.reason is Reason.GUARD:
        return _past_guard(access, address or access.host)
    return ""


def consider(
    policy: EffectivePolicy, access: NetworkAccess, *, now: float, teams: frozenset[str] | None = None
) -> tuple[Considered, ...]:
    """Return every network rule with what it says to an access, those that match first."""
    found = [
        Considered(entry=entry, says=why_not(entry, access, now=now, teams=teams) or MATCHES)
        for entry in policy.entries
        if entry.rule.kind is Kind.NETWORK
    ]
    return tuple(sorted(found, key=lambda considered: considered.says != MATCHES))


def why_not(entry: Entry, access: NetworkAccess, *, now: float, teams: frozenset[str] | None = None) -> str:
    """Return why a rule does not count for an access; empty if it does."""
    rule = entry.rule
    if not _matches(rule, access):
        return _mismatch(rule, access)
    if not entry.active:
        return entry.status
    if rule.expired(now):
        return "it has expired"
    if not _clause(rule).applies(now, teams):
        return f"it is for {', '.join(rule.teams)}"
    if rule.mode is Mode.EVALUATE:
        return "it is only evaluated"
    return ""


def _mismatch(rule: Rule, access: NetworkAccess) -> str:
    bare = replace(access, method="", path="")
    network = replace(rule, methods=(), paths=())
    anywhere = tuple(replace(resource, low=PORTS[0], high=PORTS[1]) for resource in rule.resources)
    loose = replace(network, resources=anywhere, transports=tuple(Transport), effect=Effect.DENY, budget=None)
    if not _matches(loose, bare):
        return _near_miss(rule, access.host) or "it names other hosts"
    if not _matches(replace(loose, transports=rule.transports), bare):
        return f"it is about {', '.join(rule.transports)} alone"
    if not _matches(network, bare):
        return f"port {access.port} is not among its ports"
    if not access.method:
        return "it is about HTTP requests"
    any_method = _matches(replace(rule, methods=()), access)
    return f"{access.method} is not among its methods" if any_method else "the path is another"


def _near_miss(rule: Rule, host: str) -> str:
    for resource in rule.resources:
        pattern = resource.text
        if resource.host and host == resource.host and pattern.startswith("*."):
            return f"`{pattern}` leaves out its own base; `**.{host}` holds it"
        if resource.host and host.endswith(f".{resource.host}"):
            depth = "one label" if pattern.startswith("*.") else "no subdomain"
            return f"`{pattern}` holds {depth}; `**.{resource.host}` holds every depth"
    return ""


def _matches(rule: Rule, access: NetworkAccess) -> bool:
    clause = _clause(rule)
    index = NetworkIndex([clause])
    table, host = index.table(access.transport), read_host(access.host)
    if isinstance(host, Address):
        hits = table.address(host, access.port)
    else:
        hits = table.local(access.port) if host == LOCALHOST else table.name(access.host, access.port)
    http = index.combine(hits).http
    if http is None:
        return bool(hits)
    try:
        return bool(access.method and http.at(access.method, canonical_path(access.path)))
    except UnclearPathError:
        return False


def _clause(rule: Rule) -> Clause:
    ref = RuleRef(id=rule.id, name=rule.title, origin="", effect=rule.effect)
    return Clause(rule=rule, ref=ref, order=0)


def _allow(access: NetworkAccess, host: str = "") -> str:
    place = shlex.quote(authority_text(host or access.host, access.port))
    protocol = " --protocol udp" if access.transport is Transport.UDP else ""
    return f"sbx policy allow network {place}{protocol}"


def _contact(organisation: str) -> str:
    return f"ask an administrator of {organisation}" if organisation else "ask an administrator"


def _lift(rule: RuleRef, access: NetworkAccess, organisation: str) -> str:
    """Return what takes a refusing rule out of the way."""
    if rule.effect is Effect.APPROVAL:
        return "sbx policy approval ls"
    if rule.effect is Effect.ALLOW:  # its budget is spent
        return "" if rule.origin == REMOTE else _allow(access)
    origin = origin_class(rule.origin)
    if origin == REMOTE:
        return _contact(organisation)
    if origin == PRESET:
        return f"sbx policy preset disable {shlex.quote(rule.name)}"
    if origin == TEMPLATE:
        return f"use another template than {rule.origin.partition(':')[2]}"
    scope = f" --sandbox {shlex.quote(rule.origin.partition(':')[2])}" if origin == SANDBOX else ""
    return f"sbx policy rm network --id {shlex.quote(rule.id)}{scope}"


def _past_guard(access: NetworkAccess, written: str) -> str:
    """Return the rule that a guard waits for; nothing where it waits for none."""
    try:
        address = parse_address(written)
    except InvalidPolicy:
        return ""
    dangers = {danger for _, danger in Guards().judged(address) if danger}
    if dangers == {Danger.LOOPBACK}:
        place = authority_text(LOCALHOST, access.port)
        return f"sbx policy allow network {place}, and ask for {authority_text(HOST_NAME, access.port)}"
    degree = max((DEGREES[danger] for danger in dangers), default=Degree.LITERAL)
    named = written != access.host
    reachable = degree is Degree.NARROW or (degree is Degree.LITERAL and not named)
    return _allow(access, str(address)) if reachable else ""
