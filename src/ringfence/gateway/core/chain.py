"""The upstream proxy as a value, and what is said to it (RFC 9110 section 9.3.6, RFC 1928, RFC 1929).

``Chain`` says which proxy a destination goes through, if any. The two dialogues are generators: they yield bytes for
the proxy and go on at once, or yield nothing and are sent what it answered; they return what came after its answer,
which is the destination's. A proxy is trusted with where to, and with little else: its answer is bounded and read
strictly, and nothing of it goes further than a status and a few printable characters in an error.

A proxy's credentials are in its ``Proxy`` and in the bytes for it, in no ``repr``, no ``str`` and no error.

Fuzzed by ``python -m fuzz chain`` (corpus: ``fuzz/corpus/chain``).
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.names import canonical_host, canonical_name, parse_port, split_authority

Dialogue = Generator[bytes, bytes, bytes]

HEAD: Final = 16_384
"""Bytes that a proxy may take to answer a CONNECT."""
_CREDENTIAL: Final = 255
"""Bytes of a name or a password (RFC 1929)."""
_REASON: Final = 80
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: ([^\r\n]*))?\r\n")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_REPLIES: Final = {
    1: "it failed",
    2: "its rules do not allow it",
    3: "the network cannot be reached",
    4: "the host cannot be reached",
    5: "the connection was refused",
    6: "it took too long",
    7: "it does not serve CONNECT",
    8: "it does not serve such an address",
}
_ELSEWHERE: Final = frozenset({3, 4, 5, 6, 8})
"""Replies after which another address of the same name is worth a try."""


class Scheme(StrEnum):
    """How a proxy is spoken to."""

    HTTP = "http"
    HTTPS = "https"
    SOCKS5 = "socks5"
    SOCKS5H = "socks5h"
    """The proxy resolves names."""


_PORTS: Final = {Scheme.HTTP: 80, Scheme.HTTPS: 443, Scheme.SOCKS5: 1080, Scheme.SOCKS5H: 1080}


class Unwilling(Exception):
    """The proxy does not do it. ``elsewhere``: it may for another address of the same destination."""

    def __init__(self, text: str, *, elsewhere: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.elsewhere = elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One upstream proxy. ``str`` names it without its credentials."""

    scheme: Scheme
    host: str
    port: int
    user: bytes = field(default=b"", repr=False)
    password: bytes = field(default=b"", repr=False)

    @property
    def speaks_http(self) -> bool:
        return self.scheme in (Scheme.HTTP, Scheme.HTTPS)

    @property
    def masked(self) -> str:
        """The URL as a report shows it."""
        return self._url("***:***@" if self.user or self.password else "")

    @property
    def authorization(self) -> bytes:
        """The header line that proves who asks; empty without credentials."""
        if not (self.user or self.password):
            return b""
        return b"Proxy-Authorization: Basic %b\r\n" % base64.b64encode(self.user + b":" + self.password)

    def __str__(self) -> str:
        return self._url("")

    def _url(self, who: str) -> str:
        return f"{self.scheme}://{who}{authority(self.host, self.port)}"

    def to_wire(self) -> dict[str, Any]:
        return {
            "scheme": self.scheme.value,
            "host": self.host,
            "port": self.port,
            "user": self.user.decode("latin-1"),
            "password": self.password.decode("latin-1"),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Proxy:
        return cls(
            scheme=Scheme(wire["scheme"]),
            host=canonical_host(wire["host"]),
            port=parse_port(str(wire["port"]), "a port"),
            user=wire["user"].encode("latin-1"),
            password=wire["password"].encode("latin-1"),
        )


def parse_proxy(text: str) -> Proxy:
    """Return the proxy that a URL names. Raises ``ValueError``, whose text quotes nothing of the credentials."""
    scheme, separated, rest = text.strip().partition("://")
    known = {each.value: each for each in Scheme}.get(scheme.lower())
    if not separated or known is None:
        raise ValueError(
            "a proxy is written `http://`, `https://`, `socks5://` or `socks5h://` and `host:port`"
        )
    who, _, place = rest.rpartition("@")
    place = place.removesuffix("/")
    try:
        host, port = split_authority(place, _PORTS[known])
    except InvalidPolicy:
        raise ValueError("the proxy's address is neither `host:port` nor `[address]:port`") from None
    user, _, password = who.partition(":")
    try:
        proxy = Proxy(scheme=known, host=host, port=port, user=_decoded(user), password=_decoded(password))
    except ValueError:
        raise ValueError(
            "the proxy's user or password cannot be sent; write `%40` for `@`, `%25` for `%`"
        ) from None
    if (proxy.password and not proxy.user) or b":" in proxy.user:
        raise ValueError("the proxy's password needs a user, and the user no colon")
    return proxy


def _decoded(text: str) -> bytes:
    raw = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), text.encode())
    if _BAD_ESCAPE.search(text) or len(raw) > _CREDENTIAL or any(each < 32 or each == 127 for each in raw):
        raise ValueError
    return raw


# -- which proxy, if any -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exemption:
    """One entry of ``no_proxy``: ``*``, ``name``, ``.suffix``, an address, a range; with ``:port`` only there.

    A name exempts what is below it too, as nearly every reader of ``NO_PROXY`` has it; a suffix only that. Addresses
    and ranges are about destinations that are addresses themselves: what a name resolves to is not looked at.
    """

    name: str = ""
    below_only: bool = False
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    port: int = 0

    def covers(self, host: str, port: int) -> bool:
        if self.port and self.port != port:
            return False
        if self.network is not None:
            try:
                return ipaddress.ip_address(host) in self.network
            except ValueError:
                return False
        if not self.name:
            return True
        return host.endswith(f".{self.name}") or (host == self.name and not self.below_only)


