"""A key held by systemd: sealed to this machine, or to its TPM, by ``systemd-creds`` (systemd-creds(1)).

Only root's manager can open such a credential on the versions that are in use, and only where systemd runs: in a
container its host key would be part of the container. Both are looked at, and a round trip is made, before it counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from ringfence.application.errors import Unavailable
from ringfence.store.secrets import KEY_BYTES, read_private, replace_file

PATIENCE: Final = 20.0
_NAME: Final = "ringfence"
_BOOTED: Final = Path("/run/systemd/system")
"""sd_booted(3)."""
_LONGEST: Final = 64 * 1024


class SystemKey:
    """Implements :class:`ringfence.store.secrets.KeyHolder`."""

    protects = (
        "the key is sealed to this machine by systemd: copies and backups of the state give nothing away; "
        "root on this machine opens it"
    )

    def __init__(self, path: Path) -> None:
        self._path = path

    def why_not(self) -> str:
        if os.geteuid() != 0 or not _initial_user_namespace():
            return "the daemon is not root"
        if not _BOOTED.is_dir():
            return "systemd does not run here"
        if shutil.which("systemd-creds") is None:
            return "`systemd-creds` is not installed"
        try:
            probe = os.urandom(KEY_BYTES)
            return "" if _run("decrypt", _run("encrypt", probe)) == probe else "it lost what it was given"
        except Unavailable as error:
            return str(error)

    def fetch(self) -> bytes:
        try:
            key = _run("decrypt", read_private(self._path, _LONGEST))
        except OSError as error:
            raise Unavailable(
                f"the sealed key `{self._path}` cannot be read: {error.strerror}", code="secrets-key"
            ) from error
        if len(key) != KEY_BYTES:
            raise Unavailable(f"the sealed key `{self._path}` holds no key", code="secrets-key")
        return key

    def keep(self, key: bytes) -> None:
        replace_file(self._path, _run("encrypt", key))


def _initial_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _run(verb: str, content: bytes) -> bytes:
    """Seal or open through a pipe: the key is in no file and no argument."""
    try:
        ran = subprocess.run(
            ["systemd-creds", verb, f"--name={_NAME}", "-", "-"],
            input=content,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(
            f"`systemd-creds` did not answer: {type(error).__name__}", code="secrets-key"
        ) from None
    if ran.returncode:
        raise Unavailable(
            f"`systemd-creds {verb}` left with {ran.returncode}",
            hint="the key was sealed to another machine, or its TPM has changed",
            code="secrets-key",
        )
    return ran.stdout
