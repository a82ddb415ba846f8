"""Guards: the addresses that no name reaches (RFC 6890, RFC 4291, RFC 6052, and what clouds put beside them).

A *danger* is what an address is. Three degrees follow from it:

* ``NEVER``: cloud metadata, loopback, the product's own endpoints. No rule reaches them.
* ``LITERAL``: link-local, multicast, unspecified, an address of this host. No name and no catch-all reaches them; a
  client that dials the literal address does, where an address rule narrower than a catch-all covers it.
* ``NARROW``: private ranges. Reached, by literal or through an allowed name, where such a rule covers them.

An IPv6 address that carries an IPv4 address (mapped, compatible, translated, NAT64, 6to4, Teredo) is judged as both:
some translator on the way may well unwrap it (CVE-2024-24790, CVE-2026-48782). RFC 8215's local NAT64 prefix does not
say where the IPv4 address sits, so every place that RFC 6052 allows is judged.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import lru_cache

from ringfence.policy.errors import InvalidPolicy, quote
from ringfence.policy.names import canonical_ipv6, ipv6_text


class Danger(StrEnum):
    """Why an address is guarded, as a refusal names it."""

    METADATA = "cloud metadata address"
    LOOPBACK = "loopback address"
    PRODUCT = "address of the gateway itself"
    LINK_LOCAL = "link-local address"
    MULTICAST = "multicast address"
    UNSPECIFIED = "unspecified address"
    HOST = "address of this host"
    PRIVATE = "private address"


class Degree(IntEnum):
    """What it takes to reach an address, weakest first."""

    OPEN = 0
    NARROW = 1
    LITERAL = 2
    NEVER = 3


DEGREES = {
    Danger.METADATA: Degree.NEVER,
    Danger.LOOPBACK: Degree.NEVER,
    Danger.PRODUCT: Degree.NEVER,
    Danger.LINK_LOCAL: Degree.LITERAL,
    Danger.MULTICAST: Degree.LITERAL,
    Danger.UNSPECIFIED: Degree.LITERAL,
    Danger.HOST: Degree.LITERAL,
    Danger.PRIVATE: Degree.NARROW,
}

# First match wins, so the narrow stands before the wide that contains it.
_RANGES: tuple[tuple[str, Danger], ...] = (
    ("169.254.169.254/32", Danger.METADATA),  # AWS, GCP, Azure, OpenStack, DigitalOcean
    ("169.254.170.2/32", Danger.METADATA),  # ECS task credentials
    ("169.254.170.23/32", Danger.METADATA),  # EKS pod identity
    ("100.100.100.200/32", Danger.METADATA),  # Alibaba
    ("168.63.129.16/32", Danger.METADATA),  # Azure's wire server
    ("192.0.0.192/32", Danger.METADATA),  # Oracle
    ("fd00:ec2::254/128", Danger.METADATA),  # AWS
    ("fd00:ec2::23/128", Danger.METADATA),  # EKS pod identity
    ("fd20:ce::254/128", Danger.METADATA),  # GCP
    ("198.18.0.0/15", Danger.PRODUCT),  # synthetic addresses: without a mapping they are nobody
    ("fd72:696e:6766::/48", Danger.PRODUCT),  # synthetic addresses and enclosures
    ("10.255.255.0/29", Danger.PRODUCT),  # the enclosure's own segment
    ("127.0.0.0/8", Danger.LOOPBACK),
    ("::1/128", Danger.LOOPBACK),
    ("0.0.0.0/8", Danger.UNSPECIFIED),  # Linux delivers 0.0.0.0 to itself
    ("::/128", Danger.UNSPECIFIED),
    ("169.254.0.0/16", Danger.LINK_LOCAL),
    ("fe80::/10", Danger.LINK_LOCAL),
    ("224.0.0.0/4", Danger.MULTICAST),
    ("255.255.255.255/32", Danger.MULTICAST),  # broadcast
    ("ff00::/8", Danger.MULTICAST),
    ("10.0.0.0/8", Danger.PRIVATE),
    ("172.16.0.0/12", Danger.PRIVATE),
    ("192.168.0.0/16", Danger.PRIVATE),
    ("100.64.0.0/10", Danger.PRIVATE),  # carrier-grade NAT, also many tailnets
    ("192.0.0.0/24", Danger.PRIVATE),  # IETF protocol assignments
    ("240.0.0.0/4", Danger.PRIVATE),  # reserved; some networks use it as their own
    ("fc00::/7", Danger.PRIVATE),
    ("fec0::/10", Danger.PRIVATE),  # site-local, deprecated and still routed
)


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address as a number; ``str`` gives its canonical text."""

    version: int
    value: int

    @property
    def bits(self) -> int:
        return 32 if self.version == 4 else 128

    def __str__(self) -> str:
        return ipv6_text(self.value) if self.version == 6 else str(ipaddress.IPv4Address(self.value))


@dataclass(frozen=True, slots=True)
class Network:
    """An address and how many of its leading bits count; the others are zero."""

    version: int
    value: int
    length: int

    @property
    def bits(self) -> int:
        return 32 if self.version == 4 else 128

    def covers(self, other: Network | Address) -> bool:
        """Whether every address of ``other`` is in this network."""
        shift = self.bits - self.length
        length = other.length if isinstance(other, Network) else other.bits
        return (
            self.version == other.version
            and self.length <= length
            and other.value >> shift == self.value >> shift
        )

    def __str__(self) -> str:
        address = str(Address(self.version, self.value))
        return address if self.length == self.bits else f"{address}/{self.length}"


