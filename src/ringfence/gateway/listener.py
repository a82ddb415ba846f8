"""Listeners that live inside sandboxes, and where the connections on them were meant to go.

A listener's role says which door it is: ``proxy4``/``proxy6`` for clients that know they have a proxy,
``transparent4``/ ``transparent6`` for connections that the enclosure's nftables redirected here. Of the
latter the kernel remembers the destination (``SO_ORIGINAL_DST``); if that is a synthetic address, the
sandbox's resolver knows which name it stands for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Final, cast

from ringfence.gateway.core import connection
from ringfence.gateway.core.connection import Phase
from ringfence.gateway.core.subject import UNMAPPED
from ringfence.gateway.relay import ClientLink
from ringfence.policy.model import Decision
from ringfence.policy.names import LOCALHOST, canonical_host

if TYPE_CHECKING:
    from ringfence.gateway.guest import Guest

_BACKLOG: Final = 512
_ORIGINAL_DST: Final = 80
"""``SO_ORIGINAL_DST`` and ``IP6T_SO_ORIGINAL_DST`` (``linux/netfilter_ipv4.h``)."""
_SOL_IPV6: Final = 41


async def listen(
    loop: asyncio.AbstractEventLoop, guest: Guest, role: str, sock: socket.socket
) -> Callable[[], None]:
    """Accept on a socket; return what ends that."""
    begin = _BEGINNINGS.get(role.rstrip("46"))
    if begin is None:
        raise ValueError(f"`{role}` is not a role")
    sock.setblocking(False)
    server = await loop.create_server(
        lambda: ClientLink(guest, lambda link: begin(guest, link)), sock=sock, backlog=_BACKLOG
    )
    return server.close


def _explicit(guest: Guest, link: ClientLink) -> Phase | None:
    return connection.explicit(
        link,
        guest.subject,
        time(),
        canary=_is_canary(guest, link),
        locate=lambda host: _located(guest, link, host),
    )


def _redirected(guest: Guest, link: ClientLink) -> Phase | None:
    """Work out where a redirected connection was going."""
    address, port = original_destination(link.transport)
    host, refusal = _located(guest, link, address)
    canary = _is_canary(guest, link)
    return connection.redirected(link, guest.subject, host, port, time(), canary=canary, refusal=refusal)


def _located(guest: Guest, link: ClientLink, host: str) -> tuple[str, Decision | None]:
    """Return the host that is meant: a synthetic address stands for the name that it was given for, or for nothing.

    A client resolves a name as it likes and says the address, to the kernel or to a proxy.
    """
    if not (host[-1:].isdigit() or ":" in host):
        return host, None
    addresses, names = guest.addresses, guest.names
    if host in (addresses.host4, addresses.host6):
        return LOCALHOST, None
    if not names.contains(host):
        return host, None
    name = names.name(host)
    if name is None:
        return host, UNMAPPED
    names.hold(host)
    link.held = host
    return name, None


_BEGINNINGS: Final[dict[str, Callable[[Guest, ClientLink], Phase | None]]] = {
    "proxy": _explicit,
    "transparent": _redirected,
}


def _is_canary(guest: Guest, link: ClientLink) -> bool:
    """Whether a connection comes from the address that only the enclosure's own probes have."""
    peer = link.transport.get_extra_info("peername")
    return bool(peer) and peer[0].removeprefix("::ffff:") in (
        guest.addresses.canary4,
        guest.addresses.canary6,
    )


def original_destination(transport: asyncio.Transport) -> tuple[str, int]:
    """Return the address and port that a client connected to before it was redirected."""
    sock = cast("socket.socket", transport.get_extra_info("socket"))
    try:
        if sock.family == socket.AF_INET6:
            told = sock.getsockopt(_SOL_IPV6, _ORIGINAL_DST, 28)
            port, raw = struct.unpack("!2xH4x16s", told[:24])
        else:
            told = sock.getsockopt(socket.SOL_IP, _ORIGINAL_DST, 16)
            port, raw = struct.unpack("!2xH4s", told[:8])
        return canonical_host(str(ipaddress.ip_address(raw))), port
    except OSError:
        # Not redirected: somebody found the listener's own port, which is the gateway's and leads nowhere.
        name = transport.get_extra_info("sockname")
        return _plain(name[0]), name[1]


def _plain(address: str) -> str:
    """An IPv4 address in the notation of its own family, without a zone."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)
