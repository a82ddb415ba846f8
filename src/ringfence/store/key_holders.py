"""Who holds the key of the sealed file: a file of its own, or the desktop's keyring.

A keyring is asked through ``keyring`` (an optional extra, imported only here and only when it is asked). On a machine
without a desktop that library chooses a backend that fails at every call, and there are backends that write plain
text; so a keyring counts when its backend is a real one and gave back what it was given. One that waits for a person
(a locked collection) is not waited for.
"""

from __future__ import annotations

import os
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from ringfence.application.errors import Unavailable
from ringfence.store.secrets import KEY_BYTES, read_private, replace_file

SERVICE: Final = "ringfence"
PATIENCE: Final = 10.0
"""Seconds that a keyring has to answer."""
_UNREAL: Final = ("keyring.backends.fail", "keyring.backends.null", "keyrings.alt")

_Answer = TypeVar("_Answer")


class KeyFile:
    """A file of mode 0600."""

    protects = (
        "the key is a file beside the secrets: others on this machine, and backups without that file, "
        "do not see them; whoever can read your files does"
    )

    def __init__(self, path: Path) -> None:
        self._path = path

    def why_not(self) -> str:
        return ""

    def fetch(self) -> bytes:
        try:
            key = read_private(self._path, KEY_BYTES)
        except OSError as error:
            raise _gone(f"the key file `{self._path}` cannot be read: {error.strerror}") from error
        if len(key) != KEY_BYTES:
            raise _gone(f"the key file `{self._path}` holds no key")
        return key

    def keep(self, key: bytes) -> None:
        replace_file(self._path, key)


class Keyring:
    """An entry of the desktop's keyring."""

    protects = (
        "the key is in your keyring: it is there when the keyring is unlocked; "
        "files alone, copied or backed up, give nothing away"
    )

    def __init__(self, installation: str) -> None:
        """``installation`` tells the entries of several installations apart."""
        self._entry = installation

    def why_not(self) -> str:
        try:
            ring = _ring()
            probe, token = f"{self._entry} probe", os.urandom(8).hex()
            _within(lambda: ring.set_password(SERVICE, probe, token))
            found = _within(lambda: ring.get_password(SERVICE, probe))
            _within(lambda: ring.delete_password(SERVICE, probe))
        except Unavailable as error:
            return str(error)
        return "" if found == token else "it does not give back what it was given"

    def fetch(self) -> bytes:
        ring = _ring()
        held = _within(lambda: ring.get_password(SERVICE, self._entry))
        try:
            key = b64decode(held or "", validate=True)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise _gone(f"the keyring has no key for `{self._entry}`")
        return key

    def keep(self, key: bytes) -> None:
        ring = _ring()
        _within(lambda: ring.set_password(SERVICE, self._entry, b64encode(key).decode()))


def _ring() -> Any:
    """Return a real keyring, or raise ``Unavailable``."""
    try:
        import keyring
    except ImportError:
        raise Unavailable(
            "the package `keyring` is not installed", hint="pip install 'ringfence[keyring]'", code="keyring"
        ) from None
    ring = _within(keyring.get_keyring)
    chained = getattr(ring, "backends", None)
    modules = [type(each).__module__ for each in ([ring] if chained is None else chained)]
    unreal = [module for module in modules if module.startswith(_UNREAL)]
    if unreal or not modules:
        raise Unavailable(
            f"there is no keyring here (`{(unreal or [type(ring).__module__])[0]}` was chosen)",
            hint="a desktop's secret service must run, and DBUS_SESSION_BUS_ADDRESS name its bus",
            code="keyring",
        )
    return ring


def _within(question: Callable[[], _Answer]) -> _Answer:
    """Ask a keyring in a thread that nobody waits for beyond its time: it may be asking a person."""
    answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put((True, question()))
        except BaseException as error:  # noqa: BLE001  # whatever a backend raises, it did not answer
            answers.put((False, error))

    threading.Thread(target=ask, name="keyring", daemon=True).start()
    try:
        answered, answer = answers.get(timeout=PATIENCE)
    except Empty:
        raise Unavailable(
            f"it did not answer within {PATIENCE:.0f} s", hint="unlock it", code="keyring"
        ) from None
    if not answered:
        raise Unavailable(f"it failed: {type(answer).__name__}", code="keyring")
    result: _Answer = answer
    return result


def _gone(text: str) -> Unavailable:
    return Unavailable(
        f"{text}, and the secrets cannot be opened without it",
        hint="restore the key, or move the directory of secrets away to begin without any",
        code="secrets-key",
    )
