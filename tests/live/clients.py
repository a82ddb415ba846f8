"""A laboratory for real clients: origins in the world, an installation that knows them, one sandbox, and its log."""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.live.origins.places import ADDRESS, GRPC_PORT, RESOLVE

from ringfence.demo.installation import Installation, Ran, own_environment
from ringfence.demo.world import World, end_session

ROOT: Final = Path(__file__).resolve().parents[2]
ORIGINS: Final = Path(__file__).with_name("origins")
PYTHON: Final = "/usr/bin/python3"
"""The python3 of the host's distribution, which is the sandbox's own too."""
BOX: Final = "clients"
_PATIENCE: Final = 30.0
_QUIET: Final = 0.5


class ClientsInstallation(Installation):
    """The product, configured to find the test origins and to trust their authority."""

    @property
    def origins_ca(self) -> str:
        return f"{self.world.root}/origins-ca.pem"

    def configuration(self) -> str:
        lines = ["[lifecycle]", "grace = 600.0", ""]
        for line in super().configuration().splitlines():
            name = line.partition(" = ")[0].strip('"')
            if name == "extra_ca":
                lines.append(f'extra_ca = ["{self.world_ca}", "{self.origins_ca}"]')
            elif name not in RESOLVE:
                lines.append(line)
        return "\n".join([*lines, *(f'"{name}" = "{target}"' for name, target in RESOLVE.items()), ""])


def internet_of(world: World) -> str:
    """Return the network namespace of a world's internet: its first child lives there."""
    children = Path(f"/proc/{world.pid}/task/{world.pid}/children").read_text().split()
    return f"/proc/{min(children, key=int)}/ns/net"


def in_the_internet(world: World, argv: Sequence[str]) -> list[str]:
    """Return the command that runs ``argv`` in the world's internet, with the world's files and processes."""
    target = ["nsenter", "--target", str(world.pid), "--mount", "--pid", f"--net={internet_of(world)}"]
    user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    return [*target, *user, "--", "env", "-C", str(ROOT), *argv]


