"""Runs the commands that make secrets, on the host: in an empty directory, for a bounded time, as the daemon's user.

The API answers nobody but that user and root, so it is the person who wrote the command.

What a command prints is a secret and goes nowhere but to the caller. What it complains is not kept either, since tools
quote what they were given; a person who runs it by hand sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence

from ringfence.application.ports import MintFailed
from ringfence.application.secret_requests import VALUE_BYTES

PATIENCE = 30.0
MOST = 3 * VALUE_BYTES
"""Bytes that a command may print: three parts."""
_CHUNK = 64 * 1024


class HostMint:
    """Implements :class:`ringfence.application.ports.Mint`."""

    def __init__(self, *, patience: float = PATIENCE) -> None:
        self._patience = patience

    def finds(self, program: str) -> bool:
        return shutil.which(program) is not None

    async def run(self, command: Sequence[str]) -> str:
        with tempfile.TemporaryDirectory(prefix="sbx-mint-") as place:
            try:
                child = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    cwd=place,
                    start_new_session=True,
                )
            except OSError as error:
                raise MintFailed(f"`{command[0][:80]}` cannot be started: {error.strerror}") from None
            try:
                async with asyncio.timeout(self._patience):
                    printed = await _bounded(child)
                    code = await child.wait()
            except TimeoutError:
                raise MintFailed(f"`{command[0][:80]}` did not end within {self._patience:g} s") from None
            finally:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    await child.wait()
        if code:
            raise MintFailed(f"`{command[0][:80]}` left with {code}")
        try:
            text = printed.decode()
        except UnicodeDecodeError:
            raise MintFailed(f"`{command[0][:80]}` printed what is not text") from None
        if not text.strip():
            raise MintFailed(f"`{command[0][:80]}` printed nothing")
        return text


async def _bounded(child: asyncio.subprocess.Process) -> bytes:
    assert child.stdout is not None
    printed = bytearray()
    while piece := await child.stdout.read(_CHUNK):
        printed += piece
        if len(printed) > MOST:
            raise MintFailed(f"it printed more than {MOST} bytes")
    return bytes(printed)
