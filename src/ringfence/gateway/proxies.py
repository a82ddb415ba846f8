"""The way to an origin where there is an upstream proxy (``core.chain`` says which, and what is said to it).

Policy comes first and is the same: a name is resolved here, whatever the proxy does; every answer is judged; the
address that was judged is what the proxy is asked for, and the certificate must prove the name. Only where the proxy
resolves names itself (``proxy.resolve = "remote"``, ``socks5h``, and plain HTTP, which is sent on as it is) it may find
another address than we did: then every answer that we get must pass, not one of them.

The proxy's own address is an administrator's, so no guard stands before it; but a sandbox does not get to it, neither
by name nor by address: what is sent there must be ours.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from ringfence.gateway.backends import explain
from ringfence.gateway.core.chain import (
    HEAD,
    Chain,
    Dialogue,
    Proxy,
    Scheme,
    Unwilling,
    authority,
    dialogue,
)
from ringfence.gateway.core.heads import render_request
from ringfence.gateway.core.messages import Request, Route
from ringfence.gateway.dial import Dialer, Judge, Refused, Unconnected, Unresolved
from ringfence.gateway.uplink import Unreached, UpstreamLink
from ringfence.gateway.upstream import Upstreams
from ringfence.policy.addresses import embedded, parse_address
from ringfence.policy.model import Decision, Reason, Verdict
from ringfence.policy.names import LOCALHOST

if TYPE_CHECKING:
    from ringfence.gateway.core.flow import Flow

ATTEMPTS: Final = 4
"""Addresses of one destination that a proxy is asked for, one after another."""
_CONFIGURED: Final = Decision(verdict=Verdict.ALLOWED, reason=Reason.RULE, text="configured")
_PROXY: Final = Decision(reason=Reason.GUARD, text="the upstream proxy itself is not a destination")
_PLAIN: Final = frozenset({"http/1.1"})
_OUTLASTED: Final = 3600.0
"""Seconds of a step that has no limit of its own: one limit is over all of them."""


class Proxies:
    """Connects for all sandboxes of a worker."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, dialer: Dialer, chain: Chain, extra_ca: str = ""
    ) -> None:
        self._loop = loop
        self._dialer = dialer
        self._chain = chain
        self._context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.hostname_checks_common_name = False  # RFC 9525 section 6.3
        if extra_ca:
            self._context.load_verify_locations(cadata=extra_ca)
        self._places: dict[Proxy, list[tuple[str, int]]] = {}
        """Where the proxies were when somebody could say."""

    def stands_before(self, host: str, port: int) -> bool:
        """Whether a destination is reached through a proxy, whatever is spoken with it."""
        return host != LOCALHOST and self._chain.proxy_for(host, port, plain=False) is not None

    async def connect(self, pool: Upstreams, flow: Flow, route: Route, judge: Judge) -> UpstreamLink:
        """Return a connection that is the origin's; TLS with it has not begun. Raises :class:`Unreached` and
        :class:`Refused`.
        """
        plain = not route.server_name and flow.protocol in _PLAIN
        proxy = None
        if route.host != LOCALHOST:  # the host's loopback is nobody else's
            proxy = self._chain.proxy_for(route.host, route.port, plain=plain)
        limit = pool.subject.limits.dial_time
        try:
            async with asyncio.timeout(limit):
                if proxy is None:
                    return await self._straight(pool, route, judge)
                if plain and proxy.speaks_http:
                    return await self._forwarded(proxy, pool, route, judge)
                return await self._tunnelled(proxy, pool, route, judge)
        except TimeoutError:
            who = f"the upstream proxy {proxy} did not answer" if proxy else "no answer"
            raise Unreached(502, f"{who} within {limit:g} s") from None
        except (Unresolved, Unconnected) as flaw:
            raise Unreached(502, str(flaw)) from None

    # -- three ways ---------------------------------------------------------------------------------------

    async def _straight(self, pool: Upstreams, route: Route, judge: Judge) -> UpstreamLink:
        found = await self._judged(pool, route, judge)
        _, link, (address, _) = await self._dialer.connect(
            found, lambda: UpstreamLink(pool, route), timeout=_OUTLASTED
        )
        link.address = address
        return link

    async def _forwarded(self, proxy: Proxy, pool: Upstreams, route: Route, judge: Judge) -> UpstreamLink:
        """Plain HTTP goes on by name, because a proxy makes the Host of it (RFC 9112 section 3.2.2)."""
        fixed = self._dialer.is_static(route.host)
        found = await self._judged(pool, route, judge if fixed else _strictly(judge))
        host, port = found[0] if fixed else (route.host, route.port)
        origin = b"http://" + authority(host, port).removesuffix(":80").encode()
        link = await self._opened(proxy, None, lambda: ForwardedLink(pool, route, proxy, origin))
        link.address = found[0][0]
        return link

    async def _tunnelled(self, proxy: Proxy, pool: Upstreams, route: Route, judge: Judge) -> UpstreamLink:
        named = self._chain.resolves(proxy) and not self._dialer.is_static(route.host)
        found = await self._judged(pool, route, _strictly(judge) if named else judge)
        asked = [(route.host, route.port)] if named else found[:ATTEMPTS]
        for place in asked:
            try:
                link = await self._opened(proxy, dialogue(proxy, *place), lambda: UpstreamLink(pool, route))
            except Unwilling as flaw:
                if flaw.elsewhere and place != asked[-1]:
                    continue
                raise Unreached(502, f"the upstream proxy {proxy} {flaw.text}") from None
            link.address = found[0][0] if named else place[0]
            return link
        raise AssertionError("a destination has an address")

    # -- addresses ----------------------------------------------------------------------------------------

    async def _judged(self, pool: Upstreams, route: Route, judge: Judge) -> list[tuple[str, int]]:
        """Return where a destination is, judged. A proxy, or what some translator may turn into one, is none."""
        owner = pool.subject.id
        found = await self._dialer.addresses(route.host, route.port, judge, owner=owner)
        own = [place for proxy in self._chain.proxies for place in await self._located(proxy)]
        for text, port in found:
            address = parse_address(text)
            if any((str(each), port) in own for each in (address, *embedded(address))):
                raise Refused(_PROXY)
        return found

    async def _located(self, proxy: Proxy) -> list[tuple[str, int]]:
        """Where a proxy is, or was when somebody could say."""
        try:
            found = await self._dialer.addresses(proxy.host, proxy.port, lambda _: _CONFIGURED)
        except Unresolved:
            return self._places.get(proxy, [])
        self._places[proxy] = found
        return found

    # -- connections --------------------------------------------------------------------------------------

    async def _opened(
        self, proxy: Proxy, talk: Dialogue | None, factory: Callable[[], UpstreamLink]
    ) -> UpstreamLink:
        """Connect to a proxy, talk to it, and make what comes of that a link."""
        try:
            places = await self._dialer.addresses(proxy.host, proxy.port, lambda _: _CONFIGURED)
            transport, heard, _ = await self._dialer.connect(
                places, lambda: _Preamble(self._loop), timeout=_OUTLASTED
            )
        except (Unresolved, Unconnected) as flaw:
            raise Unreached(502, f"the upstream proxy {proxy} cannot be reached: {flaw}") from None
        try:
            if proxy.scheme is Scheme.HTTPS:
                transport = await self._secured(transport, heard, proxy)
            rest = await _talked(transport, heard, talk) if talk is not None else b""
            if heard.ended:
                raise Unwilling("closed the connection")
        except BaseException:
            transport.abort()
            raise
        link = factory()
        link.connection_made(transport)
        transport.set_protocol(link)
        if rest:  # the far side speaks first, and the link's owner is not there before this task has returned
            transport.pause_reading()
            self._loop.call_soon(_deliver, transport, rest)
        return link

    async def _secured(
        self, transport: asyncio.Transport, heard: _Preamble, proxy: Proxy
    ) -> asyncio.Transport:
        try:
            secured = await self._loop.start_tls(transport, heard, self._context, server_hostname=proxy.host)
        except ssl.SSLError as flaw:
            why = explain(flaw)
        except OSError as flaw:
            why = f"TLS failed: {flaw}"
        else:
            assert secured is not None
            heard.transport = secured
            return secured
        raise Unreached(502, f"the upstream proxy {proxy} cannot be reached: {why}")


