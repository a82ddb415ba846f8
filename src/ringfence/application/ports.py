"""What the use cases need from the outside, as protocols. Adapters implement them; nobody else acts.

Drivers and enclosures report facts; use cases and the lifecycle table draw the conclusions. Every call is
idempotent: repeating it after a crash finishes what was begun.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ringfence.policy.governance import Base
from ringfence.sandbox.credentials import Binding
from ringfence.sandbox.model import Desired, Isolation, Observation, Owner, SandboxSpec, Workspace
from ringfence.sandbox.secrets import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Whether a runtime works here, proven by doing, not by the look of a device node."""

    usable: bool
    isolation: Isolation
    version: str = ""
    reason: str = ""
    """Why not, or what was proven; shown by ``sbx doctor``."""
    hint: str = ""
    """The command that installs what is missing."""
    capabilities: frozenset[str] = frozenset()
    """Of ``tty``, ``checkpoint``, ``persistent-root``, ``rootless``, ``limits``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The addresses of one enclosure. They repeat from sandbox to sandbox: every enclosure is its own network."""

    gateway4: str = "10.255.255.1"
    sandbox4: str = "10.255.255.2"
    host4: str = "10.255.255.3"
    """``host.docker.internal``."""
    canary4: str = "10.255.255.6"
    """Where canaries come from. Whatever comes from here is refused by every policy."""
    prefix4: int = 29
    gateway6: str = "fd72:696e:6766::1"
    sandbox6: str = "fd72:696e:6766::2"
    host6: str = "fd72:696e:6766::3"
    canary6: str = "fd72:696e:6766::6"
    prefix6: int = 64
    synthetic4: str = "198.18.0.0/15"
    synthetic6: str = "fd72:696e:6766:5359::/64"


RELAY_PORT: Final = 3130
"""Where an enclosure looks for whoever relays datagrams."""


@dataclass(slots=True, kw_only=True)
class Attachment:
    """One sandbox's network: where the runtime joins it, and the sockets that the gateway answers on.

    ``listeners`` maps a role to a socket inside the enclosure:

    * ``proxy4 proxy6`` (port 3128), ``transparent4 transparent6`` (redirected TCP), ``dns-udp4 dns-udp6 dns-tcp4
      dns-tcp6``: listening or bound.
    * ``packets``, ``packets-udp`` (``AF_PACKET``): copies of what the enclosure rejects, for the audit. ``packets-udp``
      has the datagrams that could be relayed, ``packets`` all the rest.
    * ``udp4 udp6``: unbound. As soon as somebody binds them to ``RELAY_PORT`` of every address, the enclosure hands
      them the datagrams that could be relayed, each with its destination (``IP_ORIGDSTADDR``), and rejects them no
      longer. Then ``packets-udp`` is to be bound to ``lo``, where it hears nothing.
    * ``reply4 reply6`` (raw, UDP), ``icmp4 icmp6`` (raw, ICMP): for answers in the name of any address, and for errors.
    """

    sandbox: str
    netns: str
    """Path of the namespace that the runtime joins."""
    addresses: Addresses = Addresses()
    listeners: Mapping[str, socket.socket] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One attempt to get out that every policy must refuse, and how the gateway's event will name it."""

    transport: str
    """``tcp``, ``udp`` or ``dns``."""
    host: str
    port: int


class RuntimeDriver(Protocol):
    """One platform that can run sandboxes (SANDBOX.md section 1)."""

    @property
    def name(self) -> str: ...
    @property
    def isolation(self) -> Isolation: ...
    async def probe(self) -> Probe: ...
    async def prepare(self, template: str) -> None:
        """Make the template's root usable by this driver. Raises ``NotFound`` or ``Unavailable``."""

    async def create(self, spec: SandboxSpec) -> None:
        """Make the writable layer. Nothing runs yet."""

    async def start(
        self, spec: SandboxSpec, attachment: Attachment, files: Mapping[str, bytes]
    ) -> socket.socket:
        """Start the sandbox with its agent as first process; return our end of the agent's link.

        ``files`` are placed read-only inside (absolute path to content): CA bundle, ``resolv.conf``, ``hosts``.
        """

    async def stop(self, spec: SandboxSpec, *, grace: float) -> None: ...
    async def remove(self, spec: SandboxSpec) -> None: ...
    async def observe(self, spec: SandboxSpec) -> Observation: ...
    async def orphans(self, known: frozenset[str]) -> Sequence[str]:
        """Ids of sandboxes that this driver runs or keeps and that are not in ``known``; for removal."""

    async def sweep(self, sandbox: str) -> None:
        """Remove everything of an orphan."""


