"""Who is asking, and what for: a sandbox as the gateway knows it, and its flows to destinations.

A ``Subject`` holds the policy in force for one sandbox. Swapping it is one assignment; whatever decides
afterwards sees the new snapshot. A ``Flow`` is one destination as one connection reaches for it. It decides
once per snapshot: only where HTTP rules could change the verdict (``undetermined``) is every request decided
by itself.

Fail closed: no policy, a cut, an unknown verdict, all are ``blocked``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from ringfence.gateway.core import journal
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.messages import Malformed, Route
from ringfence.gateway.core.refusal import Contact, Place, Template
from ringfence.policy.effective import EffectivePolicy
from ringfence.policy.engine import decide, judge_address
from ringfence.policy.model import Decision, Inspect, Kind, NetworkAccess, Reason, Transport, Verdict
from ringfence.policy.names import GATEWAY_NAME, LOCALHOST, canonical_host, split_authority
from ringfence.sandbox.credentials import Binding

_KEPT: Final = 256
"""Encodings of decisions, and refusals, kept for one sandbox and epoch."""
_JUDGED: Final = 4096
"""Judgements about addresses kept for one sandbox and epoch."""
_INSPECTED: Final = frozenset({b"http/1.1", b"h2"})
_UNDETERMINED: Final = Verdict.UNDETERMINED
_OPEN: Final = (Verdict.ALLOWED, Verdict.UNDETERMINED)
NO_POLICY: Final = Decision()
CUT: Final = Decision(text="egress is cut: enforcement could not be proven")
CANARY: Final = Decision(reason=Reason.GUARD, text="a canary, which every policy refuses")
OWN: Final = Decision(reason=Reason.GUARD, text="an endpoint of the gateway itself")
UNMAPPED: Final = Decision(reason=Reason.GUARD, text="a synthetic address that stands for no name")
NO_PACKETS: Final = Decision(reason=Reason.GUARD, text="nothing but TCP leaves a sandbox")
OPAQUE: Final = Decision(
    reason=Reason.FAILURE, text="rules about requests apply here, and this cannot be inspected"
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
    """Counts what may change verdicts: a new policy, a cut, a rule that expired. Nothing decided earlier is
    reused.
    """
    support: str = ""
    """How an organisation says whom to ask, if its policy does not say."""
    limits: Limits = field(default_factory=Limits)
    credentials: tuple[Binding, ...] = field(default=(), repr=False)
    own: frozenset[str] = frozenset()
    """Addresses of the gateway inside the enclosure: never a destination."""
    ids: Callable[[], bytes]
    sink: Callable[[bytes, bool], None]
    """Called with an encoded record, and whether it may be dropped under overload."""
    _identity: tuple[str | None, bytes] = (None, b"")
    _encoded: dict[object, tuple[Decision, bytes]] = field(default_factory=dict)
    _encoded_epoch: int = -1
    _judged: dict[tuple[str, int, str], Decision] = field(default_factory=dict)
    _judged_epoch: int = -1
    _refusals: dict[object, tuple[Decision, Template]] = field(default_factory=dict)
    _refusals_epoch: int = -1

    def bind(self, policy: EffectivePolicy | None) -> None:
        """Put a snapshot in force."""
        self.policy = policy
        self.epoch += 1

    def close(self, cut: bool) -> None:
        """Refuse everything, or stop refusing everything."""
        self.cut = cut
        self.epoch += 1

    def decide(self, access: NetworkAccess, now: float) -> Decision:
        return CUT if self.cut else decide(self.policy, access, now=now)

    def judge(self, access: NetworkAccess, address: str, now: float) -> Decision:
        """Decide about an address that would be dialled for an allowed name."""
        if self.cut:
            return CUT
        if self._judged_epoch != self.epoch or len(self._judged) >= _JUDGED:
            self._judged.clear()
            self._judged_epoch = self.epoch
        key = (access.host, access.port, address)
        decision = self._judged.get(key)
        if decision is None:
            decision = self._judged[key] = judge_address(self.policy, access, address, now=now)
        return decision

    def refuse_packets(
        self, transport: str, destination: str, port: int, count: int, now: float, *, canary: bool
    ) -> None:
        """Record packets that the enclosure rejected: nothing but TCP and questions to our resolver ever
        leaves.
        """
        decision = CANARY if canary else NO_PACKETS
        if transport == "udp" and destination and port and not canary:
            decided = self.decide(NetworkAccess(host=destination, port=port, transport=Transport.UDP), now)
            if decided.verdict not in _OPEN:
                decision = decided
        place = {
            "via": transport,
            "transport": transport,
            "protocol": transport,
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


class Flow:
    """One destination as one connection reaches for it. ``host`` is what policy is asked about."""

    __slots__ = (
        "_decision",
        "_encoded",
        "_epoch",
        "_route",
        "authority",
        "canary",
        "fixed",
        "host",
        "known_as",
        "port",
        "protocol",
        "secure",
        "seen",
        "status",
        "subject",
        "via",
    )

    def __init__(self, subject: Subject, host: str, port: int, via: str, *, canary: bool = False) -> None:
        self.subject = subject
        self.known_as: str | None = None if ":" in host or host.replace(".", "").isdigit() else host
        """The name that SNI and Host must agree with; ``None`` while a raw address has been given none."""
        self.host = host
        self.port = port
        self.via = via
        self.canary = canary
        self.secure = False
        """The client speaks TLS to us, so we speak TLS to the upstream."""
        self.protocol = ""
        self.status = 403
        """What a refusal answers with."""
        self.fixed: Decision | None = CANARY if canary else _reserved(host, subject)
        """A verdict that no policy changes."""
        self.authority = b""
        """The Host that goes upstream."""
        self.seen = b"\0"
        """The authority that the client's last request had, after it was found to agree."""
        self._decision = NO_POLICY
        self._encoded = b""
        self._epoch = -1
        self._route: Route | None = None

    # -- decisions ----------------------------------------------------------------------------------------

    def decision(self, now: float) -> Decision:
        """The decision about the bare connection, under what is in force now."""
        subject = self.subject
        if self._epoch != subject.epoch:
            self._epoch = subject.epoch
            self._route = None
            self._encoded = b""
            self._decision = self.fixed or subject.decide(NetworkAccess(host=self.host, port=self.port), now)
        return self._decision

    def judge(self, method: bytes, path: bytes, now: float) -> Decision:
        """The decision about one request."""
        decision = self._decision if self._epoch == self.subject.epoch else self.decision(now)
        if decision.verdict is not _UNDETERMINED:
            return decision
        cut = path.find(b"?")
        access = NetworkAccess(
            host=self.host,
            port=self.port,
            method=method.decode("ascii"),
            path=(path if cut < 0 else path[:cut]).decode("latin-1"),
        )
        return self.subject.decide(access, now)

    def judge_opaque(self, now: float) -> Decision:
        """The decision about bytes that nobody looks into."""
        decision = self.decision(now)
        return OPAQUE if decision.verdict is Verdict.UNDETERMINED else decision

    def judge_address(self, address: str, now: float) -> Decision:
        """The decision about an address that would be dialled. An address that was asked for has been
        decided.

        Only for requests that were allowed: where requests decide, an address that none of them rules out is
        allowed.
        """
        if address == self.host:
            decision = self.decision(now)
        else:
            decision = self.subject.judge(NetworkAccess(host=self.host, port=self.port), address, now)
        return (
            replace(decision, verdict=Verdict.ALLOWED)
            if decision.verdict is Verdict.UNDETERMINED
            else decision
        )

    def uninspected(self, now: float) -> bool:
        """Whether TLS towards this destination is passed through as it is."""
        decision = self.decision(now)
        return decision.allowed and decision.inspect is Inspect.NEVER

    def agree_server_name(self, name: str | None) -> bool:
        """Return whether the name in a ClientHello is this flow's, which a raw address gets from it."""
        if name is None:
            return True
        try:
            host = canonical_host(name)
        except ValueError:
            return False
        if self.known_as is None:
            self.known_as = host
        return host == self.known_as

    def unused(self, now: float, text: str = "") -> None:
        """The connection ends without a request that could have been refused: the attempt is on record
        anyway.
        """
        decision = self.decision(now)
        if decision.verdict not in _OPEN:
            self.record(decision, now, text)

    def record(self, decision: Decision, now: float, text: str = "", ended: bytes = b"") -> None:
        """Record a refusal that no HTTP response tells of, or (``ended``) something allowed that came to
        nothing.
        """
        subject = self.subject
        number = subject.ids()
        shared = self.annotated(decision, text) if text else self.shared(decision)
        subject.sink(journal.opened(number, now, shared), decision.allowed)
        if ended:
            totals = journal.closed(number, now, shared, 0, ended, now, 0.0, 0, 0)
            subject.sink(totals, True)

    def revoked(self, now: float) -> Decision | None:
        """The decision of the policy in force now, if it refuses what the one before let through."""
        before = self._decision.verdict
        decision = self.decision(now)
        open_before = before in _OPEN
        return decision if open_before and decision.verdict not in _OPEN else None

    def refuse(self, decision: Decision, status: int = 403) -> None:
        """From now on everything here is refused in the same way."""
        self.fixed, self.status, self._epoch = decision, status, -1

    # -- where to -----------------------------------------------------------------------------------------

    def route(self) -> Route:
        """Where an upstream connection goes. A certificate must prove the name that the client asked for."""
        route = self._route
        if route is None:
            name = (self.known_as or self.host) if self.secure else ""
            route = self._route = Route(self.host, self.port, name, self.subject.epoch)
        return route

    def agree(self, authority: bytes) -> bool:
        """Whether a request's authority names this flow. Remembers the answer: clients repeat themselves."""
        if authority == self.seen and authority:
            return True
        if authority:
            host, port = authority_of(authority, self.port)
        else:  # HTTP/1.0
            host, port = self.known_as or self.host, self.port
        if port != self.port:
            return False
        if self.known_as is None:
            self.known_as = host
        elif host not in (self.known_as, self.host):
            return False
        self.seen = authority
        default = self.port == (443 if self.secure else 80)
        shown = f"[{host}]" if ":" in host else host
        if self.host == LOCALHOST:
            self.authority = b"localhost:%d" % self.port
        else:
            self.authority = shown.encode() if default else b"%b:%d" % (shown.encode(), self.port)
        return True

    # -- records ------------------------------------------------------------------------------------------

    def shared(self, decision: Decision) -> bytes:
        """The part of a record that all steps and requests under one decision share."""
        if decision is self._decision and self._encoded:
            return self._encoded
        subject = self.subject
        shared = b",".join((subject.identity(), self._encoded_place(), subject.encoded(decision)))
        if decision is self._decision:
            self._encoded = shared
        return shared

    def annotated(self, decision: Decision, text: str) -> bytes:
        """As ``shared``, with a text that says what went wrong afterwards."""
        said = journal.encode({**journal.decided(decision), "text": journal.bounded(text)})
        return b",".join((self.subject.identity(), self._encoded_place(), said))

    def _encoded_place(self) -> bytes:
        host, protocol = self.host.encode(), self.protocol.encode()
        plain = b'"via":"%b","transport":"tcp","host":"%b","port":%d' % (self.via.encode(), host, self.port)
        if protocol:
            plain += b',"protocol":"%b"' % protocol
            if protocol in _INSPECTED:
                plain += b',"inspected":true'
        return plain + b',"canary":true' if self.canary else plain

    @property
    def place(self) -> Place:
        return Place(self.host, self.port)

    def refusal(self, decision: Decision, number: bytes, *, wants_json: bool, close: bool) -> bytes:
        """A refusal as an HTTP/1 response with a body."""
        template = self.subject.template(
            decision, self.place, status=self.status, wants_json=wants_json, close=close
        )
        return template.fill(number)


def _identity(decision: Decision) -> object:
    """Return what tells two decisions of one flow and epoch apart, without comparing every rule's every
    word.
    """
    return (decision.text, *map(id, decision.rules), None, *map(id, decision.would))


def _reserved(host: str, subject: Subject) -> Decision | None:
    return OWN if host == GATEWAY_NAME or host in subject.own else None


@lru_cache(maxsize=4096)
def authority_of(authority: bytes, default_port: int) -> tuple[str, int]:
    """Return the canonical host and the port of an authority, or raise ``Malformed``."""
    if b"@" in authority:
        raise Malformed("userinfo in an authority")
    try:
        return split_authority(authority, default_port)
    except ValueError as flaw:
        raise Malformed(f"an authority that is none: {flaw}") from None
