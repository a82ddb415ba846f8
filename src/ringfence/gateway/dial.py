"""Names to addresses to connections, on the far side of policy.

A name gets here only after policy has not refused it. It is resolved once; every answer is judged (guards,
address rules); what is judged is what is dialled, literally, so there is nothing to rebind between the check
and the connection. Caching keeps answers, never judgements: a policy that changed a moment ago judges the
next connection.

``localhost`` is the host's loopback; then come static names, then whatever the lookup says. Many connections
to one name cause one question. Everything is bounded: the cache, the answers that are kept of one name, the
questions in flight of one sandbox.

Connections race as RFC 8305 says: families alternate, the next address starts when the last one failed or
after a quarter of a second, the first that connects wins and the others are closed before anything was sent
to them. A family that went first and lost goes second for a while, everywhere: where IPv6 leads nowhere it does
so for every destination, and each would cost the quarter of a second.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TypeVar

from ringfence.gateway.lookup import SystemLookup, Unresolved
from ringfence.policy.model import Decision
from ringfence.policy.names import LOCALHOST, ipv6_text

__all__ = [
    "Answers",
    "Dialer",
    "Judge",
    "Lookup",
    "Refused",
    "Unconnected",
    "Unresolved",
    "own_addresses",
    "reason",
    "silence",
]

ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)
PortT = TypeVar("PortT", int, None, int | None)
Judge = Callable[[str], Decision]
Answers = tuple[tuple[str, int | None], ...]
"""Addresses of a name, each with the port that a static name puts in place of the one asked for."""
Lookup = Callable[[str], Awaitable[tuple[Sequence[str], float]]]
"""From a name to addresses and the seconds that they may be kept; raises :class:`Unresolved`."""

STAGGER = 0.25
"""Seconds until the next address joins the race (RFC 8305 section 8)."""
MEMORY = 600.0
"""Seconds that a family goes second after it went first and lost."""
ANSWERS = 16
"""Addresses kept of one name."""
IN_FLIGHT = 256
"""Names that are being looked up at one time for one owner."""
_LONGEST, _SHORTEST, _ABSENT, _FAILED = 3_600.0, 1.0, 5.0, 1.0
"""Bounds of the time to live; seconds to remember that a name has no address, that nobody could say."""

_LOOPBACK: Answers = (("127.0.0.1", None), ("::1", None))
_LOOPBACK_TEXTS = frozenset(address for address, _ in _LOOPBACK)


class Refused(Exception):
    """No address of the name may be dialled; ``decision`` is the first refusal."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.text)
        self.decision = decision


class Unconnected(OSError):
    """None of the addresses answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of a name until a time of the loop's clock: answers, or why there are none."""

    answers: Answers = ()
    text: str = ""
    until: float = 0.0