class EnclosureDriver(Protocol):
    """Makes networks without a way out (SANDBOX.md section 3)."""

    async def probe(self) -> Probe: ...
    async def open(self, sandbox: str) -> Attachment:
        """Make namespaces, interfaces, rules and listeners; listeners are made anew if they exist no more."""

    async def canaries(self, attachment: Attachment, nonce: str) -> Sequence[Canary]:
        """Try to get out from the sandbox's side; return what was tried. The gateway's events are the proof."""

    async def close(self, sandbox: str) -> None: ...
    async def known(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRecord:
    """A sandbox as the store keeps it. ``desired`` is written before anything is done about it."""

    spec: SandboxSpec
    desired: Desired = Desired.STOPPED
    base: Base = Base.INHERIT
    created: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleRecord:
    """A rule that a person wrote, as the store keeps it: ``body`` is its document form, canonical text."""

    id: str
    sandbox: str = ""
    """The id of the sandbox it belongs to; empty is global."""
    created: float = 0.0
    created_via: str = "added"
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecord:
    """What a person chose and wrote, as one consistent reading. ``revision`` grows with every change."""

    revision: int = 0
    preset: str = ""
    """Empty: no choice made yet, nothing may start."""
    disabled: frozenset[str] = frozenset()
    """Preset groups (``default-x``) and parts (``default-x/part``) that are switched off."""
    rules: tuple[RuleRecord, ...] = ()
    """In the order in which they were written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChange:
    """One change, applied whole or not at all. ``None`` keeps what is there."""

    preset: str | None = None
    disabled: frozenset[str] | None = None
    added: tuple[RuleRecord, ...] = ()
    removed: tuple[str, ...] = ()


class Store(Protocol):
    """What survives a restart. Every method is one transaction; a full disk raises and changes nothing."""

    async def sandboxes(self) -> Sequence[SandboxRecord]: ...
    async def add_sandbox(self, record: SandboxRecord, rules: Sequence[RuleRecord]) -> PolicyRecord:
        """Keep a new sandbox and its rules. Raises ``Conflict`` if the name is taken, whatever its case."""

    async def desire(self, sandbox: str, desired: Desired) -> None: ...
    async def forget(self, sandbox: str) -> PolicyRecord:
        """Drop a sandbox and the rules that belong to it."""

    async def policy(self) -> PolicyRecord: ...
    async def change(self, change: PolicyChange) -> PolicyRecord: ...
    async def check(self) -> str:
        """Return what is wrong with the stored data, or nothing."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendance:
    """How many sessions a sandbox has, and whether the one that ended last ended with its command."""

    open: int
    clean: bool


class Supervisors(Protocol):
    """The processes that hold the agents' links and serve sessions, one for each running sandbox."""

    def socket_path(self, sandbox: str) -> str: ...
    async def launch(self, spec: SandboxSpec, link: socket.socket) -> None:
        """Hand the agent's link to a new supervisor. Returns when sessions can attach."""

    def watch(self, sandbox: str) -> AsyncIterator[Attendance]:
        """Yield the attendance at once and at every change; end when the supervisor does."""

    async def attendance(self, sandbox: str) -> Attendance | None:
        """Return the attendance of this moment; nothing if no supervisor answers."""

    async def shut_down(self, sandbox: str) -> None:
        """Hang up every session and end. A supervisor that is gone is shut down."""


class Workspaces(Protocol):
    """Which host directories may be seen inside a sandbox (SANDBOX.md section 2)."""

    async def admit(self, workspaces: Sequence[Workspace], owner: Owner) -> tuple[Workspace, ...]:
        """Return the directories under their canonical paths. Raises ``InvalidInput`` for the first that cannot be
        one, or that its owner cannot open."""


class Ledger(Protocol):
    """The append-only record. What ``append`` returned from survives a power cut."""

    async def append(self, records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Write records whole or not at all; return them as written, with their sequence numbers."""

    def read(self, *, newest: int, matching: Sequence[bytes]) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the newest records (0: all) whose bytes hold every one of ``matching``, oldest first."""


class Trust(Protocol):
    """The certificates that are trusted inside sandboxes."""

    async def files(self) -> Mapping[str, bytes]:
        """Return the files of the trust store: absolute path inside to content."""


class Turnstile(Protocol):
    """The gateway as the daemon sees it: sandboxes are admitted with sockets, what holds for them is swapped. Events
    go to the journal by themselves."""

    async def admit(
        self,
        spec: SandboxSpec,
        attachment: Attachment,
        policy: Mapping[str, Any],
        credentials: Sequence[Binding] = (),
    ) -> None: ...
    async def arm(self, sandbox: str, credentials: Sequence[Binding]) -> None:
        """Replace the credentials of a sandbox. Returns when new requests see them."""

    async def bind(self, sandbox: str, policy: Mapping[str, Any]) -> None:
        """Put a new snapshot in force. Returns when new connections see it."""

    async def cut(self, sandbox: str, *, closed: bool) -> None:
        """Refuse everything (``closed``), or stop refusing everything."""

    async def release(self, sandbox: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Custody:
    """Where secrets are kept, as ``sbx doctor`` says it."""

    backend: str
    """As configured: ``auto``, ``keyring``, ``file`` or ``none``."""
    holder: str
    """What holds the key that they are sealed with: ``keyring``, ``systemd-creds``, ``key-file``; empty for none."""
    reason: str
    """Why this one."""
    protects: str = ""
    """What it protects against, and against what not."""


class Vault(Protocol):
    """Where secrets are kept. Written and read whole, so that nothing of it can be exchanged, changed or taken away."""

    async def custody(self) -> Custody:
        """Say where. Raises ``Unavailable`` if what was chosen does not work here."""

    async def read(self) -> Sequence[Secret]:
        """Return what is kept. Raises ``Unavailable`` for what was changed, or cannot be opened."""

    async def write(self, secrets: Sequence[Secret]) -> None:
        """Keep these and nothing else; what was kept before survives a failure."""


class MintFailed(Exception):
    """A command made no value. The text says why, and nothing of what it printed."""


class Mint(Protocol):
    """Runs the commands that make values, as the person whose installation it is."""

    def finds(self, program: str) -> bool: ...
    async def run(self, command: Sequence[str]) -> str:
        """Return what a command prints. Bounded in time and length; raises ``MintFailed``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A runtime with the network that its sandboxes live in."""

    driver: RuntimeDriver
    enclosure: EnclosureDriver
    gateway: Turnstile
