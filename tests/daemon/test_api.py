"""The API, spoken to a real daemon over its socket, with the runtime that runs nothing."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from daemon_process import Home, UnixConnection, installed


@pytest.fixture(scope="module")
def shared() -> Iterator[Home]:
    """One daemon for the questions that leave nothing behind."""
    with installed() as home:
        home.start()
        home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})
        yield home


@pytest.fixture
def home() -> Iterator[Home]:
    with installed() as home:
        yield home


def test_the_daemon_says_who_it_is(shared: Home) -> None:
    state = shared.must("GET", "/v1/daemon")
    assert (state["api"], state["enforcement"], state["socket"]) == (1, "advisory", shared.socket)
    assert state["gateway"]["alive"] is True
    os.kill(state["pid"], 0)
    os.kill(state["gateway"]["pid"], 0)


def test_the_socket_is_its_owners_alone(shared: Home) -> None:
    assert stat.S_IMODE(os.stat(shared.socket).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(shared.root / "run").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(shared.root / "state").st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_stranger_is_hung_up_on_even_where_the_file_system_lets_it_in(home: Home) -> None:
    home.start()
    for path in (home.root, home.root / "run"):
        path.chmod(0o755)
    os.chmod(home.socket, 0o666)
    script = (
        "import os,socket,sys; os.setgid(65534); os.setuid(65534); s=socket.socket(socket.AF_UNIX);"
        "s.connect(sys.argv[1]); s.sendall(b'GET /v1/daemon HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n');"
        "sys.exit(bool(s.recv(1)))"
    )
    ran = subprocess.run([sys.executable, "-c", script, home.socket], timeout=30, stderr=subprocess.PIPE)
    assert ran.returncode == 0 or b"ConnectionReset" in ran.stderr or b"BrokenPipe" in ran.stderr
    assert home.ask("GET", "/v1/daemon").status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "exit_code"),
    [
        ("GET", "/v1/sandboxes/nobody", None, 404, "sandbox-not-found", 3),
        ("POST", "/v1/sandboxes/nobody/start", None, 404, "sandbox-not-found", 3),
        ("DELETE", "/v1/sandboxes/nobody", None, 404, "sandbox-not-found", 3),
        ("POST", "/v1/sandboxes", {"agent": "shell", "name": "a b"}, 400, "sandbox-name", 2),
        ("POST", "/v1/sandboxes", {"agent": "shell", "workspaces": ["/"]}, 400, "invalid", 2),
        ("POST", "/v1/sandboxes", {"agent": "shell", "workspaces": ["relative"]}, 400, "invalid", 2),
        ("POST", "/v1/sandboxes", {"agent": "shell", "workspaces": ["/no/such/place"]}, 400, "invalid", 2),
        ("POST", "/v1/sandboxes", {"agent": "claude"}, 503, "agent", 1),
        ("POST", "/v1/sandboxes", {"agent": "shell", "memry": 5}, 400, "invalid-request", 2),
        ("POST", "/v1/sandboxes", {}, 400, "invalid-request", 2),
        ("POST", "/v1/policy/rules", {"effect": "deny", "resources": ["a b"]}, 400, "invalid-policy", 2),
        ("POST", "/v1/policy/rules", {"effect": "deny", "resources": []}, 400, "invalid-policy", 2),
        ("POST", "/v1/policy/rules", {"effect": "maybe", "resources": ["x.org"]}, 400, "invalid-request", 2),
        (
            "POST",
            "/v1/policy/rules",
            {"effect": "deny", "resources": ["x.org"], "sandbox": "no"},
            404,
            "sandbox-not-found",
            3,
        ),
        ("DELETE", "/v1/policy/rules", {"id": "unknown"}, 404, "rule-not-found", 3),
        ("DELETE", "/v1/policy/rules", {"id": "default-ai-services"}, 400, "preset-rule", 2),
        ("PUT", "/v1/policy/preset", {"preset": "deny-all"}, 409, "policy-initialised", 1),
        ("POST", "/v1/policy/check", {"target": "http://"}, 400, "invalid-policy", 2),
        ("GET", "/v1/policy/decisions/unknown", None, 404, "decision-not-found", 3),
        ("PUT", "/v1/policy/document", "rules: 5", 400, "invalid-policy", 2),
        ("GET", "/v1/nothing", None, 404, "no-route", 1),
        ("PATCH", "/v1/sandboxes", None, 405, "no-route", 1),
    ],
)
def test_every_failure_has_one_shape(
    shared: Home, method: str, path: str, body: object, status: int, code: str, exit_code: int
) -> None:
    answer = shared.ask(method, path, body)
    assert answer.kind == "application/problem+json"
    problem = answer.json
    assert (answer.status, problem["code"], problem["exit_code"]) == (status, code, exit_code)
    assert problem["status"] == status
    assert problem["detail"][:1] == problem["detail"][:1].lower()
    assert {"type", "title", "hint"} <= problem.keys()
    assert shared.must("GET", "/v1/sandboxes") == {"sandboxes": []}


def test_a_life_over_the_socket(home: Home) -> None:
    home.start()
    wish = {"agent": "shell", "name": "lab", "workspaces": [str(home.workspace)], "environment": {"A": "1"}}
    refused = home.ask("POST", "/v1/sandboxes", wish)
    assert (refused.status, refused.json["code"]) == (409, "policy-not-initialised")
    assert refused.json["hint"] == "run `sbx policy init balanced`"
    home.must("PUT", "/v1/policy/preset", {"preset": "balanced", "implicit": True})
    made = home.must("POST", "/v1/sandboxes", wish)
    assert (made["status"], made["isolation"], made["enforcement"]) == ("stopped", "none", "off")
    assert made["workspaces"] == [str(home.workspace)]
    started = home.must("POST", "/v1/sandboxes/lab/start")
    assert started["sandbox"]["status"] == "running"
    assert started["session"]["command"] == ["bash"]
    assert started["session"]["environment"]["A"] == "1"
    assert started["session"]["cwd"] == str(home.workspace)
    assert stat.S_ISSOCK(os.stat(started["session"]["socket"]).st_mode)
    detail = home.must("GET", "/v1/sandboxes/lab")
    assert (detail["sessions"], detail["policy"]["scope"]) == (0, "sandbox:lab")
    again = home.ask("POST", "/v1/sandboxes", wish)
    assert (again.status, again.json["code"]) == (409, "sandbox-exists")
    home.must("POST", "/v1/sandboxes/lab/settle")
    home.must("POST", "/v1/sandboxes/lab/stop")
    assert not os.path.exists(started["session"]["socket"])
    home.must("DELETE", "/v1/sandboxes/lab")
    assert home.must("GET", "/v1/sandboxes") == {"sandboxes": []}


def test_what_the_fake_prints_comes_out_of_a_session(home: Home) -> None:
    from ringfence.sandbox import frames
    from ringfence.sandbox.frames import Kind
    from ringfence.sandbox.opening import Opening

    home.start()
    home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})
    home.must("POST", "/v1/sandboxes", {"agent": "shell", "name": "lab", "anonymous": True})
    session = home.must("POST", "/v1/sandboxes/lab/start")["session"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(30)
        link.connect(session["socket"])
        opening = Opening(argv=("echo", "hello"), environment=tuple(session["environment"].items()))
        link.sendall(frames.encode(Kind.OPEN, frames.SESSION, opening.encode()))
        decoder, said, exited = frames.Decoder(frames.FROM_SUPERVISOR), b"", False
        while not exited:
            for kind, _channel, payload in decoder.feed(link.recv(65536)):
                said += payload if kind is Kind.STDOUT else b""
                exited |= kind is Kind.EXIT
    assert said == b"hello\n"
    home.ask("POST", "/v1/sandboxes/lab/settle")
    assert home.must("GET", "/v1/sandboxes") == {"sandboxes": []}, "a clean end of the last session"


def test_rules_presets_and_checks_over_the_socket(home: Home) -> None:
    home.start()
    assert home.must("GET", "/v1/policy/preset")["chosen"] is None
    home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})
    added = home.must("POST", "/v1/policy/rules", {"effect": "deny", "resources": ["pypi.org"]})["rules"][0]
    assert (added["decision"], added["resources"], added["origin"]) == ("deny", ["pypi.org"], "local")
    listed = home.must("GET", "/v1/policy")
    assert (listed["governance"], listed["preset"], listed["rules"][-1]) == (None, "balanced", added)
    assert [r["name"] for r in listed["rules"] if r["origin"] == "preset"][:2] == [
        "default-ai-services",
        "default-package-managers",
    ]
    check = home.must("POST", "/v1/policy/check", {"target": "pypi.org"})
    assert (check["allowed"], check["deny_kind"], check["rules"][0]["id"]) == (False, "explicit", added["id"])
    groups = home.must("POST", "/v1/policy/preset/groups", {"name": "default-os-packages", "enabled": False})
    assert [g["enabled"] for g in groups["groups"] if g["name"] == "default-os-packages"] == [False]
    assert home.must("GET", "/v1/policy/reset") == {"local": 1, "sandbox": 0}
    reset = home.must("POST", "/v1/policy/reset", {"preset": "deny-all"})
    assert (reset["preset"], reset["removed"]) == ("deny-all", 1)
    assert "pypi.org" in Path(reset["undo"]).read_text()
    undone = home.ask("PUT", "/v1/policy/document", Path(reset["undo"]).read_text())
    assert undone.status == 200
    assert home.must("GET", "/v1/policy")["rules"][-1]["resources"] == ["pypi.org"]
    assert b"pypi.org" in home.ask("GET", "/v1/policy/document").body
    formatted = home.ask(
        "POST", "/v1/policy/document/format", "version: 1\nrules: [{effect: deny, resources: [A.org]}]"
    )
    assert b"a.org" in formatted.body
    assert home.must("POST", "/v1/policy/document/validate", "version: 1\nrules: []\n")["ok"] is True
    assert home.must("POST", "/v1/policy/document/test", "")["passed"] == 0


def test_ten_thousand_resources_at_once(home: Home) -> None:
    home.start()
    names = [f"host-{number}.example" for number in range(10_000)]
    answer = home.ask("POST", "/v1/policy/rules", {"effect": "allow", "resources": names})
    if answer.status == 200:
        assert len(home.must("GET", "/v1/policy")["rules"][-1]["resources"]) == 10_000
    else:
        assert (answer.status, answer.json["code"]) == (400, "invalid-policy")
        assert home.must("GET", "/v1/policy")["rules"] == []


def test_require_init_refuses_the_implicit_choice(home: Home) -> None:
    home.configure('runtime = "fake"\n[policy]\nrequire_init = true\n')
    home.start()
    refused = home.ask("PUT", "/v1/policy/preset", {"preset": "balanced", "implicit": True})
    assert (refused.status, refused.json["code"]) == (409, "policy-not-initialised")
    home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})


def test_two_command_lines_at_once_are_both_right(home: Home) -> None:
    home.start()
    home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})

    def add(number: int) -> int:
        return home.ask(
            "POST", "/v1/policy/rules", {"effect": "deny", "resources": [f"h{number}.example"]}
        ).status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(add, range(24))) == {200}
        creations = pool.map(
            lambda _: home.ask("POST", "/v1/sandboxes", {"agent": "shell", "name": "same"}).status, range(4)
        )
        assert sorted(creations) == [201, 409, 409, 409]
    assert sum(rule["origin"] == "local" for rule in home.must("GET", "/v1/policy")["rules"]) == 24


def test_a_followed_log_ends_with_the_daemon_and_does_not_hold_it(home: Home) -> None:
    process = home.start()
    connection = UnixConnection(home.socket)
    connection.request("GET", "/v1/policy/log?follow=1")
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.readline() == b"\n"
    ended = threading.Thread(target=answer.read)
    ended.start()
    assert home.end(process) == 0
    ended.join(60)
    assert not ended.is_alive()
    connection.close()


def test_the_doctor_looks_at_everything(shared: Home) -> None:
    report = shared.must("GET", "/v1/doctor")
    names = {check["name"] for check in report["checks"]}
    assert {
        "runtime fake",
        "enclosure",
        "gateway",
        "tls.backend",
        "authority",
        "disk",
        "ledger",
        "database",
        "policy",
    } <= names
    assert sum(report["summary"].values()) == len(report["checks"])
    (worker,) = [check["detail"] for check in report["checks"] if check["name"] == "gateway"]
    assert worker.startswith(
        f"pid {shared.must('GET', '/v1/daemon')['gateway']['pid']}: 0 sandboxes, 0 of about "
    )
    failed = [check for check in report["checks"] if check["status"] == "fail"]
    assert all(check["hint"] for check in failed)
