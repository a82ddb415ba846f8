"""Where things are on the host: one pure function from an environment to paths (XDG base directories).

``SBX_STATE_DIR``, ``SBX_CONFIG_DIR``, ``SBX_DATA_DIR`` and ``SBX_RUNTIME_DIR`` override one directory each; the
demo and the tests set them to live beside a person's own installation without touching it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Locations:
    """Directories of one installation. Nothing here exists until the daemon makes it."""

    state: PurePosixPath
    """Database, ledger, certificate authority, sandboxes' writable layers. Mode 0700."""
    runtime: PurePosixPath
    """Sockets, pid files, namespaces; may vanish at reboot. Mode 0700."""
    config: PurePosixPath
    data: PurePosixPath
    """What may be shared between installations and made again: ``bin/runsc``, ``templates/``."""

    @property
    def socket(self) -> PurePosixPath:
        """The daemon's API, HTTP over a Unix socket."""
        return self.runtime / "sbxd.sock"

    @property
    def database(self) -> PurePosixPath:
        return self.state / "ringfence.db"

    @property
    def ledger(self) -> PurePosixPath:
        return self.state / "ledger"

    @property
    def authority(self) -> PurePosixPath:
        return self.state / "ca"

    @property
    def secrets(self) -> PurePosixPath:
        """The sealed file, and its key where that is a file. Mode 0700."""
        return self.state / "secrets"

    @property
    def sandboxes(self) -> PurePosixPath:
        return self.state / "sandboxes"

    @property
    def templates(self) -> PurePosixPath:
        return self.data / "templates"

    @property
    def config_file(self) -> PurePosixPath:
        return self.config / "config.toml"

    @property
    def daemon_log(self) -> PurePosixPath:
        return self.state / "daemon.log"


def locate(environ: Mapping[str, str], *, home: str) -> Locations:
    """Return the locations for an environment. Relative values are ignored, as the XDG specification says."""

    def pick(own: str, xdg: str, default: str) -> PurePosixPath:
        for candidate in (environ.get(own, ""), _below(environ.get(xdg, ""))):
            if candidate.startswith("/"):
                return PurePosixPath(candidate)
        return PurePosixPath(home) / default / "ringfence"

    state = pick("SBX_STATE_DIR", "XDG_STATE_HOME", ".local/state")
    runtime = environ.get("SBX_RUNTIME_DIR", "")
    return Locations(
        state=state,
        runtime=PurePosixPath(runtime) if runtime.startswith("/") else state / "run",
        config=pick("SBX_CONFIG_DIR", "XDG_CONFIG_HOME", ".config"),
        data=pick("SBX_DATA_DIR", "XDG_DATA_HOME", ".local/share"),
    )


def _below(base: str) -> str:
    return f"{base.rstrip('/')}/ringfence" if base else ""
