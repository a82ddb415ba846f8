"""Values that a command makes: made before they are needed, made again before they end, never used beyond.

One task tends one secret, so a command never runs twice at once however many sandboxes wait for it. A value counts
until its time is over; a command that fails meanwhile is tried again, later each time, and only when the old value has
ended is there none: then the gateway refuses what needs it, and says why. What nobody uses any more is not made again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.application.ports import Mint, MintFailed
from ringfence.application.secret_requests import expiry, read_parts
from ringfence.sandbox.secrets import Parts, Secret

EARLY = 0.9
"""The share of its life after which a value is made again."""
RETRY = 2.0
LONGEST_RETRY = 300.0
STEP = 30.0
"""Seconds between looks at the clock: a machine that sleeps stops its timers, and not the life of a token."""
PATIENCE = 15.0
"""Seconds that the start of a sandbox waits for values."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Batch:
    """What was made for one secret."""

    secret: Secret
    parts: Parts = field(default=(), repr=False)
    due: float = 0.0
    ends: float = 0.0
    failure: str = "it has not been made yet"
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Mints:
    """Tends what is in use. ``changed`` is awaited after every value that came, and after one that ended."""

    def __init__(
        self,
        mint: Mint,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        used: Callable[[Secret], bool],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._mint = mint
        self._clock = clock
        self._sleep = sleep
        self._used = used
        self._changed = changed
        self._batches: dict[Secret, _Batch] = {}

    def current(self, secret: Secret) -> tuple[Parts, str]:
        """Return the value of this moment, or nothing and why."""
        if not secret.command:
            return secret.parts, ""
        batch = self._batches.get(secret)
        if batch is None:
            return (), "it has not been made yet"
        return (batch.parts, "") if batch.parts and self._clock() < batch.ends else ((), batch.failure)

    def failures(self) -> dict[Secret, str]:
        """Return why the last attempt failed, for the secrets whose last one did."""
        return {secret: b.failure for secret, b in self._batches.items() if b.tried.is_set() and b.failure}

    async def attempt(self, secret: Secret) -> None:
        """Make a value for a secret that is about to be stored, so that a mistake in the command is found now."""
        if not self._mint.finds(secret.command[0]):
            raise Unavailable(
                f"`{secret.command[0][:80]}` is not on the daemon's PATH",
                hint="it resolves such references; install it"
                if secret.reference
                else "install it, or name it by its whole path",
                code="secret-command",
            )
        batch = _Batch(secret)
        try:
            await self._make(batch)
        except MintFailed as failure:
            raise Unavailable(
                f"the command made no value: {failure}; nothing was stored",
                hint="run it by itself to see what it says",
                code="secret-command",
            ) from failure
        batch.tried.set()
        self._batches[secret] = batch

    def tend(self, secret: Secret) -> None:
        """Make a value now and again from here on, for as long as it is used."""
        batch = self._batches.setdefault(secret, _Batch(secret))
        if batch.task is None:
            batch.task = asyncio.ensure_future(self._tend(batch))

    async def ready(self, secrets: Iterable[Secret]) -> None:
        """Wait until there was an attempt for every one of them, and the gateway knows; though not for ever."""
        waited = [secret for secret in secrets if secret.command]
        for secret in waited:
            self.tend(secret)
        try:
            async with asyncio.timeout(PATIENCE):
                for secret in waited:
                    await self._batches[secret].tried.wait()
        except TimeoutError:
            _log.warning("a sandbox starts without a value that is still being made")

    def forget(self, kept: Iterable[Secret]) -> None:
        """Let go of what is not stored any more."""
        for secret in self._batches.keys() - set(kept):
            if (task := self._batches.pop(secret).task) is not None:
                task.cancel()

    def close(self) -> None:
        self.forget(())

    async def _tend(self, batch: _Batch) -> None:
        delay = RETRY
        while True:
            while (left := batch.due - self._clock()) > 0:
                await self._sleep(min(left, STEP))
            if batch.tried.is_set() and not self._used(batch.secret):
                if self._batches.get(batch.secret) is batch:
                    del self._batches[batch.secret]
                return
            try:
                await self._make(batch)
                delay = RETRY
            except MintFailed as failure:
                now = self._clock()
                batch.failure = str(failure)
                left = batch.ends - now
                batch.due = now + (min(delay, left) if left > 0 else delay)
                delay = min(2 * delay, LONGEST_RETRY)
                _log.warning("the value of secret `%s` could not be made: %s", batch.secret.name, failure)
            try:
                await self._changed()
            except Exception:  # noqa: BLE001  # the sandbox concerned is cut; the next value is another attempt
                _log.exception("a new value of secret `%s` is not with the gateway", batch.secret.name)
            batch.tried.set()

    async def _make(self, batch: _Batch) -> None:
        secret = batch.secret
        began = self._clock()
        text = await self._mint.run(secret.command)
        try:
            parts = read_parts(secret, text)
        except InvalidInput as error:
            raise MintFailed(str(error)) from None
        ends = min(began + secret.refresh, expiry(text) or began + secret.refresh)
        if ends <= self._clock():
            raise MintFailed("what it made has expired already")
        batch.parts, batch.ends, batch.failure = parts, ends, ""
        batch.due = began + EARLY * (ends - began)
