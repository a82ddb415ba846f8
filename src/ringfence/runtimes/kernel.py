"""The kernel calls that Python has no name for: namespaces, detached mounts, id-mapped trees.

Most of these change the *calling thread* alone (its network or mount namespace, the identity with which it
opens files), and a thread that changed itself is no use to anybody afterwards. So everything that is not the
plain process runs through :func:`apart`: in a thread of its own that ends when the call does, taking what it
became with it. Programs started from such a thread live in its namespaces; sockets made by it stay there.

Numbers are those of the generic system call table where the architectures agree (424 and up), else in a
table; an architecture that is not in it is refused at first use rather than guessed.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import platform
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

T = TypeVar("T")

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000
_CLONE_FS: Final = 0x0000_0200
_UMASK: Final = 0o022

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
_MOUNT_ATTR_IDMAP: Final = 0x100000

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

NSFS_MAGIC: Final = 0x6E73_6673

_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
_NS_GET_USERNS: Final = 0xB701

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_OPENAT2: Final = 437
_MOUNT_SETATTR: Final = 442

# Where the tables differ: setgroups, setfsuid, setfsgid. Called raw because glibc's setgroups changes every
# thread.
_IDENTITY: Final = {"x86_64": (116, 122, 123), "aarch64": (159, 151, 152)}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _checked(result: int, what: str, name: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", name)
    return result


async def apart(function: Callable[[], T], *, name: str = "apart") -> T:
    """Run ``function`` in a thread of its own that ends with it; namespaces and identity it takes die with it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as caught:  # noqa: BLE001 - it is raised again in the task that waits
            error = caught
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=body, name=name, daemon=True).start()
    return await future


def unshare(flags: int) -> None:
    """Leave the given namespaces for new ones (this thread alone)."""
    if flags & CLONE_NEWNS:
        flags |= _CLONE_FS
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def join(namespace: int, kind: int = 0) -> None:
    """Enter the namespace behind a descriptor (this thread alone)."""
    _checked(_libc.setns(ctypes.c_int(namespace), ctypes.c_int(kind)), "setns")


def join_path(path: str, kind: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        join(descriptor, kind)
    finally:
        os.close(descriptor)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(kind) if kind else None,
        ctypes.c_ulong(flags),
        os.fsencode(options) if options else None,
    )
    _checked(result, f"mount {kind or 'bind'}", target)


def unmount(target: str) -> None:
    """Take a mount away now; what still uses it keeps it until it ends."""
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), "umount", target)


def private_mounts() -> None:
    """Give this thread a mount namespace of its own from which nothing propagates back."""
    unshare(CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    os.umask(_UMASK)


def plain_umask() -> None:
    """Give this thread a umask of its own: what a sandbox's users must read is made readable, whoever started us."""
    unshare(_CLONE_FS)
    os.umask(_UMASK)


def open_beneath(directory: int, path: str, flags: int) -> int:
    """Open ``path`` below a descriptor; a symbolic link anywhere in it, or a way out, is an error (openat2)."""
    how = _OpenHow(
        flags=flags | os.O_CLOEXEC | os.O_NOFOLLOW,
        mode=0,
        resolve=RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH,
    )
    return _openat2(directory, path, how)


def open_in_root(directory: int, path: str, flags: int) -> int:
    """Open ``path`` as a program would see it whose root is the descriptor: links lead within (openat2)."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=0, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    return _openat2(directory, path, how)


def open_exact(path: str, flags: int) -> int:
    """Open an absolute path that must not contain a symbolic link anywhere (openat2)."""
    how = _OpenHow(
        flags=flags | os.O_CLOEXEC,
        mode=0,
        resolve=RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    )
    return _openat2(-100, path, how)


def _openat2(directory: int, path: str, how: _OpenHow) -> int:
    return _checked(
        _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(directory),
            os.fsencode(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        "openat2",
        path,
    )


def clone_tree(descriptor: int, *, recursive: bool = False) -> int:
    """Copy the mount at a descriptor into a detached one that is nowhere yet."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    return _checked(
        _libc.syscall(ctypes.c_long(_OPEN_TREE), ctypes.c_int(descriptor), b"", ctypes.c_uint(flags)),
        "open_tree",
    )


def restrict_tree(tree: int, attributes: int, *, idmap: int | None = None, recursive: bool = False) -> None:
    """Set attributes on a detached mount and, with a user namespace's descriptor, translate its owners through it."""
    attr = _MountAttr(
        attr_set=attributes | (_MOUNT_ATTR_IDMAP if idmap is not None else 0),
        attr_clr=0,
        propagation=MS_PRIVATE,
        userns_fd=idmap if idmap is not None else 0,
    )
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _checked(
        _libc.syscall(
            ctypes.c_long(_MOUNT_SETATTR),
            ctypes.c_int(tree),
            b"",
            ctypes.c_uint(flags),
            ctypes.byref(attr),
            ctypes.c_size_t(ctypes.sizeof(attr)),
        ),
        "mount_setattr",
    )


def attach_tree(tree: int, target: str) -> None:
    """Put a detached mount at a path."""
    _checked(
        _libc.syscall(
            ctypes.c_long(_MOVE_MOUNT),
            ctypes.c_int(tree),
            b"",
            ctypes.c_int(-100),
            os.fsencode(target),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        ),
        "move_mount",
        target,
    )


def spawn_paused(flags: int) -> int:
    """Start a child in new namespaces that only waits to be killed, and return its pid.

    The child runs the C library's ``pause`` and nothing else: no Python, no lock of another thread. It exists
    so that its namespaces can be named (bound to a file, written maps for), then it is ended with
    :func:`end`.
    """
    stack = ctypes.create_string_buffer(65536)
    top = ctypes.c_void_p((ctypes.addressof(stack) + len(stack)) & ~0xF)
    entry = ctypes.cast(_libc.pause, ctypes.c_void_p)
    return _checked(_libc.clone(entry, top, ctypes.c_int(flags | signal.SIGCHLD), None), "clone")


def end(pid: int) -> None:
    """Kill and reap a child of ours."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def owning_user_namespace(namespace: int) -> int:
    """Return a descriptor of the user namespace that owns another namespace (ioctl_ns(2))."""
    return fcntl.ioctl(namespace, _NS_GET_USERNS)


def is_namespace(path: str) -> bool:
    """Whether a file is a bound namespace. After a reboot the same path is an ordinary empty file."""
    try:
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False


def act_as(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Open files as somebody else from here on (this thread alone; there is no way back in :func:`apart`).

    Setting the file system identity away from root also takes the capabilities that override permissions.
    """
    numbers = _IDENTITY.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, f"no system call table for {platform.machine()}")
    setgroups, setfsuid, setfsgid = numbers
    array = (ctypes.c_uint32 * len(groups))(*groups)
    _checked(_libc.syscall(ctypes.c_long(setgroups), ctypes.c_size_t(len(groups)), array), "setgroups")
    for number, wanted in ((setfsgid, gid), (setfsuid, uid)):
        _libc.syscall(ctypes.c_long(number), ctypes.c_uint32(wanted))
        # These two never fail loudly: they return the previous value, and asking again tells.
        if _libc.syscall(ctypes.c_long(number), ctypes.c_uint32(0xFFFF_FFFF)) != wanted:
            raise OSError(errno.EPERM, f"cannot open files as {uid}:{gid}")
