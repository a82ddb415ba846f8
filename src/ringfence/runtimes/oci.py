"""The OCI runtime configuration that ``runsc`` reads: a value made from values.

Root inside has the capabilities that installing packages, changing users and serving low ports need, over
things inside; none that reaches a device, a mount or a network interface. ``noNewPrivileges`` is off for one
program's sake: ``sudo`` is set-user-id, and root inside is nobody outside. Limits are not in here
(:mod:`ringfence.runtimes.cgroup`).
"""

from __future__ import annotations

from typing import Any, Final

from ringfence.runtimes.rootfs import AGENT_PATH, Mount, Staged

CAPABILITIES: Final = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
_OWN: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("/proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", ("nosuid", "mode=755")),
    ("/dev/pts", "devpts", ("nosuid", "noexec")),
    ("/dev/shm", "tmpfs", ("nosuid", "nodev", "mode=1777")),  # noqa: S108 - inside the sandbox
    ("/sys", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/tmp", "tmpfs", ("nosuid", "nodev", "mode=1777")),  # noqa: S108 - inside the sandbox
    ("/run", "tmpfs", ("nosuid", "nodev", "mode=755")),
)
_HOSTNAME_MAX: Final = 63


def configuration(staged: Staged, *, name: str) -> dict[str, Any]:
    """Return ``config.json`` for a sandbox whose files are staged and whose thread is in the network namespace."""
    mounts = [
        *(_bind(mount) for mount in staged.mounts if mount.layer),
        *(
            {"destination": target, "type": kind, "source": kind, "options": list(options)}
            for target, kind, options in _OWN
        ),
        *(_bind(mount) for mount in staged.mounts if not mount.layer),
    ]
    return {
        "ociVersion": "1.0.2",
        "hostname": name[:_HOSTNAME_MAX],
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [AGENT_PATH, "agent"],
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "noNewPrivileges": False,
            "capabilities": {
                kind: list(CAPABILITIES) for kind in ("bounding", "effective", "inheritable", "permitted")
            },
        },
        "root": {"path": staged.root, "readonly": False},
        "mounts": mounts,
        "linux": {
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "network", "path": "/proc/self/ns/net"},
            ]
        },
    }


def _bind(mount: Mount) -> dict[str, Any]:
    return {
        "destination": mount.target,
        "type": "bind",
        "source": mount.source,
        "options": ["bind", "ro" if mount.readonly else "rw"],
    }
