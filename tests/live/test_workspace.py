"""What a sandbox sees of the host: its workspace, with the right owner, and nothing else."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator

import pytest

from ringfence.demo.installation import Installation


@pytest.fixture(scope="module")
def box(lab: Installation) -> Iterator[str]:
    lab.host("sh", "-c", "git init -q . && mkdir -p ../reference && echo for-reading > ../reference/book")
    lab.sbx("create", "--name=box", "shell", ".", f"{lab.home}/reference:ro")
    yield "box"
    lab.sbx("rm", "--force", "box", must=False)


def test_files_belong_to_the_person_who_runs_sbx(lab: Installation, box: str) -> None:
    lab.sbx("exec", box, "sh", "-c", "echo written > by-agent; mkdir -p deep/er; touch deep/er/file")
    mine = lab.host("id", "-u").out.strip()
    for path in ("by-agent", "deep/er", "deep/er/file"):
        assert lab.host("stat", "-c", "%u", path).out.strip() == mine, path
    assert lab.host("cat", "by-agent").out == "written\n"


def test_the_agent_sees_the_hosts_changes_and_owns_what_is_there(lab: Installation, box: str) -> None:
    lab.host("sh", "-c", "echo from-host > by-host")
    assert lab.sbx("exec", box, "sh", "-c", "cat by-host; echo more >> by-host").out == "from-host\n"
    assert lab.host("cat", "by-host").out == "from-host\nmore\n"


def test_the_workspace_is_at_the_same_path(lab: Installation, box: str) -> None:
    assert lab.sbx("exec", box, "pwd").out == f"{lab.scratch}\n"


def test_a_read_only_directory_is_read_only_even_for_root(lab: Installation, box: str) -> None:
    book = f"{lab.home}/reference/book"
    assert lab.sbx("exec", box, "cat", book).out == "for-reading\n"
    for user in ("agent", "root"):
        assert lab.sbx("exec", "-u", user, box, "sh", "-c", f"echo x > {book}", must=False).code != 0
    assert lab.host("cat", book).out == "for-reading\n"


@pytest.mark.parametrize("path", [".git/config", ".git/hooks/pre-commit", ".git/info/exclude"])
def test_git_files_that_the_host_would_execute_are_protected(lab: Installation, box: str, path: str) -> None:
    before = lab.host("sh", "-c", f"cat {path} 2>/dev/null || echo none").out
    for user in ("agent", "root"):
        ran = lab.sbx("exec", "-u", user, box, "sh", "-c", f"echo '[core]' >> {path}", must=False)
        assert ran.code != 0, path
    assert lab.host("sh", "-c", f"cat {path} 2>/dev/null || echo none").out == before


def test_git_itself_still_works(lab: Installation, box: str) -> None:
    script = (
        "git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m one && git log --oneline"
    )
    assert lab.sbx("exec", box, "sh", "-c", script).out.endswith(" one\n")


def test_a_symbolic_link_out_of_the_workspace_leads_nowhere(lab: Installation, box: str) -> None:
    lab.sbx("exec", box, "ln", "-sfn", f"{lab.home}/.ssh/id_ed25519", "out")
    assert lab.sbx("exec", box, "cat", "out", must=False).code != 0


def test_the_hosts_sockets_and_processes_are_not_inside(lab: Installation, box: str) -> None:
    assert lab.sbx("exec", box, "ls", lab.environment["SBX_RUNTIME_DIR"], must=False).code != 0
    assert lab.sbx("exec", box, "ls", lab.environment["SBX_STATE_DIR"], must=False).code != 0
    assert (
        "ringfence.daemon"
        not in lab.sbx("exec", box, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").out
    )


REFUSED = [
    "/",
    "/etc",
    "/usr",
    "{owner}",
    "{home}/..",
    "{state}",
    "{state}/ca",
    "{run}",
    "{config}",
    "{home}/none",
]


@pytest.mark.parametrize("path", REFUSED)
def test_a_directory_that_no_sandbox_may_have_is_refused(lab: Installation, path: str) -> None:
    asked = path.format(
        home=lab.home,
        owner=pwd.getpwuid(os.getuid()).pw_dir,
        state=lab.environment["SBX_STATE_DIR"],
        run=lab.environment["SBX_RUNTIME_DIR"],
        config=lab.environment["SBX_CONFIG_DIR"],
    )
    before = lab.sbx("ls").out
    ran = lab.sbx("create", "--name=refused", "shell", asked, must=False)
    assert ran.code == 2, ran.said
    assert "hint:" in ran.err.lower() or os.path.basename(asked) in ran.err
    assert lab.sbx("ls").out == before
