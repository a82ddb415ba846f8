"""Limits as the kernel is told them, in both versions of control groups: against a directory that looks like one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ringfence.application.errors import Unavailable
from ringfence.runtimes import cgroup
from ringfence.runtimes.cgroup import Cgroups
from ringfence.sandbox.model import Limits

LIMITS = Limits(cpus=1.5, memory=1 << 30, pids=100)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is written, by path below the mount point; a control group's files appear by themselves."""
    values: dict[str, str] = {}

    def write(path: Path, value: str) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(2, "no such group", str(path))
        values["/".join(path.parts[-3:])] = value

    monkeypatch.setattr(cgroup, "_write", write)
    return values


def test_version_2(tmp_path: Path, written: dict[str, str]) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    groups = Cgroups(root=tmp_path)
    assert groups.reason == ""
    assert written[f"{tmp_path.name}/ringfence/cgroup.subtree_control"] == "+cpu +memory +pids"
    assert groups.make("x", LIMITS)
    assert {name.rpartition("/")[2]: value for name, value in written.items() if "ringfence/x" in name} == {
        "cpu.max": "150000 100000",
        "memory.max": str(1 << 30),
        "pids.max": "356",
    }
    groups.place("x", 42)
    assert written["ringfence/x/cgroup.procs"] == "42"


def test_version_1(tmp_path: Path, written: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "cgroup.controllers")
    for controller in ("cpu", "memory", "pids"):
        (tmp_path / controller).mkdir()
    groups = Cgroups(root=tmp_path)
    assert groups.make("x", LIMITS)
    assert [
        sorted(path.name for path in (tmp_path / each / "ringfence").iterdir()) for each in ("cpu", "pids")
    ] == [
        ["x"],
        ["x"],
    ]
    values = {name.rpartition("/")[2]: value for name, value in written.items()}
    assert values["cpu.cfs_quota_us"] == "150000"
    assert values["memory.limit_in_bytes"] == str(1 << 30)
    assert values["pids.max"] == "356"


def test_defaults_are_one_cpu_less_than_the_host_has_and_half_its_memory(
    tmp_path: Path, written: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cgroup, "_host_memory", lambda: 16 << 30)
    (tmp_path / "cgroup.controllers").touch()
    assert Cgroups(root=tmp_path).make("x", Limits())
    assert written["ringfence/x/cpu.max"] == "700000 100000"
    assert written["ringfence/x/memory.max"] == str(8 << 30)


def test_where_there_are_none_a_limit_is_refused_and_its_absence_told(tmp_path: Path) -> None:
    groups = Cgroups(root=tmp_path)
    assert "control groups cannot be made here" in groups.reason
    assert not groups.make("x", Limits())
    with pytest.raises(Unavailable, match="limits cannot be enforced"):
        groups.make("x", LIMITS)


def test_a_process_is_held_only_by_its_own_group(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    groups = Cgroups(root=tmp_path)
    assert not groups.holds("x", os.getpid())
    assert not groups.holds("x", 2**22)
    assert groups.members("x") == frozenset()
