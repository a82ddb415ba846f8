"""What the host keeps of a secret, and what of it concerns a sandbox: bindings, variables, one file.

A :class:`Secret` is a service's credential, a custom one or a registry's. It counts for every sandbox, for one, or for
the host alone; of two with one name the sandbox's own wins. Its value is either kept or made by a command when it is
needed. What a sandbox sees are placeholders, composed here from what is *stored*, never from a value.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ringfence.sandbox.credentials import PROXY_MANAGED, SERVICES, Binding, Form, Target

GLOBAL: Final = ""
HOST_ONLY: Final = "host"
"""The scope of a registry's credential that no sandbox gets."""
ONLY: Final = "value"
"""What the part of a credential with one part is called."""
DOCKER_CONFIG: Final = "/home/agent/.docker/config.json"
DOCKER_HUB: Final = "docker.io"
_HUB_KEY: Final = "https://index.docker.io/v1/"
_AUTH_ENDPOINTS: Final[Mapping[str, str]] = {
    DOCKER_HUB: "auth.docker.io",
    "registry.gitlab.com": "gitlab.com",
}
"""Registries that send their clients elsewhere for a token; all others give it themselves."""

Parts = tuple[tuple[str, str], ...]


class Kind(StrEnum):
    SERVICE = "service"
    CUSTOM = "custom"
    REGISTRY = "registry"


_ORDER: Final = tuple(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One stored secret. Its ``repr`` has no value."""

    kind: Kind
    name: str
    """The service, the variable of a custom secret, or the registry."""
    scope: str = GLOBAL
    """Empty for every sandbox, :data:`HOST_ONLY`, or the id of one."""
    created: float = 0.0
    parts: Parts = field(default=(), repr=False)
    """The value; empty if ``command`` makes it."""
    command: tuple[str, ...] = ()
    reference: str = ""
    """What a person wrote instead of a command (``op://…``)."""
    refresh: float = 0.0
    """Seconds that a made value is good for."""
    exclusive: bool = False
    placeholder: str = ""
    """Of a custom secret and of a registry's."""
    hosts: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    in_query: bool = False
    in_body: bool = False
    username: str = ""
    auth_endpoint: str = ""
    """Where the registry's clients get their token."""

    @property
    def key(self) -> tuple[str, Kind, str]:
        """What no two secrets share."""
        return self.scope, self.kind, self.name

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of its parts; one that ends in ``?`` may be missing."""
        return SERVICES[self.name].parts if self.kind is Kind.SERVICE else (ONLY,)


def effective(secrets: Iterable[Secret], sandbox: str) -> tuple[Secret, ...]:
    """Return what counts for a sandbox, its own before what is global: services, then custom ones, then registries."""
    chosen: dict[tuple[Kind, str], Secret] = {}
    for secret in secrets:
        if secret.scope == sandbox or (secret.scope == GLOBAL and (secret.kind, secret.name) not in chosen):
            chosen[secret.kind, secret.name] = secret
    return tuple(sorted(chosen.values(), key=lambda each: (_ORDER.index(each.kind), each.name)))


def binding(secret: Secret, parts: Parts, *, unavailable: str = "") -> Binding:
    """Return what the gateway is told of a secret. Without parts it must be ``unavailable`` for a reason."""
    if not parts and not unavailable:
        unavailable = "it has no value"
    if secret.kind is Kind.SERVICE:
        service = SERVICES[secret.name]
        return Binding(
            name=secret.name,
            targets=service.targets,
            placeholders=tuple(dict.fromkeys(placeholder for _, placeholder in service.variables)),
            values=parts,
            unavailable=unavailable,
            exclusive=secret.exclusive,
        )
    headers = secret.headers if secret.kind is Kind.CUSTOM else ("authorization",)
    hosts = secret.hosts if secret.kind is Kind.CUSTOM else registry_hosts(secret.name, secret.auth_endpoint)
    return Binding(
        name=secret.name,
        targets=tuple(Target(hosts=hosts, form=Form.REPLACE, header=header) for header in headers),
        placeholders=(secret.placeholder,),
        values=parts,
        unavailable=unavailable,
        exclusive=secret.exclusive,
        in_query=secret.in_query,
        in_body=secret.in_body,
    )


def registry_hosts(registry: str, auth_endpoint: str) -> tuple[str, ...]:
    """Return who may see a registry's password: itself, and where its clients get a token."""
    own = ("registry-1.docker.io", "index.docker.io") if registry == DOCKER_HUB else (registry,)
    return tuple(dict.fromkeys((*own, auth_endpoint or _AUTH_ENDPOINTS.get(registry, registry))))


def variables(secrets: Iterable[Secret]) -> dict[str, str]:
    """Return the variables that stand for what counts in a sandbox.

    ``SBX_CRED_<SERVICE>_MODE`` says for every service whether there is something (``apikey``) or not (``none``), so
    that an agent's start script need not guess from a placeholder.
    """
    found = {f"SBX_CRED_{name.upper()}_MODE": "none" for name in SERVICES}
    for secret in secrets:
        if secret.kind is Kind.SERVICE:
            found |= SERVICES[secret.name].variables
            found[f"SBX_CRED_{secret.name.upper()}_MODE"] = "apikey"
        elif secret.kind is Kind.CUSTOM:
            found[secret.name] = secret.placeholder
    return found


def files(secrets: Iterable[Secret]) -> Mapping[str, bytes]:
    """Return the files that stand for what counts in a sandbox: Docker's configuration, if a registry does."""
    entries = {
        _HUB_KEY if secret.name == DOCKER_HUB else secret.name: {
            "auth": b64encode(f"{secret.username}:{secret.placeholder}".encode()).decode()
        }
        for secret in secrets
        if secret.kind is Kind.REGISTRY
    }
    return {DOCKER_CONFIG: json.dumps({"auths": entries}, indent=2).encode() + b"\n"} if entries else {}


STANDING_IN: Final = frozenset(
    {PROXY_MANAGED, *(value for service in SERVICES.values() for _, value in service.variables)}
)
"""The placeholders of services: never a value, and no custom secret's placeholder."""
