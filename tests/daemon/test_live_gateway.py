"""A real sandbox and its gateway: killed, replaced, and never open in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_process import PATIENCE, Home, installed
from tests.world import why_no_sandbox

from ringfence.locations import locate

MISSING = why_no_sandbox(os.environ)
pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")]

CURL = ("curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}")


@pytest.fixture
def home() -> Iterator[Home]:
    with installed() as home:
        home.environment["SBX_DATA_DIR"] = str(locate(os.environ, home=str(Path.home())).data)
        home.configure("")
        home.start()
        home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})
        home.must(
            "POST", "/v1/sandboxes", {"agent": "shell", "name": "lab", "workspaces": [str(home.workspace)]}
        )
        home.must("POST", "/v1/sandboxes/lab/start")
        try:
            yield home
        finally:
            home.ask("DELETE", "/v1/sandboxes/lab")


def inside(home: Home, *command: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "ringfence", "exec", "lab", *command],
        env=home.environment,
        cwd=home.workspace,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return ran.stdout + ran.stderr


def until_enforcing(home: Home) -> None:
    deadline = time.monotonic() + PATIENCE
    while home.must("GET", "/v1/sandboxes/lab")["enforcement"] != "enforcing":
        assert time.monotonic() < deadline, home.log
        time.sleep(0.02)


def test_a_gateway_that_is_killed_is_replaced_under_a_running_sandbox(home: Home) -> None:
    assert inside(home, *CURL, "https://paste.ee") == "403"
    for _ in range(2):
        before = home.must("GET", "/v1/daemon")["gateway"]["pid"]
        os.kill(before, signal.SIGKILL)
        assert inside(home, *CURL, "https://paste.ee") == "403", "it waits; nobody else answers"
        until_enforcing(home)
        assert home.must("GET", "/v1/daemon")["gateway"]["pid"] != before
    said = [
        line
        for line in home.ask("GET", "/v1/policy/log?sandbox=lab").body.splitlines()
        if b"paste.ee" in line
    ]
    assert len(said) == 3, "each refusal is recorded once"


def test_a_daemon_that_is_killed_finds_sandbox_sessions_and_gateway_again(home: Home) -> None:
    state = home.must("GET", "/v1/daemon")
    held = subprocess.Popen(
        [sys.executable, "-m", "ringfence", "exec", "-i", "lab", "sh", "-c", "read line; echo got $line"],
        env=home.environment,
        cwd=home.workspace,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while home.must("GET", "/v1/sandboxes/lab")["sessions"] != 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        home.end(home.processes[-1], signal.SIGKILL)
        home.start()
        after = home.must("GET", "/v1/daemon")
        assert after["pid"] != state["pid"]
        assert after["gateway"]["pid"] == state["gateway"]["pid"]
        sandbox = home.must("GET", "/v1/sandboxes/lab")
        assert (sandbox["status"], sandbox["enforcement"], sandbox["sessions"]) == ("running", "enforcing", 1)
        out, _ = held.communicate(b"hello\n", timeout=PATIENCE)
        assert out == b"got hello\n"
    finally:
        held.kill()
        held.wait()
    assert inside(home, *CURL, "https://paste.ee") == "403"


def test_policy_is_live_and_the_log_has_the_rule(home: Home) -> None:
    home.must("POST", "/v1/policy/rules", {"effect": "deny", "resources": ["pypi.org"], "name": "no index"})
    assert inside(home, *CURL, "https://pypi.org") == "403"
    (line,) = home.ask("GET", "/v1/policy/log?sandbox=lab&limit=1").body.splitlines()
    assert b'"rule":"no index"' in line


def test_what_dies_inside_is_stopped_outside(home: Home) -> None:
    inside(home, "sudo", "kill", "-KILL", "1")
    inside(home, "sudo", "sh", "-c", "kill -TERM -1; kill -KILL -1")
    deadline = time.monotonic() + PATIENCE
    home.must("POST", "/v1/sandboxes/lab/stop")
    while home.must("GET", "/v1/sandboxes/lab")["status"] != "stopped":
        assert time.monotonic() < deadline, home.log
        time.sleep(0.02)
    home.must("POST", "/v1/sandboxes/lab/start")
    assert inside(home, "echo", "again") == "again\n"


def test_a_worker_that_is_killed_is_missed_by_its_own_sandbox_alone(home: Home) -> None:
    """Two sandboxes have two workers; enforcement of the second never wavers, and both go on refusing."""
    home.must(
        "POST", "/v1/sandboxes", {"agent": "shell", "name": "lab2", "workspaces": [str(home.workspace)]}
    )
    home.must("POST", "/v1/sandboxes/lab2/start")
    try:
        first, second = home.must("GET", "/v1/daemon")["gateway"]["workers"]
        assert (first["sandboxes"], second["sandboxes"]) == (1, 1)
        os.kill(first["pid"], signal.SIGKILL)
        assert inside(home, *CURL, "https://paste.ee") == "403"
        until_enforcing(home)
        after = home.must("GET", "/v1/daemon")["gateway"]["workers"]
        assert after[0]["pid"] != first["pid"]
        assert after[1] == second
        notes = (home.root / "state" / "ledger").glob("*.jsonl")
        changes = [
            note
            for path in notes
            for note in map(json.loads, path.read_text().splitlines())
            if note["kind"] == "enforcement changed" and note["enforcement"] == "degraded"
        ]
        assert {note["sandbox_name"] for note in changes} == {"lab"}
    finally:
        home.ask("DELETE", "/v1/sandboxes/lab2")
