"""The gateway worker, kept standing: found again after a restart of the daemon, started again after its own death.

While there is no worker nothing leaves any sandbox: listeners are held, nobody answers on them. A worker that is new
knows nobody; it is given the authority and the settings, and whoever owns the sandboxes is told to introduce them.

A worker's records are acknowledged when the ledger has them. While the ledger cannot be written none are, canaries
among them are not seen either, and so egress ends with the record of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ringfence.application.errors import RingfenceError, Unavailable
from ringfence.application.ports import Attachment
from ringfence.daemon.records import read_record
from ringfence.gateway.control import GatewayLink, start_worker
from ringfence.sandbox.credentials import Binding
from ringfence.sandbox.model import SandboxSpec

GREETING = 10.0
"""Seconds that a worker has to answer."""
PATIENCE = 20.0
"""Seconds for one request; a policy of 100,000 rules takes the worker a second or two."""
RETRY = 0.2
LONGEST_RETRY = 10.0

_Answer = TypeVar("_Answer")
Records = Sequence[Mapping[str, Any]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What holds for all sandboxes, and the authority."""

    key: bytes = field(repr=False)
    certificate: bytes
    resolve: Mapping[str, str]
    extra_ca: str
    limits: Mapping[str, float]


class StandingGateway:
    """Implements :class:`ringfence.application.ports.Turnstile` over whichever worker there is."""

    def __init__(
        self,
        path: Path,
        settings: GatewaySettings,
        *,
        log: Path,
        record: Callable[[Records], Awaitable[None]],
        lost: Callable[[str], Awaitable[None]],
        introduce: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        """``record`` takes a batch and returns when it is safe; ``lost`` hears that nobody lets anything out any more;
        ``introduce`` brings the sandboxes to a new worker."""
        self._path = path
        self._settings = settings
        self._log = log
        self._record = record
        self._lost = lost
        self._introduce = introduce
        self._link: GatewayLink | None = None
        self._standing: asyncio.Task[None] | None = None
        self.pid = 0

    @property
    def alive(self) -> bool:
        return self._link is not None and not self._link.closed

    async def start(self) -> None:
        """Find the worker of an earlier daemon, or start one; from then on keep one standing.

        A worker that does not start does not keep the daemon from starting: nothing is let out meanwhile.
        """
        try:
            self._link = await self._find() or await self._begin()
        except (RingfenceError, OSError) as error:
            _log.error("the gateway cannot be started, and nothing is let out until it is: %s", error)
        self._standing = asyncio.create_task(self._stand(self._link))

    async def leave(self, *, end: bool) -> None:
        """Let go. The worker goes on, or with ``end`` is told to end."""
        if self._standing:
            self._standing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._standing
        if self._link:
            self._link.close()
            self._link = None
        if end:
            self._end(signal.SIGTERM)
            self._path.unlink(missing_ok=True)

    async def stats(self) -> Mapping[str, Any]:
        return await self._asked(self._there().stats())

    async def admit(
        self,
        spec: SandboxSpec,
        attachment: Attachment,
        policy: Mapping[str, Any],
        credentials: Sequence[Binding] = (),
    ) -> None:
        await self._asked(self._there().admit(spec, attachment, policy, credentials))

    async def arm(self, sandbox: str, credentials: Sequence[Binding]) -> None:
        await self._asked(self._there().arm(sandbox, credentials))

    async def bind(self, sandbox: str, policy: Mapping[str, Any]) -> None:
        await self._asked(self._there().bind(sandbox, policy))

    async def cut(self, sandbox: str, *, closed: bool) -> None:
        await self._asked(self._there().cut(sandbox, closed=closed))

    async def release(self, sandbox: str) -> None:
        """Stop serving a sandbox; a worker that is gone serves nobody."""
        if self.alive:
            await self._asked(self._there().release(sandbox))

    async def _asked(self, question: Awaitable[_Answer]) -> _Answer:
        """Wait for an answer, and end a worker that gives none: it could be letting things out."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await question
        except TimeoutError:
            self._end(signal.SIGKILL)
            raise Unavailable(
                f"the gateway did not answer within {PATIENCE:.0f} s and was ended",
                hint="it is being started again",
                code="gateway-away",
            ) from None

    def _end(self, number: signal.Signals) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _there(self) -> GatewayLink:
        if self._link is None or self._link.closed:
            raise Unavailable(
                "the gateway is not there; nothing leaves any sandbox until it is",
                hint="it is being started again; `sbx doctor` shows its state",
                code="gateway-away",
            )
        return self._link

    async def _stand(self, link: GatewayLink | None) -> None:
        """Take one worker's records until it is gone, then put up another, for ever."""
        while True:
            if link is not None:
                await self._take(link)
                _log.error(
                    "the gateway worker %d is gone; nothing leaves any sandbox until another is up", self.pid
                )
                await self._lost("the gateway ended and is started again")
            link = self._link = await self._begin_again()
            introducing = asyncio.create_task(self._introduce())
            introducing.add_done_callback(_complain)

    async def _take(self, link: GatewayLink) -> None:
        """Keep a worker's records for as long as it is there and makes sense."""
        async for batch in link.batches():
            try:
                records = [read_record(each) for each in batch]
            except ValueError as error:
                _log.critical("the gateway worker %d is ended, because it sent %s", self.pid, error)
                self._end(signal.SIGKILL)
                link.close()
                return
            await self._keep(records)

    async def _keep(self, batch: Records) -> None:
        """Write a batch down, however long that takes."""
        delay = RETRY
        while True:
            try:
                return await self._record(batch)
            except RingfenceError as error:
                _log.error("decisions cannot be recorded, so nothing is let out: %s", error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LONGEST_RETRY)

    async def _find(self) -> GatewayLink | None:
        try:
            link = await GatewayLink.connect(self._path)
        except RingfenceError:
            return None
        try:
            return await self._greet(link)
        except (RingfenceError, TimeoutError) as error:
            _log.warning("the gateway worker that is there does not answer (%s); another is started", error)
            link.close()
            return None

    async def _begin(self) -> GatewayLink:
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            await start_worker(self._path, log=log)
        finally:
            os.close(log)
        link = await GatewayLink.connect(self._path)
        try:
            return await self._greet(link)
        except TimeoutError:
            link.close()
            raise Unavailable(
                f"the gateway worker does not answer within {GREETING:.0f} s",
                hint="the daemon's log says why",
            ) from None
        except BaseException:
            link.close()
            raise

    async def _begin_again(self) -> GatewayLink:
        delay = RETRY
        while True:
            try:
                return await self._begin()
            except (RingfenceError, OSError) as error:
                _log.error("the gateway cannot be started: %s", error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LONGEST_RETRY)

    async def _greet(self, link: GatewayLink) -> GatewayLink:
        settings = self._settings
        async with asyncio.timeout(GREETING):
            told = await link.hello()
            await link.configure(resolve=settings.resolve, extra_ca=settings.extra_ca, limits=settings.limits)
            if not told["authority"]:
                await link.authority(settings.key, settings.certificate)
        self.pid = int(told["pid"])
        return link


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("sandboxes could not be introduced to the new gateway", exc_info=error)
