"""What a request gets beside being decided: credentials put in, placeholders looked for, echoes masked, tokens counted,
budgets charged.

Most requests get none of it, and that costs one attribute test. Whether there is anything is known for a whole flow
while one epoch lasts (its ``Plan``); for a request that there is something for, a ``Treatment`` goes along with its
exchange. It works on messages, knows neither version of HTTP, and commands nothing: what must not leave is raised as
``Withheld``, and the exchange refuses it.

Where a body must be seen whole before its head can leave (a placeholder replaced in it, a signature over it), it is
held, within bounds for one body and for all bodies of the sandbox.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from ringfence.gateway.core import budgets, journal, sigv4
from ringfence.gateway.core.bound import (
    Bound,
    Withheld,
    copied,
    misused,
    plainly,
    without_credentials,
)
from ringfence.gateway.core.budgets import Account, Budgets
from ringfence.gateway.core.credentials import Credentials
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.lookout import Search
from ringfence.gateway.core.masks import Mask
from ringfence.gateway.core.messages import CHUNKED, UPGRADED, Request, Response
from ringfence.gateway.core.usage import Meter, counts
from ringfence.policy.model import Decision
from ringfence.policy.names import LOCALHOST

_TEXT: Final = (b"text/", b"application/x-www-form-urlencoded", b"application/graphql")
_TEXTUAL: Final = (b"json", b"xml", b"javascript", b"yaml")
"""In a media type, they say that it is a text (``application/problem+json``)."""
_PLAIN: Final = (b"", b"identity")
ENCODED: Final = "an answer that is encoded, though it was asked not to be, and cannot be searched"


class Room:
    """How many bytes of held bodies a sandbox has room for."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size


class Plan:
    """What there is to do for the requests of one flow. ``bound`` are the credentials of its destination."""

    __slots__ = (
        "_dressed",
        "_model",
        "_named",
        "_screened",
        "bound",
        "budgets",
        "credentials",
        "host",
        "limits",
        "metered",
        "room",
    )

    def __init__(
        self,
        host: str,
        credentials: Credentials,
        accounts: Budgets,
        bound: Bound | None,
        limits: Limits,
        room: Room,
        *,
        metered: bool,
    ) -> None:
        self.host = host
        self.credentials = credentials
        self.budgets = accounts
        self.bound = bound
        self.limits = limits
        self.room = room
        self.metered = metered
        self._screened: Sequence[bytes] = ()
        self._model: Request | None = None
        """The last request whose head was dressed, and what became of it: most differ in their path alone."""
        self._dressed: Request | None = None
        self._named: dict[tuple[Account, ...], bytes] = {}

    def screen(self, request: Request) -> None:
        """Search a head that leaves for placeholders. Fields that were searched before are not searched again."""
        lines = request.lines
        if lines is self._screened:
            if request.path != b"/":
                self.credentials.screen(request.path, ())
            return
        self.credentials.screen(request.path, lines)
        self._screened = lines

    def idle(self, request: Request, decision: Decision) -> bool:
        """Whether there is nothing to do for this request but to search its head."""
        if self.bound is not None or request.length or request.upgrade:
            return False
        return not (self.budgets and self.budgets.charged(decision))

    def dress(self, bound: Bound, request: Request) -> Request:
        """Return the request with its credentials. Raises ``Withheld``."""
        model, dressed = self._model, self._dressed
        if (
            model is not None
            and dressed is not None
            and model.lines is request.lines
            and model.method == request.method
            and model.length == request.length == 0
            and b"?" not in request.path
        ):
            again = copied(request, request.path, dressed.lines)
            again.sealed, again.tail = dressed.sealed, dressed.tail
            return again
        self._model, self._dressed = request, bound.dress(request)
        return self._dressed

    def named(self, accounts: tuple[Account, ...]) -> bytes:
        """Return what records of these requests say beside what all say."""
        known = self._named.get(accounts)
        if known is None:
            name = self.bound.name if self.bound is not None else ""
            fields = journal.encode({"credential": name, "charged": budgets.names(accounts)})
            known = self._named[accounts] = b"," + fields if fields else b""
        return known


