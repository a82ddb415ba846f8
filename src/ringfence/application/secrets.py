"""Secrets as a person handles them: set, listed, removed; and what of them every sandbox gets.

A change is recorded, then kept, then with the gateway of every running sandbox that it concerns, and only then does
the call return. If what is kept cannot be read, nobody knows which hosts must not be served without a credential: then
no sandbox is admitted at all, until it can. No value leaves this module but in a binding for the gateway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ringfence.application.doctor import Check, Status
from ringfence.application.errors import Conflict, InvalidInput, NotFound, RingfenceError, Unavailable
from ringfence.application.in_force import PolicyInForce
from ringfence.application.journal import Journal
from ringfence.application.lives import Life, Lives
from ringfence.application.minting import Mints
from ringfence.application.ports import Mint, SandboxRecord, Vault
from ringfence.application.secret_requests import (
    CustomWish,
    Given,
    custom_secret,
    registry_secret,
    service_secret,
)
from ringfence.policy.patterns import PublicSuffix
from ringfence.sandbox.credentials import SERVICES, Binding
from ringfence.sandbox.secrets import (
    GLOBAL,
    HOST_ONLY,
    Kind,
    Secret,
    binding,
    effective,
    files,
    variables,
)

MOST: Final = 64
"""Custom secrets for one scope; their variables travel with every command."""
MOST_OF_ALL: Final = 1024
MASKED: Final = 8
"""The gateway hides longer values where an answer repeats them; a shorter one is there by chance."""
EVERYWHERE = "global"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A stored secret as it is listed: everything but the value."""

    secret: Secret
    scope: str
    """``global``, ``host only`` or a sandbox's name."""
    unavailable: str = ""
    """Why there is no value at the moment."""
    shadows: bool = False
    """Whether it is a sandbox's own and counts there instead of a global one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which secrets are meant: by any of these, or all of the scope."""

    name: str = ""
    """A service, or a custom secret's variable."""
    registry: str = ""
    placeholder: str = ""
    everything: bool = False
    sandbox: str = ""
    """Empty: what is global, and registries that are the host's alone."""


