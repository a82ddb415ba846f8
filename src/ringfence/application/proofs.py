"""Proof that an enclosure holds: canaries that every policy must refuse, confirmed by the gateway's own events.

A round names its destinations from a fresh nonce, so an old event proves nothing. Nothing inside a sandbox takes part:
the canaries are sent by the enclosure from the sandbox's side, and what counts is that the gateway saw and refused
each. Events may come before the enclosure has said what it tried; what is seen during a round is kept, bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ringfence.application.errors import Unavailable
from ringfence.application.ports import Attachment, EnclosureDriver
from ringfence.policy.model import Verdict

PATIENCE = 5.0
"""Seconds that the gateway has to report what it refused."""
SEEN_LIMIT = 1_024
"""Distinct canaries remembered in a round; a round has fewer than twenty."""

_Seen = tuple[str, str, int]


@dataclass(slots=True, eq=False)
class _Round:
    seen: set[_Seen] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Proofs:
    """Rounds under way. A sandbox may have two: one of its heartbeat, one of a gateway that is new."""

    def __init__(self, *, nonce: Callable[[], str], patience: float = PATIENCE) -> None:
        self._nonce = nonce
        self._patience = patience
        self._rounds: dict[str, list[_Round]] = {}

    def observe(self, record: Mapping[str, Any]) -> None:
        """Take note of a canary's event. One that was not refused is no proof of anything."""
        if record.get("verdict") != Verdict.BLOCKED:
            return
        seen = (record.get("transport", "tcp"), record.get("host", ""), record.get("port", 0))
        for current in self._rounds.get(record["sandbox"], ()):
            if len(current.seen) < SEEN_LIMIT:
                current.seen.add(seen)
                current.changed.set()

    async def prove(self, enclosure: EnclosureDriver, attachment: Attachment) -> None:
        """Return when every canary of a new round was refused. Raises ``Unavailable`` with what was not."""
        sandbox = attachment.sandbox
        current = _Round()
        self._rounds.setdefault(sandbox, []).append(current)
        missing: set[_Seen] = set()
        try:
            async with asyncio.timeout(self._patience):
                tried = await enclosure.canaries(attachment, self._nonce())
                # A canary by name arrives at the gateway as a connection to the name that was asked for.
                wanted = {
                    ("tcp" if canary.transport == "dns" else canary.transport, canary.host, canary.port)
                    for canary in tried
                }
                while missing := wanted - current.seen:
                    current.changed.clear()
                    await current.changed.wait()
                if not wanted:
                    raise Unavailable("the enclosure tried nothing", code="not-enforcing")
        except TimeoutError:
            lost = ", ".join(f"{host} port {port} ({transport})" for transport, host, port in sorted(missing))
            raise Unavailable(
                f"the gateway did not confirm that it refuses what leaves the sandbox: {lost or 'nothing was sent'}",
                hint="`sbx doctor` tests enclosures and gateway",
                code="not-enforcing",
            ) from None
        finally:
            rounds = self._rounds[sandbox]
            rounds.remove(current)
            if not rounds:
                del self._rounds[sandbox]
