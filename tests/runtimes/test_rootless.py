"""An ordinary user's daemon: what it needs, that it works, and that it finds its namespaces again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platforms import AGENT, RUNSC, each

from ringfence.runtimes import rootless

UID = 54321
SETTING = "user/max_user_namespaces"
AS_PERSON = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env")
"""``setpriv`` itself still has root's powers over paths; what ``env`` starts has none."""


def interpreter() -> str:
    """A Python of this version that an ordinary user may run."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        said = subprocess.run(
            [*AS_PERSON, candidate, "-c", "import sys; print(sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode == 0 and said.stdout.strip() == str(sys.version_info[:2]):
            return candidate
    return ""


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Path]:
    """A directory of an ordinary user who has subordinate ids, in files that only the test's processes see."""
    for program in ("newuidmap", "setpriv", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if not interpreter():
        pytest.skip("needs a Python that an ordinary user may run")
    for above in (tmp_path, *tmp_path.parents):
        if above != Path("/") and above.stat().st_uid == os.geteuid():
            above.chmod(above.stat().st_mode | 0o011)
    place = tmp_path / "place"
    for part in ("", "work", "run", "home"):
        (place / part).mkdir()
        os.chown(place / part, UID, UID)
    (place / "secret").write_text("theirs")
    (place / "secret").chmod(0o600)
    for source in (AGENT, Path(shutil.which("runsc") or RUNSC)):
        if source.is_file():
            shutil.copy(source, place / source.name)
            (place / source.name).chmod(0o755)
    (tmp_path / "passwd").write_text(
        Path("/etc/passwd").read_text() + f"person:x:{UID}:{UID}::{place / 'home'}:/bin/sh\n"
    )
    (tmp_path / "ids").write_text("person:700000:65536\n")
    yield place
    keeper = place / "run" / "rootless.pid"
    if keeper.exists():
        os.kill(int(keeper.read_text().split()[0]), signal.SIGKILL)


def as_person(place: Path, *arguments: str) -> dict[str, Any]:
    """Run the scene as the user, with the files in place."""
    above = place.parent
    script = (
        "mount --make-rprivate /; "
        f"mount --bind {above}/passwd /etc/passwd; mount --bind {above}/ids /etc/subuid; "
        f'mount --bind {above}/ids /etc/subgid; exec "$@"'
    )
    here = Path(__file__).parent
    paths = (str(here), str(here.parents[1] / "src"), sysconfig.get_path("purelib"))
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", script, "-"),
            *(
                *AS_PERSON,
                "-i",
                f"HOME={place}/home",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONDONTWRITEBYTECODE=1",
            ),
            *(f"PYTHONPATH={':'.join(paths)}", interpreter(), str(here / "rootless_scene.py"), *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@each("gvisor", "namespaces")
def test_a_sandbox_of_an_ordinary_user(platform: str, person: Path) -> None:
    (person / "secret").write_text("theirs")
    seen = as_person(person, platform, str(person), str(person / AGENT.name), str(person / "runsc"))
    assert seen["usable"], seen["reason"]
    assert "without limits" in seen["reason"]
    assert seen["home"] == f"{person}/home"
    assert seen["agent"] == "agent\nagent\nagent"
    assert seen["root"] == "root\ndone"
    assert seen["curl"] == "403"
    assert seen["secret"] == "0"
    assert seen["relayed"] == "b'time'"
    assert seen["connections"] == 5
    assert (person / "work/made").stat().st_uid == UID
    assert (person / "work/byroot").stat().st_uid == 700_000


@each("namespaces")
def test_a_later_daemon_finds_the_same_namespaces(platform: str, person: Path) -> None:
    arguments = (platform, str(person), str(person / AGENT.name), str(person / "runsc"))
    assert as_person(person, *arguments)["namespace"] == as_person(person, *arguments)["namespace"]


class TestWhatIsMissingIsSaid:
    @pytest.fixture(autouse=True)
    def _ordinary(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(rootless, "subordinate", lambda place: 100_000)
        monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
        monkeypatch.setattr(
            rootless,
            "_setting",
            lambda name: {SETTING: "1000", "kernel/unprivileged_userns_clone": "1"}.get(name, ""),
        )

    def test_nothing(self) -> None:
        assert rootless.lacking() is None

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            (SETTING, "0"),
            ("kernel/unprivileged_userns_clone", "0"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ],
    )
    def test_user_namespaces(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        monkeypatch.setattr(rootless, "_setting", lambda asked: value if asked == name else "")
        missing = rootless.lacking()
        assert missing is not None
        assert name.rpartition("/")[2] in missing.hint

    def test_uidmap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda program: None)
        missing = rootless.lacking()
        assert missing is not None
        assert missing.hint == "install it: apt-get install uidmap"

    def test_subordinate_ids(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rootless, "subordinate", lambda place: None)
        missing = rootless.lacking()
        assert missing is not None
        assert "usermod --add-subuids" in missing.hint


@pytest.mark.parametrize(
    ("content", "first"),
    [
        ("", None),
        ("other:100000:65536\n", None),
        ("me:100000:65536\n", 100_000),
        ("other:1:65536\nme:200000:70000\n", 200_000),
        ("me:100000:100\n", None),
        (f"{os.getuid()}:300000:65536\n", 300_000),
        ("nonsense\n", None),
    ],
)
def test_subordinate_ids_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, first: int | None
) -> None:
    monkeypatch.setattr(rootless, "_name", lambda: "me")
    (tmp_path / "subuid").write_text(content)
    assert rootless.subordinate(str(tmp_path / "subuid")) == first


def test_root_needs_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not rootless.is_needed()
    assert rootless.lacking() is None
