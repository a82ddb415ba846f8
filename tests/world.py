"""The demo's world for live tests: why it cannot be had here, and an installation of the product in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ringfence.application.errors import Unavailable
from ringfence.demo.installation import SYSTEM_PATH, Installation, own_environment
from ringfence.demo.world import World, check_possible
from ringfence.locations import locate


def why_no_world() -> str:
    """Return what is missing for a world of one's own, or nothing."""
    try:
        check_possible()
    except Unavailable as error:
        return f"{error} ({error.hint})"
    return "" if shutil.which("curl") else "curl is not installed (apt-get install curl)"


def why_no_sandbox(environ: Mapping[str, str]) -> str:
    """Return what is missing for a real sandbox in a world, or nothing."""
    if reason := why_no_world():
        return reason
    path = f"{environ.get('PATH', '')}:{SYSTEM_PATH}"
    if shutil.which("nft", path=path) is None:
        return "nft is not installed (apt-get install nftables)"
    fetched = Path(locate(environ, home=str(Path.home())).data) / "bin/runsc"
    if shutil.which("runsc", path=path) is None and not os.access(fetched, os.X_OK):
        return f"runsc is neither on PATH nor at {fetched} (run scripts/setup)"
    return ""


@contextmanager
def installed(world: World, name: str, *, preset: str = "balanced") -> Iterator[Installation]:
    """An installation in a world with a policy preset chosen, put away at the end."""
    installation = Installation(world, environ=own_environment(), name=name)
    installation.prepare()
    try:
        installation.sbx("policy", "init", preset)
        yield installation
    finally:
        installation.leave()
