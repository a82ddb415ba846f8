"""The daemon as a process: one at a time, gone without harm, back with everything."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException

import pytest
from daemon_process import PATIENCE, Home, installed


@pytest.fixture
def home() -> Iterator[Home]:
    with installed() as home:
        yield home


def test_two_starts_give_one_daemon(home: Home) -> None:
    spawned = [home.spawn() for _ in range(3)]
    deadline = time.monotonic() + PATIENCE
    while sum(process.poll() is None for process in spawned) > 1:
        assert time.monotonic() < deadline, home.log
        time.sleep(0.02)
    (daemon,) = [process for process in spawned if process.poll() is None]
    assert home.must("GET", "/v1/daemon")["pid"] == daemon.pid
    assert [process.wait() for process in spawned if process is not daemon] == [0, 0]


def test_a_daemon_that_was_killed_leaves_a_socket_that_the_next_one_takes(home: Home) -> None:
    first = home.start()
    home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})
    home.must("POST", "/v1/policy/rules", {"effect": "deny", "resources": ["pypi.org"]})
    home.must("POST", "/v1/sandboxes", {"agent": "shell", "name": "lab"})
    gateway = home.must("GET", "/v1/daemon")["gateway"]["pid"]
    home.end(first, signal.SIGKILL)
    assert os.path.exists(home.socket)
    home.start()
    assert home.must("GET", "/v1/policy")["rules"][-1]["resources"] == ["pypi.org"]
    assert [s["name"] for s in home.must("GET", "/v1/sandboxes")["sandboxes"]] == ["lab"]
    assert home.must("GET", "/v1/daemon")["gateway"]["pid"] == gateway, "the gateway went on"


def test_a_gateway_that_was_killed_is_replaced(home: Home) -> None:
    home.start()
    before = home.must("GET", "/v1/daemon")["gateway"]["pid"]
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while True:
        state = home.must("GET", "/v1/daemon")["gateway"]
        if state["alive"] and state["pid"] != before:
            return
        assert time.monotonic() < deadline, home.log
        time.sleep(0.02)


def test_an_idle_daemon_takes_its_gateway_with_it(home: Home) -> None:
    process = home.start()
    gateway = home.must("GET", "/v1/daemon")["gateway"]["pid"]
    home.must("POST", "/v1/daemon/stop", {"sandboxes": "keep"})
    assert process.wait(PATIENCE) == 0
    assert not os.path.exists(home.socket)
    deadline = time.monotonic() + PATIENCE
    while _runs(gateway):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_daemon_that_was_killed_in_the_middle_of_create_leaves_nothing_half_there(home: Home) -> None:
    for round_ in range(4):
        process = home.start()
        home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})

        def create(number: int = round_) -> None:
            with contextlib.suppress(OSError, HTTPException):  # the daemon dies under it
                home.ask("POST", "/v1/sandboxes", {"agent": "shell", "name": f"lab-{number}"})

        creating = threading.Thread(target=create)
        creating.start()
        creating.join(0.001 * round_)
        home.end(process, signal.SIGKILL)
        creating.join(PATIENCE)
    home.start()
    for sandbox in home.must("GET", "/v1/sandboxes")["sandboxes"]:
        assert sandbox["status"] == "stopped"
        home.must("POST", f"/v1/sandboxes/{sandbox['name']}/start")
        home.must("DELETE", f"/v1/sandboxes/{sandbox['name']}")
    assert home.must("GET", "/v1/sandboxes") == {"sandboxes": []}


def test_a_wrong_configuration_is_told_and_nothing_is_started(home: Home) -> None:
    home.configure('runtime = "fake"\nruntme = 1\n')
    process = home.spawn()
    assert process.wait(PATIENCE) == 2
    assert "unknown setting `runtme` in line 2" in home.log
    assert not os.path.exists(home.socket)


def test_a_database_that_is_none_is_told_and_nothing_is_started(home: Home) -> None:
    (home.root / "state").mkdir(mode=0o700)
    (home.root / "state" / "ringfence.db").write_bytes(b"something else" * 500)
    process = home.spawn()
    assert process.wait(PATIENCE) == 1
    assert "cannot be used" in home.log
    assert not os.path.exists(home.socket)


def test_a_state_directory_that_others_can_write_is_refused(home: Home) -> None:
    (home.root / "state").mkdir()
    (home.root / "state").chmod(0o777)
    process = home.spawn()
    assert process.wait(PATIENCE) == 1
    assert "can be written by others" in home.log


def test_detaching_returns_when_it_answers(home: Home) -> None:
    assert home.spawn("--detach").wait(PATIENCE) == 0
    state = home.must("GET", "/v1/daemon")
    assert os.getsid(state["pid"]) != os.getsid(0)
    home.must("POST", "/v1/daemon/stop", {"sandboxes": "stop"})
    deadline = time.monotonic() + PATIENCE
    while _runs(state["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_disk_is_a_clear_error_and_changes_nothing(home: Home) -> None:
    """A state directory on a file system of its own, with no room left on it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    state = home.root / "state"
    state.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(state)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        process = home.start()
        home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})
        before = home.must("GET", "/v1/policy")
        with open(state / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"x" * 4096)
            except OSError:
                pass
        names = [f"{number}.{'.'.join(['x' * 60] * 3)}.example" for number in range(1000)]
        refused = home.ask("POST", "/v1/policy/rules", {"effect": "allow", "resources": names})
        assert refused.status == 503
        assert "nothing was changed" in refused.json["detail"]
        assert "make room" in refused.json["hint"]
        assert home.must("GET", "/v1/policy") == before
        os.unlink(state / "filler")
        home.must("POST", "/v1/policy/rules", {"effect": "allow", "resources": ["fine.example"]})
        home.end(process)
    finally:
        subprocess.run(["umount", "-l", str(state)], capture_output=True)