def _strictly(judge: Judge) -> Judge:
    """Return a judge whose first refusal refuses all: somebody else picks the address."""

    def strict(address: str) -> Decision:
        decision = judge(address)
        if not decision.allowed:
            raise Refused(decision)
        return decision

    return strict


async def _talked(transport: asyncio.Transport, heard: _Preamble, talk: Dialogue) -> bytes:
    """Hold a dialogue; return what the proxy sent behind it."""
    said = next(talk)
    while True:
        answer = b""
        if said:
            transport.write(said)
        elif not (answer := await heard.more()):
            raise Unwilling("closed the connection")
        try:
            said = talk.send(answer)
        except StopIteration as end:
            return bytes(end.value) + heard.rest()


def _deliver(transport: asyncio.Transport, rest: bytes) -> None:
    if transport.is_closing():
        return
    protocol = transport.get_protocol()
    assert isinstance(protocol, asyncio.Protocol)
    protocol.data_received(rest)
    if not transport.is_closing():
        transport.resume_reading()


class _Preamble(asyncio.Protocol):
    """A connection to a proxy, before it is anybody else's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived = b""
        self.ended = False
        """It says no more."""
        self._waiting: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._arrived += data
        if len(self._arrived) > HEAD:
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self.ended = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # however it ended, it ended
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def more(self) -> bytes:
        """Wait for bytes; none means that there will be none."""
        if not self._arrived and not self.ended:
            self._waiting = self._loop.create_future()
            self.transport.resume_reading()
            await self._waiting
        return self.rest()

    def rest(self) -> bytes:
        arrived, self._arrived = self._arrived, b""
        return arrived


class ForwardedLink(UpstreamLink):
    """A connection to a proxy that plain HTTP requests are sent on through, each with its absolute URL (RFC 9112
    section 3.2.2) and the proxy's own credentials.
    """

    __slots__ = ("_asked", "_origin", "_proxy")

    def __init__(self, pool: Upstreams, route: Route, proxy: Proxy, origin: bytes) -> None:
        super().__init__(pool, route)
        self._proxy = proxy
        self._origin = origin
        self._asked = False

    def render(self, request: Request, host: bytes) -> bytes:
        """Write a request's head: our own, so its first two spaces and its first CRLF are where they should be."""
        self._asked = True
        method, target, rest = render_request(request, host).split(b" ", 2)
        line, end, fields = rest.partition(b"\r\n")
        ours = self._proxy.authorization
        return b"%b %b%b %b%b%b%b" % (method, self._origin, target, line, end, ours, fields)

    def plain(self, data: bytes) -> None:
        if self._asked:
            self._asked = False
            if data[9:12] == b"407":  # the proxy's word to us; a client here has no proxy but this gateway
                other = "other " if self._proxy.authorization else ""
                self._gone(f"the upstream proxy {self._proxy} wants {other}credentials: 407")
                return
        super().plain(data)
