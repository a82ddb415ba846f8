"""Undo documents: what a person wrote, put away before a reset takes it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ringfence.application.errors import Unavailable
from ringfence.application.exchange import Exchange
from ringfence.application.in_force import PolicyInForce
from ringfence.application.lives import Lives


class UndoDocuments:
    """One document for the global rules, one for each sandbox that has its own."""

    def __init__(
        self,
        directory: Path,
        exchange: Exchange,
        policy: PolicyInForce,
        lives: Lives,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._exchange = exchange
        self._policy = policy
        self._lives = lives
        self._clock = clock

    async def keep(self) -> str:
        """Write the documents and return the path of the first. Nothing is reset if they cannot be written."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self._clock()))
        stem = f"{stamp}-{self._policy.record.revision}"
        owners = {rule.sandbox for rule in self._policy.record.rules if rule.sandbox}
        texts = {f"{stem}.yaml": self._exchange.export()}
        for life in self._lives:
            if life.id in owners:
                texts[f"{stem}.{life.name}.yaml"] = self._exchange.export(life.id)
        try:
            await asyncio.to_thread(self._write, texts)
        except OSError as error:
            raise Unavailable(
                f"the undo document cannot be written to `{self._directory}`: {error.strerror}; nothing was changed",
                hint="make room on the disk, then repeat the command",
            ) from error
        return str(self._directory / f"{stem}.yaml")

    def _write(self, texts: Mapping[str, str]) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in texts.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._directory / name, flags, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
