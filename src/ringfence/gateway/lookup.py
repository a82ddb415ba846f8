"""The host's own way of turning a name into addresses: ``/etc/hosts``, then the servers of ``/etc/resolv.conf``.

What ``getaddrinfo`` would say, with the time to live that it hides and without its threads. No search
domains: a name is asked as policy judged it. Both families are asked at once; the one that comes late is
waited for a moment only (RFC 8305 section 3), and an answer without it is kept for a moment only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Sequence

import dns._features

# What is asked over HTTP and QUIC is nobody's question here, and its clients, where some are installed, would be loaded
# with the resolver: a third of the worker's start and 10 MB of its memory.
for feature in ("doh", "doq"):
    dns._features.force(feature, False)

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype

# The worker gives up its privileges, and with them perhaps the files of its Python, before the first
# question; what dnspython would load on first use is loaded here.
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.resolver

dns.asyncbackend.get_backend("asyncio")

HOSTS = "/etc/hosts"
RESOLV_CONF = "/etc/resolv.conf"

LIFETIME = 10.0
"""Seconds that one name may take in all, every server and retry included."""
LATECOMER = 0.25
"""Seconds that an answer of one family waits for the other's."""
SHORT = 5.0
"""Seconds that an answer is kept whose time to live is not known: from a file, or of one family only."""
_HOSTS_LIMIT = 1 << 20


class Unresolved(Exception):
    """A name has no addresses, or nobody could be asked. ``lasting``: the name is known not to have any."""

    def __init__(self, text: str, *, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


class SystemLookup:
    """Call it with a name; it returns addresses and the seconds that they may be kept, or raises :class:`Unresolved`.

    Both files are read again when they change: machines roam.
    """

    def __init__(self, *, hosts: str = HOSTS, resolv_conf: str = RESOLV_CONF, port: int = 53) -> None:
        self._hosts, self._resolv_conf, self._port = hosts, resolv_conf, port
        self._hosts_read: tuple[int, ...] = ()
        self._names: dict[str, list[str]] = {}
        self._resolver_read: tuple[int, ...] = ()
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def __call__(self, name: str) -> tuple[Sequence[str], float]:
        known = self._from_hosts(name)
        if known:
            return known, SHORT
        resolver = self._current_resolver()
        try:
            asked = dns.name.from_text(name)
        except dns.exception.DNSException as error:
            raise Unresolved(f"`{name}` is not a name: {error}", lasting=True) from error
        tasks = [
            asyncio.ensure_future(resolver.resolve(asked, kind, search=False, lifetime=LIFETIME))
            for kind in (dns.rdatatype.AAAA, dns.rdatatype.A)
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            late = LATECOMER if any(t.done() and t.exception() is None for t in tasks) else LIFETIME
            await asyncio.wait(tasks, timeout=late)
            return _joined(name, tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _from_hosts(self, name: str) -> Sequence[str]:
        stamp = _stamp(self._hosts)
        if stamp != self._hosts_read:
            self._hosts_read = stamp
            self._names = _hosts_names(self._hosts) if stamp else {}
        return self._names.get(name, ())

    def _current_resolver(self) -> dns.asyncresolver.Resolver:
        stamp = _stamp(self._resolv_conf)
        if self._resolver is None or stamp != self._resolver_read:
            try:
                self._resolver = dns.asyncresolver.Resolver(filename=self._resolv_conf)
            except (dns.exception.DNSException, OSError) as error:
                raise Unresolved(f"no name server can be asked: {error}") from error
            self._resolver.cache = None  # the dialer's is the one that is bounded by names
            self._resolver.port = self._port
            self._resolver_read = stamp
        return self._resolver


def _joined(name: str, tasks: Sequence[asyncio.Future[dns.resolver.Answer]]) -> tuple[Sequence[str], float]:
    """Put the answers of both families together."""
    addresses: list[str] = []
    ttl, absent, text = float("inf"), 0, "its servers did not answer in time"
    for task in tasks:
        if not task.done():
            ttl = min(ttl, SHORT)
            continue
        match task.exception():
            case None:
                answer = task.result()
                ttl = min(ttl, float(answer.chaining_result.minimum_ttl))
                addresses += [record.address for record in answer.rrset or ()]
            case dns.resolver.NXDOMAIN():
                absent += 1
                text = "the name does not exist"
            case dns.resolver.NoAnswer():
                absent += 1
                text = "the name has no address"
            case dns.exception.DNSException() | OSError() | ValueError() as error:
                ttl = min(ttl, SHORT)
                text = str(error) or type(error).__name__
            case BaseException() as error:
                raise error
    if not addresses:
        raise Unresolved(f"`{name}` cannot be resolved: {text}", lasting=absent == len(tasks))
    return addresses, ttl


def _stamp(path: str) -> tuple[int, ...]:
    """Return what changes when a file changes; empty if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _hosts_names(path: str) -> dict[str, list[str]]:
    """Read a hosts file; lines that make no sense are skipped, as every reader of it does."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_HOSTS_LIMIT).splitlines()
    except OSError:
        return {}
    names: dict[str, list[str]] = {}
    for line in lines:
        address, *aliases = line.partition("#")[0].split() or [""]
        try:
            canonical = str(ipaddress.ip_address(address))
        except ValueError:
            continue
        for alias in aliases:
            known = names.setdefault(alias.lower().removesuffix("."), [])
            if canonical not in known:
                known.append(canonical)
    return names
