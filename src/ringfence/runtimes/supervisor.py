"""The supervisor: one process per sandbox between a person's sessions and the agent inside.

It holds our end of the agent's link and serves attach sessions on a Unix socket
(:mod:`~ringfence.runtimes.switchboard` is what it does), so that sessions survive a restart of the daemon and
the sandbox's bytes never reach a process with privileges. :func:`launch` starts it with three descriptors, an
empty environment and no rights: it gives up its user, its groups, its capabilities, and for ever the ways to
get any back, before it reads the first byte. It belongs to nobody: it ends with the agent, or when it is
asked to on a session connection.
"""

from __future__ import annotations

import os
import resource
import socket
import sys

_LIMITS = (
    (resource.RLIMIT_NOFILE, 128),
    (resource.RLIMIT_DATA, 512 << 20),
    (resource.RLIMIT_CORE, 0),
)
_PYTHON = ("-P", "-s", "-S", "-c", "from ringfence.runtimes.supervisor import main; main()")
"""Neither site-packages nor ``-m``'s machinery: unneeded, and they would be a third of its memory."""
_ROOT = __file__.rsplit("/", 3)[0]
_START_TIMEOUT = 20.0


def launch(
    *,
    link: socket.socket,
    sessions: socket.socket,
    owner_uid: int,
    uid: int,
    gid: int,
    log: int | None = None,
) -> int:
    """Start the supervisor and return its pid, once it has given up its rights and serves.

    ``link`` is our end of the agent's link, ``sessions`` a listening Unix socket; the caller closes its own
    copies. It runs as ``uid`` and ``gid`` (ignored unless we are root) and serves ``owner_uid`` and root.
    ``log`` is a descriptor for its last words; without one there are none. Blocks for a Python start: call it
    from a thread.
    """
    import subprocess  # the supervisor itself must not pay for it

    from ringfence.application.errors import Unavailable

    arguments = [link.fileno(), sessions.fileno(), owner_uid, uid, gid]
    try:
        started = subprocess.run(
            [sys.executable, *_PYTHON, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if log is None else log,
            pass_fds=(link.fileno(), sessions.fileno()),
            start_new_session=True,
            cwd="/",
            env={"PYTHONPATH": _ROOT},
            timeout=_START_TIMEOUT,
            check=True,
        )
        return int(started.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Unavailable(
            "the sandbox's supervisor does not start", hint="the sandbox's log says why"
        ) from error


def confine(uid: int, gid: int) -> None:
    """Give up everything but the descriptors; whatever fails here ends the process."""
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for option in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_DUMPABLE, 0, 0, 0, 0)):
        if prctl(*option):
            raise OSError(ctypes.get_errno(), "prctl")
    os.chdir("/")
    os.umask(0o077)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)  # to a user that is not root, which empties all capability sets
        if uid == 0:
            raise PermissionError("the supervisor does not run as root")
    for limit, wanted in _LIMITS:
        _, hard = resource.getrlimit(limit)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (value, value))


_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def main() -> None:
    link, sessions, owner_uid, uid, gid = map(int, sys.argv[1:])
    from ringfence.runtimes.switchboard import Switchboard

    confine(uid, gid)
    switchboard = Switchboard(socket.socket(fileno=link), socket.socket(fileno=sessions), owner_uid=owner_uid)
    child = os.fork()  # away from the daemon, which is not to wait for it
    if child:
        os.write(1, b"%d\n" % child)
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.close(nothing)
    reason = switchboard.run()
    print(f"supervisor: {reason}", file=sys.stderr, flush=True)
