"""The demo's world, held from outside: open it, run programs on its host, ask what it saw, close it.

``World.open()`` starts :mod:`ringfence.demo.namespaces` as a child and waits until its internet answers. A
program "on the host" is an ordinary subprocess that enters the world through ``nsenter``, so pipes,
terminals, signals and exit codes are those of any subprocess. The world's life hangs on one pipe that this
process holds: whatever happens here, the world ends with it, and with the world every process, mount,
interface and namespace that it had.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from ringfence.application.errors import Unavailable
from ringfence.demo.internet.witness import Sightings
from ringfence.runtimes import rootless

_OPENING: Final = 30.0
_ASKING: Final = 10.0
_CLOSING: Final = 10.0
_NEEDED: Final = {"ip": "iproute2", "nsenter": "util-linux"}


def check_possible() -> None:
    """Raise ``Unavailable`` with what is missing if no world can be made here."""
    missing = [package for program, package in _NEEDED.items() if shutil.which(program) is None]
    if missing:
        packages = " ".join(missing)
        raise Unavailable(
            f"the demo's world needs {packages}", hint=f"install it: apt-get install {packages}"
        )
    if (lacking := rootless.lacking()) is not None:
        raise lacking


class World:
    """One running world. Use it as a context manager, or call :meth:`close`."""

    def __init__(
        self, root: Path, launcher: subprocess.Popen[bytes], control: socket.socket, errors: IO[bytes]
    ) -> None:
        self.root = root
        """A private directory of the world's host: in memory, seen only from inside, gone with it."""
        self._launcher = launcher
        self._control = control
        self._lines = control.makefile("rb")
        self._errors = errors
        self.pid = 0
        """The host's first process, as this process's namespace numbers it."""

    @classmethod
    def open(cls) -> Self:
        """Make a world and wait until its internet answers."""
        check_possible()
        root = Path(
            tempfile.mkdtemp(prefix="sbx-", dir="/tmp")
        )  # short: Unix sockets below it have 107 bytes
        ours, theirs = socket.socketpair()
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the world
        with theirs:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "ringfence.demo.namespaces", str(root), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        world = cls(root, launcher, ours, errors)
        try:
            world._await_ready()
        except BaseException:
            world.close()
            raise
        return world

    def _await_ready(self) -> None:
        assert self._launcher.stdout is not None
        self._control.settimeout(_OPENING)
        self.pid = int(self._launcher.stdout.readline() or b"0")
        if not self.pid or not self._receive().get("ready"):
            raise self._broken()

    def _receive(self) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            if line := self._lines.readline():
                answer: dict[str, Any] = json.loads(line)
                return answer
        return {}

    def _broken(self) -> Unavailable:
        self._errors.seek(0)
        said = self._errors.read(4096).decode(errors="replace").strip().splitlines()
        detail = " / ".join(said[:4]) if said else "it ended without a word"
        return Unavailable(
            f"the demo's world is not there: {detail}", hint="run `sbx doctor` to see what is missing"
        )

    def command(self, argv: Sequence[str], *, cwd: str = "/") -> list[str]:
        """Return the command that runs ``argv`` on the world's host."""
        target = ["nsenter", "--target", str(self.pid), "--mount", "--net", "--pid"]
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [*target, *user, "--", "env", "-C", cwd, *argv]

    def start(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: str = "/",
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        """Start a program on the world's host, in a session of its own."""
        return subprocess.Popen(
            self.command(argv, cwd=cwd),
            env=dict(environment),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: str = "/",
        stdin: bytes = b"",
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program on the world's host to its end. Too slow is exit code 124, as with ``timeout(1)``."""
        with self.start(argv, environment=environment, cwd=cwd, stdin=subprocess.PIPE) as program:
            try:
                out, err = program.communicate(stdin, timeout=timeout)
                return subprocess.CompletedProcess(list(argv), program.returncode, out, err)
            except subprocess.TimeoutExpired:
                end_session(program)
                out, err = program.communicate()
                return subprocess.CompletedProcess(list(argv), 124, out, err)
            except BaseException:
                end_session(program)
                raise

    def sightings(self) -> Sightings:
        """Ask what the internet has seen since the last :meth:`forget`."""
        return Sightings.parse(self._ask("sightings"))

    def forget(self) -> None:
        """Start a new page in the internet's notebook."""
        self._ask("forget")

    def _ask(self, verb: str) -> dict[str, Any]:
        self._control.settimeout(_ASKING)
        self._control.sendall(json.dumps({"do": verb}).encode() + b"\n")
        return self._receive() or self._fail()

    def _fail(self) -> dict[str, Any]:
        raise self._broken()

    def close(self) -> None:
        """End the world. Safe to call twice."""
        for stream in (self._launcher.stdin, self._launcher.stdout):
            if stream is not None:
                stream.close()
        try:
            self._launcher.wait(_CLOSING)
        except subprocess.TimeoutExpired:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
            self._launcher.wait(_CLOSING)
        self._lines.close()
        self._control.close()
        self._errors.close()
        with contextlib.suppress(FileNotFoundError):  # its host removes it, if there ever was one
            self.root.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def end_session(program: subprocess.Popen[bytes]) -> None:
    """Kill a program that :meth:`World.start` started, with everything in its session's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