class Dialer:
    """Resolves, judges and connects for one gateway worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        resolve: Mapping[str, tuple[str, int | None]],
        lookup: Lookup | None = None,
        capacity: int = 65_536,
    ) -> None:
        """``resolve``: canonical names, each with an address and perhaps a port. Raises ``ValueError``."""
        self._loop = loop
        self._static: dict[str, Answers] = {
            name: ((_canonical(address), port),) for name, (address, port) in resolve.items()
        }
        self._static[LOCALHOST] = _LOOPBACK
        self._lookup: Lookup = lookup or SystemLookup()
        self._capacity = capacity
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._flights: dict[str, asyncio.Task[_Known]] = {}
        self._asking: Counter[str] = Counter()
        self._six_is_late = False
        self._late_until = 0.0
        """Until when one family goes second: IPv6, or else IPv4."""

    def close(self) -> None:
        """Give up what is being looked up."""
        for flight in self._flights.values():
            flight.cancel()

    def is_static(self, name: str) -> bool:
        """Whether the configuration says where a name is; nobody else may be asked then."""
        return name in self._static

    def cached(self, name: str) -> Answers | None:
        """Return what is known of a name without asking anybody. The answers are not judged: see :meth:`judged`."""
        static = self._static.get(name)
        if static is not None:
            return static
        known = self._recall(name)
        return known.answers or None if known is not None else None

    def place(self, name: str, port: int, judge: Judge) -> tuple[str, int] | None:
        """Return the address and port that a connection goes to where there is nothing to ask, to choose or to refuse;
        else ask for :meth:`addresses`.
        """
        answers = self.cached(name) or _literal(name)
        if answers is None or len(answers) != 1 or not judge(answers[0][0]).allowed:
            return None
        address, instead = answers[0]
        return address, port if instead is None else instead

    async def addresses(
        self, name: str, port: int, judge: Judge, *, owner: str = ""
    ) -> list[tuple[str, int]]:
        """Return where a connection to a name or address may go, best first.

        ``owner`` is the sandbox on whose account a question goes that has to be asked. Raises
        :class:`Refused` if no answer passes and :class:`Unresolved` if there is none.
        """
        answers = self.cached(name) or _literal(name)
        if answers is None:
            known = self._recall(name) or await self._resolved(name, owner)
            if not known.answers:
                raise Unresolved(known.text)
            answers = known.answers
        found = self.judged(answers, port, judge)
        if len(found) > 1 and self._late_until > self._loop.time() and name != LOCALHOST:
            return _alternating(found, six_first=not self._six_is_late)
        return found

    @staticmethod
    def judged(answers: Answers, port: int, judge: Judge) -> list[tuple[str, int]]:
        """Drop the answers that may not be dialled. Raises :class:`Refused` if none is left."""
        passed: list[tuple[str, int]] = []
        refusal: Decision | None = None
        for address, instead in answers:
            decision = judge(address)
            if decision.allowed:
                passed.append((address, port if instead is None else instead))
            elif refusal is None:
                refusal = decision
        if not passed:
            raise Refused(refusal or Decision())
        return passed

    async def connect(
        self,
        addresses: Sequence[tuple[str, int]],
        factory: Callable[[], ProtocolT],
        *,
        timeout: float,  # noqa: ASYNC109  # one limit over the whole race, and one error for it
    ) -> tuple[asyncio.Transport, ProtocolT, tuple[str, int]]:
        """Connect to the first address that answers within ``timeout`` seconds, or raise :class:`Unconnected`."""
        try:
            async with asyncio.timeout(timeout):
                if len(addresses) == 1:
                    # A race of one needs no socket of its own: a quarter of the price.
                    transport, protocol = await self.reach(addresses[0], factory)
                    return transport, protocol, addresses[0]
                sock, address = await self._race(addresses)
                try:
                    transport, protocol = await self._loop.create_connection(factory, sock=sock)
                except BaseException:
                    sock.close()
                    raise
                return transport, protocol, address
        except TimeoutError:
            raise Unconnected(silence(timeout)) from None
        except OSError as error:
            raise Unconnected(reason(error)) from error

    def reach(
        self, address: tuple[str, int], factory: Callable[[], ProtocolT]
    ) -> Coroutine[object, object, tuple[asyncio.Transport, ProtocolT]]:
        """Connect to one address, however long that takes. Raises ``OSError``."""
        return self._loop.create_connection(factory, *address)

    def associate(self, addresses: Sequence[tuple[str, int]]) -> tuple[socket.socket, str]:
        """Return a UDP socket that speaks with the first address there is a way to, and that address.

        Nobody answers to a connected UDP socket but whom it is connected to. Raises :class:`Unconnected`.
        """
        error: OSError = OSError("there is no address to dial")
        for address, port in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                sock.connect((address, port))
            except OSError as flaw:
                sock.close()
                error = flaw
            else:
                return sock, address
        raise Unconnected(reason(error)) from error

    # -- names -----------------------------------------------------------------------------------------------

    def _recall(self, name: str) -> _Known | None:
        known = self._known.get(name)
        if known is None or known.until <= self._loop.time():
            return None
        self._known.move_to_end(name)
        return known

    async def _resolved(self, name: str, owner: str) -> _Known:
        """Look a name up, or join whoever does already."""
        flight = self._flights.get(name)
        if flight is None:
            if self._asking[owner] >= IN_FLIGHT:
                raise Unresolved("too many names are being looked up")
            flight = self._loop.create_task(self._look(name))
            self._flights[name] = flight
            self._asking[owner] += 1
            flight.add_done_callback(lambda _: self._landed(name, owner))
        # Who gives up leaves the question to the others, and its answer to the cache.
        return await asyncio.shield(flight)

    def _landed(self, name: str, owner: str) -> None:
        del self._flights[name]
        self._asking[owner] -= 1
        if not self._asking[owner]:
            del self._asking[owner]

    async def _look(self, name: str) -> _Known:
        try:
            found, ttl = await self._lookup(name)
        except Unresolved as error:
            known = self._learned((), _ABSENT if error.lasting else _FAILED, str(error))
        else:
            answers = _ordered(found)
            ttl = min(max(ttl, _SHORTEST), _LONGEST) if answers else _ABSENT
            known = self._learned(answers, ttl, f"`{name}` has no address")
        self._known[name] = known
        self._known.move_to_end(name)
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return known

    def _learned(self, answers: Answers, ttl: float, text: str) -> _Known:
        return _Known(answers=answers, text="" if answers else text, until=self._loop.time() + ttl)

    # -- connections -----------------------------------------------------------------------------------------

    async def _race(self, addresses: Sequence[tuple[str, int]]) -> tuple[socket.socket, tuple[str, int]]:
        """Return the connected socket of the address that was first, and that address."""
        waiting = list(addresses)
        running: dict[asyncio.Task[socket.socket], tuple[str, int]] = {}
        error: OSError = OSError("there is no address to dial")
        try:
            while waiting or running:
                if waiting:
                    address = waiting.pop(0)
                    running[self._loop.create_task(self._attempt(address))] = address
                done, _ = await asyncio.wait(
                    running, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for attempt in done:
                    address = running.pop(attempt)
                    failure = attempt.exception()
                    if failure is None:
                        if not isinstance(error, ConnectionRefusedError):  # else the way there is fine
                            self._learn(addresses[0][0], address[0])
                        return attempt.result(), address
                    if not isinstance(failure, OSError):
                        raise failure
                    error = failure
            raise error
        finally:
            for attempt in running:
                attempt.cancel()
                attempt.add_done_callback(_close_late)

    def _learn(self, first: str, winner: str) -> None:
        """A race is over. Loopback is no network: who is there says nothing of others."""
        six = ":" in first
        if six is not (":" in winner) and first not in _LOOPBACK_TEXTS:
            self._six_is_late = six
            self._late_until = self._loop.time() + MEMORY

    async def _attempt(self, address: tuple[str, int]) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    """An attempt that connected in the same turn as the winner, or as it was cancelled."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def reason(error: OSError) -> str:
    """Say why there is no connection."""
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


