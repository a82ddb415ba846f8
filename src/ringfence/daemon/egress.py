"""How the gateway gets out: static names, further trust roots, an upstream proxy; and whether a person's word counts.

An upstream proxy is what the configuration says (``proxy.upstream``), else what the daemon's own environment says
(``HTTPS_PROXY``, ``HTTP_PROXY``, ``NO_PROXY``, in capitals or not), else none. What cannot be understood keeps the
daemon from starting, with a message that quotes nothing of a password: to go out directly instead would be another
way than the one that was written down.

While an organisation governs the network none of it is a person's to set, because each of these could undo what it
says: a name that leads elsewhere, a root that proves anything, a proxy that reads along. :func:`in_force` is the one
place that knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ringfence.application.errors import InvalidInput
from ringfence.daemon.configuration import Configuration, ProxySettings
from ringfence.gateway.core.chain import Chain, Proxy, parse_exemption, parse_proxy
from ringfence.policy.model import Kind

DIRECT = "direct"
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """What the gateway is told. ``inactive`` are settings that were made and do not count."""

    resolve: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    extra_ca: str = ""
    chain: Chain | None = None
    origin: str = ""
    """Where the proxy was written down."""
    unread: tuple[str, ...] = ()
    """Entries of the environment's ``NO_PROXY`` that mean nothing here."""
    inactive: tuple[str, ...] = ()


def written(configuration: Configuration, extra_ca: str, environment: Mapping[str, str]) -> Egress:
    """Return what a person wrote down. Raises ``InvalidInput`` for what cannot be understood."""
    settings = configuration.proxy
    found = _from_environment(settings, environment) if not settings.upstream else _from_settings(settings)
    return Egress(
        resolve=configuration.resolve,
        extra_ca=extra_ca,
        chain=found.chain,
        origin=found.origin,
        unread=found.unread,
    )


def in_force(own: Egress, governs: Collection[Kind]) -> Egress:
    """Return what counts of it."""
    if Kind.NETWORK not in governs:
        return own
    made = {
        "resolve": own.resolve,
        "tls.extra_ca": own.extra_ca,
        own.origin or "proxy.upstream": own.chain,
    }
    return Egress(inactive=tuple(name for name, value in made.items() if value))


def _from_settings(settings: ProxySettings) -> Egress:
    if settings.upstream == DIRECT:
        return Egress(origin="proxy.upstream")
    proxy = parse_proxy(settings.upstream)  # it was read before, when the file was
    chain = Chain(
        plain=proxy, tunnels=proxy, exemptions=settings.no_proxy or (), remote=settings.resolve == "remote"
    )
    return Egress(chain=chain, origin="proxy.upstream")


def _from_environment(settings: ProxySettings, environment: Mapping[str, str]) -> Egress:
    plain, tunnels = _proxy("HTTP_PROXY", environment), _proxy("HTTPS_PROXY", environment)
    if plain is None and tunnels is None:
        return Egress()
    names = [name for name, proxy in (("HTTPS_PROXY", tunnels), ("HTTP_PROXY", plain)) if proxy]
    exemptions, unread = settings.no_proxy, []
    if exemptions is None:
        read = []
        for entry in filter(None, map(str.strip, _variable("NO_PROXY", environment).split(","))):
            try:
                parse_exemption(entry)
                read.append(entry)
            except ValueError:
                unread.append(entry)
        exemptions = tuple(read)
    chain = Chain(plain=plain, tunnels=tunnels, exemptions=exemptions, remote=settings.resolve == "remote")
    return Egress(chain=chain, origin=" and ".join(names), unread=tuple(unread))


def _variable(name: str, environment: Mapping[str, str]) -> str:
    return environment.get(name.lower()) or environment.get(name) or ""


def _proxy(name: str, environment: Mapping[str, str]) -> Proxy | None:
    """Read a variable as curl does: without a scheme it is an HTTP proxy."""
    text = _variable(name, environment).strip()
    if not text:
        return None
    try:
        return parse_proxy(text if "://" in text else f"http://{text}")
    except ValueError as error:
        raise InvalidInput(
            f"`{name}` in the daemon's environment is no proxy: {error}",
            hint='correct it, or set `proxy.upstream = "direct"` in the configuration',
        ) from None
