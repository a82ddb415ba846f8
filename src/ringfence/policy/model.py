"""The values that policy speaks in: rules, accesses, decisions.

Everything here is frozen and was parsed before it got here: text becomes a value in
:mod:`ringfence.policy.patterns`, which may refuse; after that nothing can fail. Members of the
enumerations are strings, so they are also the words on the wire and in the audit log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Effect(StrEnum):
    """What a rule says when it matches."""

    ALLOW = "allow"
    DENY = "deny"
    APPROVAL = "approval"


class Verdict(StrEnum):
    """What a decision answers. Only ``ALLOWED`` lets anything pass."""

    BLOCKED = "blocked"
    ALLOWED = "allowed"
    APPROVAL = "approval"
    UNDETERMINED = "undetermined"
    """A bare connection whose HTTP requests must be seen before anybody can tell."""


class Reason(StrEnum):
    """Which kind of thing made the verdict."""

    RULE = "rule"
    DEFAULT = "default"
    GUARD = "guard"
    FAILURE = "failure"


class Kind(StrEnum):
    """What a rule is about. One kind per rule."""

    NETWORK = "network"
    FILESYSTEM = "filesystem"


class Transport(StrEnum):
    TCP = "tcp"
    UDP = "udp"


class Mode(StrEnum):
    """``EVALUATE`` rules never change a verdict; decisions record what they would have done."""

    ENFORCE = "enforce"
    EVALUATE = "evaluate"


class Inspect(StrEnum):
    """Whether TLS towards a host is terminated by the gateway. It is, unless a rule says ``NEVER``; and where a
    client refuses that, ``AUTO`` lets us say how to bypass the host.
    """

    ALWAYS = "always"
    AUTO = "auto"
    NEVER = "never"


class FileAction(StrEnum):
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAccess:
    """A destination that something wants to reach.

    ``host`` is canonical: a lower-case A-label name without trailing dot, an address in its one canonical
    notation, or ``localhost`` for a service on the host's loopback (``host.docker.internal`` inside).
    ``method`` and ``path`` are empty for a bare connection.
    """

    host: str
    port: int
    transport: Transport = Transport.TCP
    method: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemAccess:
    """A canonical absolute host path, and what is wanted of it."""

    path: str
    action: FileAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a rule may spend; ``None`` is unlimited. Counting is done outside: ``decide`` takes what is spent."""

    tokens_per_day: int | None = None
    requests_per_minute: int | None = None
    bytes_per_day: int | None = None

    def exhausted(self, spent: Spent) -> str:
        """Return what is spent, in words that say when it is renewed; nothing while there is something left."""
        return next(
            (
                f"{limit} {what}"
                for limit, used, what in (
                    (self.tokens_per_day, spent.tokens, "tokens a day, which begins at midnight UTC"),
                    (self.bytes_per_day, spent.bytes, "bytes a day, which begins at midnight UTC"),
                    (self.requests_per_minute, spent.requests, "requests a minute"),
                )
                if limit is not None and used >= limit
            ),
            "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was spent of a rule's budget in the current day and minute. Counted outside, handed to ``decide``."""

    tokens: int = 0
    requests: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleRef:
    """A rule as a decision names it."""

    id: str
    name: str
    origin: str
    effect: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer to an access, with everything that explains it. The zero value refuses."""

    verdict: Verdict = Verdict.BLOCKED
    reason: Reason = Reason.FAILURE
    rules: tuple[RuleRef, ...] = ()
    """The determining rules: the denies if blocked by rule, the allows if allowed."""
    revision: int = 0
    text: str = "no policy is in force"
    would: tuple[RuleRef, ...] = ()
    """Rules in ``evaluate`` mode that matched: what they would have done."""
    inspect: Inspect = Inspect.ALWAYS
    """What the determining rules wish: ``ALWAYS`` if one says so, else ``NEVER`` if one does, else ``AUTO``."""

    @property
    def allowed(self) -> bool:
        return self.verdict is Verdict.ALLOWED
