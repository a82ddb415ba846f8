"""The ``namespaces`` runtime: the host's own kernel, with bubblewrap's namespaces and a system call filter around.

Weaker than the others, so it runs only when it is named: one hole in the kernel is a hole in the sandbox.
What it has against that is the same as they have (a user namespace whose ids are nobody's, the enclosure, the
staged files) and :mod:`ringfence.runtimes.seccomp`. bubblewrap sets ``no_new_privs``: set-user-id programs
inside stay who they were, and ``sudo`` has to ask the agent.

bubblewrap is told to hold the first process until its pid was read and it was put under the sandbox's limits.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Final

from ringfence.application.errors import Unavailable
from ringfence.runtimes import seccomp
from ringfence.runtimes.local import Launch, LocalDriver
from ringfence.runtimes.oci import CAPABILITIES
from ringfence.runtimes.processes import Process, Running
from ringfence.runtimes.rootfs import AGENT_PATH, Staged
from ringfence.sandbox.model import Isolation

_PATIENCE: Final = 20.0
_HOSTNAME_MAX: Final = 63
_NOTES: Final = 1 << 16
_OWN: Final = (
    ("--proc", "/proc"),
    ("--dev", "/dev"),
    ("--perms", "1777", "--tmpfs", "/dev/shm"),  # noqa: S108 - inside the sandbox
    ("--perms", "1777", "--tmpfs", "/tmp"),  # noqa: S108 - inside the sandbox
    ("--perms", "0755", "--tmpfs", "/run"),
    ("--perms", "0555", "--tmpfs", "/sys", "--remount-ro", "/sys"),
)


class NamespacesDriver(LocalDriver):
    """See the module's text and :mod:`ringfence.runtimes.local`."""

    name = "namespaces"
    isolation = Isolation.SHARED_KERNEL

    def _program(self) -> Path:
        found = shutil.which("bwrap")
        if found is None:
            raise Unavailable("bubblewrap is not installed", hint="install it: apt-get install bubblewrap")
        return Path(found)

    def _version(self, program: Path) -> str:
        try:
            done = subprocess.run(
                [str(program), "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"`{program}` does not run: {error}") from error
        return done.stdout.removeprefix("bubblewrap ").strip()

    def _launch(self, launch: Launch, program: int) -> Running:
        told, telling = os.pipe()
        waiting, release = os.pipe()
        given = (launch.users, program, telling, waiting, rules := seccomp.descriptor())
        words = _notebook()
        with ExitStack() as ours:
            for descriptor in (told, release, words):
                ours.callback(os.close, descriptor)
            with ExitStack() as theirs:
                for descriptor in (telling, waiting, rules):
                    theirs.callback(os.close, descriptor)
                command = [
                    "setsid",
                    "--fork",
                    "nsenter",
                    f"--user=/proc/self/fd/{launch.users}",
                    "--setuid=0",
                    "--setgid=0",
                    "--",
                    f"/proc/self/fd/{program}",
                    *_arguments(launch.staged, launch.spec.name),
                    "--info-fd",
                    str(telling),
                    "--block-fd",
                    str(waiting),
                    "--seccomp",
                    str(rules),
                    "--",
                    AGENT_PATH,
                    "agent",
                ]
                subprocess.run(
                    command,
                    stdin=launch.link,
                    stdout=words,
                    stderr=words,
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                    cwd="/",
                    pass_fds=given,
                    timeout=_PATIENCE,
                    check=True,
                )
            running = _told(told)
            if running is None:
                said = os.pread(words, _NOTES, 0).rstrip(b"\0")
                os.write(launch.log, said)
                raise launch.failed(_last_line(said))
            try:
                launch.confine(*(process.pid for process in running.all))
                os.write(release, b"1")
            except BaseException:
                for process in running.all:
                    process.end()
                raise
            return running


def _arguments(staged: Staged, name: str) -> Iterator[str]:
    yield from ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--as-pid-1")
    yield from ("--hostname", name[:_HOSTNAME_MAX], "--clearenv", "--cap-drop", "ALL")
    for capability in CAPABILITIES:
        yield from ("--cap-add", capability)
    yield from ("--bind", staged.root, "/")
    for mount in (mount for mount in staged.mounts if mount.layer):
        yield from ("--bind", mount.source, mount.target)
    for arguments in _OWN:
        yield from arguments
    for mount in (mount for mount in staged.mounts if not mount.layer):
        for above in reversed(PurePosixPath(mount.target).parents):
            if above.is_relative_to("/tmp") and str(above) != "/tmp":  # noqa: S108 - inside the sandbox
                yield from ("--perms", "0755", "--dir", str(above))
        yield from ("--ro-bind" if mount.readonly else "--bind", mount.source, mount.target)
    yield from ("--chdir", "/")


def _told(descriptor: int) -> Running | None:
    """Read which process is the sandbox's first; ``None`` when bubblewrap ended without saying."""
    text = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while not text.rstrip().endswith(b"}"):
        if not poll.poll(_PATIENCE * 1000) or not (piece := os.read(descriptor, 4096)):
            return None
        text += piece
    main = Process.of(int(json.loads(text)["child-pid"]))
    keeper = None if main is None else Process.of(main.parent)
    return None if main is None else Running(main, (keeper,) if keeper else ())


def _notebook() -> int:
    """What bubblewrap and the agent may print: in memory, and no more than fits. The sandbox could fill a file."""
    memory = os.memfd_create("words", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, _NOTES)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return memory


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").splitlines()
    return lines[-1][-300:] if lines else "bubblewrap said nothing"
