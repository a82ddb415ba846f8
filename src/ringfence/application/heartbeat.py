"""The pulse of a running sandbox's enclosure: proven before it counts as running, and again every few seconds.

A failed round is repeated once, since a busy machine loses a packet; a second failure is *degraded*, and degraded means
that egress is cut until a round succeeds. An answer to a canary from outside is not repeated: it cuts at once.
"""

from __future__ import annotations

import asyncio
import logging

from ringfence.application.errors import RingfenceError
from ringfence.application.journal import Journal
from ringfence.application.lives import Life
from ringfence.application.ports import Platform
from ringfence.application.proofs import Proofs
from ringfence.sandbox.model import Enforcement

INTERVAL = 15.0
RECOVERY = 3.0
"""Seconds between rounds while degraded."""

_log = logging.getLogger(__name__)


class Heartbeat:
    """Rounds of canaries, and what follows from them."""

    def __init__(
        self, proofs: Proofs, journal: Journal, *, interval: float = INTERVAL, recovery: float = RECOVERY
    ) -> None:
        self._proofs = proofs
        self._journal = journal
        self._interval = interval
        self._recovery = recovery

    async def prove(self, life: Life, platform: Platform) -> None:
        """Prove the enclosure of a sandbox that is about to start, or raise why it is not proven."""
        assert life.attachment is not None
        await self._proofs.prove(platform.enclosure, life.attachment)
        await self._enter(life, Enforcement.ENFORCING)

    async def check(self, life: Life, platform: Platform) -> None:
        """One round for a sandbox that runs; cut or restore its egress by the result."""
        assert life.attachment is not None
        try:
            try:
                await self._proofs.prove(platform.enclosure, life.attachment)
            except RingfenceError as error:
                if error.code == "enclosure-breach":
                    raise
                await self._proofs.prove(platform.enclosure, life.attachment)
        except Exception as error:  # noqa: BLE001  # whatever went wrong, it is no proof
            if life.enforcement is not Enforcement.DEGRADED:
                _log.error("sandbox `%s` is not enclosed, its egress is cut: %s", life.name, error)
            await self._cut(life, platform, closed=True)  # first: a ledger may be slow, or full
            await self._enter(life, Enforcement.DEGRADED, str(error))
        else:
            if life.enforcement is Enforcement.DEGRADED:
                await self._cut(life, platform, closed=False)
            await self._enter(life, Enforcement.ENFORCING)

    async def beat(self, life: Life, platform: Platform) -> None:
        """Check for as long as the sandbox runs."""
        while True:
            degraded = life.enforcement is not Enforcement.ENFORCING
            await asyncio.sleep(self._recovery if degraded else self._interval)
            if life.attachment is not None:
                await self.check(life, platform)

    async def lose(self, life: Life, why: str) -> None:
        """Say that nobody enforces at the moment, because nobody lets anything out either."""
        await self._enter(life, Enforcement.DEGRADED, why)

    async def _cut(self, life: Life, platform: Platform, *, closed: bool) -> None:
        try:
            await platform.gateway.cut(life.id, closed=closed)
        except Exception as error:  # noqa: BLE001  # the next round sees what came of it
            _log.warning("the gateway is away, and egress of `%s` with it: %s", life.name, error)

    async def _enter(self, life: Life, enforcement: Enforcement, why: str = "") -> None:
        if life.enforcement is enforcement:
            return
        life.enforcement = enforcement
        try:
            await self._journal.note(
                "enforcement changed",
                sandbox=life.id,
                sandbox_name=life.name,
                enforcement=enforcement.value,
                text=why,
            )
        except RingfenceError:
            # What is enforced must not depend on whether there is room to write it down.
            _log.exception("the ledger does not have that `%s` is %s", life.name, enforcement)
