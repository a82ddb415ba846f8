"""``sbx demo network`` itself, as ``make demo`` runs it: with every bypass attempt, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.world import why_no_sandbox


@pytest.fixture(scope="module")
def result() -> dict[str, object]:
    if reason := why_no_sandbox(os.environ):
        pytest.skip(reason)
    ran = subprocess.run(
        [sys.executable, "-m", "ringfence", "demo", "network", "--bypass-attempts", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    told: dict[str, object] = json.loads(ran.stdout)
    assert (ran.returncode == 0) is told["passed"]
    return told


def test_everything_is_as_it_must_be(result: dict[str, object]) -> None:
    checks = result["checks"]
    assert isinstance(checks, list)
    assert not result["failure"]
    assert [check for check in checks if not check["passed"]] == []
    assert result["passed"]


def test_nothing_of_it_stays_on_the_machine(result: dict[str, object]) -> None:
    interfaces = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    assert "wan0" not in interfaces