@contextmanager
def serving(world: World, argv: Sequence[str], environment: Mapping[str, str] = {}) -> Iterator[None]:
    """A server in the world's internet, for as long as the context lasts. It says `ready` when it is."""
    server = subprocess.Popen(
        in_the_internet(world, argv),
        env={"PATH": os.environ["PATH"], "HOME": str(world.root), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stderr is not None
    try:
        if server.stdout.readline() != b"ready\n":
            end_session(server)
            raise RuntimeError(f"`{shlex.join(argv)}` did not begin: {server.stderr.read().decode()}")
        yield
    finally:
        end_session(server)
        server.communicate()


@contextmanager
def origins(world: World) -> Iterator[None]:
    """The test origins, at an address of their own in the world's internet."""
    address = ["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"]
    subprocess.run(in_the_internet(world, address), check=True, capture_output=True)
    with serving(world, [sys.executable, "-m", "tests.live.origins", str(world.root)]):
        yield


@contextmanager
def git_over_ssh(world: World, libraries: Path) -> Iterator[None]:
    """The origins' repositories over ssh."""
    argv = [PYTHON, str(ORIGINS / "raw.py"), ADDRESS, str(world.root)]
    with serving(world, argv, {"PYTHONPATH": str(libraries)}):
        yield


@contextmanager
def git_daemon(world: World) -> Iterator[None]:
    """The origins' repositories over git's own protocol, which anybody may read."""
    base = f"{world.root}/git"
    argv = ["git", "daemon", f"--listen={ADDRESS}", "--reuseaddr", f"--base-path={base}", base]
    script = f"{shlex.join(argv)} & until nc -z {ADDRESS} 9418; do :; done; echo ready; wait"
    with serving(world, ["sh", "-c", script]):
        yield


@contextmanager
def grpc_service(world: World, libraries: Path) -> Iterator[None]:
    """The gRPC service, behind the origins' front."""
    argv = [PYTHON, str(ORIGINS / "calls.py"), str(GRPC_PORT)]
    with serving(world, argv, {"PYTHONPATH": str(libraries)}):
        yield


Row = tuple[str, str, str, str]
"""A decision: verdict, host, status (``-`` without one), what was asked."""


@dataclass(kw_only=True)
class Log:
    """``sbx policy log --json --follow`` of the sandbox, read as it is written."""

    watching: subprocess.Popen[bytes]
    pending: bytes = b""
    open: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: list[Row] = field(default_factory=list)

    def take(self, count: int) -> list[Row]:
        """Return everything since the last call, once that is ``count`` whole decisions, in the order they ended.

        Sooner or later a decision too many shows itself too: in the next call's answer.
        """
        deadline = time.monotonic() + _PATIENCE
        while (len(self.done) < count or self.open) and (left := deadline - time.monotonic()) > 0:
            self._read(left)
        taken, self.done = self.done, []
        return taken + [_row(record, "still open") for record in self.open.values()]

    def forget(self) -> None:
        """Throw away what has been said so far."""
        while self._read(_QUIET):
            pass
        self.done.clear()
        self.open.clear()

    def _read(self, patience: float) -> bool:
        assert self.watching.stdout is not None
        descriptor = self.watching.stdout.fileno()
        if not select.select([descriptor], [], [], patience)[0]:
            return False
        piece = os.read(descriptor, 1 << 16)
        assert piece, "the log ended"
        *lines, self.pending = (self.pending + piece).split(b"\n")
        for line in lines:
            self._record(json.loads(line))
        return True

    def _record(self, record: dict[str, Any]) -> None:
        if record.get("canary") or record.get("transport") == "icmp":
            return  # a kernel inside that says what it could not deliver does so for nobody here
        if record.get("step") == "closed":
            opened = self.open.pop(record["id"], {})
            self.done.append(_row(opened | record, str(record.get("status") or "-")))
        elif record["verdict"] == "allowed":
            self.open[record["id"]] = record
        else:
            self.done.append(_row(record, "-"))


def _row(record: Mapping[str, Any], status: str) -> Row:
    asked = " ".join(filter(None, (record.get("method", ""), record.get("path", ""))))
    port = record["port"]
    host = record["host"] if port in (80, 443) else f"{record['host']}:{port}"
    return record["verdict"].upper(), host, status, asked or record.get("protocol") or record["transport"]


@dataclass(kw_only=True)
class Clients:
    """One sandbox under Balanced, with what its tests ask."""

    lab: ClientsInstallation
    log: Log
    box: str = BOX

    @property
    def world(self) -> World:
        return self.lab.world

    def run(self, *argv: str, stdin: bytes = b"", timeout: float = 60.0, cwd: str = "") -> Ran:
        """Run a client in the sandbox."""
        options = ["-w", cwd] if cwd else []
        interactive = ["-i"] if stdin else []
        return self.lab.sbx(
            "exec", *options, *interactive, self.box, *argv, stdin=stdin, timeout=timeout, must=False
        )

    def has(self, program: str) -> bool:
        return self.run("sh", "-c", f"command -v {shlex.quote(program)}").code == 0

    def write(self, name: str, text: str) -> str:
        """Write a file into the workspace; return its path inside."""
        path = self.lab.scratch / name
        self.lab.write(path, text)
        return str(path)

    @contextmanager
    def rule(self, effect: str, *arguments: str) -> Iterator[None]:
        """A rule for as long as the context lasts."""
        before = {rule["id"] for rule in self.lab.sbx_json("policy", "ls")["rules"]}
        self.lab.sbx("policy", effect, "network", *arguments)
        (made,) = {rule["id"] for rule in self.lab.sbx_json("policy", "ls")["rules"]} - before
        try:
            yield
        finally:
            self.lab.sbx("policy", "rm", "network", "--id", made, must=False)


@contextmanager
def laboratory(world: World, name: str, workspaces: Sequence[str] = ()) -> Iterator[Clients]:
    """A laboratory in a world in which the origins serve; its sandbox sees further directories, read-only."""
    lab = ClientsInstallation(world, environ=own_environment(), name=name)
    lab.prepare()
    try:
        lab.sbx("policy", "init", "balanced")
        lab.sbx("policy", "allow", "network", "**.clients.example")
        lab.sbx("create", f"--name={BOX}", "shell", ".", *(f"{each}:ro" for each in workspaces))
        lab.sbx("exec", BOX, "true")
        watching = lab.start("policy", "log", "--json", "--follow", BOX)
        try:
            yield Clients(lab=lab, log=Log(watching=watching))
        finally:
            end_session(watching)
            watching.communicate()
    finally:
        lab.leave()
