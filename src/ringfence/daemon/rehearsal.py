"""The network of the ``fake`` runtime: an enclosure and a gateway that are objects in the daemon.

Nothing runs and nothing can leave, so nothing has to be refused either; what is rehearsed is the order of things. The
canaries are decided by the policy that was admitted, as the real gateway does, and reported as its events.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ringfence.application.errors import Unavailable
from ringfence.application.ports import Addresses, Attachment, Canary, Probe
from ringfence.audit.events import NetworkEvent
from ringfence.policy.effective import EffectivePolicy
from ringfence.policy.engine import decide
from ringfence.policy.model import Decision, NetworkAccess
from ringfence.sandbox.credentials import Binding
from ringfence.sandbox.model import Isolation, SandboxSpec

Records = Sequence[Mapping[str, Any]]


class RehearsalGateway:
    """Implements :class:`ringfence.application.ports.Turnstile`."""

    def __init__(self, record: Callable[[Records], Awaitable[None]], *, clock: Callable[[], float]) -> None:
        self._record = record
        self._clock = clock
        self._policies: dict[str, tuple[SandboxSpec, EffectivePolicy]] = {}
        self._closed: set[str] = set()
        self.credentials: dict[str, tuple[Binding, ...]] = {}
        self._count = 0

    async def admit(
        self,
        spec: SandboxSpec,
        attachment: Attachment,
        policy: Mapping[str, Any],
        credentials: Sequence[Binding] = (),
    ) -> None:
        if attachment.sandbox != spec.id:
            raise Unavailable("an enclosure of another sandbox")
        self.credentials[spec.id] = tuple(credentials)
        self._policies[spec.id] = (spec, EffectivePolicy.from_wire(policy))
        self._closed.discard(spec.id)

    async def arm(self, sandbox: str, credentials: Sequence[Binding]) -> None:
        self.credentials[sandbox] = tuple(credentials)

    async def bind(self, sandbox: str, policy: Mapping[str, Any]) -> None:
        spec, _ = self._policies[sandbox]
        self._policies[sandbox] = (spec, EffectivePolicy.from_wire(policy))

    async def cut(self, sandbox: str, *, closed: bool) -> None:
        if closed:
            self._closed.add(sandbox)
        else:
            self._closed.discard(sandbox)

    async def release(self, sandbox: str) -> None:
        self._policies.pop(sandbox, None)
        self.credentials.pop(sandbox, None)
        self._closed.discard(sandbox)

    async def meet(self, sandbox: str, access: NetworkAccess, *, canary: bool = False) -> Decision:
        """Decide an access as if it had come out of a sandbox, and record it."""
        spec, policy = self._policies[sandbox]
        now = self._clock()
        shut = canary or sandbox in self._closed
        decision = Decision(text="refused whatever policy says") if shut else decide(policy, access, now=now)
        self._count += 1
        event = NetworkEvent(
            id=f"rehearsal-{self._count:08x}",
            step="opened",
            time=now,
            sandbox=sandbox,
            sandbox_name=spec.name,
            agent=spec.agent,
            user=spec.owner.name,
            via="transparent",
            transport=access.transport.value,
            host=access.host,
            port=access.port,
            verdict=decision.verdict.value,
            reason=decision.reason.value,
            text=decision.text,
            revision=decision.revision,
            canary=canary,
        )
        if decision.rules:
            first = decision.rules[0]
            event.rule, event.rule_id, event.origin = first.name, first.id, first.origin
        await self._record([event.record()])
        return decision


class RehearsalEnclosure:
    """Implements :class:`ringfence.application.ports.EnclosureDriver`."""

    def __init__(self, gateway: RehearsalGateway) -> None:
        self._gateway = gateway
        self._open: dict[str, Attachment] = {}

    async def probe(self) -> Probe:
        return Probe(usable=True, isolation=Isolation.NONE, reason="a rehearsal: there is no network")

    async def open(self, sandbox: str) -> Attachment:
        return self._open.setdefault(sandbox, Attachment(sandbox=sandbox, netns="", addresses=Addresses()))

    async def canaries(self, attachment: Attachment, nonce: str) -> Sequence[Canary]:
        canary = Canary(transport="tcp", host=f"{nonce}.invalid", port=443)
        access = NetworkAccess(host=canary.host, port=canary.port)
        await self._gateway.meet(attachment.sandbox, access, canary=True)
        return (canary,)

    async def close(self, sandbox: str) -> None:
        self._open.pop(sandbox, None)

    async def known(self) -> Sequence[str]:
        return tuple(self._open)
