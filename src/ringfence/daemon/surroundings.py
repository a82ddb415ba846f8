"""What the machine around the daemon says, where policy needs to know: its addresses, the public suffixes.

A host's addresses change (a VPN, another network), and the guards stand before all of them; so they are looked at again
every few seconds, and a change is a change of policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import cached_property

from ringfence.application.errors import RingfenceError
from ringfence.gateway.dial import own_addresses
from ringfence.policy.addresses import Guards
from ringfence.policy.patterns import PublicSuffix

INTERVAL = 5.0

_log = logging.getLogger(__name__)


class Surroundings:
    """Facts about the host. ``changed`` is awaited after they have."""

    def __init__(self) -> None:
        """Raises ``OSError`` if the kernel does not say which addresses it has."""
        self._guards = _look()
        self._watching: asyncio.Task[None] | None = None
        self.changed: Callable[[], Awaitable[None]] | None = None

    def guards(self) -> Guards:
        return self._guards

    def start(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._watching:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                found = _look()
                if found != self._guards:
                    self._guards = found
                    _log.info("the host's addresses have changed")
                    if self.changed:
                        await self.changed()
            except (OSError, RingfenceError) as error:
                _log.error("the guards could not be brought up to date: %s", error)

    def is_public_suffix(self, name: str) -> bool:
        """Whether anybody can register a name directly below this one."""
        return self._suffixes(name)

    @cached_property
    def _suffixes(self) -> PublicSuffix:
        # A tenth of a second to read, and asked only when a rule has a wildcard.
        from publicsuffixlist import PublicSuffixList

        known = PublicSuffixList()
        return lambda name: known.publicsuffix(name, accept_unknown=True) == name


def _look() -> Guards:
    return Guards(host=tuple(sorted(own_addresses())))
