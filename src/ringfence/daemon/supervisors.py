"""The supervisors as the daemon sees them: launched once for each start, spoken to on the sandbox's session socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from ringfence.application.errors import Unavailable
from ringfence.application.ports import Attendance
from ringfence.runtimes import supervisor
from ringfence.runtimes.identity import identity_of
from ringfence.sandbox import frames
from ringfence.sandbox.frames import Kind
from ringfence.sandbox.model import SandboxSpec

BACKLOG = 64
PATH_MAX = 107
"""Bytes of a Unix socket's path (unix(7))."""
NOBODY = 65534
ANSWER = 5.0
FAREWELL = 2.0
"""Seconds that sessions have to hang up; what stays is killed with its sandbox."""
CHUNK = 4096


class SupervisorProcesses:
    """Implements :class:`ringfence.application.ports.Supervisors`."""

    def __init__(self, runtime: Path, *, log: Path) -> None:
        self._directory = runtime / "sandboxes"
        self._log = log

    def socket_path(self, sandbox: str) -> str:
        return str(self._directory / sandbox / "sessions.sock")

    async def launch(self, spec: SandboxSpec, link: socket.socket) -> None:
        path = self.socket_path(spec.id)
        if len(os.fsencode(path)) > PATH_MAX:
            raise Unavailable(
                f"the socket's path `{path}` is longer than a Unix socket's may be",
                hint="set `SBX_RUNTIME_DIR` to a shorter directory",
            )
        with _listen(Path(path)) as sessions:
            await asyncio.to_thread(self._launch, spec, link, sessions)
        if await self.attendance(spec.id) is None:
            raise Unavailable(
                f"the supervisor of sandbox `{spec.name}` does not answer", hint="the daemon's log says why"
            )

    def _launch(self, spec: SandboxSpec, link: socket.socket, sessions: socket.socket) -> None:
        identity = identity_of(spec.id)
        uid = identity.outside(NOBODY) if identity.translated else NOBODY
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            supervisor.launch(
                link=link, sessions=sessions, owner_uid=spec.owner.uid, uid=uid, gid=uid, log=log
            )
        finally:
            os.close(log)

    async def watch(self, sandbox: str) -> AsyncIterator[Attendance]:
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket_path(sandbox))
        except OSError:
            return
        decoder = frames.Decoder(frames.FROM_SUPERVISOR)
        try:
            writer.write(frames.encode(Kind.WATCH, frames.SESSION))
            while received := await reader.read(CHUNK):
                for kind, _channel, payload in decoder.feed(received):
                    if kind is Kind.SESSIONS:
                        count, clean = frames.SESSIONS.unpack(payload)
                        yield Attendance(open=count, clean=bool(clean))
        except (OSError, frames.FrameError):
            return
        finally:
            writer.close()

    async def attendance(self, sandbox: str) -> Attendance | None:
        watching = self.watch(sandbox)
        try:
            async with asyncio.timeout(ANSWER):
                async for attendance in watching:
                    return attendance
        except TimeoutError:
            return None
        finally:
            await watching.aclose()  # type: ignore[attr-defined]
        return None

    async def shut_down(self, sandbox: str) -> None:
        path = self.socket_path(sandbox)
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError:
            Path(path).unlink(missing_ok=True)
            return
        try:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    writer.write(frames.encode(Kind.SHUTDOWN, frames.SESSION))
                    while await reader.read(CHUNK):
                        pass
        finally:
            writer.close()
            Path(path).unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    """Make a session socket: for its owner alone, in a directory of the daemon's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
