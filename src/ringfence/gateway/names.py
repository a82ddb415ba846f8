"""Synthetic addresses: one name, one address of each family, inside one sandbox.

The sandbox's resolver answers every name with an address out of two networks that lead nowhere. When a flow
to such an address arrives, the name that the client had asked for is known with certainty, whatever the
client says later. A slot is an offset that both networks share, so the IPv4 and the IPv6 address of a name
are one mapping.

The table is bounded: the least recently used name goes first, never one that an open flow holds. The address
of a name that went may still be in somebody's cache; it leads nowhere until it has rested, and the slots wait
in line for that, so an address comes to mean another name as late as possible. A sandbox that uses up
addresses faster than they rest gets no new names for a while (:class:`Exhausted`); nobody else notices.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable

REST = 600.0
"""Seconds that the address of an evicted name leads nowhere: ten times the time to live of our answers."""


class Exhausted(LookupError):
    """There is no address to give: all are held or resting."""


class SyntheticNames:
    """The mapping of one sandbox. Not for use by several threads."""

    def __init__(
        self,
        network4: str,
        network6: str,
        *,
        capacity: int = 32_768,
        rest: float = REST,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        four, six = ipaddress.IPv4Network(network4), ipaddress.IPv6Network(network6)
        # Neither the network's own address nor the broadcast address is anybody's.
        self._slots = min(four.num_addresses, six.num_addresses) - 2
        if not 0 < capacity < self._slots:
            raise ValueError(f"{network4} and {network6} cannot hold {capacity} names")
        self._base = {4: int(four.network_address), 6: int(six.network_address)}
        self._four, self._six = four, six
        self._capacity = capacity
        self._rest, self._now = rest, now
        self._fresh = 1
        self._resting: deque[tuple[float, int]] = deque()
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        self._name_of: dict[int, str] = {}
        self._held: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._slot_of)

    def address(self, name: str, family: int) -> str:
        """Return the address that stands for a canonical name in a family (4 or 6). Raises :class:`Exhausted`."""
        slot = self._slot_of.get(name)
        if slot is None:
            slot = self._assign(name)
        else:
            self._slot_of.move_to_end(name)
        value = self._base[family] + slot
        return str(ipaddress.IPv4Address(value) if family == 4 else ipaddress.IPv6Address(value))

    def name(self, address: str) -> str | None:
        """Return the name that an address stands for now; ``None`` leads nowhere."""
        name = self._name_of.get(self._slot(address))
        if name is not None:
            self._slot_of.move_to_end(name)
        return name

    def contains(self, address: str) -> bool:
        """Whether an address is a synthetic one, mapped or not."""
        return self._slot(address) >= 0

    def hold(self, address: str) -> None:
        """A flow to the address is open: its name stays. Holds are counted; each needs its :meth:`free`."""
        slot = self._slot(address)
        if slot in self._name_of:
            self._held[slot] = self._held.get(slot, 0) + 1

    def free(self, address: str) -> None:
        slot = self._slot(address)
        count = self._held.pop(slot, 0)
        if count > 1:
            self._held[slot] = count - 1

    def _slot(self, address: str) -> int:
        """Return an address's offset in its network, or -1. An IPv4-mapped address is the IPv4 address that it is."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return -1
        if isinstance(parsed, ipaddress.IPv6Address):
            mapped = parsed.ipv4_mapped
            if mapped is None:
                return int(parsed) - self._base[6] if parsed in self._six else -1
            parsed = mapped
        return int(parsed) - self._base[4] if parsed in self._four else -1

    def _assign(self, name: str) -> int:
        if self._fresh > self._slots and not (self._resting and self._resting[0][0] <= self._now()):
            raise Exhausted("all synthetic addresses were used a short time ago")
        if len(self._slot_of) >= self._capacity:
            self._evict()
        slot = self._take()
        self._slot_of[name] = slot
        self._name_of[slot] = name
        return slot

    def _take(self) -> int:
        """Return a slot nobody ever had, or else the one that has rested longest."""
        if self._fresh > self._slots:
            return self._resting.popleft()[1]
        self._fresh += 1
        return self._fresh - 1

    def _evict(self) -> None:
        for _ in range(len(self._slot_of)):
            name, slot = next(iter(self._slot_of.items()))
            if slot in self._held:
                self._slot_of.move_to_end(name)  # an open flow is use
                continue
            del self._slot_of[name], self._name_of[slot]
            self._resting.append((self._now() + self._rest, slot))
            return
        raise Exhausted("all synthetic addresses are held by open flows")
