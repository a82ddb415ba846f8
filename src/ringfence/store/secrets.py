"""Secrets at rest: one file, sealed whole with AES-256-GCM, its key held by somebody else.

The file is ``ringfence-secrets 1 HOLDER``, a line feed, a random nonce and the ciphertext of all secrets with what is
known of them. The first line is associated data. So nothing in it can be read, changed, exchanged between entries or
taken away without the key; that a whole older file is put back is not noticed, and not claimed. It is written beside
its place, synced and renamed: a crash leaves the old file or the new one.

``HOLDER`` is who has the key: the desktop's keyring, systemd or a file of mode 0600. Which one is chosen in the
configuration; ``auto`` says why it took which, and stays with the one that it took. A choice of another holder seals
the file anew under it. Values are never in SQLite, and never in an error's text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

from ringfence.application.errors import RingfenceError, Unavailable
from ringfence.application.ports import Custody
from ringfence.sandbox.credentials import SERVICES
from ringfence.sandbox.secrets import Kind, Secret

Backend = Literal["auto", "keyring", "file", "none"]

KEYRING: Final = "keyring"
FILES: Final = ("systemd-creds", "key-file")
"""Holders of the ``file`` backend, the better one first."""
KEY_BYTES: Final = 32
_NONCE: Final = 12
_MAGIC: Final = b"ringfence-secrets 1 "
_MOST: Final = 128 * 1024 * 1024

_Answer = TypeVar("_Answer")

_log = logging.getLogger(__name__)


class KeyHolder(Protocol):
    """Who holds a key. Every method may block, and raises ``Unavailable``."""

    @property
    def protects(self) -> str:
        """What a key there protects against, and against what not."""

    def why_not(self) -> str:
        """Return why it cannot be used here; empty if it was tried and works."""

    def fetch(self) -> bytes:
        """Return the key."""

    def keep(self, key: bytes) -> None:
        """Hold this key from now on."""


class SealedVault:
    """Implements :class:`ringfence.application.ports.Vault`."""

    def __init__(self, directory: Path, backend: Backend, holders: Mapping[str, KeyHolder]) -> None:
        self._directory = directory
        self._path = directory / "sealed"
        self._backend = backend
        self._holders = holders
        self._lock = asyncio.Lock()
        self._key: tuple[str, bytes] | None = None
        self._reason = ""

    async def custody(self) -> Custody:
        return await self._apart(self._custody)

    async def read(self) -> Sequence[Secret]:
        return await self._apart(self._read)

    async def write(self, kept: Sequence[Secret]) -> None:
        await self._apart(lambda: self._write(kept))

    async def _apart(self, work: Callable[[], _Answer]) -> _Answer:
        """Run on a thread, one at a time. A caller that goes away does not tear it apart."""
        async with self._lock:
            return await asyncio.shield(asyncio.to_thread(work))

    # Who holds the key

    def _custody(self) -> Custody:
        if self._backend == "none":
            left = self._path.exists()
            reason = "secrets are switched off" + ("; a sealed file is there and not read" if left else "")
            return Custody(backend=self._backend, holder="", reason=reason)
        name = self._key[0] if self._key else self._choose()
        return Custody(
            backend=self._backend,
            holder=name,
            reason=self._reason,
            protects=self._holders[name].protects,
        )

    def _choose(self, standing: str = "") -> str:
        """Return the holder that the configuration asks for; ``standing`` is the one that there is."""
        if standing and (self._backend == "auto" or (standing == KEYRING) == (self._backend == KEYRING)):
            self._reason = "it holds the key already" if self._backend == "auto" else "it was chosen"
            return standing
        if self._backend == "file":
            self._reason = "it was chosen"
        elif not (lacking := self._holders[KEYRING].why_not()):
            self._reason = "a keyring answers" if self._backend == "auto" else "it was chosen, and answers"
            return KEYRING
        elif self._backend == KEYRING:
            raise Unavailable(
                f"`secrets.backend` is `keyring`, and there is none: {lacking}",
                hint='choose `backend = "file"` in `[secrets]` of config.toml for a sealed file',
                code="keyring",
            )
        else:
            self._reason = lacking
        return next(name for name in FILES if name == FILES[-1] or not self._holders[name].why_not())

    # The file

    def _read(self) -> Sequence[Secret]:
        if self._backend == "none":
            return ()
        try:
            content = read_private(self._path, _MOST)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise Unavailable(
                f"the secrets in `{self._path}` cannot be read: {error.strerror}", code="secrets"
            ) from error
        head, newline, sealed = content.partition(b"\n")
        holder = head.removeprefix(_MAGIC).decode("ascii", "replace")
        if not newline or not head.startswith(_MAGIC) or holder not in self._holders:
            raise self._damaged("it is no file of secrets")
        key = self._holders[holder].fetch()
        found = self._opened(key, head, sealed)
        if (chosen := self._choose(holder)) == holder:
            self._key = (holder, key)
        else:
            self._key = self._new_key(chosen)
            self._write(found)
            _log.warning("the secrets were sealed with a key in `%s` and are now with `%s`", holder, chosen)
        return found

    def _new_key(self, holder: str) -> tuple[str, bytes]:
        key = secrets.token_bytes(KEY_BYTES)
        self._holders[holder].keep(key)
        return holder, key

    def _opened(self, key: bytes, head: bytes, sealed: bytes) -> tuple[Secret, ...]:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            plain = AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], head)
        except (InvalidTag, ValueError):
            raise self._damaged("it was changed, or it was sealed with another key") from None
        try:
            return tuple(map(from_json, json.loads(plain)["secrets"]))
        except (KeyError, TypeError, ValueError):
            raise self._damaged("another version wrote it") from None

    def _write(self, kept: Sequence[Secret]) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if self._backend == "none":
            raise Unavailable(
                "secrets are switched off here",
                hint='`[secrets] backend` in config.toml is `none`; write `"auto"`',
                code="secrets-off",
            )
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._key is None:
                if self._path.exists():
                    raise self._damaged("it has not been read")
                self._key = self._new_key(self._choose())
            holder, key = self._key
            head = _MAGIC + holder.encode()
            nonce = secrets.token_bytes(_NONCE)
            plain = json.dumps({"secrets": [asdict(secret) for secret in kept]}).encode()
            replace_file(self._path, head + b"\n" + nonce + AESGCM(key).encrypt(nonce, plain, head))
        except OSError as error:
            raise Unavailable(
                f"the secrets cannot be written to `{self._path}`: {error.strerror}; nothing was changed",
                hint="make room on the disk, then repeat the command",
                code="secrets",
            ) from error

    def _damaged(self, why: str) -> RingfenceError:
        return Unavailable(
            f"the secrets in `{self._path}` cannot be opened: {why}",
            hint="restore the file from a backup, or move it away to begin without secrets",
            code="secrets-damaged",
        )


def from_json(stored: Mapping[str, Any]) -> Secret:
    """Read a secret back. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what is none."""
    fields = dict(stored)
    fields["kind"] = Kind(fields["kind"])
    fields["parts"] = tuple((str(name), str(value)) for name, value in fields["parts"])
    for name in ("command", "hosts", "headers"):
        fields[name] = tuple(map(str, fields[name]))
    secret = Secret(**fields)
    if secret.kind is Kind.SERVICE and secret.name not in SERVICES:
        raise ValueError("a service that is unknown")
    return secret


def read_private(path: Path, most: int) -> bytes:
    """Return a file's content, if it is its owner's alone. Raises ``Unavailable`` for one that is not."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise Unavailable(
                f"`{path}` can be read by others, or is not yours",
                hint=f"`chmod 600 {path}`; what was in it may have been seen: replace it",
                code="secrets-exposed",
            )
        content = file.read(most + 1)
    if len(content) > most:
        raise Unavailable(f"`{path}` is larger than {most} bytes", code="secrets-damaged")
    return content


def replace_file(path: Path, content: bytes) -> None:
    """Put a private file in place, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
