"""The demo's verdicts: good outcomes pass, and every single thing that is not as it must be fails by name."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest
from rich.console import Console

from ringfence.demo.checks import (
    Check,
    check_close_up,
    check_departure,
    check_host,
    check_log,
    check_no_baseline,
    check_requests,
    check_rules,
    check_silence,
    equal,
)
from ringfence.demo.internet.witness import Flow, Notebook, Sightings
from ringfence.demo.narration import Narrator
from ringfence.demo.script import RULES

BEGINNING = """\
  % Total    % Received % Xferd  Average Speed   Time    Time     Time  Current
* Uses proxy env variable https_proxy == 'http://gateway.docker.internal:3128'
*   Trying 198.18.0.1:3128...
> CONNECT paste.ee:443 HTTP/1.1
> Host: paste.ee:443
  0     0    0     0    0     0      0      0 --:--:-- --:--:-- --:--:--     0< HTTP/1.1 200 Connection established
* CONNECT tunnel established, response 200
* Server certificate:
*  subject: O=Ringfence untrusted MITM proxy; CN=paste.ee
*  issuer: O=Ringfence; CN=Ringfence CA
"""
END = "* using HTTP/2\n< HTTP/2 403 \n< x-sbx-decision: 1\n"
END_HTTP11 = "< HTTP/1.1 403 Forbidden\n"
BODY = "Blocked by network policy: domain paste.ee:443\nrule: deny exfiltration (local)\n"
HOST = "*  subject: CN=paste.ee\n*  issuer: O=Let's Demo; CN=R3\n< HTTP/1.1 200 OK\n"
LOG = """\
12:00:00  ALLOWED   api.anthropic.com        200  GET /  shell  allow AI services
12:00:01  BLOCKED   paste.ee                 -    GET /  shell  deny exfiltration
12:00:02  BLOCKED   example.com              -    GET /  shell  default-deny
"""
OUTPUTS = {
    "api.anthropic.com": "anthropic: 200\n",
    "paste.ee": "paste.ee: 403\n",
    "example.com": "example.com: 403\n",
}
IN_FORCE = [
    {"name": rule.name, "decision": rule.effect, "resources": list(rule.resources), "active": True}
    for rule in RULES
]


def seen(
    *packets: str, connections: Sequence[str] = (), requests: Sequence[str] = (), lost: int = 0
) -> Sightings:
    notebook = Notebook(lost=lost)
    for address in packets:
        notebook.packet(Flow(address=address, protocol="tcp", port=443))
    notebook.connections.update(connections)
    notebook.requests.extend({"origin": host, "host": host} for host in requests)
    return Sightings.parse(notebook.snapshot())


QUIET = seen("203.0.113.10", connections=["api.anthropic.com"], requests=["api.anthropic.com"])
MET = seen("203.0.113.18", connections=["paste.ee"], requests=["paste.ee"])

GOOD = {
    "rules": check_rules(IN_FORCE),
    "requests": check_requests(OUTPUTS),
    "close up": check_close_up(BEGINNING, END, END_HTTP11, BODY),
    "silence": check_silence(QUIET),
    "host": check_host(HOST, MET),
    "log": check_log(LOG),
    "no baseline": check_no_baseline("anthropic: 403\n", IN_FORCE[1:]),
    "departure": check_departure(0, "shell-1", []),
}

BAD: dict[str, tuple[Check, ...]] = {
    "a fourth rule": check_rules(
        [*IN_FORCE, {"name": "x", "decision": "allow", "resources": ["**"], "active": True}]
    ),
    "a rule that is not active": check_rules([*IN_FORCE[:2], IN_FORCE[2] | {"active": False}]),
    "no rules": check_rules([]),
    "a resource that is missing": check_rules(
        [IN_FORCE[0] | {"resources": ["api.anthropic.com:443"]}, *IN_FORCE[1:]]
    ),
    "anthropic refused": check_requests(OUTPUTS | {"api.anthropic.com": "anthropic: 403\n"}),
    "paste.ee reached": check_requests(OUTPUTS | {"paste.ee": "paste.ee: 200\n"}),
    "example.com gave no answer": check_requests(OUTPUTS | {"example.com": "example.com: 000\n"}),
    "a curl that printed nothing": check_requests(OUTPUTS | {"paste.ee": ""}),
    "a curl that was not made": check_requests({}),
    "no proxy variable": check_close_up(BEGINNING.replace("https_proxy", "nothing"), END, END_HTTP11, BODY),
    "no tunnel": check_close_up(BEGINNING.replace("< HTTP/1.1 200", "< HTTP/1.1 403"), END, END_HTTP11, BODY),
    "the real certificate": check_close_up(
        BEGINNING.replace("O=Ringfence; CN=Ringfence CA", "O=Let's Demo; CN=R3"), END, END_HTTP11, BODY
    ),
    "another host's certificate": check_close_up(
        BEGINNING.replace("CN=paste.ee", "CN=x"), END, END_HTTP11, BODY
    ),
    "a 200 over HTTP/2": check_close_up(BEGINNING, END.replace("403", "200"), END_HTTP11, BODY),
    "a 200 over HTTP/1.1": check_close_up(
        BEGINNING, END, END_HTTP11.replace("403 Forbidden", "200 OK"), BODY
    ),
    "a body that does not say why": check_close_up(BEGINNING, END, END_HTTP11, "Forbidden"),
    "nothing at all": check_close_up("", "", "", ""),
    "a packet for paste.ee": check_silence(seen("203.0.113.18", requests=["api.anthropic.com"])),
    "a packet for example.com over IPv6": check_silence(
        seen("2001:db8:113::21", requests=["api.anthropic.com"])
    ),
    "a connection to paste.ee": check_silence(seen(connections=["paste.ee"], requests=["api.anthropic.com"])),
    "counters that count nothing": check_silence(seen()),
    "a counter that missed something": check_silence(seen(requests=["api.anthropic.com"], lost=1)),
    "a host that meets the proxy": check_host(BEGINNING, MET),
    "a host whose connection nobody saw": check_host(HOST, seen()),
    "an empty log": check_log(""),
    "a log without the refusal": check_log(LOG.replace("BLOCKED   paste.ee", "ALLOWED   paste.ee")),
    "a log without the rule": check_log(LOG.replace("deny exfiltration", "-")),
    "a log without the status": check_log(LOG.replace("200", "-  ")),
    "a hidden baseline": check_no_baseline("anthropic: 200\n", IN_FORCE[1:]),
    "a rule that is still shown": check_no_baseline("anthropic: 403\n", IN_FORCE),
    "no rules to look at": check_no_baseline("anthropic: 403\n", []),
    "a sandbox that stays": check_departure(0, "shell-1", [{"name": "shell-1"}]),
    "an exit code that is lost": check_departure(1, "shell-1", []),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_outcomes_pass(name: str) -> None:
    assert [check for check in GOOD[name] if not check.passed] == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_outcome_fails(name: str) -> None:
    assert any(not check.passed for check in BAD[name])


def narrator(*, as_json: bool = False) -> tuple[Narrator, io.StringIO]:
    written = io.StringIO()
    console = Console(file=written, width=100, highlight=False, markup=False, emoji=False)
    return Narrator(console, as_json=as_json), written


def test_a_story_without_a_check_has_not_passed() -> None:
    teller, _ = narrator()
    assert not teller.end(1.0)


def test_one_failed_check_fails_the_story_and_is_named() -> None:
    teller, written = narrator()
    teller.check(equal("this", 1, 1), equal("that", 200, 403))
    assert not teller.end(1.0)
    assert "1 of 2 checks failed" in written.getvalue()
    assert "that: expected 200, got 403" in written.getvalue()


def test_a_story_that_broke_off_has_failed() -> None:
    teller, written = narrator()
    teller.check(equal("this", 1, 1))
    assert not teller.end(1.0, "the daemon is gone")
    assert "could not go on: the daemon is gone" in written.getvalue()


def test_json_is_one_object_and_nothing_else() -> None:
    teller, written = narrator(as_json=True)
    teller.title("title", "line")
    teller.step("step")
    teller.table(("a",), [("b",)])
    teller.check(equal("this", 1, 1))
    assert teller.end(2.0)
    assert json.loads(written.getvalue()) == {
        "passed": True,
        "seconds": 2.0,
        "failure": "",
        "checks": [{"name": "this", "expected": "1", "got": "1", "passed": True}],
    }


def test_a_story_in_a_pipe_has_no_colours_and_is_not_wrapped() -> None:
    teller, written = narrator()
    teller.step("One")
    teller.typed(RULES[0].name + " x" * 100)
    teller.check(equal("this", 1, 1))
    assert "\x1b" not in written.getvalue()
    assert "   $ allow AI services" + " x" * 100 in written.getvalue().splitlines()
    assert "1. One" in written.getvalue()
