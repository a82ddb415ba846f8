"""The effective policy: every rule that exists for a sandbox, what counts of it and why not, frozen with a revision.

:func:`compose` builds it whole out of its sources and never changes it; to change policy is to build another and swap.
The daemon composes, lists and explains. The gateway receives :meth:`EffectivePolicy.to_wire`, which holds only what
counts, and rebuilds the same index from it: both ends answer every question alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ringfence.policy import engine
from ringfence.policy.addresses import Guards
from ringfence.policy.document import parse_rule, rule_record
from ringfence.policy.errors import InvalidPolicy, quote
from ringfence.policy.governance import (
    ACTIVE,
    LOCAL,
    PRESET,
    REMOTE,
    SANDBOX,
    SHADOWED,
    TEMPLATE,
    UNINSPECTED,
    Base,
    Constitution,
    Standing,
    Statement,
    origin_class,
)
from ringfence.policy.index import Clause, NetworkIndex
from ringfence.policy.model import Effect, Inspect, Kind, RuleRef, Transport
from ringfence.policy.paths import PathPattern, parse_path_pattern
from ringfence.policy.patterns import PublicSuffix, bare_suffix
from ringfence.policy.rule import Rule
from ringfence.policy.shadow import Coverage

WIRE_VERSION = 1
_FOREVER = float("inf")
_RANKS = {REMOTE: 0, PRESET: 1, TEMPLATE: 2, SANDBOX: 3, LOCAL: 4}
"""The order of listing, and of naming determining rules. It decides nothing."""
_EVERYTHING = parse_path_pattern("/**")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A rule, where it comes from, and what became of it."""

    rule: Rule
    origin: str
    active: bool = True
    status: str = ACTIVE
    ceiling: bool = False

    @property
    def place(self) -> tuple[int, str, str, str]:
        return (_RANKS[origin_class(self.origin)], self.origin, self.rule.title, self.rule.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Everything that policy is composed of. What is left out is not there, and nothing is there by default."""

    preset: tuple[Rule, ...] = ()
    disabled: frozenset[str] = frozenset()
    """Names of groups and parts (`group/part`) of the preset that are switched off."""
    local: tuple[Rule, ...] = ()
    sandbox: str = ""
    """The sandbox's name; empty for the policy outside any sandbox."""
    sandbox_rules: tuple[Rule, ...] = ()
    base: Base = Base.INHERIT
    template: str = ""
    template_rules: tuple[Rule, ...] = ()
    template_accepted: bool = False
    statement: Statement | None = None
    signed_out_ceiling: tuple[Rule, ...] = ()
    """The Balanced preset's rules: what local policy may allow at most after signing out."""
    guards: Guards = field(default_factory=Guards)
    protected: tuple[str, ...] = ()
    """Directories of the product itself, which no sandbox mounts."""
    home: str = ""
    """The home directory that `~` means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectivePolicy:
    """A snapshot. The zero value blocks everything by default."""

    revision: int = 0
    entries: tuple[Entry, ...] = ()
    organisation: str = ""
    support: str = ""
    governs: frozenset[Kind] = frozenset()
    bundle_expires_at: float = _FOREVER
    guards: Guards = field(default_factory=Guards)
    protected: tuple[str, ...] = ()
    home: str = ""
    ceiling_entries: tuple[tuple[Entry, ...], ...] = ()
    index: NetworkIndex = field(init=False, repr=False, compare=False)
    ceilings: tuple[NetworkIndex, ...] = field(init=False, repr=False, compare=False)
    files: tuple[tuple[Clause, tuple[PathPattern, ...]], ...] = field(init=False, repr=False, compare=False)
    valid_until: float = field(init=False, repr=False, compare=False)
    """When network decisions end because the organisation's bundle does."""

    def __post_init__(self) -> None:
        entries = sorted(
            (e for e in self.entries if e.active and not e.ceiling), key=lambda entry: entry.place
        )
        clauses = _clauses(entries, 0)
        built = {
            "index": NetworkIndex(c for c in clauses if c.rule.kind is Kind.NETWORK),
            "ceilings": tuple(
                NetworkIndex(_clauses(group, 1_000_000 * (number + 1)))
                for number, group in enumerate(self.ceiling_entries)
            ),
            "files": tuple(
                (c, _expanded(c.rule, self.home)) for c in clauses if c.rule.kind is Kind.FILESYSTEM
            ),
            "valid_until": self.bundle_expires_at if Kind.NETWORK in self.governs else _FOREVER,
        }
        for name, value in built.items():
            object.__setattr__(self, name, value)

    def http_sensitive(
        self, host: str, port: int, transport: Transport = Transport.TCP, *, now: float = 0.0
    ) -> bool:
        """Whether HTTP rules decide about requests to a destination, so that paths must be clear there."""
        return engine.http_sensitive(self, host, port, transport, now=now)

    def next_expiry(self, now: float) -> float | None:
        """Return when the next rule, or the organisation's bundle, runs out; nothing if none ever does."""
        times = [
            e.rule.expires_at
            for e in self.active
            if e.rule.expires_at is not None and e.rule.expires_at > now
        ]
        if now < self.bundle_expires_at < _FOREVER:
            times.append(self.bundle_expires_at)
        return min(times, default=None)

    @property
    def active(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.active) + tuple(
            entry for group in self.ceiling_entries for entry in group
        )

    def to_wire(self) -> dict[str, Any]:
        """Return what the gateway needs, as JSON would have it. The round trip decides everything alike."""
        return {
            "version": WIRE_VERSION,
            "revision": self.revision,
            "organisation": self.organisation,
            "support": self.support,
            "governs": sorted(self.governs),
            "bundle_expires_at": None if self.bundle_expires_at == _FOREVER else self.bundle_expires_at,
            "guards": {"host": list(self.guards.host), "product": list(self.guards.product)},
            "protected": list(self.protected),
            "home": self.home,
            "rules": [_entry_record(entry) for entry in self.entries if entry.active and not entry.ceiling],
            "ceilings": [[_entry_record(entry) for entry in group] for group in self.ceiling_entries],
        }

    @classmethod
    def from_wire(cls, record: Mapping[str, Any]) -> EffectivePolicy:
        """Rebuild a snapshot, index and all; raises ``InvalidPolicy``, and then nothing new is in force."""
        try:
            if record["version"] != WIRE_VERSION:
                raise InvalidPolicy(
                    f"policy of version `{record['version']}`", "run the same version on both ends"
                )
            expires = record["bundle_expires_at"]
            policy = cls(
                revision=int(record["revision"]),
                organisation=_text(record["organisation"]),
                support=_text(record["support"]),
                governs=frozenset(Kind(kind) for kind in record["governs"]),
                bundle_expires_at=_FOREVER if expires is None else float(expires),
                guards=Guards(**{key: _texts(record["guards"][key]) for key in ("host", "product")}),
                protected=_texts(record["protected"]),
                home=_text(record["home"]),
                entries=_entries(record["rules"]),
                ceiling_entries=tuple(_entries(group) for group in record["ceilings"]),
            )
            for layer in (policy.index, *policy.ceilings):
                layer.table(Transport.TCP)
            return policy
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            if isinstance(error, InvalidPolicy):
                raise
            raise InvalidPolicy(f"a snapshot that cannot be read: {error!r}") from error


def compose(
    sources: Sources, *, revision: int, now: float, is_public_suffix: PublicSuffix = bare_suffix
) -> EffectivePolicy:
    """Build the snapshot. Pure: the same sources give the same policy."""
    statement = sources.statement
    constitution = Constitution(
        statement=statement,
        base=sources.base,
        disabled=sources.disabled,
        templates_accepted=sources.template_accepted,
        is_public_suffix=is_public_suffix,
        now=now,
    )
    found = [
        *((rule, REMOTE) for rule in (statement.rules if statement else ())),
        *((rule, PRESET) for rule in sources.preset),
        *((rule, f"{TEMPLATE}{sources.template}") for rule in sources.template_rules),
        *((rule, f"{SANDBOX}{sources.sandbox}") for rule in sources.sandbox_rules),
        *((rule, LOCAL) for rule in sources.local),
    ]
    coverage = Coverage(rule for rule, origin in found if origin == REMOTE)
    entries = []
    for rule, origin in found:
        ruling = constitution.rule_on(rule, origin)
        entry = Entry(
            rule=rule, origin=origin, active=ruling.active, status=ruling.status, ceiling=ruling.ceiling
        )
        if (
            entry.active
            and origin != REMOTE
            and rule.effect is Effect.ALLOW
            and constitution.governs(rule.kind)
        ):
            entry = _under(entry, coverage)
        entries.append(entry)
    enrolled = statement is not None and statement.standing is Standing.ENROLLED
    return EffectivePolicy(
        revision=revision,
        entries=tuple(sorted(entries, key=lambda entry: entry.place[:2])),
        organisation=statement.organisation if statement else "",
        support=statement.support if statement else "",
        governs=frozenset(statement.delegation) if statement and enrolled else frozenset(),
        bundle_expires_at=statement.expires_at if statement and enrolled else _FOREVER,
        guards=sources.guards,
        protected=sources.protected,
        home=sources.home,
        ceiling_entries=_ceilings(sources, constitution, entries),
    )


def _ceilings(
    sources: Sources, constitution: Constitution, entries: Iterable[Entry]
) -> tuple[tuple[Entry, ...], ...]:
    groups = []
    statement = sources.statement
    if sources.base is Base.OWN and constitution.governs(Kind.NETWORK):
        groups.append(tuple(entry for entry in entries if entry.ceiling))
    if statement is not None and statement.standing is Standing.SIGNED_OUT:
        groups.append(
            tuple(
                Entry(rule=rule, origin=PRESET)
                for rule in sources.signed_out_ceiling
                if rule.kind is Kind.NETWORK
            )
        )
    return tuple(groups)


def _under(entry: Entry, coverage: Coverage) -> Entry:
    """Say what an organisation leaves of a delegated allow: nothing where it denies all of it, no wish to be unseen."""
    if shadow := coverage.of(entry.rule):
        return replace(entry, status=SHADOWED.format(shadow))
    if entry.rule.inspect in (Inspect.AUTO, Inspect.NEVER):
        status = UNINSPECTED.format(entry.rule.inspect)
        return replace(entry, rule=replace(entry.rule, inspect=None), status=status)
    return entry


def _clauses(entries: Iterable[Entry], first: int) -> list[Clause]:
    return [
        Clause(
            rule=entry.rule,
            ref=RuleRef(
                id=entry.rule.id, name=entry.rule.title, origin=entry.origin, effect=entry.rule.effect
            ),
            order=first + number,
        )
        for number, entry in enumerate(entries)
    ]


def _expanded(rule: Rule, home: str) -> tuple[PathPattern, ...]:
    """Expand `~`. On a machine where it means nothing an allow of it allows nothing, and a deny denies everything."""
    patterns = (file.expanded(home) for file in rule.files)
    return tuple(p or _EVERYTHING for p in patterns if p or rule.effect is Effect.DENY)


def _entry_record(entry: Entry) -> dict[str, Any]:
    return {**rule_record(entry.rule), "origin": entry.origin}


def _entries(records: Iterable[Mapping[str, Any]]) -> tuple[Entry, ...]:
    return tuple(
        Entry(
            rule=parse_rule({k: v for k, v in record.items() if k != "origin"}),
            origin=_origin(record["origin"]),
        )
        for record in records
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is not a list")
    return tuple(_text(value) for value in values)


def _origin(text: str) -> str:
    if origin_class(text) not in _RANKS:
        raise InvalidPolicy(f"{quote(text)} is not an origin", where="origin")
    return text
