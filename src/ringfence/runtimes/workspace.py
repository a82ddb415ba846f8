"""A person's directories inside a sandbox: opened as that person, translated, and with git's trap doors shut.

Opening happens once, by descriptor, with the person's own identity and without following a link anywhere in
the path; what is mounted is what was opened, whatever the path says a moment later. The mounts are detached
copies that ignore set-user-id bits and device nodes, read-only where asked, with owners translated
(:mod:`ringfence.runtimes.identity`). File systems mounted below a workspace are not part of it.

Git runs programs that a repository's configuration and hooks name, on the host, as the person (CVE-2026-26268
and its kin). So these are mounts of their own, read-only, also where they did not exist: they are made,
empty, which is how ``git init`` makes them. ``commondir``, which would name another directory for all of
these, is made to name this one. The directories above them are mounts too, because a mount cannot be renamed
and replaced by a look-alike.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.runtimes import kernel, rootless
from ringfence.runtimes.identity import Identity, workspace_translation
from ringfence.sandbox.model import Owner, SandboxSpec, Workspace
from ringfence.sandbox.workspaces import WorkspaceRefused, check

GIT_FILES: Final = (("config", b""), ("commondir", b".\n"), ("config.worktree", None))
"""Files that decide what git runs, and what they say where they are missing (``None``: nothing needs to be there)."""
GIT_DIRECTORIES: Final = ("hooks", "info")
_DEEPEST: Final = 8
_MODULES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A detached mount, and where it belongs inside."""

    descriptor: int
    target: str
    readonly: bool
    directory: bool

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A path below a workspace that is a mount of its own; not ``readonly`` when it is only pinned to its place."""

    path: str
    readonly: bool
    directory: bool


def home_of(owner: Owner) -> str:
    """A person's home. In a rootless daemon the person is 0, and not the ``root`` of ``/etc/passwd``."""
    if owner.uid == 0 and (own := rootless.home()) is not None:
        return own
    try:
        return pwd.getpwuid(owner.uid).pw_dir or "/"
    except KeyError:
        return "/"


def groups_of(owner: Owner) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(owner.uid).pw_name, owner.gid)
    except KeyError:
        return [owner.gid]


def admit(spec: SandboxSpec, reserved: Sequence[str]) -> None:
    """Raise ``InvalidInput`` unless every workspace may be one and is there. Runs apart; changes nothing."""
    home = os.path.realpath(home_of(spec.owner))
    own = tuple(map(os.path.realpath, reserved))
    seen: set[str] = set()
    for workspace in spec.workspaces:
        try:
            check(workspace.path, home=home, reserved=own)
        except WorkspaceRefused as refused:
            raise InvalidInput(str(refused), hint=refused.hint) from refused
        if workspace.path in seen:
            raise InvalidInput(f"workspace `{workspace.path}` is named twice")
        seen.add(workspace.path)
    kernel.act_as(spec.owner.uid, spec.owner.gid, groups_of(spec.owner))
    for workspace in spec.workspaces:
        os.close(_open(workspace))


def open_trees(spec: SandboxSpec, identity: Identity) -> list[Tree]:
    """Open a sandbox's workspaces as detached mounts, outer ones first. Runs apart: it becomes the owner."""
    if spec.workspaces and not identity.translated and spec.owner.uid != 0:
        raise Unavailable(
            "a daemon inside a user namespace can only serve the person who is root there",
            hint="run the daemon as root of the host, or as the person who uses it",
        )
    with ExitStack() as undo:
        translation: int | None = None
        if identity.translated and spec.workspaces:
            translation = workspace_translation(identity, spec.owner.uid, spec.owner.gid)
            undo.callback(os.close, translation)
        kernel.act_as(spec.owner.uid, spec.owner.gid, groups_of(spec.owner))
        trees: list[Tree] = []
        with ExitStack() as failed:
            for workspace in sorted(spec.workspaces, key=lambda workspace: workspace.path):
                root = _open(workspace)
                undo.callback(os.close, root)
                places = [Guarded("", workspace.readonly, directory=True)]
                if spec.protect_git and not workspace.readonly:
                    places += _guarded(root, workspace.path)
                for place in places:
                    tree = _tree(root, workspace, place, translation)
                    failed.callback(tree.close)
                    trees.append(tree)
            failed.pop_all()
        return trees


