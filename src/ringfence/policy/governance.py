"""Who overrides whom: origins, the organisation's statement, and what becomes of every rule under it.

The organisation *states* what it governs; that is never inferred from whether rules exist, so deleting the last rule of
a governed kind leaves default deny. What the statement does to a rule is a table (:data:`_DELEGATED`), and every rule
it makes inactive stays in sight with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.model import Effect, Kind
from ringfence.policy.patterns import PublicSuffix
from ringfence.policy.rule import Rule, undelegable

PRESET = "preset"
LOCAL = "local"
REMOTE = "remote"
SANDBOX = "sandbox:"
TEMPLATE = "template:"

ACTIVE = "active"
PRECEDENCE = (
    "inactive — corporate policy takes precedence and does not delegate this rule type to local policy."
)
"""Word for word what the demo of the field shows."""
TOO_WIDE = "inactive — corporate policy does not delegate catch-alls and public-suffix wildcards: `{}`."
SWITCHED_OFF = "inactive — switched off."
REPLACED = "inactive — this sandbox has rules of its own instead."
NOT_ACCEPTED = "inactive — a template's allow counts once a person accepts the template's rules."
SIGNED_OUT = "inactive — signed out: of the organisation's policy only denies stay."
EXPIRED = "inactive — expired."
UNGOVERNED = "inactive — the organisation does not govern this rule type."
SHADOWED = "active (shadowed by {})"
UNINSPECTED = "active (`inspect: {}` inactive — corporate policy decides what is inspected)"
CEILING = "active — a ceiling under corporate policy."


class Delegation(StrEnum):
    """What an organisation leaves to its developers, for one kind."""

    NONE = "none"
    NARROW = "narrow"
    EXTEND = "extend"


class Base(StrEnum):
    """Whether a sandbox's rules come on top of everybody's, or instead of them."""

    INHERIT = "inherit"
    OWN = "own"


class Standing(StrEnum):
    """How the machine stands to the organisation whose statement it holds."""

    ENROLLED = "enrolled"
    SIGNED_OUT = "signed-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What an organisation says, as it came out of a verified bundle."""

    organisation: str
    delegation: Mapping[Kind, Delegation] = field(default_factory=dict)
    """The kinds it governs, and what it delegates of each. A kind that is not here stays local."""
    rules: tuple[Rule, ...] = ()
    revision: int = 0
    issued_at: float = 0.0
    expires_at: float = float("inf")
    """From then on governed kinds are blocked."""
    support: str = ""
    """What the organisation adds to a refusal."""
    standing: Standing = Standing.ENROLLED

    def __post_init__(self) -> None:
        if not self.organisation:
            raise InvalidPolicy("a statement without an organisation", where="organisation")

    def governs(self, kind: Kind) -> bool:
        return self.standing is Standing.ENROLLED and kind in self.delegation


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What becomes of one rule: whether it counts, and the words for it."""

    active: bool
    status: str
    ceiling: bool = False
    """It counts, as part of what a sandbox may have at most."""


_IN_FORCE = Ruling(active=True, status=ACTIVE)

# Effects that stay active, by delegation and origin. What is not here is inactive.
_DELEGATED: dict[tuple[Delegation, str], frozenset[Effect]] = {
    (Delegation.NARROW, PRESET): frozenset({Effect.DENY}),
    (Delegation.NARROW, LOCAL): frozenset({Effect.DENY}),
    (Delegation.NARROW, SANDBOX): frozenset({Effect.DENY}),
    (Delegation.NARROW, TEMPLATE): frozenset({Effect.DENY}),
    (Delegation.EXTEND, PRESET): frozenset({Effect.DENY}),
    (Delegation.EXTEND, LOCAL): frozenset({Effect.ALLOW, Effect.DENY}),
    (Delegation.EXTEND, SANDBOX): frozenset({Effect.ALLOW, Effect.DENY}),
    (Delegation.EXTEND, TEMPLATE): frozenset({Effect.DENY}),
}


def origin_class(origin: str) -> str:
    """Return the origin without the sandbox's or template's name."""
    for prefix in (SANDBOX, TEMPLATE):
        if origin.startswith(prefix):
            return prefix
    return origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Constitution:
    """Everything that decides what becomes of rules."""

    statement: Statement | None = None
    base: Base = Base.INHERIT
    disabled: frozenset[str] = frozenset()
    """Groups and parts of the preset that are switched off."""
    templates_accepted: bool = False
    is_public_suffix: PublicSuffix
    now: float

    def governs(self, kind: Kind) -> bool:
        return self.statement is not None and self.statement.governs(kind)

    def rule_on(self, rule: Rule, origin: str) -> Ruling:
        """Return what becomes of a rule of this origin."""
        ruling = self._by_origin(rule, origin_class(origin))
        return Ruling(active=False, status=EXPIRED) if ruling.active and rule.expired(self.now) else ruling

    def _by_origin(self, rule: Rule, origin: str) -> Ruling:
        governed = self.governs(rule.kind)
        own = self.base is Base.OWN and rule.kind is Kind.NETWORK
        if origin == REMOTE:
            return self._remote(rule)
        if origin == PRESET and {rule.name, rule.name.partition("/")[0]} & self.disabled:
            return Ruling(active=False, status=SWITCHED_OFF)
        if own and governed and origin == SANDBOX:
            return Ruling(active=True, status=CEILING, ceiling=True)
        if governed:
            ruling = self._delegated(rule, origin)
            replaced = own and ruling.active and origin in (PRESET, LOCAL)
            return Ruling(active=False, status=REPLACED) if replaced else ruling
        if own and origin in (PRESET, LOCAL):
            return Ruling(active=False, status=REPLACED)
        if origin == TEMPLATE and rule.effect is not Effect.DENY and not self.templates_accepted:
            return Ruling(active=False, status=NOT_ACCEPTED)
        return _IN_FORCE

    def _remote(self, rule: Rule) -> Ruling:
        assert self.statement is not None
        if rule.kind not in self.statement.delegation:
            return Ruling(active=False, status=UNGOVERNED)
        if self.statement.standing is Standing.SIGNED_OUT and rule.effect is not Effect.DENY:
            return Ruling(active=False, status=SIGNED_OUT)
        return _IN_FORCE

    def _delegated(self, rule: Rule, origin: str) -> Ruling:
        assert self.statement is not None
        delegation = self.statement.delegation[rule.kind]
        if rule.effect not in _DELEGATED.get((delegation, origin), frozenset()):
            return Ruling(active=False, status=PRECEDENCE)
        if wide := undelegable(rule, self.is_public_suffix):
            return Ruling(active=False, status=TOO_WIDE.format(wide))
        return _IN_FORCE
