"""Starting the daemon on first need.

Whoever finds nobody listening takes a lock in the runtime directory, looks again, starts ``sbxd`` detached
with a clean environment and waits until its socket accepts, for a bounded time. Two commands at once start
one daemon: the second waits for the lock and then finds the first's. A daemon that ends instead of listening
is an error with the last lines of its log.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ringfence import __version__
from ringfence.client.api import API, Daemon
from ringfence.client.connection import dial
from ringfence.client.errors import Unreachable
from ringfence.locations import Locations

PROGRAM = (sys.executable, "-P", "-m", "ringfence.daemon.main")
START_LIMIT = 30.0
"""Seconds that a daemon has to listen, and that another command's start is waited for."""
TAIL_BYTES, TAIL_LINES = 4096, 12

_KEPT = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "DBUS_SESSION_BUS_ADDRESS"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
    | {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
)
_KEPT_PREFIXES = ("SBX_", "XDG_", "LC_")


def ensure_daemon(
    locations: Locations,
    environ: Mapping[str, str],
    *,
    notice: Callable[[str], None] = lambda _text: None,
    program: Sequence[str] = PROGRAM,
) -> Daemon:
    """Return the daemon of ``locations``, started if it was not. ``notice`` gets what people should know."""
    path = str(locations.socket)
    if not listening(path):
        _start(locations, environ, program)
    daemon = Daemon(path)
    state = daemon.state()
    if state.get("api") != API:
        raise Unreachable(
            f"the daemon speaks version {state.get('api')} of the API and this sbx version {API}",
            hint="`sbx daemon stop`, then run the command again; sandboxes go on meanwhile",
        )
    if state["version"] != __version__:
        notice(
            f"the daemon is version {state['version']}, this sbx is {__version__}; "
            "`sbx daemon stop` lets the next command start the new one"
        )
    return daemon


def listening(path: str) -> bool:
    """Whether somebody accepts connections at ``path``. Nobody, or no such socket, is ``False``."""
    try:
        dial(path, timeout=5.0).close()
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return False
    except OSError as error:
        if "path too long" in str(error):
            raise Unreachable(
                f"the socket's path `{path}` is longer than a Unix socket's may be",
                hint="set `SBX_RUNTIME_DIR` to a shorter directory",
            ) from error
        raise Unreachable(
            f"the daemon's socket `{path}` cannot be used: {error.strerror or error}"
        ) from error
    return True


def _start(locations: Locations, environ: Mapping[str, str], program: Sequence[str]) -> None:
    import subprocess

    for directory in (locations.state, locations.runtime):
        _own_directory(Path(directory))
    deadline = time.monotonic() + START_LIMIT
    lock = _lock(Path(locations.runtime) / "sbxd.start.lock", deadline)
    try:
        if listening(str(locations.socket)):
            return
        log_path = Path(locations.daemon_log)
        with open(log_path, "ab", opener=_private) as log:
            seen = log.tell()
            child = subprocess.Popen(
                list(program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(environ),
                start_new_session=True,
            )
        while not listening(str(locations.socket)):
            ended = child.poll()
            if ended is not None and not listening(str(locations.socket)):
                failure = f"ended with {ended} instead of starting"
            elif time.monotonic() > deadline:
                failure = f"(pid {child.pid}) did not listen within {START_LIMIT:.0f} s"
            else:
                time.sleep(0.01)
                continue
            raise Unreachable(
                f"the daemon {failure}{_tail(log_path, seen)}", hint=f"its whole log is `{log_path}`"
            )
        child.returncode = 0  # it is meant to outlive us: not a child to wait for
    finally:
        os.close(lock)


def _own_directory(path: Path) -> None:
    """Make a directory that nobody else can write to, or refuse the one that is there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise Unreachable(f"`{path}` cannot be made: {error.strerror}") from error
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise Unreachable(
            f"`{path}` belongs to another user or can be written by others",
            hint=f"`chmod go-w {path}` if it is yours, or set `SBX_STATE_DIR` and `SBX_RUNTIME_DIR`",
        )


def _lock(path: Path, deadline: float) -> int:
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise Unreachable(
                    "another command has been starting the daemon for too long",
                    hint=f"it holds `{path}`; end it and run the command again",
                ) from None
            time.sleep(0.01)
        else:
            return descriptor


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the daemon may know of its first caller's environment: no secrets, nothing of the session."""
    kept = {key: value for key, value in environ.items() if key in _KEPT or key.startswith(_KEPT_PREFIXES)}
    if modules := environ.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(
            os.path.abspath(entry) for entry in modules.split(os.pathsep) if entry
        )
    return kept


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _tail(path: Path, start: int) -> str:
    """The last lines that the daemon wrote since ``start``, as a block below the message."""
    with open(path, "rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(start, end - TAIL_BYTES))
        lines = log.read(TAIL_BYTES).decode(errors="replace").splitlines()[-TAIL_LINES:]
    return ":\n" + "\n".join(f"  | {line}" for line in lines) if lines else " and wrote nothing to its log"
