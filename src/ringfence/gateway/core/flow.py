"""One destination as one connection reaches for it.

A ``Flow`` decides once per snapshot: only where HTTP rules could change the verdict (``undetermined``) is every request
decided by itself. It knows which names its connection was reached by, and holds every later one (SNI, Host) against
them; where an upstream connection goes; and what there is to do for its requests beside deciding them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final

from ringfence.gateway.core import journal, treatment
from ringfence.gateway.core.budgets import Budgets
from ringfence.gateway.core.credentials import Credentials
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.messages import Malformed, Request, Route
from ringfence.gateway.core.refusal import Place, Template
from ringfence.gateway.core.subject import CANARY, Subject
from ringfence.policy.model import Decision, Inspect, NetworkAccess, Reason, Transport, Verdict
from ringfence.policy.names import GATEWAY_NAME, LOCALHOST, canonical_host, split_authority

_INSPECTED: Final = frozenset({b"http/1.1", b"h2"})
_UNDETERMINED: Final = Verdict.UNDETERMINED
_OPEN: Final = (Verdict.ALLOWED, Verdict.UNDETERMINED)
_UNPLANNED: Final = treatment.Plan(
    "", Credentials(), Budgets(), None, Limits(), treatment.Room(0), metered=False
)
NO_POLICY: Final = Decision()
OWN: Final = Decision(reason=Reason.GUARD, text="an endpoint of the gateway itself")
OPAQUE: Final = Decision(
    reason=Reason.FAILURE, text="rules about requests apply here, and this cannot be inspected"
)


class Flow:
    """One destination as one connection reaches for it. ``host`` is what policy is asked about."""

    __slots__ = (
        "_decision",
        "_encoded",
        "_epoch",
        "_refusal",
        "_route",
        "authority",
        "canary",
        "fixed",
        "host",
        "known_as",
        "plan",
        "port",
        "protocol",
        "secure",
        "seen",
        "status",
        "subject",
        "transport",
        "via",
    )

    def __init__(
        self,
        subject: Subject,
        host: str,
        port: int,
        via: str,
        *,
        canary: bool = False,
        transport: Transport = Transport.TCP,
    ) -> None:
        self.subject = subject
        self.transport = transport
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
        self.plan: treatment.Plan | None = _UNPLANNED
        """What there is to do for its requests beside deciding them; nothing for nearly all."""
        self._decision = NO_POLICY
        self._encoded = b""
        self._epoch = -1
        self._route: Route | None = None
        self._refusal: tuple[Decision, tuple[int, bool, bool], Template] | None = None
        """The last one, to what decision and form of answer it belongs."""

    # -- decisions ----------------------------------------------------------------------------------------

    @property
    def access(self) -> NetworkAccess:
        return _access(self.host, self.port, self.transport)

    def decision(self, now: float) -> Decision:
        """The decision about the bare connection, under what is in force now."""
        subject = self.subject
        if self._epoch != subject.epoch:
            self._epoch = subject.epoch
            self._route = None
            self._encoded = b""
            self._refusal = None
            self.plan = _UNPLANNED
            self._decision = self.fixed or subject.decide(self.access, now)
        return self._decision

    def judge(self, method: bytes, path: bytes, now: float, *, counted: bool = True) -> Decision:
        """The decision about one request, which is ``counted`` unless it was let through before."""
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
        return self.subject.decide(access, now, counted=counted)

    def treat(self, request: Request, decision: Decision, now: float) -> treatment.Treatment | None:
        """Return what else a request gets that is allowed. Raises ``Withheld``."""
        plan = self.plan
        if plan is _UNPLANNED:
            subject = self.subject
            plan = self.plan = treatment.plan(
                subject.credentials,
                subject.budgets,
                self.host,
                self.port,
                subject.limits,
                subject.room,
                named=self.host == self.known_as,
                secure=self.secure,
            )
        if plan is None:
            return None
        if plan.idle(request, decision):
            plan.screen(request)
            return None
        return treatment.Treatment(plan, request, decision, self.authority, now)

    def settle(self, given: treatment.Treatment, size: int, now: float) -> bytes:
        """Book an exchange that is over; return what its last record says beside what all say."""
        if given.book(size, now):
            self.subject.drain()
        return given.close(now)

    def overspent(self, request: Request, given: treatment.Treatment, size: int, now: float) -> bool:
        """Book what moved so far; return whether no rule allows a byte more."""
        if given.book(size, now):
            self.subject.drain()
        if not any(account.drained for account in given.accounts):
            return False
        return not self.judge(request.method, request.path, now, counted=False).allowed

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
        asked = address == self.host
        decision = self.decision(now) if asked else self.subject.judge(self.access, address, now)
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
            protocol = "h2" if name and self.protocol == "h2" else "http/1.1"
            route = self._route = Route(self.host, self.port, name, self.subject.epoch, protocol)
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
        place = (self.host, self.port, self.via, self.protocol, self.canary, self.transport)
        shared = subject.shared(decision, place)
        if not shared:
            shared = b",".join((subject.identity(), self._encoded_place(), subject.encoded(decision)))
            subject.share(decision, place, shared)
        if decision is self._decision:
            self._encoded = shared
        return shared

    def annotated(self, decision: Decision, text: str) -> bytes:
        """As ``shared``, with a text that says what went wrong afterwards."""
        said = journal.encode({**journal.decided(decision), "text": journal.bounded(text)})
        return b",".join((self.subject.identity(), self._encoded_place(), said))

    def _encoded_place(self) -> bytes:
        host, protocol = self.host.encode(), self.protocol.encode()
        via, transport = self.via.encode(), self.transport.value.encode()
        plain = b'"via":"%b","transport":"%b","host":"%b","port":%d' % (via, transport, host, self.port)
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
        kept = self._refusal
        asked = (self.status, wants_json, close)
        if kept is None or kept[0] is not decision or kept[1] != asked or self._epoch != self.subject.epoch:
            template = self.subject.template(
                decision, self.place, status=self.status, wants_json=wants_json, close=close
            )
            kept = self._refusal = (decision, asked, template)
        return kept[2].fill(number)


def _reserved(host: str, subject: Subject) -> Decision | None:
    return OWN if host == GATEWAY_NAME or host in subject.own else None


@lru_cache(maxsize=4096)
def _access(host: str, port: int, transport: Transport) -> NetworkAccess:
    return NetworkAccess(host=host, port=port, transport=transport)


@lru_cache(maxsize=4096)
def authority_of(authority: bytes, default_port: int) -> tuple[str, int]:
    """Return the canonical host and the port of an authority, or raise ``Malformed``."""
    if b"@" in authority:
        raise Malformed("userinfo in an authority")
    try:
        return split_authority(authority, default_port)
    except ValueError as flaw:
        raise Malformed(f"an authority that is none: {flaw}") from None
