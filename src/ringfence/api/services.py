"""What the routes call: the use cases, and the few things that only the daemon knows about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ringfence.application.decisions import Decisions
from ringfence.application.doctor import Doctor
from ringfence.application.exchange import Exchange
from ringfence.application.platforms import Platforms
from ringfence.application.presets import Presets
from ringfence.application.rules import Rules
from ringfence.application.sandboxes import Sandboxes
from ringfence.application.secrets import Secrets


class Residence(Protocol):
    """The daemon as a process."""

    def state(self) -> Mapping[str, Any]: ...
    async def stop(self, *, sandboxes: bool) -> None:
        """End soon, after the answer is on its way; with ``sandboxes`` everything that runs ends first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    version: str
    sandboxes: Sandboxes
    platforms: Platforms
    rules: Rules
    presets: Presets
    decisions: Decisions
    exchange: Exchange
    secrets: Secrets
    doctor: Doctor
    residence: Residence