def plan(
    credentials: Credentials,
    accounts: Budgets,
    host: str,
    port: int,
    limits: Limits,
    room: Room,
    *,
    named: bool,
    secure: bool,
) -> Plan | None:
    """Return what there is to do for a destination, nothing for nearly all. ``named`` is whether it is reached by its
    name, ``secure`` whether by TLS.
    """
    bound = credentials.towards(host, port) if named and secure and host != LOCALHOST else None
    metered = counts(host)
    if not (credentials or accounts or metered):
        return None
    return Plan(host, credentials, accounts, bound, limits, room, metered=metered)


class Treatment:
    """One exchange's. Raises ``Withheld`` where what is sent must not leave."""

    __slots__ = (
        "_booked",
        "_claim",
        "_kind",
        "_limit",
        "_mask",
        "_meter",
        "_pieces",
        "_plan",
        "_search",
        "_size",
        "_strict",
        "accounts",
        "authority",
        "holding",
        "named",
        "request",
    )

    def __init__(
        self, planned: Plan, request: Request, decision: Decision, authority: bytes, now: float
    ) -> None:
        bound = planned.bound
        self._plan = planned
        self.authority = authority
        self.holding = False
        """The body is kept until it is whole, and nothing leaves before."""
        self._limit = 0
        self._size = 0
        self._pieces: list[bytes] = []
        self._claim: sigv4.Claim | None = None
        self._mask: Mask | None = None
        self._search: Search | None = None
        self._kind = b""
        accounts = self.accounts = planned.budgets.charged(decision)
        self._booked = 0
        self._strict = planned.budgets.counts_tokens(decision.rules) if accounts else False
        metered = (planned.metered or self._strict) and (request.method == b"POST" or bool(request.upgrade))
        self._meter = Meter(request.path, additive=bool(request.upgrade)) if metered else None
        if bound is not None:
            self._claim = bound.signed(request, planned.host)
            self.request = planned.dress(bound, request)
            self._hold(bound, request)
        elif metered:
            self.request = copied(request, request.path, plainly(request.lines))
        else:
            self.request = request
        if planned.credentials.lookout and request.length != 0:
            self._search = Search(planned.credentials.lookout)
        if not self.holding:
            self._complete(sigv4.EMPTY)
        for account in accounts:
            account.ask(now)
        self.named = planned.named(accounts)
        """What both of its records say beside what all records say."""

    # -- the request --------------------------------------------------------------------------------------

    def _hold(self, bound: Bound, request: Request) -> None:
        """Keep the body if its head depends on it."""
        limits, claim = self._plan.limits, self._claim
        if request.length == 0:
            return
        if claim is not None and not claim.payload:
            self._limit, self.holding = limits.signed_bytes, True
        if bound.in_body:
            self._limit, self.holding = limits.replaced_bytes, True
            self._kind = _field(request.lines, b"content-type").lower()
            if _field(request.lines, b"content-encoding").lower() not in _PLAIN:
                raise Withheld("an encoded body, in which a placeholder cannot be found", 415)
        if self.holding and request.length > self._limit:
            raise self._too_long()

    def _too_long(self) -> Withheld:
        why = "to be signed" if self._claim is not None else "for a placeholder to be replaced in it"
        return Withheld(f"a body of more than {self._limit} bytes, which is too long {why}", 413)

    def upload(self, payload: bytes) -> bytes:
        """Take more of the body (or of an upgraded connection); return what leaves."""
        if self.holding:
            self._size += len(payload)
            self._plan.room.left -= len(payload)
            if self._size > self._limit:
                raise self._too_long()
            if self._plan.room.left < 0:
                raise Withheld("too many bodies of this sandbox wait to be whole", 503)
            self._pieces.append(payload)
            return b""
        if self._search is not None:
            found = self._search.find(payload)
            if found:
                raise misused(found)
        return payload

    def conclude(self, trailers: Sequence[bytes]) -> tuple[bytes, Sequence[bytes]]:
        """The body is complete; return what was held of it, and the trailers that leave."""
        bound = self._plan.bound
        if trailers:
            if bound is not None:
                trailers = without_credentials(trailers)
            self._plan.credentials.screen(b"", trailers)
        if not self.holding:
            return b"", trailers
        assert bound is not None
        body = b"".join(self._pieces)
        self._pieces.clear()
        self.holding = False
        if bound.in_body:
            body = bound.replace_in(body, self._kind)
        if self._search is not None:
            found = self._search.find(body)
            if found:
                raise misused(found)
        request = self.request
        request.expect = False
        if request.length != CHUNKED or not trailers:
            request.length = len(body)
        self._complete(hashlib.sha256(body).hexdigest().encode())
        return body, trailers

    def _complete(self, payload: bytes) -> None:
        """The head is as it leaves, but for a signature; nothing of it may be a placeholder."""
        claim, bound = self._claim, self._plan.bound
        if claim is not None and bound is not None:
            self.request = bound.sign(claim, self.request, self.authority, payload)
        self._plan.screen(self.request)

    # -- the response -------------------------------------------------------------------------------------

    def inform(self, response: Response) -> None:
        """Mask a head."""
        bound = self._plan.bound
        if bound is not None and bound.forms:
            forms = bound.forms
            if forms.spans(b"\n".join((response.reason, response.upgrade, *response.lines))):
                response.reason = forms.mask(response.reason)
                response.upgrade = forms.mask(response.upgrade)
                response.lines = [forms.mask(line) for line in response.lines]

    def meet(self, response: Response) -> str:
        """The final response's head is there; return why it cannot be let through, if so."""
        bound = self._plan.bound
        searched = bound is not None and bool(bound.forms)
        if (searched or self._strict) and response.length not in (0, UPGRADED):
            encoding = _field(response.lines, b"content-encoding").lower()
            if encoding not in _PLAIN and _is_text(_field(response.lines, b"content-type").lower()):
                return ENCODED
        self.inform(response)
        if searched and bound is not None:
            self._mask = Mask(bound.forms)
        return ""

    def passed(self, payload: bytes) -> bytes:
        """Return what leaves of more of the body, or of an upgraded connection."""
        if self._meter is not None:
            self._meter.feed(payload)
        return self._mask.feed(payload) if self._mask is not None else payload

    def concluded(self, payload: bytes, trailers: Sequence[bytes]) -> tuple[bytes, Sequence[bytes]]:
        """Return what leaves of the rest of the body, and of its trailers."""
        payload = self.passed(payload)
        bound, mask = self._plan.bound, self._mask
        if bound is None or mask is None:
            return payload, trailers
        return payload + mask.finish(), [bound.forms.mask(line) for line in trailers]

    # -- accounts -----------------------------------------------------------------------------------------

    def book(self, size: int, now: float) -> bool:
        """Book the bytes so far; return whether that used up the bytes of a rule's day."""
        more, self._booked = size - self._booked, size
        return budgets.spend(self.accounts, more, 0, now)

    def close(self, now: float) -> bytes:
        """The exchange is over: book the tokens, and return what its last record says beside what all say."""
        room, self._size = self._size, 0
        self._plan.room.left += room
        meter = self._meter
        if meter is None or not (meter.model or any(meter.usage)):
            return b""
        usage = meter.usage
        budgets.spend(self.accounts, 0, usage.tokens_in + usage.tokens_out, now)
        return b"," + journal.encode({"model": journal.bounded(meter.model), **usage._asdict()})


def _field(lines: Sequence[bytes], wanted: bytes) -> bytes:
    """Return a field's value, all of them if there are several."""
    values = []
    for line in lines:
        name, _, value = line.partition(b": ")
        if len(name) == len(wanted) and name.lower() == wanted:
            values.append(value)
    return b", ".join(values)


def _is_text(kind: bytes) -> bool:
    media = kind.partition(b";")[0].strip()
    return not media or media.startswith(_TEXT) or any(word in media for word in _TEXTUAL)
