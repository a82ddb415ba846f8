"""The network policy lab as acceptance: a package installs, a deny rule stops it, removing the rule lets it
again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from ringfence.demo.bypass import LOOPBACK_PORT, loopback_service
from ringfence.demo.installation import Installation, Ran

Denied = Callable[..., AbstractContextManager[str]]

PIP = (
    "python3",
    "-m",
    "pip",
    "--disable-pip-version-check",
    "install",
    "--no-cache-dir",
    "--break-system-packages",
)
AGAIN = ("--force-reinstall",)
INDEX = "https://pypi.org/simple/requests/"
LOCAL_ROW = re.compile(r"^local:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s+network\s+deny\s+pypi\.org$")


@pytest.fixture(scope="module")
def sbxlab(lab: Installation) -> Iterator[str]:
    lab.sbx("create", "--name=sbxlab", "shell", ".")
    ran = lab.sbx("exec", "sbxlab", "python3", "-m", "pip", "--version", must=False)
    if "No module named pip" in ran.err:
        pytest.skip("the host's python3 has no pip (apt-get install python3-pip)")
    assert ran.code == 0, ran.said
    yield "sbxlab"
    lab.sbx("rm", "--force", "sbxlab", must=False)


def install(lab: Installation, package: str) -> Ran:
    return lab.sbx("exec", "sbxlab", *PIP, *AGAIN, package, must=False)


def head(lab: Installation) -> str:
    return lab.sbx("exec", "sbxlab", "curl", "-sS", "-I", INDEX, must=False).out


def assert_installs(lab: Installation) -> None:
    ran = install(lab, "httpx")
    assert "Successfully installed httpx-0.28.1" in ran.out, ran.said
    version = lab.sbx("exec", "sbxlab", "python3", "-c", "import httpx; print(httpx.__version__)")
    assert version.out == "0.28.1\n"
    assert re.search(r"^HTTP/(?:2|1\.1) 200", head(lab), re.M)


def assert_blocked(lab: Installation) -> None:
    ran = install(lab, "requests")
    assert ran.code == 1
    assert "ERROR: Could not find a version that satisfies the requirement requests" in ran.said
    assert "ERROR: No matching distribution found for requests" in ran.said
    assert re.search(r"^HTTP/2 403", head(lab), re.M)


def test_the_default_policy_is_five_groups(lab: Installation) -> None:
    listing = lab.sbx("policy", "ls").out
    groups = re.findall(r"^(default-[a-z-]+)\s", listing, re.M)
    assert groups == [
        "default-ai-services",
        "default-package-managers",
        "default-code-and-containers",
        "default-cloud-infrastructure",
        "default-os-packages",
    ]


@pytest.mark.parametrize("form", ["{}", "local:{}"], ids=["bare id", "local: form"])
def test_a_deny_rule_wins_at_once_and_its_removal_too(lab: Installation, sbxlab: str, form: str) -> None:
    assert_installs(lab)
    lab.sbx("policy", "deny", "network", "pypi.org")
    row = LOCAL_ROW.match(lab.sbx("policy", "ls").out.strip().splitlines()[-1])
    assert row, "the new rule is the last row"
    try:
        assert_blocked(lab)
    finally:
        lab.sbx("policy", "rm", "network", "--id", form.format(row[1]))
    assert "local:" not in lab.sbx("policy", "ls").out
    assert_installs(lab)


def test_a_deny_rule_holds_after_stop_and_run(lab: Installation, sbxlab: str, denied: Denied) -> None:
    with denied("pypi.org"):
        lab.sbx("stop", sbxlab)
        with lab.terminal("run", sbxlab) as terminal:
            terminal.await_shell()
            typed = terminal.enter(f"curl -I {INDEX}")
            assert re.search(r"^HTTP/2 403", typed.output, re.M)
            typed = terminal.enter(" ".join((*PIP, *AGAIN, "requests")), timeout=60)
            assert "ERROR: No matching distribution found for requests" in typed.output
            assert terminal.leave("exit 0") == 0
    lab.sbx("stop", sbxlab)
    with lab.terminal("run", sbxlab) as terminal:
        terminal.await_shell()
        assert re.search(r"^HTTP/2 200", terminal.enter(f"curl -I {INDEX}").output, re.M)


def test_default_policies_cannot_be_removed(lab: Installation) -> None:
    before = lab.sbx("policy", "ls").out
    ran = lab.sbx("policy", "rm", "network", "--id", "default-package-managers", must=False)
    assert ran.code == 2
    assert "sbx policy preset disable default-package-managers" in ran.err
    assert lab.sbx("policy", "ls").out == before


def test_an_unknown_rule_cannot_be_removed(lab: Installation) -> None:
    ran = lab.sbx("policy", "rm", "network", "--id", "00000000-0000-4000-8000-000000000000", must=False)
    assert ran.code == 3
    assert "rule not found" in ran.err


def test_the_log_shows_lines_as_they_happen(lab: Installation, sbxlab: str, denied: Denied) -> None:
    with lab.terminal("policy", "log", sbxlab) as watching:
        watching.wait_for(rb"Watching|ALLOWED|BLOCKED")
        install(lab, "httpx")
        watching.wait_for(rb"ALLOWED[^\n]*\s+pypi\.org\s+200\s")
        watching.wait_for(rb"ALLOWED[^\n]*\s+files\.pythonhosted\.org\s+200\s")
        with denied("pypi.org"):
            head(lab)
            line = watching.wait_for(rb"BLOCKED[^\n]*\s+pypi\.org\s+-\s[^\n]*\n")
        assert "shell" in line


def test_a_host_service_answers_only_with_its_rule(lab: Installation, sbxlab: str) -> None:
    def fetch(url: str) -> Ran:
        return lab.sbx("exec", sbxlab, "curl", "-sS", "-w", "\n%{http_code}", url, must=False)

    inside = f"http://host.docker.internal:{LOOPBACK_PORT}/"
    with loopback_service(lab):
        refused = fetch(inside)
        assert refused.out.endswith("\n403")
        assert "Blocked by network policy" in refused.out
        lab.sbx("policy", "allow", "network", f"localhost:{LOOPBACK_PORT}")
        try:
            allowed = fetch(inside)
            assert allowed.out.endswith("\n200"), allowed.said
            assert f"Host: localhost:{LOOPBACK_PORT}" in allowed.out
            itself = fetch(f"http://localhost:{LOOPBACK_PORT}/")
            assert itself.code == 7, "inside, localhost is the sandbox"
        finally:
            lab.sbx("policy", "rm", "network", "--resource", f"localhost:{LOOPBACK_PORT}")
        assert fetch(inside).out.endswith("\n403")


def test_nothing_of_the_hosts_home_is_inside(lab: Installation, sbxlab: str) -> None:
    assert "of-the-host" in lab.host("cat", f"{lab.home}/.aws/credentials").out
    with lab.terminal("run", sbxlab) as terminal:
        terminal.await_shell()
        for line in (
            "cat ~/.aws/credentials",
            "ls ~/.ssh",
            f"cat {lab.home}/.aws/credentials",
            f"ls {lab.home}/.ssh",
        ):
            typed = terminal.enter(line)
            assert typed.code != 0
            assert "No such file or directory" in typed.output
        assert terminal.enter("pwd").output == f"{lab.scratch}\n"
        assert terminal.enter("ls -A ..").output == "scratch\n"
        assert terminal.enter("printenv | grep -i -e secret -e SBX_STATE").code == 1
