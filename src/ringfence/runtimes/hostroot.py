"""The ``host`` template: this machine's own programs and libraries, read-only, by an allow-list.

Nothing is copied but small files of ``/etc`` (those that programs need to start, and that everybody may
read); the program directories are used in place, under every sandbox's private layer. What is not on the list
is not there: no home, no data of ``/var``, no keys, no configuration of services. Root inside may read
whatever is there at all, so a file of the program directories that not everybody may read on the host is
hidden, whoever put it there.

The skeleton is a directory named after its content: sandboxes that run keep the one they started with, a
changed host makes another. Those of earlier boots are removed, since no sandbox survives a boot running.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.application.errors import Unavailable
from ringfence.runtimes import accounts, kernel
from ringfence.runtimes.identity import identity_of, is_initial

PROGRAMS: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Directories of the host that are used in place; where they are links into ``/usr``, the links."""

ETC: Final = (
    "alternatives",
    "bash.bashrc",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "localtime",
    "login.defs",
    "lsb-release",
    "magic",
    "magic.mime",
    "mailcap",
    "manpath.config",
    "mime.types",
    "nanorc",
    "netconfig",
    "os-release",
    "perl",
    "profile",
    "protocols",
    "python3*",
    "rpc",
    "services",
    "shells",
    "skel",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "vim",
    "wgetrc",
    "xattr.conf",
    "xdg",
)
PLACED: Final = ("/usr/libexec/ringfence/sbx-agent", "/usr/bin/sudo")
"""What every sandbox has that the host has not (:mod:`ringfence.runtimes.rootfs` mounts them)."""

_LARGEST: Final = 1 << 20
_EMPTY: Final = (
    ("dev", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/mail", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
)
_LINKS: Final = (("var/run", "/run"), ("var/lock", "/run/lock"), ("etc/mtab", "../proc/self/mounts"))
_WANTED: Final = ("python3", "pip", "curl", "git")
_SCAN_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoot:
    """A built skeleton: per directory of the sandbox the layers beneath, and what a person should know."""

    fingerprint: str
    layers: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...]


