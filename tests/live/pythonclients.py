"""Python's HTTP libraries for a sandbox's own python3, fetched once by the tests' pip into ``.deps/``."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.live.clients import PYTHON, ROOT

_WANTED: Final = Path(__file__).with_name("pythonclients.txt")


class NotThere(Exception):
    """Why there are none."""


def python_clients() -> Path:
    """Return the directory that has them. Raises :class:`NotThere` where they cannot be had."""
    if not Path(PYTHON).exists():
        raise NotThere(f"there is no {PYTHON} (apt-get install python3)")
    version = subprocess.run([PYTHON, "-VV"], capture_output=True, check=True).stdout
    name = hashlib.sha256(version + _WANTED.read_bytes()).hexdigest()[:12]
    place = ROOT / ".deps" / f"clients-{name}"
    place.parent.mkdir(exist_ok=True)
    with open(place.with_suffix(".lock"), "w") as lock:  # one worker fetches, the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            _fetch(place)
    return place


def _fetch(place: Path) -> None:
    making = place.with_suffix(".new")
    shutil.rmtree(making, ignore_errors=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        PYTHON,
        "--disable-pip-version-check",
        "install",
        "--quiet",
    ]
    options = ["--only-binary=:all:", "--root-user-action=ignore", "--target", str(making)]
    ran = subprocess.run(
        [*pip, *options, "--requirement", str(_WANTED)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or ["pip failed without a word"]
        raise NotThere(f"Python's HTTP libraries cannot be fetched: {last[0]}")
    making.rename(place)
