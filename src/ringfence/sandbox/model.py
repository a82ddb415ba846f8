"""What a sandbox is: the specification that is asked for, the facts that are observed.

Asked-for and observed are different values with different names; :mod:`ringfence.sandbox.lifecycle` is the one
place that draws a conclusion from the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Isolation(StrEnum):
    """The word that is shown for a runtime's boundary, strongest first (SANDBOX.md section 1)."""

    HW_VM = "hw-vm"
    EMULATED_VM = "emulated-vm"
    USER_KERNEL = "user-kernel"
    SHARED_KERNEL = "shared-kernel"
    REMOTE_POD = "remote-pod"
    NONE = "none"


class Desired(StrEnum):
    """What was asked for last."""

    STOPPED = "stopped"
    RUNNING = "running"
    REMOVED = "removed"


class Condition(StrEnum):
    """What a driver reports, verbatim."""

    ABSENT = "absent"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


class Enforcement(StrEnum):
    """What the heartbeat's canaries say. Anything but ``ENFORCING`` has no egress."""

    OFF = "off"
    DEGRADED = "degraded"
    ENFORCING = "enforcing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A host directory inside a sandbox at the same absolute, canonical path."""

    path: str
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Zero means the driver's default: one CPU less than the host has, half the host's memory."""

    cpus: float = 0.0
    memory: int = 0
    """Bytes."""
    pids: int = 4096
    disk: int = 0
    """Bytes of the writable layer; 0 is unlimited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The person on whose behalf a sandbox runs: the peer of the socket that asked for it."""

    uid: int
    gid: int
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """Everything that a driver needs to make one sandbox. Frozen at creation, kept in the store."""

    id: str
    """UUID; names the sandbox's directories, namespaces and control sockets."""
    name: str
    agent: str
    owner: Owner
    runtime: str
    """``gvisor``, ``namespaces``, ``fake``."""
    template: str = "host"
    workspaces: tuple[Workspace, ...] = ()
    """The first is the primary one and the working directory; none for a mountless sandbox."""
    environment: tuple[tuple[str, str], ...] = ()
    limits: Limits = Limits()
    anonymous: bool = False
    """Made by ``run AGENT PATH`` without a name: removed on a clean exit of its last session."""
    protect_git: bool = True
    """``.git/config``, hooks, info and module configurations are read-only inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a driver saw, and when (seconds since the epoch)."""

    condition: Condition
    time: float
    pid: int = 0
    exit_code: int | None = None
    detail: str = ""
