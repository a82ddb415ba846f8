"""``policy log``: what is printed for which records, live and past. No record acts on a terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_daemon import CREATED, FakeDaemon, sandbox
from hypothesis import given
from hypothesis import strategies as st
from stage import OpenTerminal, Sbx

from ringfence.cli.policy.log import HELD_LIMIT, HOLD, SHOWN_LIMIT, Line, Pairing, text


def opened(key: str, host: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": key,
        "step": "opened",
        "time": CREATED,
        "sandbox": "id-of-lab",
        "sandbox_name": "sbxlab",
        "agent": "shell",
        "verdict": "allowed",
        "via": "connect",
        "host": host,
        "port": 443,
        "method": "GET",
        "path": "/",
        "rule": "default-package-managers",
        **changes,
    }


def blocked(key: str, host: str, **changes: Any) -> dict[str, Any]:
    return opened(key, host, **{"verdict": "blocked", "rule": "", "reason": "default", **changes})


def closed(key: str, status: int = 200, **changes: Any) -> dict[str, Any]:
    return {
        "id": key,
        "step": "closed",
        "time": CREATED + 0.2,
        "verdict": "allowed",
        "status": status,
        **changes,
    }


STORY = [
    opened("1", "pypi.org", path="/simple/httpx/"),
    opened("2", "files.pythonhosted.org", path="/packages/httpx.whl"),
    closed("2"),
    closed("1"),
    blocked("c", "canary.invalid", canary=True),
    blocked("3", "pypi.org", rule="local:9701dc6e", reason="rule", method="HEAD"),
    blocked("4", "10.0.0.5", port=5432, method="", path="", via="transparent", protocol="tcp"),
    blocked("5", "2001:db8::1", port=53, method="", path="", via="udp", transport="udp"),
    {"dropped": 12, "time": CREATED, "verdict": "blocked"},
    opened("6", "slow.example.com"),
]


@pytest.fixture
def lab(daemon: FakeDaemon) -> FakeDaemon:
    daemon.sandboxes["sbxlab"] = sandbox("sbxlab")
    daemon.records = list(STORY)
    return daemon


def test_piped_it_prints_the_backlog_and_ends(sbx: Sbx, lab: FakeDaemon) -> None:
    allowed = "shell  default-package-managers\n"
    assert sbx("policy", "log", "sbxlab").out == (
        f"2026-04-30 13:04:05  ALLOWED   files.pythonhosted.org   200  GET /packages/httpx.whl  {allowed}"
        f"2026-04-30 13:04:05  ALLOWED   pypi.org                 200  GET /simple/httpx/  {allowed}"
        "2026-04-30 13:04:05  BLOCKED   pypi.org                 -    HEAD /  shell  local:9701dc6e\n"
        "2026-04-30 13:04:05  BLOCKED   10.0.0.5:5432            -    tcp  shell  default-deny\n"
        "2026-04-30 13:04:05  BLOCKED   [2001:db8::1]:53         -    udp  shell  default-deny\n"
        "2026-04-30 13:04:05  DROPPED   12 records that could not be kept\n"
        f"2026-04-30 13:04:05  ALLOWED   slow.example.com         -    GET /  {allowed}"
    )


def test_without_a_name_the_agent_says_where(sbx: Sbx, lab: FakeDaemon) -> None:
    assert "GET /simple/httpx/  shell@sbxlab  default" in sbx("policy", "log").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "2"], ["DROPPED", "ALLOWED"]),
        (["--limit", "0"], ["ALLOWED", "ALLOWED", "BLOCKED", "BLOCKED", "BLOCKED", "DROPPED", "ALLOWED"]),
        (["--blocked"], ["BLOCKED", "BLOCKED", "BLOCKED", "DROPPED"]),
        (["--blocked", "--limit", "1"], ["DROPPED"]),
        (["--since", "1h", "-q"], []),
        (["--type", "filesystem", "-q"], []),
    ],
)
def test_what_is_selected(sbx: Sbx, lab: FakeDaemon, arguments: list[str], words: list[str]) -> None:
    assert [line.split()[2] for line in sbx("policy", "log", *arguments).out.splitlines()] == words


def test_a_sandbox_that_is_no_more_still_has_a_past(sbx: Sbx, lab: FakeDaemon) -> None:
    del lab.sandboxes["sbxlab"]
    lab.records = [blocked("1", "paste.ee")]
    assert sbx("policy", "log", "sbxlab", "--follow").out.count("BLOCKED   paste.ee") == 1
    assert json.loads(sbx("policy", "log", "sbxlab", "--json").out)["blocked_hosts"]
    lab.records = [blocked("1", "paste.ee", sandbox_name="another")]
    assert sbx("policy", "log", "sbxlab").code == 3


def test_a_client_that_refuses_the_authority_is_told_what_would_help(sbx: Sbx, lab: FakeDaemon) -> None:
    said = "the client does not trust it; on the host, `sbx policy allow network --inspect never a.test:443` helps"
    tls = {"protocol": "tls", "method": "", "path": "", "text": said}
    lab.records = [opened("1", "a.test", **tls), closed("1", 0, ended="mistrusted", **tls)]
    (line,) = sbx("policy", "log", "--no-follow").out.splitlines()
    assert "ALLOWED   a.test" in line
    assert line.endswith(said)


def test_nothing_to_show(sbx: Sbx, daemon: FakeDaemon) -> None:
    ran = sbx("policy", "log")
    assert (ran.code, ran.out) == (0, "No policy log entries found\n")
    assert sbx("policy", "log", "-q").out == ""
    assert json.loads(sbx("policy", "log", "--json").out) == {"blocked_hosts": [], "allowed_hosts": []}


def test_json_is_a_summary_by_host(sbx: Sbx, lab: FakeDaemon) -> None:
    lab.records += [
        blocked("7", "pypi.org", rule="local:9701dc6e", reason="rule", text="denied", time=CREATED + 5)
    ]
    found = json.loads(sbx("policy", "log", "sbxlab", "--json").out)
    assert [row["host"] for row in found["allowed_hosts"]] == [
        "files.pythonhosted.org:443",
        "pypi.org:443",
        "slow.example.com:443",
    ]
    assert found["blocked_hosts"][0] == {
        "host": "pypi.org:443",
        "vm_name": "sbxlab",
        "proxy_type": "forward",
        "rule": "local:9701dc6e",
        "reason": "rule",
        "last_seen": "2026-04-30T13:04:10Z",
        "since": "2026-04-30T13:04:05Z",
        "count_since": 2,
    }
    assert found["blocked_hosts"][1]["reason"] == "No matching allow rule (default deny)"


def test_on_a_terminal_each_line_is_there_as_it_happens(terminal: OpenTerminal, lab: FakeDaemon) -> None:
    screen = terminal("policy", "log", "sbxlab")
    screen.expect("Watching sbxlab; Ctrl-C ends.\n")
    screen.expect("ALLOWED   slow.example.com         -    GET /  shell")
    lab.live += [blocked("10", "paste.ee")]
    screen.expect("BLOCKED   paste.ee                 -    GET /  shell  default-deny\n")
    lab.live += [opened("11", "pypi.org"), closed("11", status=304)]
    screen.expect("ALLOWED   pypi.org                 304  GET /  shell  default-package-managers\n")
    lab.live += [opened("12", "tunnel.example.com", method="", path="", protocol="tls")]
    screen.expect("ALLOWED   tunnel.example.com       -    tls  shell  default-package-managers\n")
    lab.live += [closed("12", 0, ended="revoked", host="tunnel.example.com", port=443, rule="deny all")]
    screen.expect("REVOKED   tunnel.example.com       -    ")
    screen.interrupt()
    assert screen.end() == 130
    assert "Error" not in screen.screen


def test_a_live_log_says_that_the_daemon_has_gone(sbx: Sbx, lab: FakeDaemon) -> None:
    lab.live += [None]  # type: ignore[list-item]
    ran = sbx("policy", "log", "sbxlab", "--follow")
    assert ran.code == 5
    assert len(ran.out.splitlines()) == 7
    assert ran.err == "Error: the log ended: the daemon was stopped\nHint: run the command again\n"


def test_json_follow_is_the_events_themselves(sbx: Sbx, lab: FakeDaemon) -> None:
    lab.live += [blocked("10", "paste.ee"), None]  # type: ignore[list-item]
    ran = sbx("policy", "log", "sbxlab", "--json", "--follow", "--limit", "0")
    assert [json.loads(line) for line in ran.out.splitlines()] == [*STORY, blocked("10", "paste.ee")]


HOSTILE = "evil\x1b[2J\x1b]0;owned\x07\r\nALLOWED\u202e.org"


def test_what_the_sandbox_chose_cannot_act_on_the_terminal(sbx: Sbx, lab: FakeDaemon) -> None:
    lab.records = [
        blocked("1", HOSTILE, path="/\x9b31m\u2066\x00", method="G\nET", rule=HOSTILE, agent=HOSTILE)
    ]
    ran = sbx("policy", "log")
    assert len(ran.out.splitlines()) == 1
    assert ran.out.rstrip("\n").isprintable()


# The pairing itself: no clock, no terminal.


def lines(*steps: tuple[float, dict[str, Any]]) -> list[tuple[str, str]]:
    pairing = Pairing()
    ready: list[Line] = []
    for now, record in steps:
        ready += pairing.overdue(now)
        ready += pairing.take(record, now)
    return [(line.record.get("host", ""), line.status) for line in ready]


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ([(0.0, blocked("1", "a"))], [("a", "-")]),
        ([(0.0, opened("1", "a"))], []),
        ([(0.0, opened("1", "a")), (0.1, closed("1"))], [("a", "200")]),
        ([(0.0, opened("1", "a")), (HOLD, closed("1"))], [("a", "-")]),
        (
            [(0.0, opened("1", "a")), (0.5, blocked("2", "b")), (9.0, blocked("3", "c"))],
            [("b", "-"), ("a", "-"), ("c", "-")],
        ),
        ([(0.0, closed("1", host="a"))], [("a", "200")]),
        (
            [(0.0, opened("1", "a")), (9.0, closed("1", 0, ended="revoked", host="a"))],
            [("a", "-"), ("a", "-")],
        ),
        ([(0.0, opened("1", "a", verdict="approval"))], [("a", "-")]),
        ([(0.0, {})], [("", "-")]),
    ],
)
def test_one_line_a_decision(steps: list[tuple[float, dict[str, Any]]], shown: list[tuple[str, str]]) -> None:
    assert lines(*steps) == shown


def test_what_is_held_is_bounded() -> None:
    pairing = Pairing()
    shown = sum(len(pairing.take(opened(str(n), "a"), 0.0)) for n in range(HELD_LIMIT + SHOWN_LIMIT + 10))
    assert shown == SHOWN_LIMIT + 10
    assert (len(pairing.held), len(pairing.shown)) == (HELD_LIMIT, SHOWN_LIMIT)


JSON = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.just([]), st.just({"a": "\x1b"})
)
RECORDS = st.fixed_dictionaries(
    {"time": st.floats(min_value=0, max_value=4e9)},
    optional={
        "id": st.sampled_from("abc") | JSON,
        "step": st.sampled_from(["opened", "closed"]) | JSON,
        "verdict": st.sampled_from(["allowed", "blocked"]) | JSON,
        **dict.fromkeys(
            ("host", "port", "method", "path", "rule", "agent", "status", "ended", "protocol"), JSON
        ),
    },
)


@given(st.lists(RECORDS, max_size=4))
def test_any_record_is_at_most_one_printable_line(records: list[dict[str, Any]]) -> None:
    pairing = Pairing()
    ready = [line for record in records for line in pairing.take(record, 0.0)] + pairing.rest()
    assert len(ready) <= len(records)
    for line in ready:
        assert text(line, today="2026-04-30", sandbox=True, path_columns=120).isprintable()
