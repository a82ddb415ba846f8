"""Which allows can never be heard: those that one deny, or several together, cover whole.

Used to say `active (shadowed by <rule>)` instead of plain `active`. It errs towards silence: a deny with conditions (a
time, a team, methods) shadows nothing, and two denies that cover a network only together are not noticed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ringfence.policy.model import Effect, Kind, Mode
from ringfence.policy.patterns import Resource, Shape, compile_glob
from ringfence.policy.rule import Rule


def covers(deny: Resource, allow: Resource) -> bool:
    """Whether every destination of ``allow`` is one of ``deny``."""
    return deny.low <= allow.low and allow.high <= deny.high and _covers_hosts(deny, allow)


def _covers_hosts(deny: Resource, allow: Resource) -> bool:
    if allow.shape is Shape.LOCAL or deny.shape is Shape.LOCAL:
        return allow.shape is deny.shape
    if deny.shape is Shape.ANY:
        return True
    if deny.network is not None:
        named = allow.network is None and allow.shape is not Shape.ANY
        return (deny.catch_all and named) or (
            allow.network is not None and deny.network.covers(allow.network)
        )
    if allow.network is not None or allow.shape is Shape.ANY:
        return False
    if deny == allow or (deny.shape, deny.host) == (allow.shape, allow.host):
        return True
    if deny.shape is Shape.DEEP:
        return _at_or_below(allow.stem, deny.host)
    if allow.shape is not Shape.EXACT:
        return (
            deny.shape is Shape.ONE
            and allow.shape is Shape.GLOB
            and allow.stem == deny.host
            and _one_label(allow)
        )
    if deny.shape is Shape.ONE:
        return allow.host.partition(".")[2] == deny.host
    return deny.shape is Shape.GLOB and compile_glob(deny.host).fullmatch(allow.host) is not None


def _at_or_below(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _one_label(glob: Resource) -> bool:
    return glob.host.count(".") == glob.stem.count(".") + 1


class Coverage:
    """The unconditional denies of an organisation, found by what stands literally in them."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._denies: dict[object, list[tuple[Resource, Rule]]] = defaultdict(list)
        for rule in rules:
            plain = rule.kind is Kind.NETWORK and not (rule.http or rule.teams or rule.expires_at is not None)
            if plain and rule.effect is Effect.DENY and rule.mode is Mode.ENFORCE:
                for resource in rule.resources:
                    key = resource.network.length if resource.network else resource.stem
                    self._denies[key, resource.network.value if resource.network else 0].append(
                        (resource, rule)
                    )

    def of(self, allow: Rule) -> str:
        """Return the names of the denies that leave nothing of an allow, or nothing if something is left."""
        names: dict[str, None] = {}
        for resource in allow.resources:
            deny = next(
                (
                    rule
                    for key in _keys(resource)
                    for candidate, rule in self._denies.get(key, ())
                    if covers(candidate, resource) and set(allow.transports) <= set(rule.transports)
                ),
                None,
            )
            if deny is None:
                return ""
            names[deny.title] = None
        return ", ".join(names)


def _keys(resource: Resource) -> Iterable[tuple[object, int]]:
    """The keys under which a deny of this resource, or of something wider, is found."""
    yield "", 0
    yield 0, 0
    if resource.network is not None:
        network = resource.network
        for length in range(1, network.length + 1):
            yield length, network.value >> (network.bits - length) << (network.bits - length)
        return
    stem = resource.stem
    while stem:
        yield stem, 0
        stem = stem.partition(".")[2]
