"""A sandbox's file system, put together anew for every start in a mount namespace that nobody else has.

From below: the template's layers, read-only, with owners translated to the sandbox's ids; the sandbox's own
writable layer over each (kernel overlayfs), which stays until the sandbox is removed; the workspaces; the
agent and the files that make names and certificates work, read-only. All of it is staged under one directory,
in a tmpfs, at :data:`STAGE`: the only place that a runtime, which is nobody on this host, has to be able to
reach.

The mount namespace belongs to the thread that stages and to the programs that it starts. When the last of
these has ended, everything is unmounted by the kernel: nothing is left to clean, whatever crashed.

Whatever is done in here to the sandbox's own tree is done as root in a place that root *inside* may have
prepared. So no path of it is ever resolved by the host's rules: every step goes through :func:`_enter`, which
treats the sandbox's root as the root (``RESOLVE_IN_ROOT``, openat2(2)).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.application.errors import Unavailable
from ringfence.runtimes import kernel
from ringfence.runtimes.hostroot import PLACED
from ringfence.runtimes.identity import AGENT, Identity
from ringfence.runtimes.templates import Layer
from ringfence.runtimes.workspace import Tree
from ringfence.sandbox.environment import HOME, MOUNTLESS

STAGE: Final = "/run"
"""Exists on every host, and every user may enter it. Covered in the sandbox's own mount namespace alone."""

AGENT_PATH, SUDO_PATH = PLACED
_DISK: Final = "disk.img"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount of a sandbox beyond its root: ``source`` is staged, ``target`` is inside.

    ``layer``: part of the template, so below whatever the runtime itself mounts (``/tmp``, ``/run``).
    """

    source: str
    target: str
    readonly: bool = False
    layer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What a runtime is told: a directory that is the root, and what is mounted in it, outer mounts first."""

    root: str
    mounts: tuple[Mount, ...]


