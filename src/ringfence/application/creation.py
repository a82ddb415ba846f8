"""What may be asked for when a sandbox is made, parsed once into a specification."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.application.ports import Workspaces
from ringfence.policy.governance import Base
from ringfence.sandbox.agents import AgentError, find_agent
from ringfence.sandbox.environment import RESERVED
from ringfence.sandbox.model import Limits, Owner, SandboxSpec, Workspace
from ringfence.sandbox.names import SandboxNameError, derive_name, parse_name

WORKSPACES = 64
VARIABLES = 256
ENVIRONMENT_BYTES = 24 * 1024
"""All variables together; the session protocol carries them with the command in one frame of 64 KiB."""
LEAST_MEMORY = 64 * 1024 * 1024
MOST_CPUS = 1024.0
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_READONLY = (":ro", ":readonly")


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """A wish. Nothing of it has been looked at yet."""

    agent: str
    owner: Owner
    name: str = ""
    workspaces: tuple[str, ...] = ()
    """Absolute paths, ``:ro`` appended for read-only."""
    runtime: str = "auto"
    template: str = "host"
    cpus: float = 0.0
    memory: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False
    base: Base = Base.INHERIT
    deny_network: tuple[str, ...] = ()
    protect_git: bool = True
    """Whether git's hooks and configuration in the workspaces are read-only inside."""


async def specify(
    wish: Creation, *, identifier: str, runtime: str, taken: Container[str], workspaces: Workspaces
) -> SandboxSpec:
    """Return the specification, or say what of the wish cannot be. Nothing has been made in either case."""
    try:
        agent = find_agent(wish.agent)
    except AgentError as error:
        raise (Unavailable if error.known else InvalidInput)(
            str(error), hint=error.hint, code="agent"
        ) from error
    admitted = await _admit(wish.workspaces, wish.owner, workspaces)
    try:
        name = (
            parse_name(wish.name)
            if wish.name
            else derive_name(agent.name, admitted[0].path if admitted else "", taken)
        )
    except SandboxNameError as error:
        raise InvalidInput(str(error), hint=error.hint, code="sandbox-name") from error
    return SandboxSpec(
        id=identifier,
        name=name,
        agent=agent.name,
        owner=wish.owner,
        runtime=runtime,
        template=wish.template,
        workspaces=admitted,
        environment=_environment(wish.environment),
        limits=_limits(wish),
        anonymous=wish.anonymous,
        protect_git=wish.protect_git,
    )


async def _admit(texts: Sequence[str], owner: Owner, workspaces: Workspaces) -> tuple[Workspace, ...]:
    if len(texts) > WORKSPACES:
        raise InvalidInput(f"{len(texts)} directories for one sandbox", hint=f"at most {WORKSPACES}")
    asked = [Workspace(path=path, readonly=readonly) for path, readonly in map(_split, texts)]
    if asked and asked[0].readonly:
        raise InvalidInput(
            "primary workspace must be read/write (remove ':ro' or ':readonly')", code="workspace"
        )
    return await workspaces.admit(asked, owner)


def _split(text: str) -> tuple[str, bool]:
    for suffix in _READONLY:
        if text.endswith(suffix):
            return text[: -len(suffix)], True
    return text, False


def _environment(variables: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    if len(variables) > VARIABLES:
        raise InvalidInput(f"{len(variables)} environment variables", hint=f"at most {VARIABLES}")
    if sum(len(name) + len(value.encode()) + 8 for name, value in variables.items()) > ENVIRONMENT_BYTES:
        raise InvalidInput(f"environment variables of more than {ENVIRONMENT_BYTES} bytes")
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise InvalidInput(f"`{name[:80]}` is not an environment variable", hint="write `NAME=value`")
        if name in RESERVED:
            raise InvalidInput(f"`{name}` is set by the sandbox itself")
    return tuple(sorted(variables.items()))


def _limits(wish: Creation) -> Limits:
    if not 0.0 <= wish.cpus <= MOST_CPUS:
        raise InvalidInput(
            f"`{wish.cpus:g}` is not a number of CPUs", hint="0 means one less than the host has"
        )
    if wish.memory and wish.memory < LEAST_MEMORY:
        raise InvalidInput(f"{wish.memory} bytes of memory are too few", hint="at least 64m")
    if wish.memory < 0:
        raise InvalidInput(f"`{wish.memory}` is not an amount of memory")
    return Limits(cpus=wish.cpus, memory=wish.memory)