def build(place: Path, known: HostRoot | None) -> HostRoot:
    """Return the skeleton for the host as it is now; the known one while nothing changed. Runs apart."""
    kernel.plain_umask()
    fingerprint = _fingerprint()
    if known is not None and known.fingerprint == fingerprint and Path(known.layers[0][1][0]).is_dir():
        return known
    place.mkdir(parents=True, exist_ok=True)
    _forget_other_boots(place)
    for built in sorted(place.glob(f"{_boot()[:8]}-{fingerprint}-*")):
        return _described(built, fingerprint)
    home = place / f"{_boot()[:8]}-{fingerprint}-{secrets.token_hex(3)}"
    scratch = place / f".{home.name}"
    try:
        scratch.mkdir()
        scratch.chmod(0o755)
        _write_root(scratch / "root")
        _write_masks(scratch / "masks", _used())
        identity_of("").shift(str(scratch))
        scratch.rename(home)
    except OSError as error:
        raise Unavailable(f"cannot build the `host` template: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _described(home, fingerprint)


def _described(home: Path, fingerprint: str) -> HostRoot:
    layers = (
        ("/", (str(home / "root"),)),
        *((f"/{name}", (str(home / "masks" / name), f"/{name}")) for name in _used()),
    )
    return HostRoot(fingerprint=fingerprint, layers=layers, notes=tuple(_notes()))


def _used() -> list[str]:
    """The program directories that are directories of their own here."""
    return [name for name in PROGRAMS if Path("/", name).is_dir() and not Path("/", name).is_symlink()]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _forget_other_boots(place: Path) -> None:
    for entry in place.iterdir():
        if not entry.name.startswith((_boot()[:8], f".{_boot()[:8]}")):
            shutil.rmtree(entry, ignore_errors=True)


def _fingerprint() -> str:
    """Changes when what is copied changed, and when packages came or went."""
    digest = hashlib.sha256(_boot().encode())
    for path in (Path("/var/lib/dpkg/status"), Path("/usr/local"), Path("/usr/local/etc"), *_allowed()):
        with suppress(OSError):
            status = path.lstat()
            digest.update(f"{path}\0{status.st_mtime_ns}\0{status.st_size}\0".encode())
    return digest.hexdigest()[:16]


def _allowed() -> Iterator[Path]:
    for pattern in ETC:
        yield from sorted(Path("/etc").glob(pattern))


def _write_root(root: Path) -> None:
    for name, mode in (("etc", 0o755), ("var", 0o755), ("home", 0o755), *_EMPTY):
        path = root / name
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
    root.chmod(0o755)
    for name in PROGRAMS:
        here = Path("/", name)
        if here.is_symlink():
            (root / name).symlink_to(os.readlink(here))
        elif here.is_dir():
            (root / name).mkdir()
    for name, target in _LINKS:
        (root / name).symlink_to(target)
    for path in _allowed():
        _copy(path, root / path.relative_to("/"))
    for name in ("fstab", "machine-id", "environment"):
        (root / "etc" / name).write_text("")
    accounts.write_all(root)


def _copy(source: Path, target: Path) -> None:
    """Copy what everybody may read: links as they are, small files, directories of these. Nothing else."""
    status = source.lstat()
    target.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISLNK(status.st_mode):
        target.symlink_to(os.readlink(source))
    elif stat.S_ISDIR(status.st_mode) and status.st_mode & 0o005 == 0o005:
        target.mkdir(exist_ok=True)
        target.chmod(0o755)
        for entry in sorted(source.iterdir()):
            _copy(entry, target / entry.name)
    elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o004 and status.st_size <= _LARGEST:
        shutil.copyfile(source, target, follow_symlinks=False)
        target.chmod(0o755 if status.st_mode & 0o001 else 0o644)


def _write_masks(masks: Path, used: list[str]) -> None:
    """Hide what not everybody may read: an overlay's whiteout for each such file or directory."""
    for name in used:
        mask = masks / name
        mask.mkdir(parents=True)
        mask.chmod(0o755)
    for path in PLACED:  # a place for each, also where root inside may not write to the host's directory
        relative = Path(path).relative_to("/")
        _mirror_parents(masks, relative.parent)
        (masks / relative).touch()
    for path in (*_private(used), *_unwanted()):
        relative = Path(path).relative_to("/")
        _mirror_parents(masks, relative.parent)
        with suppress(FileExistsError):
            os.mknod(masks / relative, stat.S_IFCHR, os.makedev(0, 0))


def _mirror_parents(masks: Path, relative: Path) -> None:
    """A directory of a mask decides the mode and owner of the merged one: take the host's."""
    for part in reversed((relative, *relative.parents)):
        path = masks / part
        if part != Path() and not path.is_dir():
            path.mkdir(mode=0o755)
            with suppress(FileNotFoundError):
                status = Path("/", part).stat()
                os.chown(path, *_owner(status))
                path.chmod(stat.S_IMODE(status.st_mode))


def _owner(status: os.stat_result) -> tuple[int, int]:
    """Who owns a directory of the host, in ids of the sandbox: what is unknown in here is root's there."""
    return (status.st_uid, status.st_gid) if is_initial() else (0, 0)


def _private(used: list[str]) -> Iterator[str]:
    command = [
        "find",
        *(f"/{name}" for name in used),
        "-xdev",
        "(",
        "-type",
        "d",
        "!",
        "-perm",
        "-o=rx",
        "-o",
    ]
    command += ["-type", "f", "!", "-perm", "-o=r", ")", "-print0", "-prune"]
    done = subprocess.run(command, capture_output=True, timeout=_SCAN_SECONDS, check=True)
    for path in done.stdout.split(b"\0"):
        if path:
            yield os.fsdecode(path)


def _unwanted() -> Iterator[str]:
    """Local configuration, and what would make pip refuse to install into a system that is disposable."""
    if Path("/usr/local/etc").is_dir():
        yield "/usr/local/etc"
    for path in Path("/usr/lib").glob("python3*/EXTERNALLY-MANAGED"):
        yield str(path)


def _notes() -> Iterator[str]:
    """Tools that this person has and the sandbox has not, because they live in a home or elsewhere."""
    places = os.pathsep.join(("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"))
    for tool in _WANTED:
        there = shutil.which(tool, path=places) or (tool == "pip" and shutil.which("pip3", path=places)) or ""
        if there and _inside(os.path.realpath(there)):
            continue
        elsewhere = shutil.which(tool)
        if elsewhere is not None:
            yield (
                f"`{tool}` is not in the `host` template: yours is {elsewhere}, and only system directories are shown; "
                f"install it as a package, or use the `debian` template"
            )


def _inside(path: str) -> bool:
    return path.startswith(tuple(f"/{name}/" for name in PROGRAMS))
