"""A gateway worker, kept standing: found again after a restart of the daemon, started again after its own death.

While a worker is away nothing leaves any of its sandboxes: listeners are held, nobody answers on them. A worker that is
new knows nobody; it is given the authority and the settings, and whoever owns its sandboxes is told to introduce them.
Which sandbox is whose is decided one floor up (:mod:`ringfence.daemon.workers`).

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
from ringfence.daemon.egress import Egress
from ringfence.daemon.records import read_record
from ringfence.gateway.control import GatewayLink, start_worker
from ringfence.sandbox.credentials import Binding
from ringfence.sandbox.model import SandboxSpec

GREETING = 10.0
"""Seconds that a worker has to answer."""
PATIENCE = 20.0
"""Seconds for one request; a policy of 100,000 rules takes the worker a second or two."""
DRAIN = 5.0
"""Seconds that a worker which is to end has to hand over its last records."""
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
    egress: Callable[[], Egress]
    """How it gets out; asked at every greeting, because an organisation may govern it meanwhile."""
    spent: Callable[[str], Mapping[str, tuple[int, int, int]]]
    """What a sandbox has spent of its rules' budgets today: the day, tokens and bytes by rule."""
    limits: Mapping[str, float]
    tls: str = "auto"
    """The TLS backend that is wished for."""


class StandingWorker:
    """A :class:`ringfence.application.ports.Turnstile` for some sandboxes, over whichever process is at ``path``."""

    def __init__(
        self,
        path: Path,
        settings: GatewaySettings,
        *,
        log: Path,
        record: Callable[[Records], Awaitable[None]],
        lost: Callable[[str], Awaitable[None]],
        introduce: Callable[[], Coroutine[None, None, None]],
        elsewhere: Callable[[str], bool],
    ) -> None:
        """``record`` takes a batch and returns when it is safe; ``lost`` hears that nobody lets anything out any more;
        ``introduce`` brings the sandboxes to a new worker; ``elsewhere`` knows which ones are another worker's."""
        self.path = path
        self._settings = settings
        self._log = log
        self._record = record
        self._lost = lost
        self._introduce = introduce
        self._elsewhere = elsewhere
        self._link: GatewayLink | None = None
        self._standing: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        """The process, if it is this daemon's child."""
        self.pid = 0
        self.served: set[str] = set()
        """The sandboxes that it was given at any time, and so may speak of."""

    @property
    def alive(self) -> bool:
        return self._link is not None and not self._link.closed

    @property
    def begun(self) -> bool:
        """Whether one is kept standing."""
        return self._standing is not None

    async def find(self) -> bool:
        """Take up the process of an earlier daemon; return whether there is one. ``served`` says whom it serves."""
        self._link = await self._find()
        if self._link is not None:
            self._standing = asyncio.create_task(self._stand(self._link))
        return self.begun

    async def begin(self) -> None:
        """Start a process, and from then on keep one standing.

        One that does not start does not keep the daemon from starting: nothing is let out meanwhile.
        """
        async with self._starting:
            if self.begun:
                return
            try:
                self._link = await self._begin()
            except (RingfenceError, OSError) as error:
                _log.error(
                    "a gateway worker cannot be started, and it lets nothing out until it is: %s", error
                )
            self._standing = asyncio.create_task(self._stand(self._link))

    async def retire(self) -> None:
        """End a process that is not wanted any more: first it serves nobody, then its last records are written."""
        try:
            for sandbox in self.served:
                await self.release(sandbox)
        except RingfenceError as error:
            _log.warning("the gateway worker %d is ended at once: %s", self.pid, error)
        await self.leave(end=True)

    async def leave(self, *, end: bool) -> None:
        """Let go. The worker goes on, or with ``end`` is told to end, once its records are written."""
        if end:
            await self._drain()
        if self._standing:
            self._standing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._standing
            self._standing = None
        if self._link:
            self._link.close()
            self._link = None
        if end:
            self._end(signal.SIGTERM)
            self.path.unlink(missing_ok=True)
            if self._process is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN):
                        await self._process.wait()

    async def _drain(self) -> None:
        with contextlib.suppress(RingfenceError, TimeoutError):
            async with asyncio.timeout(DRAIN):
                while self.alive and (await self._there().stats()).get("waiting", 0):  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.01)

    async def stats(self) -> Mapping[str, Any]:
        return await self._asked(self._there().stats())

    async def admit(
        self,
        spec: SandboxSpec,
        attachment: Attachment,
        policy: Mapping[str, Any],
        credentials: Sequence[Binding] = (),
    ) -> None:
        link = self._there()
        self.served.add(spec.id)
        await self._asked(link.admit(spec, attachment, policy, credentials, self._settings.spent(spec.id)))

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
                    "the gateway worker %d is gone; nothing leaves its sandboxes until another is up",
                    self.pid,
                )
                await self._lost("the gateway ended and is started again")
            self.served.clear()
            link = self._link = await self._begin_again()
            introducing = asyncio.create_task(self._introduce())
            introducing.add_done_callback(_complain)

    async def _take(self, link: GatewayLink) -> None:
        """Keep a worker's records for as long as it is there and makes sense."""
        async for batch in link.batches():
            try:
                records = [record for each in batch if self._counts(record := read_record(each))]
            except ValueError as error:
                _log.critical("the gateway worker %d is ended, because it sent %s", self.pid, error)
                self._end(signal.SIGKILL)
                link.close()
                return
            await self._keep(records)

    def _counts(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is this worker's to give. One that was taken over may speak of its own sandboxes, and prove
        the enclosures of those that are its own now; raises ``ValueError`` if it speaks of others."""
        sandbox = record.get("sandbox", "")
        if not self._elsewhere(sandbox):
            return True
        if sandbox not in self.served:
            raise ValueError("a record of a sandbox that another worker serves")
        return not record.get("canary")

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
            link = await GatewayLink.connect(self.path)
        except RingfenceError:
            return None
        try:
            return await self._greet(link)
        except (RingfenceError, TimeoutError) as error:
            _log.warning("the gateway worker that is there does not answer (%s); another is started", error)
            link.close()
            self._end(signal.SIGKILL)  # or it would go on under a policy that nobody can change
            self.pid = 0
            return None

    async def _begin(self) -> GatewayLink:
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = self._process = await start_worker(self.path, log=log)
        finally:
            os.close(log)
        link = None
        try:
            link = await GatewayLink.connect(self.path)
            return await self._greet(link)
        except BaseException as error:
            if link is not None:
                link.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"the gateway worker does not answer within {GREETING:.0f} s",
                    hint="the daemon's log says why",
                ) from None
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
        egress = settings.egress()
        async with asyncio.timeout(GREETING):
            told = await link.hello()
            self.pid = int(told["pid"])
            self.served = set(told["sandboxes"])
            await link.configure(
                resolve=egress.resolve,
                extra_ca=egress.extra_ca,
                upstream_proxy=egress.chain.to_wire() if egress.chain else None,
                limits=settings.limits,
                tls=settings.tls,
            )
            if not told["authority"] or told.get("tls") != settings.tls:
                await link.authority(settings.key, settings.certificate)
        return link


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("sandboxes could not be introduced to the new gateway", exc_info=error)
