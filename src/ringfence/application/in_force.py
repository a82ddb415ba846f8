"""The policy in force: composed for every sandbox, and with the gateway before anybody is told that it changed.

One lock orders everything: a change is stored, composed and bound to every admitted sandbox before the next begins, and
a sandbox is admitted under it too, so none ever starts under yesterday's snapshot. A sandbox whose new snapshot cannot
be bound is cut: no egress is better than an old policy. Expiry is a change like others, made by a timer.

Credentials go the same way under the same lock: a sandbox is admitted with them, never before them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from ringfence.application.errors import Conflict, RingfenceError, Unavailable
from ringfence.application.journal import Journal, Note
from ringfence.application.ports import (
    Attachment,
    PolicyChange,
    PolicyRecord,
    RuleRecord,
    SandboxRecord,
    Store,
    Turnstile,
)
from ringfence.policy.addresses import Guards
from ringfence.policy.document import parse_rule
from ringfence.policy.effective import EffectivePolicy, Sources, compose
from ringfence.policy.patterns import PublicSuffix
from ringfence.policy.rule import Rule
from ringfence.sandbox.credentials import Binding

LONGEST_TIMER = 86_400.0
"""Seconds; a clock that is set meanwhile is noticed within a day. What has expired is refused in any case: the engine
compares times itself, the timer only closes what is open."""

_log = logging.getLogger(__name__)


class PresetRules(Protocol):
    """Where the rules of a preset come from."""

    def rules(self, preset: str) -> tuple[Rule, ...]: ...


class PolicyInForce:
    """Holds the stored policy and the sandboxes it is bound to."""

    def __init__(
        self,
        store: Store,
        presets: PresetRules,
        journal: Journal,
        *,
        clock: Callable[[], float],
        guards: Callable[[], Guards],
        is_public_suffix: PublicSuffix,
        protected: Sequence[str],
        home: str,
    ) -> None:
        self._store = store
        self._presets = presets
        self._journal = journal
        self._clock = clock
        self._guards = guards
        self._is_public_suffix = is_public_suffix
        self._protected = tuple(protected)
        self._home = home
        self._lock = asyncio.Lock()
        self._records: dict[str, RuleRecord] = {}
        self._parsed: dict[str, Rule] = {}
        self._bound: dict[str, tuple[SandboxRecord, Turnstile]] = {}
        self._armed: dict[str, Sequence[Binding]] = {}
        self.credentials: Callable[[SandboxRecord], Sequence[Binding]] = lambda _sandbox: ()
        """What the gateway is to know for a sandbox at this moment. What it raises keeps the sandbox out."""
        self._timer: asyncio.TimerHandle | None = None
        self._expiring: asyncio.Future[None] | None = None
        self.record = PolicyRecord()

    async def load(self) -> None:
        """Read what is stored. Nothing is bound yet."""
        async with self._lock:
            self._take(await self._store.policy())

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    @property
    def chosen(self) -> bool:
        return bool(self.record.preset)

    def require_choice(self) -> None:
        if not self.chosen:
            raise Conflict(
                "global network policy has not been initialized",
                hint="run `sbx policy init balanced`",
                code="policy-not-initialised",
            )

    @property
    def records(self) -> Mapping[str, RuleRecord]:
        """The stored rules by id."""
        return self._records

    def rule(self, record: RuleRecord) -> Rule:
        """Return a stored rule as a value."""
        if (parsed := self._parsed.get(record.id)) is None:
            parsed = self._parsed[record.id] = parse_rule(record.body)
        return parsed

    def sources(self, sandbox: SandboxRecord | None = None) -> Sources:
        """Return everything that counts for a sandbox, or globally."""
        record = self.record
        return Sources(
            preset=self._presets.rules(record.preset) if record.preset else (),
            disabled=record.disabled,
            local=tuple(self.rule(rule) for rule in record.rules if not rule.sandbox),
            sandbox=sandbox.spec.name if sandbox else "",
            sandbox_rules=tuple(
                self.rule(rule) for rule in record.rules if sandbox and rule.sandbox == sandbox.spec.id
            ),
            base=sandbox.base if sandbox else Sources().base,
            guards=self._guards(),
            protected=self._protected,
            home=self._home,
        )

    def effective(self, sandbox: SandboxRecord | None = None) -> EffectivePolicy:
        """Compose the policy of a sandbox, or the one outside any sandbox."""
        return compose(
            self.sources(sandbox),
            revision=self.record.revision,
            now=self._clock(),
            is_public_suffix=self._is_public_suffix,
        )

    async def change(
        self, propose: Callable[[PolicyRecord], tuple[PolicyChange, Sequence[Note]]]
    ) -> PolicyRecord:
        """Apply a change to what is stored, and return when every sandbox is under it.

        ``propose`` sees the newest policy and nobody else can change it meanwhile; it may raise, and then nothing
        has happened. Its notes are in the ledger before the change is: what cannot be recorded is not done.
        """
        async with self._lock:
            change, notes = propose(self.record)
            for note in notes:
                await self._journal.note(note.kind, revision=self.record.revision + 1, **note.facts)
            try:
                record = await self._store.change(change)
            except Exception as error:
                await self._unsay(notes, error)
                raise
            self._take(record)
            await self._bind_all()
            return record

    async def _unsay(self, notes: Sequence[Note], error: Exception) -> None:
        """Record that what was announced did not come to pass. The disk that refused the one may refuse the other."""
        try:
            for note in notes:
                await self._journal.note(f"{note.kind}: failed", text=str(error), **note.facts)
        except RingfenceError:
            _log.exception("the ledger does not have that a change of policy failed")

    async def refresh(self) -> None:
        """Compose and bind anew, because something beside the stored policy has changed."""
        await self.change(lambda _record: (PolicyChange(), ()))

    async def stored(self, write: Callable[[], Awaitable[PolicyRecord]]) -> None:
        """Run a write by which a sandbox comes or goes with its own rules; nobody else's policy changes."""
        async with self._lock:
            self._take(await write())

    async def admit(self, sandbox: SandboxRecord, gateway: Turnstile, attachment: Attachment) -> None:
        """Hand a sandbox's sockets to the gateway, under the policy of this moment."""
        async with self._lock:
            try:
                credentials = self.credentials(sandbox)
            except RingfenceError:
                with contextlib.suppress(Exception):  # it may not know the sandbox, and then lets nothing out
                    await gateway.cut(sandbox.spec.id, closed=True)
                raise
            await gateway.admit(sandbox.spec, attachment, self.effective(sandbox).to_wire(), credentials)
            self._bound[sandbox.spec.id] = (sandbox, gateway)
            self._armed[sandbox.spec.id] = credentials

    async def release(self, sandbox: str, gateway: Turnstile) -> None:
        async with self._lock:
            self._bound.pop(sandbox, None)
            self._armed.pop(sandbox, None)
            await gateway.release(sandbox)

    async def arm(self) -> None:
        """Bring every sandbox whose credentials have changed up to date; return when all are."""
        async with self._lock:
            await _all(self._arm(sandbox, gateway) for sandbox, gateway in self._bound.values())

    async def _arm(self, sandbox: SandboxRecord, gateway: Turnstile) -> None:
        identifier = sandbox.spec.id
        credentials = self.credentials(sandbox)
        if credentials != self._armed.get(identifier):
            self._armed.pop(identifier, None)
            await self._put(sandbox, gateway, "credentials", lambda: gateway.arm(identifier, credentials))
            self._armed[identifier] = credentials

    async def _bind_all(self) -> None:
        await _all(self._bind(sandbox, gateway) for sandbox, gateway in self._bound.values())

    async def _bind(self, sandbox: SandboxRecord, gateway: Turnstile) -> None:
        await self._put(
            sandbox,
            gateway,
            "policy",
            lambda: gateway.bind(sandbox.spec.id, self.effective(sandbox).to_wire()),
        )

    async def _put(
        self, sandbox: SandboxRecord, gateway: Turnstile, what: str, change: Callable[[], Awaitable[None]]
    ) -> None:
        """Put something new in force, or cut the sandbox."""
        try:
            await change()
        except Exception as error:  # whatever it was, what is old must not stay
            try:
                await gateway.cut(sandbox.spec.id, closed=True)
            except Exception:  # noqa: BLE001  # nobody is there to let anything out; it comes back with the newest policy
                _log.warning(
                    "the gateway is away: sandbox `%s` has no egress until it is back", sandbox.spec.name
                )
                return
            raise Unavailable(
                f"the new {what} could not be put in force for sandbox `{sandbox.spec.name}`, whose egress is cut: "
                f"{error}",
                hint=f"`sbx stop {sandbox.spec.name}`, then start it again",
                code="not-enforcing",
            ) from error

    def _take(self, record: PolicyRecord) -> None:
        self.record = record
        self._records = {rule.id: rule for rule in record.rules}
        self._parsed = {key: rule for key, rule in self._parsed.items() if key in self._records}
        self._set_timer(rule.expires_at for rule in map(self.rule, record.rules))

    def _set_timer(self, times: Iterable[float | None]) -> None:
        if self._timer:
            self._timer.cancel()
        now = self._clock()
        due = min((time for time in times if time is not None and time > now), default=None)
        if due is None:
            self._timer = None
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(due - now, LONGEST_TIMER) + 0.01, self._expire)

    def _expire(self) -> None:
        self._expiring = asyncio.ensure_future(self._expired())

    async def _expired(self) -> None:
        try:
            await self.refresh()
        except Exception:  # noqa: BLE001  # the engine refuses what has expired by itself
            _log.exception("an expiry could not be put in force")


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Do everything at once, and raise the first failure when all is done."""
    answers = await asyncio.gather(*work, return_exceptions=True)
    for failure in filter(None, answers):
        raise failure
