"""Commands that outlive the command line that started them.

A session ends with its connection: whoever runs inside hears a hang-up when the terminal is lost. A detached
command therefore gets a process of its own that holds the session, without a terminal, input or output, until
the command ends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence


def attach_detached(
    socket_path: str, *, argv: Sequence[str], environment: Mapping[str, str], cwd: str, user: str
) -> int:
    """Start a command in a session that nobody waits for; return the pid of the session's holder."""
    from ringfence.client.session import attach

    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        code = attach(
            socket_path,
            argv=list(argv),
            environment=dict(environment),
            cwd=cwd,
            user=user,
            tty=False,
            stdin=False,
        )
    except BaseException:  # noqa: BLE001 — a forked child never returns into its parent's code
        code = 125
    os._exit(code)