def parse_address(text: str) -> Address:
    """Return the address that ``text`` is in canonical notation (IPv6: any RFC 4291 text without a zone)."""
    if ":" in text:
        return Address(6, int(ipaddress.IPv6Address(canonical_ipv6(text))))
    try:
        return Address(4, int(ipaddress.IPv4Address(text)))
    except ValueError as error:
        raise InvalidPolicy(f"{quote(text)} is not an address in its canonical notation") from error


def parse_network(text: str) -> Network:
    """Return the network that ``text`` is: an address, or an address with a prefix length and no bits beyond it."""
    host, slash, tail = text.partition("/")
    address = parse_address(host)
    if not slash:
        return Network(address.version, address.value, address.bits)
    if not (
        tail.isascii() and tail.isdigit() and (tail == "0" or not tail.startswith("0")) and len(tail) <= 3
    ):
        raise InvalidPolicy(f"{quote(tail)} in {quote(text)} is not a prefix length", "write `10.0.0.0/8`")
    length = int(tail)
    if length > address.bits:
        raise InvalidPolicy(
            f"prefix length {length} in {quote(text)} is longer than an IPv{address.version} address",
            f"prefix lengths are 0 to {address.bits}",
        )
    shift = address.bits - length
    network = Network(address.version, address.value >> shift << shift, length)
    if network.value != address.value:
        raise InvalidPolicy(
            f"{quote(text)} has bits beyond its prefix length",
            f"write `{network}`, or `{address}` for the one address",
        )
    return network


_TABLE: tuple[tuple[Network, Danger], ...] = tuple((parse_network(text), danger) for text, danger in _RANGES)


_CARRYING = (0xFFFF, 0xFFFF_0000, 0x64FF9B << 64)
"""The first 96 bits before an IPv4 address: mapped, translated (RFC 2765), NAT64. Compatible ones have none."""


def embedded(address: Address) -> tuple[Address, ...]:
    """Return the IPv4 addresses that an IPv6 address carries, none for most."""
    if address.version == 4:
        return ()
    value, found = address.value, []
    low = value & 0xFFFF_FFFF
    if value >> 32 in _CARRYING or (value >> 32 == 0 and low > 1):
        found.append(low)
    elif value >> 80 == 0x64_FF9B_0001:  # local NAT64 (RFC 8215)
        found.extend(_rfc6052(value))
    elif value >> 112 == 0x2002:  # 6to4
        found.append(value >> 80 & 0xFFFF_FFFF)
    elif value >> 96 == 0x2001_0000:  # Teredo: the server, and the client in ones' complement
        found.extend((value >> 64 & 0xFFFF_FFFF, low ^ 0xFFFF_FFFF))
    return tuple(Address(4, v4) for v4 in found)


def _rfc6052(value: int) -> list[int]:
    """Every reading of an address under a NAT64 prefix of unknown length; what is all prefix and padding is none."""
    readings = {value & 0xFFFF_FFFF}
    if value >> 56 & 0xFF == 0:  # bits 64 to 71 are zero in every shorter form
        for before in (16, 8, 0):  # /48, /56, /64: so many bits stand before those eight, the rest behind
            head = value >> 64 & ((1 << before) - 1)
            tail = value >> (56 - (32 - before)) & ((1 << (32 - before)) - 1)
            readings.add(head << (32 - before) | tail)
    real = sorted(v4 for v4 in readings if v4 >> 24)
    return real or [0]


@lru_cache(maxsize=4096)
def _danger(address: Address) -> Danger | None:
    for network, danger in _TABLE:
        if network.covers(address):
            return danger
    return None


def is_guarded(network: Network) -> bool:
    """Whether the whole of a network lies in one guarded range: `10.0.0.0/8` does, `0.0.0.0/1` does not."""
    return any(guarded.covers(network) for guarded, _ in _TABLE)


def is_unreachable(network: Network) -> Danger | None:
    """Return why nothing in this network is ever reachable, so that no allow of it means anything."""
    for guarded, danger in _TABLE:
        if guarded.covers(network):
            return danger if DEGREES[danger] is Degree.NEVER else None
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """The guards of one machine: the table above and what only the machine knows."""

    host: tuple[str, ...] = ()
    """Every address of the host itself. They come in as facts; the centre looks at no interface."""
    product: tuple[str, ...] = ()
    """Networks of the product's own listeners, beside those of the table."""
    _host: frozenset[Address] = field(init=False, repr=False, compare=False)
    _product: tuple[Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_host", frozenset(parse_address(text) for text in self.host))
        object.__setattr__(self, "_product", tuple(parse_network(text) for text in self.product))

    def danger(self, address: Address) -> Danger | None:
        """Return what is dangerous about an address itself, not looking into it."""
        if any(network.covers(address) for network in self._product):
            return Danger.PRODUCT
        own = Danger.HOST if address in self._host else None
        found = _danger(address)
        return own if own and (found is None or DEGREES[found] <= Degree.LITERAL) else found

    def judged(self, address: Address) -> tuple[tuple[Address, Danger | None], ...]:
        """Return every address that this one is or carries, each with its danger, the address itself first."""
        return tuple((each, self.danger(each)) for each in (address, *embedded(address)))
