"""Rules: what one says, and what no rule may say.

A :class:`Rule` that exists is a rule that can be obeyed: every contradiction is refused when it is made.
Rules hold no origin. Where a rule comes from is a fact about the place it was found in, and only an effective
policy knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ringfence.policy.addresses import is_unreachable
from ringfence.policy.errors import InvalidPolicy, quote
from ringfence.policy.model import Budget, Effect, FileAction, Inspect, Kind, Mode, Transport
from ringfence.policy.paths import FilePattern, PathPattern, parse_path_pattern
from ringfence.policy.patterns import PORTS, PublicSuffix, Resource, Shape

_Member = TypeVar("_Member")

ANY_METHOD = "ANY"
NAME_LENGTH = 200
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
"""Control characters and bidirectional overrides: a rule's name is shown in terminals, logs and refusals."""

DEFAULT_TRANSPORTS = {
    Effect.ALLOW: (Transport.TCP,),
    Effect.APPROVAL: (Transport.TCP,),
    Effect.DENY: (Transport.TCP, Transport.UDP),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One statement of policy. Empty ``transports`` are filled in by effect, ``methods`` and ``paths`` by
    each other."""

    id: str
    effect: Effect
    name: str = ""
    kind: Kind = Kind.NETWORK
    resources: tuple[Resource, ...] = ()
    """Of a network rule."""
    files: tuple[FilePattern, ...] = ()
    """Of a filesystem rule."""
    actions: tuple[FileAction, ...] = ()
    """Of a filesystem rule; empty means both."""
    transports: tuple[Transport, ...] = ()
    methods: tuple[str, ...] = ()
    """Of an HTTP rule: upper case, or ``ANY`` alone."""
    paths: tuple[PathPattern, ...] = ()
    """Of an HTTP rule."""
    inspect: Inspect | None = None
    """``None`` is no wish, not ``ALWAYS``."""
    budget: Budget | None = None
    teams: tuple[str, ...] = ()
    """The rule is for members of any of these; empty is everybody."""
    expires_at: float | None = None
    """Seconds since the epoch; from then on the rule says nothing."""
    mode: Mode = Mode.ENFORCE
    description: str = ""

    def __post_init__(self) -> None:
        for check in _CHECKS:
            check(self)
        _fill(self)

    @property
    def http(self) -> bool:
        """Whether the rule is about HTTP requests and not about connections."""
        return bool(self.paths)

    @property
    def title(self) -> str:
        """How the rule is called where people read."""
        return self.name or f"local:{self.id}"

    @property
    def texts(self) -> tuple[str, ...]:
        """The canonical resources, whatever the kind."""
        return tuple(r.text for r in self.resources) or tuple(f.text for f in self.files)

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


def warnings(rule: Rule, is_public_suffix: PublicSuffix) -> tuple[str, ...]:
    """Return what an administrator should know before writing this rule; none for most."""
    found = []
    for resource in rule.resources:
        suffix = resource.wild_over(is_public_suffix)
        if rule.effect is not Effect.DENY and resource.broad:
            found.append(f"{quote(resource.text)} is a catch-all: default deny is off for what it covers")
        elif suffix:
            found.append(f"{quote(resource.text)} covers every name under the public suffix {quote(suffix)}")
        elif (
            rule.effect is not Effect.DENY
            and resource.network
            and (danger := is_unreachable(resource.network))
        ):
            found.append(f"{quote(resource.text)} has no effect: no rule reaches a {danger}")
    return tuple(found)


def undelegable(rule: Rule, is_public_suffix: PublicSuffix) -> str:
    """Return the first resource of an allow that a user may not write where policy is delegated, or nothing."""
    if rule.effect is Effect.DENY:
        return ""
    return next((r.text for r in rule.resources if r.broad or r.wild_over(is_public_suffix)), "")


def _check_text(rule: Rule) -> None:
    if not rule.id or len(rule.id) > NAME_LENGTH or _UNPRINTABLE.search(rule.id):
        raise InvalidPolicy(f"{quote(rule.id)} is not an id", where="id")
    if len(rule.name) > NAME_LENGTH or _UNPRINTABLE.search(rule.name) or rule.name != rule.name.strip():
        raise InvalidPolicy(
            f"{quote(rule.name)} is not a rule name",
            f"write one line of at most {NAME_LENGTH} characters",
            "name",
        )
    if len(rule.description) > 10 * NAME_LENGTH:
        raise InvalidPolicy(f"a description of more than {10 * NAME_LENGTH} characters", where="description")
    if not all(team and len(team) <= NAME_LENGTH for team in rule.teams):
        raise InvalidPolicy("a blank team", "write the team's name", "teams")


def _check_kind(rule: Rule) -> None:
    network = rule.kind is Kind.NETWORK
    if (rule.files if network else rule.resources) or not (rule.resources if network else rule.files):
        raise InvalidPolicy(f"a {rule.kind} rule without {rule.kind} resources", where="resources")
    foreign: dict[str, object] = (
        {"actions": rule.actions}
        if network
        else {
            "transports": rule.transports,
            "methods": rule.methods,
            "paths": rule.paths,
            "inspect": rule.inspect,
            "budget": rule.budget,
        }
    )
    for field, value in foreign.items():
        if value:
            raise InvalidPolicy(f"`{field}` in a {rule.kind} rule", "one rule has one kind", field)
    if not network and rule.effect is Effect.APPROVAL:
        raise InvalidPolicy("approval in a filesystem rule", "mounts are allowed or denied", "effect")


def _check_local(rule: Rule) -> None:
    for resource in rule.resources:
        unbounded = resource.shape is Shape.LOCAL and (resource.low, resource.high) == PORTS
        if unbounded and rule.effect is not Effect.DENY:
            raise InvalidPolicy(
                f"{quote(resource.text)} without a port would open every service on this machine",
                "write the service's port: `localhost:11434`",
                "resources",
            )


def _check_http(rule: Rule) -> None:
    for method in rule.methods:
        if not _METHOD.fullmatch(method):
            raise InvalidPolicy(f"{quote(method)} is not a method", "write `GET,HEAD` or `ANY`", "methods")
    if len(rule.methods) > 1 and ANY_METHOD in rule.methods:
        raise InvalidPolicy("`ANY` beside other methods", "write `ANY` alone", "methods")
    if not (rule.methods or rule.paths):
        return
    for resource in rule.resources:
        if resource.shape is Shape.NETWORK:
            raise InvalidPolicy(
                f"{quote(resource.text)} in a rule with methods or paths",
                "an HTTP rule names hosts; whoever asks for a name would never meet it",
                "resources",
            )


def _check_allowance(rule: Rule) -> None:
    if rule.budget and rule.effect is not Effect.ALLOW:
        raise InvalidPolicy(
            f"a budget in a rule that says {rule.effect}", "only an allow can be spent", "budget"
        )
    if rule.budget and not any(
        limit is not None and limit >= 0
        for limit in (rule.budget.tokens_per_day, rule.budget.requests_per_minute, rule.budget.bytes_per_day)
    ):
        raise InvalidPolicy("a budget without a limit", "write `requests_per_minute: 60`", "budget")
    if rule.expires_at is not None and not 0 < rule.expires_at < 1e11:
        raise InvalidPolicy(f"`{rule.expires_at}` is not a time", where="expires_at")


_CHECKS: tuple[Callable[[Rule], None], ...] = (
    _check_text,
    _check_kind,
    _check_local,
    _check_http,
    _check_allowance,
)


def _fill(rule: Rule) -> None:
    """Write out what is meant by what was left out, in one order, so that equal rules are equal values."""
    if rule.kind is Kind.FILESYSTEM:
        object.__setattr__(rule, "actions", _ordered(FileAction, rule.actions) or tuple(FileAction))
        return
    given = _ordered(Transport, rule.transports) if rule.transports else DEFAULT_TRANSPORTS[rule.effect]
    object.__setattr__(rule, "transports", given)
    if rule.methods or rule.paths:
        object.__setattr__(rule, "methods", tuple(sorted(set(rule.methods))) or (ANY_METHOD,))
        object.__setattr__(rule, "paths", tuple(dict.fromkeys(rule.paths)) or (parse_path_pattern("/**"),))


def _ordered(members: Iterable[_Member], given: tuple[_Member, ...]) -> tuple[_Member, ...]:
    return tuple(member for member in members if member in given)