def _open(workspace: Workspace) -> int:
    """Open a workspace for reading, links nowhere in its path."""
    try:
        return kernel.open_exact(workspace.path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        reasons = {
            errno.ENOENT: "does not exist",
            errno.ENOTDIR: "is not a directory",
            errno.EACCES: "is not yours to read",
            errno.ELOOP: "leads through a symbolic link",
        }
        reason = reasons.get(error.errno or 0, f"cannot be opened: {error.strerror}")
        raise InvalidInput(
            f"workspace `{workspace.path}` {reason}", hint="name an existing directory of yours"
        ) from error


def _tree(root: int, workspace: Workspace, place: Guarded, translation: int | None) -> Tree:
    source = kernel.open_beneath(root, place.path, os.O_PATH) if place.path else os.dup(root)
    try:
        tree = kernel.clone_tree(source)
    finally:
        os.close(source)
    attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    if place.readonly:
        attributes |= kernel.MOUNT_ATTR_RDONLY
    try:
        kernel.restrict_tree(tree, attributes, idmap=translation)
    except OSError as error:
        os.close(tree)
        if translation is not None and error.errno in (errno.EINVAL, errno.EPERM):
            raise Unavailable(
                f"the file system of workspace `{workspace.path}` cannot translate owners (id-mapped mounts)",
                hint="use a directory on ext4, xfs or btrfs, and a kernel of version 5.12 or later",
            ) from error
        raise
    target = f"{workspace.path}/{place.path}" if place.path else workspace.path
    return Tree(descriptor=tree, target=target, readonly=place.readonly, directory=place.directory)


def _guarded(root: int, workspace: str) -> Iterator[Guarded]:
    """What of a repository at the top of a workspace is a mount of its own, parents first."""
    kind = _kind(root, ".git")
    if (
        kind == "file"
    ):  # a linked worktree or a submodule: it names another directory, and must go on naming that
        yield Guarded(".git", readonly=True, directory=False)
    elif kind == "directory":
        yield Guarded(".git", readonly=False, directory=True)
        yield from _guarded_repository(root, ".git")
        yield from _guarded_modules(root, ".git/modules")
    elif kind:
        raise _unprotectable(workspace, ".git")


def _guarded_repository(root: int, repository: str) -> Iterator[Guarded]:
    for name in GIT_DIRECTORIES:
        path = f"{repository}/{name}"
        _make(root, path, None)
        yield _only(root, path, "directory")
    for name, content in GIT_FILES:
        path = f"{repository}/{name}"
        if content is not None:
            _make(root, path, content)
        if _kind(root, path):
            yield _only(root, path, "file")
    worktrees = f"{repository}/worktrees"
    if _kind(root, worktrees) == "directory":
        yield Guarded(worktrees, readonly=False, directory=True)
        for name in _names(root, worktrees):
            if _kind(root, f"{worktrees}/{name}/commondir"):
                yield Guarded(f"{worktrees}/{name}", readonly=False, directory=True)
                yield _only(root, f"{worktrees}/{name}/commondir", "file")


def _guarded_modules(root: int, modules: str) -> Iterator[Guarded]:
    """Submodules, also submodules of submodules: their configuration is obeyed like the repository's own."""
    queue, count = [(modules, 0)], 0
    while queue:
        path, depth = queue.pop(0)
        if _kind(root, path) != "directory":
            continue
        count += 1
        if depth > _DEEPEST or count > _MODULES:
            raise Unavailable(
                "the repository has more submodules than can be protected",
                hint="create the sandbox with `--no-protect-git` if its git configuration may be changed",
            )
        yield Guarded(path, readonly=False, directory=True)
        if _kind(root, f"{path}/HEAD"):
            yield from _guarded_repository(root, path)
            queue.append((f"{path}/modules", depth + 1))
            continue
        queue += [(f"{path}/{name}", depth + 1) for name in _names(root, path)]


def _names(root: int, path: str) -> list[str]:
    directory = kernel.open_beneath(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return sorted(os.listdir(directory))
    finally:
        os.close(directory)


def _only(root: int, path: str, wanted: str) -> Guarded:
    if _kind(root, path) != wanted:
        raise _unprotectable("", path)
    return Guarded(path, readonly=True, directory=wanted == "directory")


def _unprotectable(workspace: str, path: str) -> InvalidInput:
    name = f"{workspace}/{path}" if workspace else path
    return InvalidInput(
        f"`{name}` is a symbolic link or no ordinary file, so it cannot be protected",
        hint="replace it by what it points to, or create the sandbox with `--no-protect-git`",
    )


def _kind(root: int, path: str) -> str:
    """``file``, ``directory``, ``other``, or empty where nothing is."""
    parent, _, name = path.rpartition("/")
    try:
        directory = kernel.open_beneath(root, parent, os.O_PATH | os.O_DIRECTORY) if parent else os.dup(root)
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return "other"
        raise
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return ""
    finally:
        os.close(directory)
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"


def _make(root: int, path: str, content: bytes | None) -> None:
    """Make what is missing, as the owner, so that there is something to mount on. ``None`` is a directory."""
    parent, _, name = path.rpartition("/")
    above = kernel.open_beneath(root, parent, os.O_PATH | os.O_DIRECTORY)
    try:
        if content is None:
            os.mkdir(name, 0o755, dir_fd=above)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            made = os.open(name, flags, 0o644, dir_fd=above)
            os.write(made, content)
            os.close(made)
    except FileExistsError:
        pass
    finally:
        os.close(above)
