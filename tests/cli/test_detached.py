"""``exec -d``: a command whose session outlives the command line that asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ringfence.client import detached

CALLER = """
import os, sys, types

def attach(socket_path, *, argv, environment, cwd, user, tty, stdin):
    streams = [os.readlink(f"/proc/self/fd/{n}") for n in (0, 1, 2)]
    with open(sys.argv[1], "w") as told:
        told.write("\\n".join([socket_path, *argv, cwd, user, *streams, str(os.getsid(0)), str(os.getpid())]))
    return 0

module = types.ModuleType("ringfence.client.session")
module.attach = attach
sys.modules["ringfence.client.session"] = module
from ringfence.client.detached import attach_detached
print(attach_detached("/run/s.sock", argv=["sleep", "9"], environment={}, cwd="/w", user="agent"))
"""


def test_the_session_is_held_by_a_process_of_its_own(tmp_path: Path) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    sources = Path(detached.__file__).parents[2]
    caller = subprocess.run(
        [sys.executable, "-c", CALLER, str(told)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(sources)},
        timeout=60,
    )
    assert caller.returncode == 0
    socket_path, *argv, cwd, user, first, second, third, session, pid = told.read_text().splitlines()
    assert (socket_path, argv, cwd, user) == ("/run/s.sock", ["sleep", "9"], "/w", "agent")
    assert {first, second, third} == {"/dev/null"}
    assert session == pid == caller.stdout.strip()
