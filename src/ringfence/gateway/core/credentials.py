"""The credentials of one sandbox: which destination has which, and what no head may hold that leaves.

A sandbox's bindings are compiled once, when the worker is armed with them. A destination has credentials only if it
is a name that a binding's target covers (the language of rules; without a port 443), reached by https: never a raw
address, never ``localhost``, never plain HTTP, never another port. What is written (:mod:`.bound`) leaves on a
connection whose certificate was verified, because nothing leaves before.

Every head is searched for placeholders as it leaves, to whatever host. One that stands for any key (``proxy-managed``)
is a word like any other but in a credential field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ringfence.gateway.core.bound import CREDENTIAL_FIELDS, Bound, holds, misused, normal
from ringfence.gateway.core.lookout import Lookout
from ringfence.gateway.core.masks import base64_cores
from ringfence.policy.index import Clause, NetworkIndex
from ringfence.policy.model import Effect, RuleRef, Transport
from ringfence.policy.patterns import PORTS, Resource, Shape, parse_resource
from ringfence.policy.rule import Rule
from ringfence.sandbox.credentials import PROXY_MANAGED, Binding

_HOSTS: Final = frozenset({Shape.EXACT, Shape.ONE, Shape.DEEP, Shape.GLOB})
_SHORTEST: Final = 8
"""Bytes of a placeholder that is looked for everywhere; a shorter one would be found in every other word."""
_GENERIC: Final = PROXY_MANAGED.encode()
_GENERIC_FORMS: Final = (_GENERIC, *sorted(base64_cores(_GENERIC)))


class Credentials:
    """The bindings of one sandbox. Raises ``ValueError`` for targets that nothing may be sent to."""

    __slots__ = ("_generic", "_index", "_kept", "_reached", "lookout")

    def __init__(self, bindings: Sequence[Binding] = ()) -> None:
        reached = [(binding, target) for binding in bindings for target in binding.targets]
        self._reached = reached
        self._index = NetworkIndex(
            Clause(
                rule=Rule(id=str(number), effect=Effect.ALLOW, resources=tuple(map(_resource, target.hosts))),
                ref=RuleRef(id=str(number), name=binding.name, origin="", effect=Effect.ALLOW),
                order=number,
            )
            for number, (binding, target) in enumerate(reached)
        )
        self._kept: dict[tuple[int, ...], Bound] = {}
        everywhere = {
            placeholder: binding.name
            for binding in bindings
            for placeholder in binding.placeholders
            if placeholder != PROXY_MANAGED and len(placeholder) >= _SHORTEST
        }
        self.lookout = Lookout(everywhere)
        self._generic = [
            (binding.name, frozenset(target.header.encode() for target in binding.targets))
            for binding in bindings
            if PROXY_MANAGED in binding.placeholders
        ]

    def __bool__(self) -> bool:
        return bool(self._reached)

    def towards(self, host: str, port: int) -> Bound | None:
        """Return the credentials of a destination that is reached by name and verified TLS."""
        found = self._index.name(host, port, Transport.TCP).network
        if not found:
            return None
        key = tuple(clause.order for clause in found)
        bound = self._kept.get(key)
        if bound is None:
            bound = self._kept[key] = Bound([self._reached[number] for number in key])
        return bound

    def screen(self, path: bytes, lines: Sequence[bytes]) -> None:
        """Search a head as it leaves for placeholders. Raises ``Withheld``."""
        found = self.lookout.find(path)
        if lines and not found:
            found = self.lookout.find(b"\n".join(lines)) or (self._generic and self._generic_in(lines)) or ""
        if found:
            raise misused(found)

    def _generic_in(self, lines: Sequence[bytes]) -> str:
        """Return whose the placeholder is that stands for any key, if it is in a credential field."""
        text = b"\n".join(lines)
        if not any(form in text for form in _GENERIC_FORMS):
            return ""
        for line in lines:
            name, _, value = line.partition(b": ")
            name = normal(name)
            if name in CREDENTIAL_FIELDS and holds(value, (_GENERIC,)):
                owners = [owner for owner, headers in self._generic if name in headers]
                return ", ".join(dict.fromkeys(owners or [owner for owner, _ in self._generic]))
        return ""


def _resource(host: str) -> Resource:
    resource = parse_resource(host)
    if resource.shape not in _HOSTS:
        raise ValueError("a credential's host is a name, or a pattern of names")
    return resource if (resource.low, resource.high) != PORTS else replace(resource, low=443, high=443)
