"""What the sandbox is told when the answer is no (GATEWAY.md section 2): one notice, as text or as JSON.

A person or an agent reads the text, so it says four things: what was refused, which rule did it, what would
change that, and the number under which ``sbx policy explain`` tells more. It never says anything about the
host.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, NamedTuple

from ringfence.gateway.core.heads import REASONS
from ringfence.policy.model import Decision, Effect, Inspect, Reason, RuleRef, Verdict

NO_RULE: Final = "no matching allow rule — default deny"
UNTRUSTED: Final = "the client does not trust this installation's certificate authority"
UNACCEPTED: Final = "the client does not accept the gateway's certificate"
LEFT: Final = "the client left during the TLS handshake, as some do that do not trust a certificate"
MISTRUST: Final = frozenset({UNTRUSTED, UNACCEPTED, LEFT})
"""How a handshake fails with clients that have roots, or pins, of their own."""
_MARK: Final = b"@@@@@@@@-@@@@@@@@"
"""Stands for a decision's number in a notice that is kept: all numbers have this length."""
LATER: Final = 429
_NAMED: Final = 4
"""Rules that a refusal names."""


class Notice(NamedTuple):
    """A response of the gateway's own. ``number`` is the decision's id, and is in ``body`` too."""

    status: int
    kind: bytes
    number: bytes
    body: bytes
    retry: int = 0
    """Seconds after which it is worth to ask again."""

    def fields(self) -> list[tuple[bytes, bytes]]:
        later = [(b"retry-after", b"%d" % self.retry)] if self.retry else []
        return [
            *later,
            (b"content-type", self.kind),
            (b"content-length", b"%d" % len(self.body)),
            (b"cache-control", b"no-store"),
            (b"x-sbx-decision", self.number),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Whom to ask where an organisation governs; empty where the developer decides."""

    organisation: str = ""
    support: str = ""


class Place(NamedTuple):
    """What was asked for."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def kind(self) -> str:
        literal = ":" in self.host or self.host.replace(".", "").isdigit()
        return "address" if literal else "domain"


def refused(
    decision: Decision, place: Place, number: bytes, *, status: int, contact: Contact, wants_json: bool
) -> Notice:
    """Return the notice for an access that policy, a guard or a failure blocked."""
    return _notice(
        status,
        number,
        wants_json,
        title=f"Blocked by network policy: {place.kind} {place}",
        because=_because(decision),
        change=_change(decision, place, contact),
        support=contact.support,
        host=place.host,
        port=place.port,
        reason=decision.reason.value,
    )


def postponed(
    decision: Decision, place: Place, number: bytes, retry: int, contact: Contact, *, wants_json: bool
) -> Notice:
    """Return the notice for a request that a budget of a minute has no room for now (RFC 6585 section 4)."""
    notice = refused(decision, place, number, status=LATER, contact=contact, wants_json=wants_json)
    return notice._replace(retry=retry)


def troubled(text: str, place: Place, number: bytes, *, status: int, wants_json: bool) -> Notice:
    """Return the notice for an access that was allowed and cannot be served."""
    title = f"The gateway cannot reach {place}: {text}"
    return _notice(status, number, wants_json, title=title, host=place.host, port=place.port)


def misread(text: str, number: bytes, *, status: int) -> Notice:
    """Return the notice for what was no request, or named something else."""
    return _notice(status, number, wants_json=False, title=f"Refused by the gateway: {text}")


def wants_json(lines: list[bytes]) -> bool:
    """Whether a request's fields ask for JSON by name; ``*/*`` is a person's curl."""
    for line in lines:  # noqa: SIM110  # a generator costs more than all that it looks at
        if line[:7].lower() == b"accept:" and b"json" in line.lower():
            return True
    return False


def _notice(
    status: int,
    number: bytes,
    wants_json: bool,
    *,
    title: str,
    because: str = "",
    change: str = "",
    support: str = "",
    **more: str | int,
) -> Notice:
    decision = number.decode("ascii")
    if wants_json:
        problem = {
            "type": "about:blank",
            "title": REASONS.get(status, b"").decode(),
            "status": status,
            "detail": title,
            "because": because,
            "change": change,
            "support": support,
            "decision": decision,
            **more,
        }
        text = json.dumps({key: value for key, value in problem.items() if value != ""}, ensure_ascii=False)
        return Notice(status, b"application/problem+json", number, text.encode() + b"\n")
    lines = (
        title,
        because,
        change and f"To change this: {change}",
        support,
        f"Decision {decision}; on the host, `sbx policy explain {decision}` tells more",
    )
    text = "\n".join(filter(None, lines))
    return Notice(status, b"text/plain; charset=utf-8", number, text.encode() + b"\n")


def _because(decision: Decision) -> str:
    if decision.reason is Reason.RULE and decision.rules and not _spent(decision):
        return "; ".join(f"rule {_named(rule)}, origin {rule.origin}" for rule in decision.rules[:_NAMED])
    return NO_RULE if decision.reason is Reason.DEFAULT else decision.text


def _spent(decision: Decision) -> bool:
    """Whether it is an allow that refuses: its budget is spent, and only time changes that."""
    return decision.verdict is Verdict.BLOCKED and any(rule.effect is Effect.ALLOW for rule in decision.rules)


def _named(rule: RuleRef) -> str:
    return f"`{rule.name or rule.id}`"


def _change(decision: Decision, place: Place, contact: Contact) -> str:
    """Say what would change a refusal: a command, or whom to ask. What a guard refuses, nothing changes."""
    if decision.reason not in (Reason.RULE, Reason.DEFAULT) or _spent(decision):
        return ""
    rule = decision.rules[0] if decision.rules else None
    if contact.organisation or (rule is not None and rule.origin == "remote"):
        return f"ask an administrator of {contact.organisation or 'your organisation'}"
    if rule is None:
        return f"on the host, `sbx policy allow network {place}`"
    if rule.effect is not Effect.DENY:
        return "somebody has to approve it"
    if rule.origin == "preset":
        return f"on the host, `sbx policy preset disable {rule.name}`"
    return f"on the host, `sbx policy rm network --id {rule.id.removeprefix('local:')}`"


def mistrusted(decision: Decision, place: Place, contact: Contact) -> str:
    """Say what helps a client that refuses our certificate for an allowed host. Nothing is bypassed by itself."""
    if contact.organisation:
        return f"ask an administrator of {contact.organisation}"
    if decision.verdict is Verdict.UNDETERMINED:
        return "rules about its requests need it inspected"
    if decision.inspect is Inspect.ALWAYS:
        return "a rule says that it is always inspected"
    return f"on the host, `sbx policy allow network --inspect never {place}` passes it through unread"


class Template:
    """A refusal kept as an HTTP/1 response with holes where the number goes: to refuse is then one join."""

    __slots__ = ("_parts",)

    def __init__(
        self,
        decision: Decision,
        place: Place,
        *,
        status: int,
        contact: Contact,
        wants_json: bool,
        close: bool,
    ) -> None:
        notice = refused(decision, place, _MARK, status=status, contact=contact, wants_json=wants_json)
        self._parts = http1(notice, close=close, headless=False).split(_MARK)

    def fill(self, number: bytes) -> bytes:
        return number.join(self._parts)


def http1(notice: Notice, *, close: bool, headless: bool) -> bytes:
    """Return a notice as an HTTP/1 response; ``headless`` answers a HEAD."""
    lines = [b"HTTP/1.1 %d %b" % (notice.status, REASONS.get(notice.status, b"Refused"))]
    lines += [name.title() + b": " + value for name, value in notice.fields()]
    if close:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if headless else notice.body)
