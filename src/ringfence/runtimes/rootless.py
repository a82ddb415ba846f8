"""Being root of nothing but oneself: the user namespace in which a daemon lives that a person started.

Everything that the drivers and enclosures do needs root of *some* user namespace, none of the host. So a daemon of an
ordinary user enters one, with a mount namespace of its own, before it does anything else: 0 in there is the
person, 1 to 65,536 are subordinate ids of theirs (subuid(5)), given by ``newuidmap``, which is the only program here
with any power. Single ids would do for the kernel, but not for a sandbox in which ``agent`` and root are two.

Namespaces end with their last process, and a daemon may be restarted while its sandboxes run; so a process that only
sleeps keeps them, and a later daemon joins it. What a person's machine may lack for this is told one thing at a
time, with what supplies it.
"""

from __future__ import annotations

import errno
import getpass
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NoReturn

from ringfence.application.errors import Unavailable
from ringfence.runtimes import kernel
from ringfence.runtimes.identity import COUNT, is_initial, mapped_ids
from ringfence.runtimes.processes import Process

_KEEPER: Final = "rootless.pid"
_INSIDE: Final = "RINGFENCE_ROOTLESS_HOME"
_PATIENCE: Final = 10.0


def is_needed() -> bool:
    """Whether this process has to enter a user namespace before it can run sandboxes."""
    return os.geteuid() != 0


def lacking() -> Unavailable | None:
    """What is missing for a rootless daemon here, as the error that says so."""
    if not is_needed():
        return None
    if _setting("user/max_user_namespaces") == "0" or _setting("kernel/unprivileged_userns_clone") == "0":
        return Unavailable(
            "user namespaces are switched off for ordinary users",
            hint="as root: sysctl -w user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1",
        )
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return Unavailable(
            "AppArmor keeps ordinary users from having root in a user namespace",
            hint="as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run the daemon as root",
        )
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            return Unavailable(f"`{program}` is not installed", hint="install it: apt-get install uidmap")
    for place in ("/etc/subuid", "/etc/subgid"):
        if subordinate(place) is None:
            name = _name()
            return Unavailable(
                f"`{name}` has no {COUNT} subordinate ids in {place}",
                hint=f"as root: usermod --add-subuids 200000-265535 --add-subgids 200000-265535 {name}",
            )
    return None


def subordinate(place: str) -> int | None:
    """The first of enough consecutive subordinate ids of this person; ``None`` when there are none."""
    names = {_name(), str(os.getuid())}
    with suppress(OSError, ValueError):
        for line in Path(place).read_text(encoding="utf-8").splitlines():
            name, first, count = line.split(":")
            if name in names and int(count) >= COUNT:
                return int(first)
    return None


def _name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return getpass.getuser() if "USER" in os.environ else str(os.getuid())


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def enter(runtime: Path, command: Sequence[str]) -> NoReturn:
    """Go into the person's user namespace, a running one or a new one, and become ``command`` there.

    The process must have one thread only (setns(2), unshare(2)). Raises ``Unavailable`` when it stays outside.
    """
    if (missing := lacking()) is not None:
        raise missing
    home = os.path.expanduser("~")
    place = runtime / _KEEPER
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        keeper = _kept(place) or _make(place)
        _join(keeper)
    except OSError as error:
        raise Unavailable(
            f"cannot enter a user namespace: {error}", hint="run the daemon as root, or allow user namespaces"
        ) from error
    os.environ[_INSIDE] = home
    os.execvp(command[0], list(command))  # noqa: S606 - the daemon's own command line


def home() -> str | None:
    """The person's home, in a process that entered."""
    return os.environ.get(_INSIDE) if not is_initial() else None


def is_inside() -> bool:
    """Whether this process is root of a user namespace that is enough for sandboxes."""
    return os.geteuid() == 0 and not is_initial() and mapped_ids() > COUNT


def _kept(place: Path) -> Process | None:
    """The sleeper that an earlier daemon left."""
    try:
        pid, started = map(int, place.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None
    process = Process(pid, started)
    return process if process.alive else None


def _make(place: Path) -> Process:
    """Start a sleeper in new namespaces, give it the ids, and write down who it is."""
    sleeper = subprocess.Popen(
        ["unshare", "--user", "--mount", "--propagation", "private", "sleep", "infinity"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + _PATIENCE
        while _program(sleeper.pid) != "sleep":
            if sleeper.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(
                    "an ordinary user may not make user namespaces here",
                    hint="run the daemon as root, or allow user namespaces",
                )
            time.sleep(0.001)
        for program, own, file in (
            ("newuidmap", os.getuid(), "/etc/subuid"),
            ("newgidmap", os.getgid(), "/etc/subgid"),
        ):
            ids = (0, own, 1, 1, subordinate(file), COUNT)
            done = subprocess.run(
                [program, str(sleeper.pid), *map(str, ids)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise Unavailable(f"`{program}` refused: {done.stderr.strip()[:200]}")
        process = Process.of(sleeper.pid)
        if process is None:
            raise Unavailable("the process that keeps the user namespace ended")
        scratch = place.with_suffix(".new")
        scratch.write_text(f"{process.pid} {process.started}\n", encoding="ascii")
        scratch.rename(place)
    except BaseException:
        sleeper.kill()
        sleeper.wait()
        raise
    sleeper.returncode = 0  # it outlives this program: nobody waits for it
    return process


def _program(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii", errors="replace").strip()
    return ""


def _join(keeper: Process) -> None:
    with ExitStack() as opened:
        namespaces = []
        for name, kind in (("user", kernel.CLONE_NEWUSER), ("mnt", kernel.CLONE_NEWNS)):
            descriptor = os.open(f"/proc/{keeper.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            namespaces.append((descriptor, kind))
        if not keeper.alive:
            raise ProcessLookupError(errno.ESRCH, "the process that keeps the user namespace ended")
        for descriptor, kind in namespaces:
            kernel.join(descriptor, kind)