class Secrets:
    """The use cases."""

    def __init__(
        self,
        vault: Vault,
        mint: Mint,
        policy: PolicyInForce,
        lives: Lives,
        journal: Journal,
        *,
        clock: Callable[[], float],
        token: Callable[[], str],
        is_public_suffix: PublicSuffix,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._vault = vault
        self._policy = policy
        self._lives = lives
        self._journal = journal
        self._clock = clock
        self._token = token
        self._is_public_suffix = is_public_suffix
        self._mints = Mints(mint, clock=clock, sleep=sleep, used=self._used, changed=policy.arm)
        self._lock = asyncio.Lock()
        self._secrets: tuple[Secret, ...] = ()
        self._unread: RingfenceError | None = Unavailable("the stored secrets have not been read yet")
        policy.credentials = self.bindings

    async def load(self) -> None:
        """Read what is kept. What cannot be read keeps sandboxes out; everything else of the daemon works."""
        async with self._lock:
            try:
                self._take(await self._vault.read())
                self._unread = None
            except RingfenceError as error:
                self._unread = error
                _log.error("%s; until then no sandbox is let out", error)

    async def prune(self) -> None:
        """Drop what belongs to sandboxes that are gone, because the daemon died between the two."""
        known = {GLOBAL, HOST_ONLY, *(life.id for life in self._lives)}
        if any(secret.scope not in known for secret in self._secrets):
            await self._drop(lambda secret: secret.scope not in known)

    def close(self) -> None:
        self._mints.close()

    # For the sandboxes

    def bindings(self, sandbox: SandboxRecord) -> tuple[Binding, ...]:
        """Return what the gateway is to know for a sandbox. Raises if that cannot be known."""
        found = []
        for secret in self._effective(sandbox.spec.id):
            if secret.command:
                self._mints.tend(secret)
            parts, unavailable = self._mints.current(secret)
            found.append(binding(secret, parts, unavailable=unavailable))
        return tuple(found)

    def variables(self, sandbox: SandboxRecord) -> Mapping[str, str]:
        """Return the variables that a new session in a sandbox sees."""
        return variables(effective(self._secrets, sandbox.spec.id))

    def files(self, sandbox: SandboxRecord) -> Mapping[str, bytes]:
        """Return the files that are placed in a sandbox when it starts."""
        return files(self._effective(sandbox.spec.id))

    async def ready(self, life: Life) -> None:
        """Have made what a session that is about to start will need."""
        await self._read()
        await self._mints.ready(self._effective(life.id))

    async def forget(self, sandbox: str) -> None:
        """Drop the secrets of a sandbox that is gone. If that fails now, the next start of the daemon does it."""
        if any(secret.scope == sandbox for secret in self._secrets):
            await self._drop(lambda secret: secret.scope == sandbox)

    def _effective(self, sandbox: str) -> tuple[Secret, ...]:
        self._require_read()
        return effective(self._secrets, sandbox)

    def _used(self, secret: Secret) -> bool:
        return any(secret in effective(self._secrets, life.id) for life in self._lives if life.running)

    # For a person

    async def set_service(
        self, name: str, given: Given, *, sandbox: str, exclusive: bool, overwrite: bool
    ) -> tuple[Shown, Sequence[str]]:
        """Store a service's credential; return it, and what a person should know about it."""
        scope = self._scope(sandbox)
        secret = service_secret(name, given, scope=scope, exclusive=exclusive)
        shown = await self._store(secret, overwrite=overwrite)
        hidden = self._overridden(secret, [variable for variable, _ in SERVICES[name].variables])
        return shown, [*_short(secret), *hidden]

    async def set_custom(
        self, wish: CustomWish, given: Given, *, sandbox: str, overwrite: bool
    ) -> tuple[Shown, Sequence[str]]:
        """Store a custom secret. One that is overwritten keeps its placeholder, which sessions that run have."""
        secret = custom_secret(
            wish,
            given,
            scope=self._scope(sandbox),
            token=self._token,
            is_public_suffix=self._is_public_suffix,
        )
        shown = await self._store(secret, overwrite=overwrite, same_placeholder=not wish.placeholder)
        return shown, [*_short(secret), *self._overridden(secret, [secret.name])]

    async def set_registry(
        self,
        registry: str,
        given: Given,
        *,
        username: str,
        auth_endpoint: str,
        sandbox: str,
        all_sandboxes: bool,
        overwrite: bool,
    ) -> Shown:
        """Store a registry's password: for the host alone unless a sandbox, or all, are to have it too."""
        if sandbox and all_sandboxes:
            raise InvalidInput("one sandbox and all sandboxes contradict each other")
        secret = registry_secret(
            registry,
            given,
            username=username,
            auth_endpoint=auth_endpoint,
            scope=self._scope(sandbox) if sandbox or all_sandboxes else HOST_ONLY,
            token=self._token,
        )
        return await self._store(secret, overwrite=overwrite, same_placeholder=True)

    async def remove(self, selection: Selection) -> Sequence[Shown]:
        """Remove secrets. Requests of running sandboxes are bare again when this returns."""
        await self._read()
        scopes = {self._lives.find(selection.sandbox).id} if selection.sandbox else {GLOBAL, HOST_ONLY}
        if not (selection.everything or selection.name or selection.registry or selection.placeholder):
            raise InvalidInput("no secret is named", hint="`sbx secret ls` lists secrets")

        def meant(secret: Secret) -> bool:
            if secret.scope not in scopes:
                return False
            by_registry = secret.kind is Kind.REGISTRY and secret.name == selection.registry.lower()
            by_name = secret.kind is not Kind.REGISTRY and secret.name == selection.name
            by_placeholder = bool(selection.placeholder) and secret.placeholder == selection.placeholder
            return selection.everything or by_registry or by_name or by_placeholder

        removed = await self._drop(meant)
        if not removed and not selection.everything:
            called = (selection.name or selection.registry or selection.placeholder)[:80]
            where = f"for sandbox `{selection.sandbox[:80]}`" if selection.sandbox else "globally"
            raise NotFound(
                f"no secret `{called}` is stored {where}",
                hint="`sbx secret ls` lists secrets",
                code="secret-not-found",
            )
        return removed

    async def listing(
        self, *, sandbox: str = "", only_global: bool = False, service: str = ""
    ) -> Sequence[Shown]:
        """Return what is stored, global first, then by sandbox."""
        await self._read()
        scope = self._lives.find(sandbox).id if sandbox else None
        chosen = [
            self._shown(secret)
            for secret in self._secrets
            if (scope is None or secret.scope == scope)
            and (not only_global or secret.scope == GLOBAL)
            and (not service or (secret.kind is Kind.SERVICE and secret.name == service))
        ]
        return sorted(
            chosen, key=lambda each: (_PLACES.get(each.secret.scope, 1), each.scope, *each.secret.key[1:])
        )

    def of(self, life: Life) -> Sequence[Shown]:
        """Return what counts in a sandbox, as far as it is known."""
        return [self._shown(secret) for secret in effective(self._secrets, life.id)]

    async def examine(self) -> Sequence[Check]:
        """Say where secrets are kept, how many there are, and which have no value."""
        try:
            await self._read()
            custody = await self._vault.custody()
        except RingfenceError as error:
            return [Check(name="secrets", status=Status.FAIL, message=str(error), hint=error.hint)]
        kept = f"{len(self._secrets)} kept" if custody.holder else "none can be kept"
        by = f" with a key in `{custody.holder}`" if custody.holder else ""
        checks = [
            Check(
                name="secrets",
                status=Status.PASS,
                message=f'{kept}{by} (`secrets.backend = "{custody.backend}"`: {custody.reason})',
                detail=custody.protects,
            )
        ]
        checks += [
            Check(
                name=f"secret {secret.name}",
                status=Status.WARN,
                message=f"its command made no value: {reason}",
                hint="run the command by itself; requests that need the value are answered 502 meanwhile",
            )
            for secret, reason in self._mints.failures().items()
        ]
        return checks

    # Storing

    async def _read(self) -> None:
        """Have the secrets. A keyring may have been locked when the daemon began."""
        if self._unread is not None:
            await self.load()
        self._require_read()

    def _require_read(self) -> None:
        if self._unread is not None:
            raise Unavailable(str(self._unread), hint=self._unread.hint, code="secrets-unread")

    def _scope(self, sandbox: str) -> str:
        return self._lives.find(sandbox).id if sandbox else GLOBAL

    async def _store(self, secret: Secret, *, overwrite: bool, same_placeholder: bool = False) -> Shown:
        await self._read()
        secret = replace(secret, created=self._clock())
        standing = next((each for each in self._secrets if each.key == secret.key), None)
        if standing is not None and same_placeholder:
            secret = replace(secret, placeholder=standing.placeholder)
        if secret.command:
            await self._mints.attempt(secret)
        async with self._lock:
            before = next((each for each in self._secrets if each.key == secret.key), None)
            if before is not None and not overwrite:
                raise self._taken(before)
            others = [each for each in self._secrets if each is not before]
            self._check_room(secret, others)
            await self._keep("secret set", (*others, secret), [secret])
        await self._policy.arm()
        return self._shown(secret)

    def _taken(self, secret: Secret) -> Conflict:
        scope = self._named(secret)
        if secret.kind is Kind.CUSTOM:
            return Conflict(
                f'custom secret env "{secret.name}" already exists in scope {_SCOPES.get(scope, scope)} '
                f"with placeholder {secret.placeholder}",
                hint="`--force` gives it the new value and keeps the placeholder",
                code="secret-exists",
            )
        return Conflict(
            f"secret `{secret.name}` is stored already ({scope})",
            hint="`--force` overwrites it",
            code="secret-exists",
        )

    def _check_room(self, secret: Secret, others: Sequence[Secret]) -> None:
        beside = [each for each in others if each.kind is Kind.CUSTOM and each.scope == secret.scope]
        if (secret.kind is Kind.CUSTOM and len(beside) >= MOST) or len(others) >= MOST_OF_ALL:
            raise InvalidInput(
                f"there are {len(beside)} custom secrets in this scope", hint="remove what is not used"
            )
        for each in others:
            if secret.placeholder and each.placeholder and _overlap(secret.placeholder, each.placeholder):
                raise InvalidInput(
                    f"the placeholder is part of another one, or holds it: that of `{each.name}`",
                    hint="leave `--placeholder` out",
                )

    async def _drop(self, meant: Callable[[Secret], bool]) -> Sequence[Shown]:
        async with self._lock:
            gone = [secret for secret in self._secrets if meant(secret)]
            shown = [self._shown(secret) for secret in gone]
            if gone:
                kept = tuple(secret for secret in self._secrets if secret not in gone)
                await self._keep("secret removed", kept, gone)
        if gone:
            await self._policy.arm()
        return shown

    async def _keep(self, what: str, secrets: tuple[Secret, ...], concerned: Iterable[Secret]) -> None:
        """Record, then keep. What cannot be recorded is not done; what could not be done is recorded as that."""
        facts = [self._facts(secret) for secret in concerned]
        for each in facts:
            await self._journal.note(what, **each)
        try:
            await self._vault.write(secrets)
        except RingfenceError as error:
            for each in facts:
                await self._journal.note(f"{what}: failed", text=str(error), **each)
            raise
        self._take(secrets)

    def _take(self, secrets: Sequence[Secret]) -> None:
        self._secrets = tuple(secrets)
        self._mints.forget(self._secrets)

    # Saying

    def _facts(self, secret: Secret) -> Mapping[str, object]:
        return {
            "secret": secret.name,
            "type": secret.kind.value,
            "scope": self._named(secret),
            "source": _source(secret),
            **({"sandbox": secret.scope} if secret.scope not in (GLOBAL, HOST_ONLY) else {}),
        }

    def _named(self, secret: Secret) -> str:
        """Return how a scope is called: a sandbox by its name."""
        life = self._lives.by_id(secret.scope)
        return life.name if life else _WORDS.get(secret.scope, secret.scope)

    def _shown(self, secret: Secret) -> Shown:
        failure = self._mints.current(secret)[1] if secret in self._mints.failures() else ""
        everywhere = {each.key[1:] for each in self._secrets if each.scope == GLOBAL}
        return Shown(
            secret=secret,
            scope=self._named(secret),
            unavailable=failure,
            shadows=secret.scope not in (GLOBAL, HOST_ONLY) and secret.key[1:] in everywhere,
        )

    def _overridden(self, secret: Secret, names: Sequence[str]) -> Sequence[str]:
        """Return warnings about sandboxes whose own environment hides the placeholder."""
        return [
            f"sandbox `{life.name}` sets `{name}` itself, and that is what programs there see"
            for life in self._lives
            if secret.scope in (GLOBAL, life.id)
            for name in names
            if name in dict(life.record.spec.environment)
        ]


def _short(secret: Secret) -> Sequence[str]:
    if any(len(value) < MASKED for _, value in secret.parts):
        return [f"a value of less than {MASKED} characters is not hidden in answers that repeat it"]
    return ()


def _source(secret: Secret) -> str:
    return "reference" if secret.reference else "command" if secret.command else "value"


def _overlap(one: str, other: str) -> bool:
    return one in other or other in one


_WORDS: Mapping[str, str] = {GLOBAL: EVERYWHERE, HOST_ONLY: "host only"}
_SCOPES: Mapping[str, str] = {EVERYWHERE: "(global)", "host only": "(host only)"}
_PLACES: Mapping[str, int] = {GLOBAL: 0, HOST_ONLY: 2}
