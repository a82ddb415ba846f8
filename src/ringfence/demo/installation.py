"""An installation of the product inside a demo world: its directories, its configuration, its command line.

State, configuration and runtime directories are the world's own and vanish with it; a person's policy,
enrolment and certificate authority are never read or written. Only the data directory is shared (``runsc``
and templates), so that nothing has to be fetched or built twice. Everything is done through ``sbx`` as a
subprocess, as a person would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ringfence.demo.internet.places import ECHO, FOREIGN_DNS, ORIGINS
from ringfence.demo.terminal import Terminal
from ringfence.demo.world import World
from ringfence.locations import locate

PYTHON: Final = (sys.executable,)
SBX: Final = (*PYTHON, "-m", "ringfence")
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT_VARIABLES: Final = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "SBX_RUNTIME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a program said, and how it left."""

    command: str
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Both streams, for an error message."""
        return "\n".join(part for part in (self.out.strip(), self.err.strip()) if part)


class CommandError(Exception):
    """A command that the demo relies on did not succeed."""

    def __init__(self, ran: Ran) -> None:
        super().__init__(f"`{ran.command}` left with {ran.code}: {ran.said or 'it said nothing'}")
        self.ran = ran


class Installation:
    """The product, installed on a world's host."""

    def __init__(self, world: World, *, environ: Mapping[str, str], name: str = "demo") -> None:
        self.world = world
        root = PurePosixPath(world.root) / name
        self.home = root / "home"
        self.scratch = self.home / "scratch"
        self.world_ca = PurePosixPath(world.root) / "world-ca.pem"
        own = locate(environ, home=environ.get("HOME") or str(Path.home()))
        self.environment = {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "PATH": f"{environ.get('PATH', '')}:{SYSTEM_PATH}".lstrip(":"),
            "TERM": "xterm-256color",
            "USER": environ.get("USER", "root"),
            "SBX_STATE_DIR": str(root / "state"),
            "SBX_CONFIG_DIR": str(root / "config"),
            "SBX_RUNTIME_DIR": str(root / "run"),
            "SBX_DATA_DIR": str(own.data),
            "CURL_CA_BUNDLE": str(self.world_ca),
            **{name: environ[name] for name in _KEPT_VARIABLES if name in environ},
        }

    def prepare(self) -> None:
        """Make the configuration, and a home directory with something in it that is nobody's business."""
        self.write(
            self.home / ".aws/credentials", "[default]\naws_secret_access_key = of-the-host\n", mode="600"
        )
        self.write(self.home / ".ssh/id_ed25519", "a private key of the host\n", mode="600")
        self.write(PurePosixPath(self.environment["SBX_CONFIG_DIR"]) / "config.toml", self.configuration())
        self.host("mkdir", "-p", str(self.scratch), cwd="/")

    def configuration(self) -> str:
        """Return ``config.toml``: static names for the world's places, and the world's root certificate."""
        names = [f'"{place.name}" = "{place.v4}"' for place in (*ORIGINS, ECHO, FOREIGN_DNS)]
        return "\n".join(["[tls]", f'extra_ca = ["{self.world_ca}"]', "", "[resolve]", *names, ""])

    def write(self, path: PurePosixPath, text: str, *, mode: str = "644") -> None:
        """Write a file on the world's host."""
        self.host("install", "-D", "-m", mode, "/dev/stdin", str(path), stdin=text.encode(), cwd="/")

    def host(
        self, *argv: str, stdin: bytes = b"", timeout: float = 30.0, cwd: str = "", must: bool = True
    ) -> Ran:
        """Run a program on the world's host, outside every sandbox."""
        return self._run(argv, " ".join(argv), stdin, timeout, cwd, must)

    def sbx(
        self, *arguments: str, stdin: bytes = b"", timeout: float = 60.0, cwd: str = "", must: bool = True
    ) -> Ran:
        """Run ``sbx`` as a person would. ``must``: anything but exit code 0 is :class:`CommandError`."""
        return self._run((*SBX, *arguments), " ".join(("sbx", *arguments)), stdin, timeout, cwd, must)

    def sbx_json(self, *arguments: str) -> Any:
        return json.loads(self.sbx(*arguments, "--json").out)

    def _run(
        self, argv: tuple[str, ...], command: str, stdin: bytes, timeout: float, cwd: str, must: bool
    ) -> Ran:
        finished = self.world.run(
            argv, environment=self.environment, cwd=cwd or str(self.scratch), stdin=stdin, timeout=timeout
        )
        ran = Ran(
            command=command,
            code=finished.returncode,
            out=finished.stdout.decode(errors="replace"),
            err=finished.stderr.decode(errors="replace"),
        )
        if must and ran.code != 0:
            raise CommandError(ran)
        return ran

    def start(self, *arguments: str, cwd: str = "") -> subprocess.Popen[bytes]:
        """Start ``sbx`` and leave it running, its output in pipes."""
        return self.world.start(
            (*SBX, *arguments), environment=self.environment, cwd=cwd or str(self.scratch)
        )

    def terminal(self, *arguments: str, cwd: str = "") -> Terminal:
        """Run ``sbx`` on a terminal of its own."""
        argv = self.world.command((*SBX, *arguments), cwd=cwd or str(self.scratch))
        return Terminal(argv, environment=self.environment)

    def daemon_log(self, lines: int = 20) -> str:
        """The end of the daemon's log, for a failure's report."""
        log = f"{self.environment['SBX_STATE_DIR']}/daemon.log"
        return self.host("tail", "-n", str(lines), log, must=False).said

    def leave(self) -> None:
        """Remove every sandbox and stop the daemon: nothing outside the world's namespaces remains either."""
        self.sbx("rm", "--all", "--force", timeout=30.0, must=False)
        self.sbx("daemon", "stop", timeout=15.0, must=False)


def own_environment() -> dict[str, str]:
    """The environment of the person who watches the demo."""
    return dict(os.environ)
