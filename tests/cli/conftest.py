"""The command line: run in this process against a fake daemon, and in a terminal where that matters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon
from stage import PATIENCE, OpenTerminal, Ran, Sbx, Terminal

from ringfence.cli import main as cli

SOURCES = Path(cli.__file__).parents[2]
IN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv[0] = "sbx"
from ringfence.cli.main import main
main()
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A person's directories, with a socket path that is short enough wherever the tests run."""
    with tempfile.TemporaryDirectory(prefix="sbx-") as name:
        root = Path(name)
        for key in ("STATE", "CONFIG", "DATA", "RUNTIME"):
            (root / key.lower()).mkdir(mode=0o700)
            monkeypatch.setenv(f"SBX_{key}_DIR", str(root / key.lower()))
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
        monkeypatch.delenv("NO_COLOR", raising=False)
        yield root
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def daemon(home: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(home / "runtime" / "sbxd.sock") as fake:
        yield fake


@pytest.fixture
def sbx(capsys: pytest.CaptureFixture[str]) -> Sbx:
    """Run one command line in this process: no terminal, so nothing is asked and nothing is coloured."""

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        code = cli.run(arguments)
        captured = capsys.readouterr()
        return Ran(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def terminal(home: Path) -> Iterator[OpenTerminal]:
    """Run a command line as a person does: in a process and a terminal of its own."""
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, **environment: str) -> Terminal:
        ours, theirs = os.openpty()
        child = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "PYTHONPATH": str(SOURCES), "TERM": "xterm", "NO_COLOR": "1", **environment},
            cwd=home,
            start_new_session=True,
        )
        os.close(theirs)
        opened.append(Terminal(child=child, descriptor=ours))
        return opened[-1]

    yield open_terminal
    for each in opened:
        if each.child.poll() is None:
            each.child.send_signal(signal.SIGKILL)
            each.child.wait(PATIENCE)
        os.close(each.descriptor)
