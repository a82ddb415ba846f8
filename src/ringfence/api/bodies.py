"""The requests of the API, as pydantic reads them: the outermost shape. What the words mean is decided inside."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ringfence.application.creation import Creation
from ringfence.application.rules import RuleRequest
from ringfence.policy.governance import Base
from ringfence.policy.model import Effect, Inspect, Mode, Transport
from ringfence.sandbox.model import Owner

Line = Annotated[str, Field(max_length=4096)]
Resource = Annotated[str, Field(max_length=1_000_000)]
"""Long, since people paste lists."""


class Body(BaseModel):
    """Unknown keys are refused: a misspelt limit must not be a missing one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StopDaemon(Body):
    sandboxes: Literal["keep", "stop"] = "keep"


class CreateSandbox(Body):
    agent: Line
    name: Line | None = None
    workspaces: list[Line] = []
    runtime: Line | None = None
    template: Line | None = None
    cpus: float | None = None
    memory: int | None = None
    environment: dict[str, str] = {}
    anonymous: bool = False
    base: Base = Base.INHERIT
    deny_network: list[Resource] = []
    protect_git: bool = True

    def wish(self, owner: Owner) -> Creation:
        return Creation(
            agent=self.agent,
            owner=owner,
            name=self.name or "",
            workspaces=tuple(self.workspaces),
            runtime=self.runtime or "auto",
            template=self.template or "host",
            cpus=self.cpus or 0.0,
            memory=self.memory or 0,
            environment=self.environment,
            anonymous=self.anonymous,
            base=self.base,
            deny_network=tuple(self.deny_network),
            protect_git=self.protect_git,
        )


class AddRule(Body):
    effect: Effect
    resources: list[Resource] = Field(max_length=200_000)
    name: Line | None = None
    sandbox: Line | None = None
    transports: list[Transport] = []
    methods: list[Line] = []
    paths: list[Line] = []
    expires_in: float | None = None
    mode: Mode | None = None
    inspect: Inspect | None = None

    def request(self) -> RuleRequest:
        return RuleRequest(
            effect=self.effect,
            resources=tuple(self.resources),
            name=self.name or "",
            sandbox=self.sandbox or "",
            transports=tuple(self.transports),
            methods=tuple(self.methods),
            paths=tuple(self.paths),
            expires_in=self.expires_in,
            mode=self.mode or "",
            inspect=self.inspect or "",
        )


class RemoveRules(Body):
    id: Line | None = None
    resources: list[Resource] = []
    sandbox: Line | None = None


class ChoosePreset(Body):
    preset: Line
    implicit: bool = False


class SwitchGroup(Body):
    name: Line
    enabled: bool


class ResetPolicy(Body):
    preset: Line


class CheckTarget(Body):
    target: Line
    sandbox: Line | None = None
    transport: Transport | None = None
    method: Line | None = None
    path: Line | None = None
