"""Who is asking: a sandbox as the gateway knows it.

A ``Subject`` holds the policy in force for one sandbox, its credentials and its budgets. Swapping them is one
assignment; whatever decides afterwards sees the new ones. What it reaches for is a ``Flow`` (:mod:`.flow`).

Fail closed: no policy, a cut, an unknown verdict, all are ``blocked``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from ringfence.gateway.core import journal
from ringfence.gateway.core.budgets import Budgets, retry_after
from ringfence.gateway.core.credentials import Credentials
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.refusal import Contact, Place, Template
from ringfence.gateway.core.treatment import Room
from ringfence.policy.effective import EffectivePolicy
from ringfence.policy.engine import decide, judge_address
from ringfence.policy.model import Decision, Kind, NetworkAccess, Reason, Transport, Verdict
from ringfence.sandbox.credentials import Binding

_KEPT: Final = 256
"""Encodings of decisions, and refusals, kept for one sandbox and epoch."""
_JUDGED: Final = 4096
"""Judgements about addresses kept for one sandbox and epoch."""
_CONNECTS, _CONNECT_BYTES = 256, 512
"""CONNECT requests that are remembered for one sandbox, and how long each may be."""
_OPEN: Final = (Verdict.ALLOWED, Verdict.UNDETERMINED)
CUT: Final = Decision(text="egress is cut: enforcement could not be proven")
CANARY: Final = Decision(reason=Reason.GUARD, text="a canary, which every policy refuses")
UNMAPPED: Final = Decision(reason=Reason.GUARD, text="a synthetic address that stands for no name")
NO_PACKETS: Final = Decision(
    reason=Reason.GUARD, text="nothing but TCP and plain unicast UDP leaves a sandbox"
)


@dataclass(slots=True, kw_only=True, eq=False)
class Subject:
    """One sandbox. ``sink`` takes its records, ``ids`` makes decision ids of 17 ASCII bytes."""

    id: str
    name: str = ""
    agent: str = ""
    user: str = ""
    policy: EffectivePolicy | None = None
    cut: bool = False
    epoch: int = 0
    """Counts what may change verdicts, or what is done to requests: a new policy, a cut, a rule that expired, other
    credentials, bytes of a budget that are spent. Nothing decided earlier is reused.
    """
    support: str = ""
    """How an organisation says whom to ask, if its policy does not say."""
    limits: Limits = field(default_factory=Limits)
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    budgets: Budgets = field(default_factory=Budgets, repr=False)
    own: frozenset[str] = frozenset()
    """Addresses of the gateway inside the enclosure: never a destination."""
    ids: Callable[[], bytes]
    sink: Callable[[bytes, bool], None]
    """Called with an encoded record, and whether it may be dropped under overload."""
    room: Room = field(init=False, repr=False)
    connects: dict[bytes, tuple[str, int]] = field(default_factory=dict, repr=False)
    """Whole heads of CONNECT requests that were found to be good, each with the host and port that it names."""
    _identity: tuple[str | None, bytes] = (None, b"")
    _encoded: dict[object, tuple[Decision, bytes]] = field(default_factory=dict)
    _encoded_epoch: int = -1
    _shared: dict[tuple[object, ...], tuple[Decision, bytes]] = field(default_factory=dict)
    _shared_epoch: int = -1
    _judged: dict[tuple[str, int, Transport, str], Decision] = field(default_factory=dict)
    _judged_epoch: int = -1
    _refusals: dict[object, tuple[Decision, Template]] = field(default_factory=dict)
    _refusals_epoch: int = -1

    def __post_init__(self) -> None:
        self.room = Room(self.limits.held_bytes)

    def bind(self, policy: EffectivePolicy | None, now: float = 0.0) -> None:
        """Put a snapshot in force."""
        self.policy = policy
        self.budgets.bind(policy, now)
        self.epoch += 1

    def arm(self, bindings: Sequence[Binding]) -> None:
        """Replace the credentials. Raises ``ValueError``, and then nothing has changed."""
        self.credentials = Credentials(bindings)
        self.epoch += 1

    def drain(self) -> None:
        """The bytes of a budget are spent, or a day has begun: what was allowed may be refused, and the reverse."""
        self.epoch += 1

    def retry(self, decision: Decision, now: float) -> int:
        """Return in how many seconds a refused client may ask again, 0 unless a budget of a minute is spent."""
        return ceil(retry_after(self.budgets.refused(decision), now))

    def close(self, cut: bool) -> None:
        """Refuse everything, or stop refusing everything."""
        self.cut = cut
        self.epoch += 1

    def decide(self, access: NetworkAccess, now: float, *, counted: bool = False) -> Decision:
        """Decide an access; ``counted`` is for a request that asks to be let through, and would be one more."""
        if self.cut:
            return CUT
        if self.budgets:
            return decide(self.policy, access, now=now, spent=self.budgets.at(now, counted=counted))
        return decide(self.policy, access, now=now)

    def remember_connect(self, head: bytes, host: str, port: int) -> None:
        """Keep what a CONNECT says. Full, the memory is emptied: the common ones are soon back."""
        if len(head) <= _CONNECT_BYTES:
            if len(self.connects) >= _CONNECTS:
                self.connects.clear()
            self.connects[head] = (host, port)

    def judge(self, access: NetworkAccess, address: str, now: float) -> Decision:
        """Decide about an address that would be dialled for an allowed name."""
        if self.cut:
            return CUT
        if self._judged_epoch != self.epoch or len(self._judged) >= _JUDGED:
            self._judged.clear()
            self._judged_epoch = self.epoch
        key = (access.host, access.port, access.transport, address)
        decision = self._judged.get(key)
        if decision is None:
            decision = self._judged[key] = judge_address(self.policy, access, address, now=now)
        return decision

    def refuse_packets(
        self,
        transport: str,
        destination: str,
        port: int,
        count: int,
        now: float,
        *,
        canary: bool,
        because: Decision | None = None,
        protocol: str = "",
    ) -> None:
        """Record packets that the enclosure rejected (it lets through TCP, questions to our resolver and what
        the relay takes), or the relay, which says why.
        """
        decision = because or (CANARY if canary else NO_PACKETS)
        if transport == "udp" and destination and port and not canary and because is None:
            decided = self.decide(NetworkAccess(host=destination, port=port, transport=Transport.UDP), now)
            if decided.verdict not in _OPEN:
                decision = decided
        place = {
            "via": transport,
            "transport": transport,
            "protocol": protocol or transport,
            "host": journal.bounded(destination),
            "port": port,
            "count": count,
            "canary": canary,
        }
        shared = b",".join((self.identity(), journal.encode(place), self.encoded(decision)))
        self.sink(journal.opened(self.ids(), now, shared), False)

    @property
    def revision(self) -> int:
        policy = self.policy
        return 0 if policy is None else policy.revision

    @property
    def contact(self) -> Contact:
        """Whom a refusal tells to ask."""
        policy = self.policy
        if policy is None or Kind.NETWORK not in policy.governs:
            return Contact()
        return Contact(organisation=policy.organisation, support=policy.support or self.support)

    def identity(self) -> bytes:
        """The part of every record that says whose it is."""
        organisation = "" if self.policy is None else self.policy.organisation
        if self._identity[0] != organisation:
            fields = {
                "sandbox": self.id,
                "sandbox_name": self.name,
                "agent": self.agent,
                "user": self.user,
                "organisation": organisation,
            }
            self._identity = (organisation, journal.encode(fields))
        return self._identity[1]

    def encoded(self, decision: Decision) -> bytes:
        """The part of a record that a decision fills in. Kept, because few decisions stand for many
        connections.
        """
        if self._encoded_epoch != self.epoch or len(self._encoded) >= _KEPT:
            self._encoded.clear()
            self._encoded_epoch = self.epoch
        key = _identity(decision)
        kept = self._encoded.get(key)
        if kept is None:
            kept = self._encoded[key] = (decision, journal.encode(journal.decided(decision)))
        return kept[1]

    def shared(self, decision: Decision, place: tuple[object, ...]) -> bytes:
        """Return what ``share`` kept under this decision, the very same, about a place; empty if nothing."""
        if self._shared_epoch != self.epoch:
            self._shared.clear()
            self._shared_epoch = self.epoch
        kept = self._shared.get(place)
        return kept[1] if kept is not None and kept[0] is decision else b""

    def share(self, decision: Decision, place: tuple[object, ...], line: bytes) -> None:
        """Keep the part of the records about a place that connections to it share."""
        if len(self._shared) >= _KEPT:
            self._shared.clear()
        self._shared[place] = (decision, line)

    def template(
        self, decision: Decision, place: Place, *, status: int, wants_json: bool, close: bool
    ) -> Template:
        """The response that refuses. Kept, because who was refused tries again, often on a new connection."""
        if self._refusals_epoch != self.epoch or len(self._refusals) >= _KEPT:
            self._refusals.clear()
            self._refusals_epoch = self.epoch
        key = (place, status, wants_json, close, _identity(decision))
        kept = self._refusals.get(key)
        if kept is None:
            template = Template(
                decision, place, status=status, contact=self.contact, wants_json=wants_json, close=close
            )
            kept = self._refusals[key] = (decision, template)
        return kept[1]


def _identity(decision: Decision) -> object:
    """Return what tells two decisions of one flow and epoch apart, without comparing every rule's every
    word.
    """
    return (decision.text, *map(id, decision.rules), None, *map(id, decision.would))