def parse_exemption(text: str) -> Exemption:
    """Return the entry that ``text`` is; raises ``ValueError``."""
    written = text.strip()
    place, port = written, 0
    if (written.count(":") == 1 or written.startswith("[")) and not written.endswith("]"):
        place, _, digits = written.rpartition(":")
        port = parse_port(digits, written)
    place = place.removeprefix("[").removesuffix("]")
    if place == "*":
        return Exemption(port=port)
    if "/" in place or ":" in place or re.fullmatch(r"[0-9.]+", place):
        return Exemption(network=ipaddress.ip_network(place, strict=False), port=port)
    suffix = place.removeprefix("*").removeprefix(".")
    return Exemption(name=canonical_name(suffix), below_only=suffix != place, port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Which proxy what goes through. The zero value is none."""

    plain: Proxy | None = None
    """For plain HTTP."""
    tunnels: Proxy | None = None
    """For TLS and everything else."""
    exemptions: tuple[str, ...] = ()
    remote: bool = False
    """The proxy is given names to resolve, not the addresses that were judged."""
    _parsed: tuple[Exemption, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parsed", tuple(map(parse_exemption, self.exemptions)))

    def proxy_for(self, host: str, port: int, *, plain: bool) -> Proxy | None:
        proxy = self.plain if plain else self.tunnels
        if proxy is None or any(each.covers(host, port) for each in self._parsed):
            return None
        return proxy

    @property
    def proxies(self) -> Sequence[Proxy]:
        return tuple(dict.fromkeys(each for each in (self.tunnels, self.plain) if each is not None))

    def resolves(self, proxy: Proxy) -> bool:
        """Whether a proxy resolves names itself."""
        return self.remote or proxy.scheme is Scheme.SOCKS5H

    def to_wire(self) -> dict[str, Any]:
        return {
            "plain": self.plain and self.plain.to_wire(),
            "tunnels": self.tunnels and self.tunnels.to_wire(),
            "exemptions": list(self.exemptions),
            "remote": self.remote,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Chain:
        """Rebuild a chain. What is wrong with it is not said: an error's text must never hold a password."""
        try:
            plain, tunnels = wire["plain"], wire["tunnels"]
            return cls(
                plain=Proxy.from_wire(plain) if plain else None,
                tunnels=Proxy.from_wire(tunnels) if tunnels else None,
                exemptions=tuple(map(str, wire["exemptions"])),
                remote=bool(wire["remote"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError("the upstream proxy is not understood") from None


# -- what is said to it --------------------------------------------------------------------------------------


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dialogue(proxy: Proxy, host: str, port: int) -> Dialogue:
    """Ask a proxy for a connection to a name or an address."""
    if proxy.speaks_http:
        return _http(authority(host, port).encode(), proxy.authorization)
    return _socks(proxy, host, port)


def _http(place: bytes, authorization: bytes) -> Dialogue:
    answer = yield b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (place, place, authorization)
    while (end := answer.find(b"\r\n\r\n")) < 0 and len(answer) <= HEAD:
        answer += yield b""
    if not 0 <= end <= HEAD:
        raise Unwilling("answered with a head that is too long")
    status = _STATUS.match(answer)
    if status is None:
        raise Unwilling("does not speak HTTP")
    code = int(status[1])
    if 200 <= code < 300:
        return answer[end + 4 :]  # a body that the head may announce is none (RFC 9110 section 9.3.6)
    said = f"{code} {_printable(status[2] or b'')}".rstrip()
    if code == 407:
        raise Unwilling(f"wants {'other ' if authorization else ''}credentials: {said}")
    raise Unwilling(f"refused the connection: {said}", elsewhere=code in (502, 503, 504))


def _socks(proxy: Proxy, host: str, port: int) -> Dialogue:
    known = bool(proxy.user)
    heard = yield b"\x05\x02\x00\x02" if known else b"\x05\x01\x00"
    while len(heard) < 2:
        heard += yield b""
    version, method, heard = heard[0], heard[1], heard[2:]
    if version != 5:
        raise Unwilling("does not speak SOCKS5")
    if method == 2 and known:
        heard += yield b"\x01%c%b%c%b" % (len(proxy.user), proxy.user, len(proxy.password), proxy.password)
        while len(heard) < 2:
            heard += yield b""
        if heard[0] != 1 or heard[1]:
            raise Unwilling("wants other credentials")
        heard = heard[2:]
    elif method:
        raise Unwilling(
            "wants credentials" if method in (2, 255) and not known else "offers no method that we have"
        )
    heard += yield b"\x05\x01\x00%b%b" % (_socks_address(host), port.to_bytes(2, "big"))
    while len(heard) < 5:
        heard += yield b""
    version, code, _, kind, first = heard[:5]
    if version != 5:
        raise Unwilling("does not speak SOCKS5")
    if code:
        text = _REPLIES.get(code, f"reply {code}")
        raise Unwilling(f"refused the connection: {text}", elsewhere=code in _ELSEWHERE)
    size = {1: 10, 3: 7 + first, 4: 22}.get(kind)
    if size is None:
        raise Unwilling("does not speak SOCKS5")
    while len(heard) < size:
        heard += yield b""
    return heard[size:]


def _socks_address(host: str) -> bytes:
    try:
        packed = ipaddress.ip_address(host).packed
    except ValueError:
        name = host.encode("ascii")
        return b"\x03%c%b" % (len(name), name)
    return (b"\x01" if len(packed) == 4 else b"\x04") + packed


def _printable(text: bytes) -> str:
    return "".join(chr(each) for each in text[:_REASON] if 32 <= each < 127)
