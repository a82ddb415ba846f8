"""The users of a sandbox: ``root``, ``agent`` and the system accounts that files of a Debian system belong to.

Nobody here has a password, and nobody is anybody on the host.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from ringfence.runtimes.identity import AGENT

HOME: Final = "home/agent"

# The numbers are those of Debian's base-passwd, the same on every Debian system.
_USERS: Final = """\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
sys:x:3:3:sys:/dev:/usr/sbin/nologin
sync:x:4:65534:sync:/bin:/bin/sync
games:x:5:60:games:/usr/games:/usr/sbin/nologin
man:x:6:12:man:/var/cache/man:/usr/sbin/nologin
lp:x:7:7:lp:/var/spool/lpd:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
news:x:9:9:news:/var/spool/news:/usr/sbin/nologin
uucp:x:10:10:uucp:/var/spool/uucp:/usr/sbin/nologin
proxy:x:13:13:proxy:/bin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
backup:x:34:34:backup:/var/backups:/usr/sbin/nologin
list:x:38:38:Mailing List Manager:/var/list:/usr/sbin/nologin
irc:x:39:39:ircd:/run/ircd:/usr/sbin/nologin
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""

_GROUP: Final = (
    "root:0 daemon:1 bin:2 sys:3 adm:4 tty:5 disk:6 lp:7 mail:8 news:9 uucp:10 man:12 proxy:13 kmem:15 dialout:20 "
    "fax:21 voice:22 cdrom:24 floppy:25 tape:26 sudo:27 audio:29 dip:30 www-data:33 backup:34 operator:37 list:38 "
    "irc:39 src:40 shadow:42 utmp:43 video:44 sasl:45 plugdev:46 staff:50 games:60 users:100 nogroup:65534"
)

_NAMES: Final = """\
passwd:         files
group:          files
shadow:         files
hosts:          files dns
networks:       files
protocols:      files
services:       files
ethers:         files
rpc:            files
"""


def write_all(root: Path) -> None:
    """Write the account files of a root that has none."""
    etc = root / "etc"
    (etc / "passwd").write_text(_USERS)
    (etc / "group").write_text("".join(f"{name.replace(':', ':x:')}:\n" for name in _GROUP.split()))
    names = [line.partition(":")[0] for line in _USERS.splitlines()]
    (etc / "shadow").write_text("".join(f"{name}:*:20000:0:99999:7:::\n" for name in names))
    (etc / "shadow").chmod(0o640)
    os.chown(etc / "shadow", 0, 42)
    (etc / "nsswitch.conf").write_text(_NAMES)
    add_agent(root)


def add_agent(root: Path) -> None:
    """Add the user of the sandbox and its home, furnished from the root's own ``/etc/skel``."""
    etc = root / "etc"
    for name, line in (
        ("passwd", f"agent:x:{AGENT}:{AGENT}:agent:/{HOME}:/bin/bash\n"),
        ("group", f"agent:x:{AGENT}:\n"),
        ("shadow", "agent:*:20000:0:99999:7:::\n"),
    ):
        with (etc / name).open("a") as file:
            file.write(line)
    home = root / HOME
    if (etc / "skel").is_dir():
        shutil.copytree(etc / "skel", home, symlinks=True, dirs_exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    (home / ".local/bin").mkdir(parents=True, exist_ok=True)
    for directory, _, files in os.walk(home):
        for path in (directory, *(os.path.join(directory, name) for name in files)):
            os.chown(path, AGENT, AGENT, follow_symlinks=False)
    home.chmod(0o755)