def silence(seconds: float) -> str:
    """Say that nobody answered for so long."""
    return f"no answer within {seconds:g} s"


def _canonical(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    return str(parsed) if parsed.version == 4 else ipv6_text(int(parsed))


def _literal(name: str) -> Answers | None:
    try:
        return ((_canonical(name), None),)
    except ValueError:
        return None


def _ordered(found: Sequence[str]) -> Answers:
    """Alternate the families, IPv6 first (RFC 8305 section 4); what is no address is dropped."""
    literals = (literal[0] for answer in found[:ANSWERS] if (literal := _literal(answer)) is not None)
    return tuple(_alternating(list(dict.fromkeys(literals)), six_first=True))


def _alternating(addresses: Sequence[tuple[str, PortT]], *, six_first: bool) -> list[tuple[str, PortT]]:
    six = [each for each in addresses if ":" in each[0]]
    four = [each for each in addresses if ":" not in each[0]]
    pairs = zip_longest(six, four) if six_first else zip_longest(four, six)
    return [each for each in chain.from_iterable(pairs) if each is not None]


# -- the host's own addresses --------------------------------------------------------------------------------

_RTM_NEWADDR, _RTM_GETADDR, _NLMSG_ERROR, _NLMSG_DONE = 20, 22, 2, 3
_NLM_F_REQUEST_DUMP = 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def own_addresses() -> frozenset[str]:
    """Return every address of every interface of this network namespace, asked of the kernel (rtnetlink(7)).

    Raises ``OSError`` if the kernel does not say: a guard that does not know its addresses must not guess.
    """
    request = struct.pack("=IHHIIB3xI", 24, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0, 0, 0)
    found: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(5)
        netlink.send(request)
        while True:
            reply = netlink.recv(1 << 16)
            at = 0
            while at + 16 <= len(reply):
                size, kind = struct.unpack_from("=IH", reply, at)
                if kind == _NLMSG_DONE:
                    return frozenset(found)
                if kind == _NLMSG_ERROR or size < 16:
                    raise OSError("the kernel does not list its addresses")
                if kind == _RTM_NEWADDR:
                    found |= _message_addresses(reply[at + 16 : at + size])
                at += size + 3 & ~3


def _message_addresses(message: bytes) -> set[str]:
    """Read one ``ifaddrmsg``: the local address, and the peer's only where there is no other."""
    family = message[0]
    attributes: dict[int, bytes] = {}
    at = 8
    while at + 4 <= len(message):
        size, kind = struct.unpack_from("=HH", message, at)
        if size < 4:
            break
        attributes[kind] = message[at + 4 : at + size]
        at += size + 3 & ~3
    packed = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
    if packed is None or family not in (socket.AF_INET, socket.AF_INET6):
        return set()
    return {_canonical(socket.inet_ntop(family, packed))}
