"""``sbxd``: the daemon as a process.

Started by the first command that needs it, it lives until it is told to end. Starting twice gives one daemon: whoever
holds the lock of the state directory is it, and the other leaves once that one answers. What is cheap to get wrong (the
configuration) is looked at before the socket is there; what is slow to load comes as late as it can.

``SIGTERM`` and ``sbx daemon stop`` end the daemon alone: sandboxes, their sessions and their traffic go on.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import pwd
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ringfence import __version__
from ringfence.application.errors import RingfenceError, Unavailable
from ringfence.locations import Locations, locate

if TYPE_CHECKING:
    from ringfence.daemon.configuration import Configuration
    from ringfence.daemon.workers import StandingGateway

API = 1
SUCCESSION = 30.0
"""Seconds to wait for an earlier daemon that is ending."""

_log = logging.getLogger("ringfence.daemon")


class Process:
    """This process as the API sees it. Implements :class:`ringfence.api.services.Residence`."""

    def __init__(self, locations: Locations, *, started: float) -> None:
        self._locations = locations
        self._started = started
        self._ending = asyncio.Event()
        self.gateway: StandingGateway | None = None
        self.stop_sandboxes: Any = None

    def state(self) -> Mapping[str, Any]:
        gateway = self.gateway
        workers = [
            {"pid": worker.pid, "alive": worker.alive, "sandboxes": count}
            for worker, count in (gateway.loads() if gateway else ())
        ]
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "api": API,
            "socket": str(self._locations.socket),
            "state_dir": str(self._locations.state),
            "enforcement": "advisory",
            "gateway": {
                "pid": workers[0]["pid"] if workers else 0,
                "alive": gateway is not None and gateway.alive,
                "workers": workers,
            },
        }

    async def stop(self, *, sandboxes: bool) -> None:
        if sandboxes:
            await self.stop_sandboxes()
        self.end()

    def end(self) -> None:
        self._ending.set()

    async def ended(self) -> None:
        await self._ending.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; return its exit code."""
    parser = argparse.ArgumentParser(prog="sbxd", description="the ringfence daemon")
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground (the default)")
    parser.add_argument("--detach", action="store_true", help="go to the background once it answers")
    parser.add_argument("--ready-fd", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"sbxd {__version__}")
    options = parser.parse_args(arguments)
    home = os.path.expanduser("~")
    locations = locate(os.environ, home=home)
    if options.detach and not options.foreground:
        return _detach(locations)
    _become_root_of_oneself(locations, options.ready_fd)
    return _run(locations, home, options.ready_fd)


def _command(ready: int) -> list[str]:
    return [sys.executable, "-P", "-m", "ringfence.daemon.main", "--ready-fd", str(ready)]


def _become_root_of_oneself(locations: Locations, ready: int) -> None:
    """Enter the person's user namespace, where sandboxes can be made without root, if the machine has what it takes.

    Where it has not, the daemon serves policy all the same, and ``doctor`` says what is missing for sandboxes.
    """
    from ringfence.runtimes import rootless

    if rootless.is_needed() and rootless.lacking() is None:
        if ready >= 0:
            os.set_inheritable(ready, True)
        rootless.enter(Path(locations.runtime), _command(ready))


def _run(locations: Locations, home: str, ready: int) -> int:
    from ringfence.daemon import configuration, places

    os.umask(0o022)  # what is private says so where it is made; sandboxes' own users must enter what is not
    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("SBX_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        places.own_directories(locations)
        lock = _succeed(locations)
        if lock is None:
            return 0
        settings = configuration.load(Path(locations.config_file))
        asyncio.run(_serve(locations, settings, home, ready))
    except RingfenceError as error:
        _log.critical("%s%s", error, f"\n  {error.hint}" if error.hint else "")
        return error.exit_code
    return 0


def _succeed(locations: Locations) -> int | None:
    """Become the daemon of the state directory; nothing if there is one that answers."""
    from ringfence.daemon import places

    deadline = time.monotonic() + SUCCESSION
    while True:
        if (lock := places.lock(Path(locations.state))) is not None:
            return lock
        if _answers(str(locations.socket)):
            _log.info("a daemon is there already")
            return None
        if time.monotonic() > deadline:
            raise Unavailable(
                f"another daemon holds `{locations.state}` and does not answer on `{locations.socket}`",
                hint="two installations may share a state directory but not a runtime directory; end the other one",
            )
        time.sleep(0.05)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


async def _serve(locations: Locations, settings: Configuration, home: str, ready: int) -> None:
    from ringfence.daemon import places
    from ringfence.daemon.household import furnish

    started = time.time()
    process = Process(locations, started=started)
    household = await furnish(locations, settings, process, home=home)
    process.gateway = household.gateway
    process.stop_sandboxes = household.sandboxes.stop_all

    path = Path(locations.socket)
    listener = places.listen(path)
    try:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.end)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        if ready >= 0:
            os.write(ready, b"\n")
            os.close(ready)
        # Beginning is mostly waiting for other processes, and the API a third of a second to import.
        _, api = await asyncio.gather(household.begin(), asyncio.to_thread(_load_api))
        server = api.server(household.services, name_of=_name_of)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        _log.info("sbxd %s answers on %s after %.2f s", __version__, path, time.time() - started)
        ending = asyncio.create_task(process.ended())
        await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
        household.journal.close()
        server.should_exit = True
        await serving
        ending.cancel()
    finally:
        path.unlink(missing_ok=True)
        listener.close()
        await household.end()
    _log.info("ended; what runs goes on")


def _load_api() -> ModuleType:
    from ringfence.api import app

    return app


def _name_of(uid: int) -> str:
    """Return what a peer is called; to a rootless daemon the person is 0, and not the host's root."""
    from ringfence.runtimes import rootless

    if uid == 0 and rootless.home() is not None:
        return os.environ.get("USER") or "0"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _detach(locations: Locations) -> int:
    """Start a daemon in a session of its own, which outlives this process; return once it listens, or did not."""
    import subprocess

    Path(locations.state).mkdir(mode=0o700, parents=True, exist_ok=True)
    readable, writable = os.pipe()
    log = os.open(locations.daemon_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    subprocess.Popen(
        _command(writable),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(writable,),
        cwd="/",
        start_new_session=True,
    ).returncode = 0  # not a child to wait for
    os.close(writable)
    if os.read(readable, 1) == b"\n" or _answers(str(locations.socket)):
        return 0
    sys.stderr.write(f"sbxd did not start; its log is `{locations.daemon_log}`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
