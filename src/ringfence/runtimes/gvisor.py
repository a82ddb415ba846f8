"""The ``gvisor`` runtime: every system call of the sandbox is served by ``runsc``, a kernel in user space.

``runsc`` is started as root *of the sandbox's user namespace*, which is nobody on the host: its own walls
(seccomp, empty mount and pid views) stand inside another one. It joins the sandbox's network namespace and
moves the addresses it finds there into its own network stack. What it must never be given: ``--host-uds``
(sockets of the host), ``--network=host``, a rootful cgroup tree. Its files are in
:mod:`ringfence.runtimes.rootfs`; after the start nothing is asked of it any more, so its state lies in the
same private tmpfs and vanishes with it.

Builds up to at least 2024 take ``/proc/sys/net/core/rmem_default`` for the mark of the host's own network and
refuse to start; newer kernels have that file everywhere. An empty directory is bound over it, always.

The agent's link is descriptor 0 of the first process: one end of a socket pair, passed through ``runsc``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ringfence.application.errors import Unavailable
from ringfence.runtimes import kernel, oci, rootfs
from ringfence.runtimes.cgroup import Cgroups
from ringfence.runtimes.local import Launch, LocalDriver
from ringfence.runtimes.processes import Process, Running
from ringfence.runtimes.templates import Templates
from ringfence.sandbox.model import Isolation

FLAGS: Final = (
    "--platform=systrap",
    "--network=sandbox",
    "--overlay2=none",
    "--ignore-cgroups",
    "--log-format=text",
)
_PATIENCE: Final = 30.0


class GVisorDriver(LocalDriver):
    """See the module's text and :mod:`ringfence.runtimes.local`."""

    name = "gvisor"
    isolation = Isolation.USER_KERNEL

    def __init__(
        self,
        *,
        state: str | os.PathLike[str],
        templates: Templates,
        agent: str | os.PathLike[str],
        runsc: Sequence[str | os.PathLike[str]] = (),
        reserved: Sequence[str] = (),
        cgroups: Cgroups | None = None,
    ) -> None:
        """``runsc``: where to look when it is not on PATH."""
        super().__init__(state=state, templates=templates, agent=agent, reserved=reserved, cgroups=cgroups)
        self._places = [Path(place) for place in runsc]

    def _program(self) -> Path:
        found = shutil.which("runsc")
        for place in ([Path(found)] if found else []) + self._places:
            if os.access(place, os.X_OK):
                return place
        raise Unavailable(
            "runsc (gVisor) is not installed",
            hint="install it: apt-get install runsc (Debian 13), or `make setup`",
        )

    def _version(self, program: Path) -> str:
        try:
            done = subprocess.run(
                [str(program), "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"`{program}` does not run: {error}", hint="install runsc again") from error
        return done.stdout.partition("\n")[0].removeprefix("runsc version ").strip()

    def _launch(self, launch: Launch, program: int) -> Running:
        _hide_mark_of_the_host_network()
        scratch = Path(rootfs.STAGE, "gvisor")
        scratch.mkdir()
        owner = launch.identity.outside(0)
        os.chown(scratch, owner, owner)
        (scratch / "config.json").write_text(
            json.dumps(oci.configuration(launch.staged, name=launch.spec.name))
        )
        command = [
            "nsenter",
            f"--user=/proc/self/fd/{launch.users}",
            "--setuid=0",
            "--setgid=0",
            "--",
            f"/proc/self/fd/{program}",
            *FLAGS,
            f"--root={scratch}/state",
            f"--log-fd={launch.log}",
            "run",
            "-detach",
            f"-pid-file={scratch}/pid",
            f"-bundle={scratch}",
            launch.spec.id,
        ]
        starter = subprocess.Popen(
            command,
            stdin=launch.link,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd="/",
            pass_fds=(launch.users, program, launch.log),
        )
        try:
            launch.confine(starter.pid)  # it takes far longer to its first child
            status = starter.wait(_PATIENCE)
            running = _running(scratch)
            if status or running is None:
                raise launch.failed(_last_words(launch.log_path))
            launch.confine(*(process.pid for process in running.all))
        except BaseException as error:
            starter.kill()
            starter.wait()
            if running := _running(scratch):
                for process in running.all:
                    process.end()
            if isinstance(error, subprocess.TimeoutExpired):
                raise launch.failed(f"gVisor did not start in {_PATIENCE:.0f} s") from error
            raise
        return running


def _hide_mark_of_the_host_network() -> None:
    """See the module's text. The thread's network namespace decides what the path names."""
    empty = Path(rootfs.STAGE, "empty")
    empty.mkdir()
    kernel.mount(str(empty), "/proc/sys/net/core", flags=kernel.MS_BIND)


def _running(scratch: Path) -> Running | None:
    """The processes of a started sandbox: the sentry, and the gofer that opens files for it."""
    try:
        main = Process.of(int((scratch / "pid").read_text()))
        (state,) = (scratch / "state").glob("*.state")
        gofer = Process.of(int(json.loads(state.read_text()).get("goferPid", 0)))
    except (OSError, ValueError):
        return None
    return None if main is None else Running(main, (gofer,) if gofer else ())


def _last_words(log: Path) -> str:
    """The last error of ``runsc``'s log, without its decoration."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "FATAL" in line or "rror" in line] or lines
    return errors[-1].rpartition("] ")[2][-300:] if errors else "gVisor said nothing"
