"""Networks without a way out: the enclosure driver (see :mod:`ringfence.runtimes.netns` for what one consists of).

An enclosure is *open* when its namespaces exist, its rules are in force and the gateway's sockets are held
here. Opening is idempotent: what survived a restart of the daemon is adopted with fresh rules and sockets,
whatever is not whole is made again from nothing. Nothing here says that an enclosure encloses:
:meth:`Enclosures.canaries` tries to get out, and the gateway's events are the proof.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.application.ports import Addresses, Attachment, Canary, Probe
from ringfence.runtimes import canary, firewall, kernel, netns
from ringfence.sandbox.model import Isolation

_ID: Final = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")


class Enclosures:
    """The enclosures of one installation, kept under ``<runtime>/sandboxes/<id>/``."""

    def __init__(self, runtime: str | os.PathLike[str], addresses: Addresses | None = None) -> None:
        self._directory = Path(runtime) / "sandboxes"
        self._addresses = addresses or Addresses()
        self._open: dict[str, Attachment] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def _names(self, sandbox: str) -> netns.Names:
        if not _ID.fullmatch(sandbox):
            raise InvalidInput(f"`{sandbox}` is not the id of a sandbox")
        return netns.Names(self._directory / sandbox)

    async def probe(self) -> Probe:
        """Make an enclosure and take it down again."""
        sandbox = f"probe-{secrets.token_hex(8)}"
        try:
            await self.open(sandbox)
        except (OSError, Unavailable) as error:
            return Probe(
                usable=False,
                isolation=Isolation.NONE,
                reason=str(error),
                hint=getattr(error, "hint", "") or "run as root, or with user namespaces allowed",
            )
        finally:
            await self.close(sandbox)
        return Probe(
            usable=True,
            isolation=Isolation.NONE,
            reason="made network namespaces, interfaces, rules and listeners",
        )

    async def open(self, sandbox: str) -> Attachment:
        names = self._names(sandbox)
        async with self._locks[sandbox]:
            held = self._open.get(sandbox)
            if held is not None:
                if names.whole() and all(sock.fileno() >= 0 for sock in held.listeners.values()):
                    return held
                self._release(sandbox)
            try:
                listeners = await kernel.apart(lambda: self._raise(names, sandbox), name="enclosure")
            except OSError as error:
                raise Unavailable(
                    f"cannot make the sandbox's network: {error}",
                    hint="`sbx doctor` shows what is missing",
                ) from error
            attachment = Attachment(
                sandbox=sandbox, netns=names.net, addresses=self._addresses, listeners=listeners
            )
            self._open[sandbox] = attachment
            return attachment

    def _raise(self, names: netns.Names, sandbox: str) -> dict[str, socket.socket]:
        """In a thread of its own, which ends up in the gate."""
        if names.whole():
            kernel.join_path(names.gate, kernel.CLONE_NEWNET)
            if netns.has_link(firewall.INTERFACE):
                netns.enforce(self._addresses)
                return netns.listen(self._addresses)
        netns.demolish(names)
        netns.build(names, sandbox, self._addresses)
        kernel.join_path(names.gate, kernel.CLONE_NEWNET)
        return netns.listen(self._addresses)

    async def canaries(self, attachment: Attachment, nonce: str) -> Sequence[Canary]:
        """Try to get out; raises :class:`ringfence.runtimes.canary.Breach` when something out there answers."""
        flight = canary.plan(nonce)
        try:
            await canary.fly(self._names(attachment.sandbox).probe, flight)
        except OSError as error:
            raise Unavailable(f"cannot send canaries from the sandbox's network: {error}") from error
        return flight.canaries()

    async def close(self, sandbox: str) -> None:
        names = self._names(sandbox)
        async with self._locks[sandbox]:
            self._release(sandbox)
            await kernel.apart(lambda: netns.demolish(names), name="enclosure")

    def _release(self, sandbox: str) -> None:
        held = self._open.pop(sandbox, None)
        if held is not None:
            for sock in held.listeners.values():
                sock.close()

    async def known(self) -> Sequence[str]:
        """Every sandbox that has namespaces here, whole or not."""
        if not self._directory.is_dir():
            return ()
        return tuple(
            sorted(
                entry.name
                for entry in self._directory.iterdir()
                if any(Path(path).exists() for path in netns.Names(entry).all())
            )
        )