def create(directory: Path, layers: Sequence[Layer], identity: Identity, disk: int) -> None:
    """Make a sandbox's writable layers. Repeating it changes nothing."""
    if disk and not identity.translated:
        raise Unavailable(
            "a limit of disk space needs a daemon that runs as root", hint="create it without one"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if disk:
        _make_disk(directory / _DISK, disk)
    else:
        _make_uppers(directory / "layers", layers, identity)


def _make_uppers(place: Path, layers: Sequence[Layer], identity: Identity) -> None:
    for layer in layers:
        for kind in ("upper", "work"):
            path = place / _key(layer) / kind
            path.mkdir(parents=True, exist_ok=True)
            if kind == "upper" and path.stat().st_uid != identity.outside(0):
                os.chown(path, identity.outside(0), identity.outside(0))
                path.chmod(0o755)


def _key(layer: Layer) -> str:
    return layer.target.strip("/").replace("/", "-") or "root"


def _make_disk(image: Path, size: int) -> None:
    """A file system of its own is the one bound on bytes that every host can enforce."""
    if image.exists():
        return
    scratch = image.with_suffix(".new")
    with open(scratch, "wb") as file:
        file.truncate(size)
    command = ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", str(scratch)]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        scratch.unlink(missing_ok=True)
        raise Unavailable(
            f"cannot make the sandbox's disk of {size} bytes: {error}",
            hint="install e2fsprogs, ask for more bytes, or create it without a disk limit",
        ) from error
    scratch.rename(image)


def _mount_disk(image: Path, target: Path) -> None:
    command = ["mount", "-t", "ext4", "-o", "loop,nodev,noatime", str(image), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise Unavailable(f"cannot mount the sandbox's disk: {done.stderr.strip()[:200]}")


def stage(
    directory: Path,
    layers: Sequence[Layer],
    identity: Identity,
    users: int,
    trees: Iterable[Tree],
    files: Mapping[str, bytes],
    agent: Path,
) -> Staged:
    """Mount everything, in this thread's new mount namespace, and return where. ``users`` is the sandbox's
    user namespace.
    """
    program = agent.read_bytes()
    kernel.private_mounts()
    place = directory / "stage"
    place.mkdir(exist_ok=True)
    kernel.mount("tmpfs", str(place), "tmpfs", kernel.MS_NODEV, "mode=755")
    _mount_layers(directory, place, layers, identity, users)
    mounts = [Mount(source=f"{STAGE}/{_key(layer)}", target=layer.target, layer=True) for layer in layers[1:]]
    placed = _place_files(place, files, program, identity)
    with ExitStack() as opened:
        roots = {layer.target: os.open(place / _key(layer), os.O_PATH | os.O_DIRECTORY) for layer in layers}
        for descriptor in roots.values():
            opened.callback(os.close, descriptor)
        for index, tree in enumerate(trees):
            name = f"workspace-{index}"
            _mount_point(place / name, directory=tree.directory)
            kernel.attach_tree(tree.descriptor, str(place / name))
            if not any(_below(tree.target, mount.target) for mount in mounts if not mount.layer):
                _prepare_target(roots, tree.target, identity, directory=tree.directory, reachable=True)
            mounts.append(Mount(source=f"{STAGE}/{name}", target=tree.target, readonly=tree.readonly))
        if all(mount.layer for mount in mounts):
            _prepare_target(roots, MOUNTLESS, identity, directory=True, reachable=True)
        for mount in placed:
            _prepare_target(roots, mount.target, identity, directory=False, reachable=False)
    kernel.mount(str(place), STAGE, flags=kernel.MS_BIND | kernel.MS_REC)
    kernel.unmount(str(place))
    return Staged(root=f"{STAGE}/{_key(layers[0])}", mounts=(*mounts, *placed))


def _mount_layers(
    directory: Path, place: Path, layers: Sequence[Layer], identity: Identity, users: int
) -> None:
    """Mount one overlay per layer. Relative paths, so that no character of a path can be an option."""
    writable = "layers"
    if (directory / _DISK).exists():
        (place / "disk").mkdir()
        _mount_disk(directory / _DISK, place / "disk")
        _make_uppers(place / "disk", layers, identity)
        writable = "stage/disk"
    os.chdir(directory)  # this thread's alone: a new mount namespace implies it
    for layer in layers:
        key = _key(layer)
        (place / key).mkdir()
        lowers: list[str] = []
        for index, lower in enumerate(layer.lowers):
            name = f"lower-{key}-{index}"
            (place / name).mkdir()
            _mount_lower(lower, place / name, identity, users)
            lowers.append(f"stage/{name}")
        options = f"lowerdir={':'.join(lowers)},upperdir={writable}/{key}/upper,workdir={writable}/{key}/work"
        kernel.mount(
            "overlay", str(place / key), "overlay", kernel.MS_NODEV, options + _overlay_flavour(identity)
        )
        for name in lowers:  # the overlay keeps its own
            kernel.unmount(name)
            os.rmdir(name)


def _overlay_flavour(identity: Identity) -> str:
    """Inside a user namespace the overlay may keep its notes only in ``user.`` attributes."""
    return "" if identity.translated else ",userxattr"


def _mount_lower(lower: str, target: Path, identity: Identity, users: int) -> None:
    source = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = kernel.clone_tree(source)
    finally:
        os.close(source)
    try:
        kernel.restrict_tree(tree, kernel.MOUNT_ATTR_RDONLY, idmap=users if identity.translated else None)
        kernel.attach_tree(tree, str(target))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EPERM):
            raise Unavailable(
                f"the file system of `{lower}` cannot translate owners (id-mapped mounts)",
                hint="run on ext4, xfs or btrfs with a kernel of version 5.19 or later; inside a container, give it "
                "a volume for its state and use the `debian` template",
            ) from error
        raise
    finally:
        os.close(tree)


def _place_files(place: Path, files: Mapping[str, bytes], program: bytes, identity: Identity) -> list[Mount]:
    """Write the agent and the placed files into the stage; each becomes a read-only mount."""
    (place / "files").mkdir()
    owner = identity.outside(0)
    wanted = [(AGENT_PATH, program, 0o755), (SUDO_PATH, program, 0o4755)]
    wanted += [(target, content, 0o444) for target, content in files.items()]
    mounts: list[Mount] = []
    for index, (target, content, mode) in enumerate(wanted):
        path = place / "files" / str(index)
        path.write_bytes(content)
        os.chown(path, owner, owner)
        path.chmod(mode)  # after the change of owner, which takes the set-user-id bit
        mounts.append(Mount(source=f"{STAGE}/files/{index}", target=target, readonly=True))
    return mounts


def _mount_point(path: Path, *, directory: bool) -> None:
    if directory:
        path.mkdir()
    else:
        path.touch()


def _below(path: str, above: str) -> bool:
    return path.startswith(f"{above.rstrip('/')}/")


def _prepare_target(
    roots: Mapping[str, int], target: str, identity: Identity, *, directory: bool, reachable: bool
) -> None:
    """Make a mount point and the way to it in the sandbox's own layers; with ``reachable``, ``agent`` can go there."""
    base = max((root for root in roots if root == "/" or _below(target, root)), key=len)
    parts = [part for part in target.removeprefix(base).split("/") if part]
    top = roots[base]
    try:
        for depth in range(len(parts)):
            owner = identity.outside(AGENT if _below(base + "/".join(parts[: depth + 1]), HOME) else 0)
            last = depth == len(parts) - 1
            above = _enter(top, "/".join(parts[:depth]))
            try:
                if last and not directory:
                    with suppress(FileExistsError):
                        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                        made = os.open(parts[depth], flags, 0o644, dir_fd=above)
                        os.fchown(made, owner, owner)
                        os.close(made)
                    continue
                with suppress(FileExistsError):
                    os.mkdir(parts[depth], 0o755, dir_fd=above)
                    os.chown(parts[depth], owner, owner, dir_fd=above, follow_symlinks=False)
            finally:
                os.close(above)
            if reachable and not last:
                _open_way(top, "/".join(parts[: depth + 1]))
    except OSError as error:
        raise Unavailable(
            f"cannot place `{target}` in the sandbox: {error.strerror}",
            hint="the sandbox has something else there now; remove it inside, or the sandbox with `sbx rm`",
        ) from error


def _enter(root: int, path: str) -> int:
    return kernel.open_in_root(root, path or ".", os.O_RDONLY | os.O_DIRECTORY)


def _open_way(root: int, path: str) -> None:
    """Let everybody pass through a directory on the way to a workspace: ``/root``, when that is where it is."""
    descriptor = _enter(root, path)
    try:
        mode = os.fstat(descriptor).st_mode
        if not mode & 0o001:
            os.fchmod(descriptor, (mode & 0o7777) | 0o011)
    finally:
        os.close(descriptor)


def remove(directory: Path) -> None:
    """Remove a sandbox's layers. Renamed first, so that it is gone at once and half of it is never found again."""
    if not directory.is_dir():
        return
    doomed = directory.with_name(f".{directory.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)
    shutil.rmtree(doomed)
