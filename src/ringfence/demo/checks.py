"""What must be true: functions from what was seen to checks. Pure: tests inject outcomes, the demo real ones.

A check never guesses: it names what was expected and what was got, and it has passed only if the evidence is
there. What is missing, empty or late fails.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ringfence.demo.internet.witness import Sightings
from ringfence.demo.script import REQUESTS, RULES

# What curl says may follow its progress meter on the same line, so these do not begin at a line's beginning.
PROXY_LINE: Final = re.compile(
    r"\* Uses proxy env variable https_proxy == 'http://gateway\.docker\.internal:3128'$", re.M
)
CONNECT_LINE: Final = re.compile(r"> CONNECT paste\.ee:443 HTTP/1\.1$", re.M)
CONNECT_ANSWER: Final = re.compile(r"< HTTP/1\.[01] 200 ", re.M)
TUNNEL_LINE: Final = re.compile(r"\* CONNECT tunnel established, response 200$", re.M)
SUBJECT_LINE: Final = re.compile(r"\*\s+subject: O=Ringfence untrusted MITM proxy; CN=paste\.ee$", re.M)
REAL_ISSUER: Final = re.compile(r"\*\s+issuer: O=Let's Demo; CN=R3$", re.M)
REFUSED_HTTP1: Final = re.compile(r"< HTTP/1\.1 403 Forbidden", re.M)
REFUSED_HTTP2: Final = re.compile(r"< HTTP/2 403", re.M)
ORIGIN_ANSWER: Final = re.compile(r"< HTTP/(?:1\.1|2) 200", re.M)

_EXCERPT: Final = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that must be as it must be."""

    name: str
    expected: str
    got: str
    passed: bool

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "expected": self.expected, "got": self.got, "passed": self.passed}


def equal(name: str, expected: object, got: object) -> Check:
    return Check(name=name, expected=str(expected), got=_excerpt(str(got)), passed=expected == got)


def shows(name: str, pattern: re.Pattern[str], text: str) -> Check:
    """The text has a line of this form; ``got`` is that line."""
    found = pattern.search(text)
    got = found[0].strip() if found else text
    return Check(name=name, expected=pattern.pattern, got=_excerpt(got), passed=found is not None)


def lacks(name: str, pattern: re.Pattern[str], text: str) -> Check:
    """The text is there, and has no line of this form."""
    found = pattern.search(text)
    got = found[0].strip() if found else "no such line" if text.strip() else "nothing at all"
    return Check(name=name, expected="no such line", got=got, passed=found is None and bool(text.strip()))


def _excerpt(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _EXCERPT else f"…{text[-_EXCERPT:]}"


def check_rules(rules: Sequence[Mapping[str, Any]]) -> tuple[Check, ...]:
    """Exactly the three rules are in force, and nothing else."""
    active = [rule for rule in rules if rule.get("active", rule.get("status") == "active")]
    expected = [(rule.name, rule.effect, tuple(sorted(rule.resources))) for rule in RULES]
    got = [(rule["name"], rule["decision"], tuple(sorted(rule["resources"]))) for rule in active]
    return (equal("the rules in force are exactly these three", sorted(expected), sorted(got)),)


def check_requests(outputs: Mapping[str, str]) -> tuple[Check, ...]:
    """The three curls printed what they must, by host."""
    return tuple(
        equal(request.expected, request.expected, outputs.get(request.host, "").strip())
        for request in REQUESTS
    )


def check_close_up(beginning: str, end: str, end_http11: str, body: str) -> tuple[Check, ...]:
    """The three phases of a refusal, as ``curl -v`` shows them."""
    return (
        shows("phase 1: the proxy variable points at the gateway", PROXY_LINE, beginning),
        shows("phase 2: curl asks for a tunnel", CONNECT_LINE, beginning),
        shows("phase 2: the gateway accepts the tunnel", CONNECT_ANSWER, beginning),
        shows("phase 2: the tunnel is established", TUNNEL_LINE, beginning),
        shows("phase 3: the certificate says openly who made it", SUBJECT_LINE, beginning),
        lacks("phase 3: the real issuer is nowhere in it", REAL_ISSUER, beginning),
        shows("the refusal inside the tunnel, over HTTP/2", REFUSED_HTTP2, end),
        shows("the refusal inside the tunnel, over HTTP/1.1", REFUSED_HTTP1, end_http11),
        shows(
            "the refusal says what blocked it",
            re.compile(r"Blocked by network policy: domain paste\.ee:443"),
            body,
        ),
        shows("the refusal names the rule", re.compile(r"deny exfiltration"), body),
    )


def check_silence(sightings: Sightings) -> tuple[Check, ...]:
    """The blocked sites heard nothing; the allowed one did."""
    reached = sightings.requests_for("api.anthropic.com")
    return (
        equal("the packet counter missed nothing", 0, sightings.lost),
        *(
            equal(f"{host} heard nothing: no packet, no connection, no question", 0, sightings.heard_of(host))
            for host in ("paste.ee", "example.com")
        ),
        Check(
            name="api.anthropic.com did get the request (so the counters do count)",
            expected="at least 1 request",
            got=f"{reached} requests",
            passed=reached >= 1,
        ),
    )


def check_host(verbose: str, sightings: Sightings) -> tuple[Check, ...]:
    """The host's own curl, outside the sandbox, meets the real site."""
    connections = sightings.connections_to("paste.ee")
    return (
        shows("the host's own curl meets the real issuer", REAL_ISSUER, verbose),
        shows("and the real site answers it", ORIGIN_ANSWER, verbose),
        Check(
            name="paste.ee saw that connection (so it was there all the time)",
            expected="at least 1 connection",
            got=f"{connections} connections",
            passed=connections >= 1,
        ),
    )


def check_log(log: str) -> tuple[Check, ...]:
    """The audit trail has one line of each kind."""
    return (
        shows(
            "the log has the allowed request with its status",
            _log_line("ALLOWED", "api.anthropic.com", "200"),
            log,
        ),
        shows("the log has the blocked one", _log_line("BLOCKED", "paste.ee", "-"), log),
        shows("with the rule that blocked it", re.compile(r"BLOCKED\s+paste\.ee.*deny exfiltration"), log),
        shows("the log has the one that no rule covers", _log_line("BLOCKED", "example.com", "-"), log),
    )


def _log_line(verdict: str, host: str, status: str) -> re.Pattern[str]:
    return re.compile(rf"^.*\b{verdict}\s+{re.escape(host)}(?::443)?\s+{re.escape(status)}(?:\s.*)?$", re.M)


def check_no_baseline(output: str, rules: Sequence[Mapping[str, Any]]) -> tuple[Check, ...]:
    """With its rule gone, the AI service is refused like everything else: there is no hidden baseline."""
    names = [rule["name"] for rule in rules]
    return (
        equal("with rule 1 deleted", "anthropic: 403", output.strip()),
        Check(
            name="`policy ls` shows it no more",
            expected=f"no `{RULES[0].name}`",
            got=", ".join(names) or "no rules",
            passed=bool(names) and RULES[0].name not in names,
        ),
    )


def check_departure(code: int, sandbox: str, sandboxes: Sequence[Mapping[str, Any]]) -> tuple[Check, ...]:
    """The anonymous sandbox is torn down when its shell exits."""
    return (
        equal("the shell's exit code comes through", 0, code),
        equal(f"sandbox `{sandbox}` is gone", [], [each["name"] for each in sandboxes]),
    )
