"""Workspaces as they are opened: whose they are, what they are not, and git's trap doors."""

from __future__ import annotations

import asyncio
import os
import subprocess
from asyncio.subprocess import DEVNULL
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from platforms import each, running, specify
from runtime_needs import needs_namespaces

from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.runtimes import kernel, workspace
from ringfence.sandbox.model import Owner, SandboxSpec, Workspace

isolating = each("gvisor", "namespaces")
ANN = Owner(uid=23456, gid=23456)


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def admit(spec: SandboxSpec, *reserved: str) -> None:
    play(kernel.apart(lambda: workspace.admit(spec, reserved)))


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A directory that every user may reach, unlike pytest's own."""
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_uid == os.geteuid() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o011)
    return tmp_path


@needs_namespaces
@pytest.mark.live
class TestAdmission:
    def test_what_is_there_and_readable_is_admitted(self, open_path: Path) -> None:
        (open_path / "w").mkdir()
        admit(specify("x", open_path / "w", owner=ANN))

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda path: None, "does not exist"),
            (lambda path: path.write_text(""), "is not a directory"),
            (lambda path: path.symlink_to("/srv"), "symbolic link"),
            (lambda path: path.mkdir(mode=0o700), "is not yours to read"),
        ],
    )
    def test_what_is_not(self, open_path: Path, make: Any, reason: str) -> None:
        make(open_path / "w")
        with pytest.raises(InvalidInput, match=reason) as refused:
            admit(specify("x", open_path / "w", owner=ANN))
        assert refused.value.exit_code == 2
        assert refused.value.hint

    def test_a_link_on_the_way(self, open_path: Path) -> None:
        (open_path / "real" / "w").mkdir(parents=True)
        (open_path / "way").symlink_to("real")
        with pytest.raises(InvalidInput, match="symbolic link"):
            admit(specify("x", open_path / "way" / "w"))

    def test_a_directory_behind_a_door_that_is_closed_to_its_owner(self, open_path: Path) -> None:
        (open_path / "closed" / "w").mkdir(parents=True)
        (open_path / "closed" / "w").chmod(0o777)
        (open_path / "closed").chmod(0o700)
        with pytest.raises(InvalidInput, match="is not yours to read"):
            admit(specify("x", open_path / "closed" / "w", owner=ANN))

    @pytest.mark.parametrize("path", ["/", "/etc", "/usr/lib", os.path.expanduser("~")])
    def test_the_rules_are_asked(self, path: str) -> None:
        with pytest.raises(InvalidInput, match="workspace"):
            admit(specify("x", Workspace(path=path)))

    def test_reserved_directories_are_compared_by_what_they_really_are(self, open_path: Path) -> None:
        (open_path / "state").mkdir()
        (open_path / "alias").symlink_to("state")
        with pytest.raises(InvalidInput, match="own directory"):
            admit(specify("x", open_path / "state"), str(open_path / "alias"))

    def test_twice_the_same(self, open_path: Path) -> None:
        (open_path / "w").mkdir()
        with pytest.raises(InvalidInput, match="named twice"):
            admit(specify("x", open_path / "w", open_path / "w"))

    def test_a_file_system_that_cannot_translate_owners_is_refused_not_ignored(self, open_path: Path) -> None:
        for name in ("lower", "upper", "work", "w"):
            (open_path / name).mkdir()
        options = ",".join(f"{name}dir={open_path / name}" for name in ("lower", "upper", "work"))
        kernel.mount("overlay", str(open_path / "w"), "overlay", 0, options)
        try:
            spec = specify("x", open_path / "w")
            with pytest.raises(Unavailable, match="cannot translate owners"):
                play(
                    kernel.apart(
                        lambda: [tree.close() for tree in workspace.open_trees(spec, _identity())] and None
                    )
                )
        finally:
            kernel.unmount(str(open_path / "w"))


def _identity() -> Any:
    from ringfence.runtimes.identity import identity_of

    return identity_of("x")


@isolating
def test_files_of_an_unprivileged_owner(platform: str, open_path: Path) -> None:
    work = open_path / "w"
    work.mkdir()
    os.chown(work, ANN.uid, ANN.gid)

    async def scene() -> None:
        async with running(platform, open_path, work, owner=ANN) as (_, link):
            assert await link.shell("touch made && stat -c %U:%G made", cwd=str(work)) == "agent:agent"
        status = (work / "made").stat()
        assert (status.st_uid, status.st_gid) == (ANN.uid, ANN.gid)

    play(scene())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    run = {"cwd": path, "check": True, "capture_output": True}
    subprocess.run(["git", "init", "-q", "."], **run)
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
        **run,
    )
    return path


async def on_the_host(repository: Path, *arguments: str) -> int:
    program = await asyncio.create_subprocess_exec(
        "git", "-c", "safe.directory=*", *arguments, cwd=repository, stdout=DEVNULL, stderr=DEVNULL
    )
    return await program.wait()


EVIL = '[core]\n\tfsmonitor = "touch PWNED; false"\n\thooksPath = /tmp\n'

ATTACKS = {
    "write the configuration": f"printf '{EVIL}' > .git/config",
    "git config": "git config core.fsmonitor 'touch PWNED; false'",
    "replace the configuration": f"printf '{EVIL}' > c && mv -f c .git/config",
    "remove the configuration": f"rm -f .git/config && printf '{EVIL}' > .git/config",
    "link the configuration": f"printf '{EVIL}' > c && ln -f c .git/config",
    "add a hook": "printf '#!/bin/sh\\ntouch PWNED' > .git/hooks/post-checkout && chmod +x .git/hooks/post-checkout",
    "replace the hooks": "mv .git/hooks h && mkdir .git/hooks && touch .git/hooks/x",
    "make attributes": "echo '* filter=x' > .git/info/attributes",
    "rename the repository": f"mv .git g && cp -r g .git && printf '{EVIL}' > .git/config",
    "name another common directory": f"cp -r .git g; printf '{EVIL}' > g/config; echo ../g > .git/commondir",
    "replace its name": f"cp -r .git g; printf '{EVIL}' > g/config; echo ../g > d; mv d .git/commondir",
    "remove the repository": "rm -rf .git; git init -q . && git config core.fsmonitor 'touch PWNED; false'",
}


@isolating
def test_nothing_inside_makes_git_on_the_host_run_anything(
    platform: str, repository: Path, tmp_path: Path
) -> None:
    for name in ("hooks", "info"):
        subprocess.run(["rm", "-rf", str(repository / ".git" / name)], check=True)

    async def scene() -> None:
        async with running(platform, tmp_path, repository) as (_, link):
            for user in ("agent", "root"):
                for attack, script in ATTACKS.items():
                    await link.shell(script, user=user, cwd=str(repository))
                    code = await on_the_host(repository, "status", "--porcelain")
                    assert code in (0, 128), attack
                    assert not (repository / "PWNED").exists(), attack
                    assert not [*(repository / ".git/hooks").iterdir()], attack
                    assert "fsmonitor" not in (repository / ".git/config").read_text(), attack

    play(scene())


@isolating
def test_git_still_works_inside(platform: str, repository: Path, tmp_path: Path) -> None:
    script = (
        "git config --global user.name a; git config --global user.email a@b; git checkout -q -b topic; echo x > f; "
        "git add f; git commit -qm second; git tag t; git gc -q 2>/dev/null; git stash list; "
        "git log --format=%s; git status --short"
    )

    async def scene() -> None:
        async with running(platform, tmp_path, repository) as (_, link):
            assert await link.shell(f"export HOME=/home/agent; {script}", cwd=str(repository)) == "second\nx"
        assert await on_the_host(repository, "rev-parse", "--verify", "topic^") == 0

    play(scene())


@isolating
def test_submodules_and_linked_worktrees_are_guarded(platform: str, repository: Path, tmp_path: Path) -> None:
    run: dict[str, Any] = {"cwd": repository, "check": True, "capture_output": True}
    subprocess.run(["git", "worktree", "add", "-q", str(tmp_path / "linked")], **run)
    module = repository / ".git/modules/lib/nested"
    subprocess.run(["git", "init", "-q", "--bare", str(module)], **run)

    async def scene() -> None:
        async with running(platform, tmp_path, repository) as (_, link):
            for path in (
                "modules/lib/nested/config",
                "modules/lib/nested/hooks/x",
                "worktrees/linked/commondir",
            ):
                for script in (
                    f"echo x > .git/{path}",
                    f"mv .git/{path.split('/')[0]} z && mkdir -p $(dirname .git/{path})",
                ):
                    code, _ = await link.run("/bin/sh", "-c", script, user="root", cwd=str(repository))
                    assert code != 0, script

    play(scene())


@isolating
def test_a_linked_worktree_goes_on_naming_its_repository(
    platform: str, repository: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    subprocess.run(
        ["git", "worktree", "add", "-q", str(linked)], cwd=repository, check=True, capture_output=True
    )

    async def scene() -> None:
        async with running(platform, tmp_path, linked) as (_, link):
            for script in ("echo 'gitdir: /tmp/x' > .git", "rm -f .git && mkdir .git", "mv .git g"):
                code, _ = await link.run("/bin/sh", "-c", script, user="root", cwd=str(linked))
                assert code != 0, script

    play(scene())


@isolating
def test_protection_can_be_declined(platform: str, repository: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path, repository, protect_git=False) as (_, link):
            assert await link.shell("git config user.name inside && echo done", cwd=str(repository)) == "done"
        assert "inside" in (repository / ".git/config").read_text()

    play(scene())


@needs_namespaces
@pytest.mark.live
@pytest.mark.parametrize("name", ["hooks", "config", "commondir"])
def test_what_cannot_be_protected_is_refused(repository: Path, name: str) -> None:
    path = repository / ".git" / name
    subprocess.run(["rm", "-rf", str(path)], check=True)
    path.symlink_to("../elsewhere")
    with pytest.raises(InvalidInput, match="cannot be protected") as refused:
        play(kernel.apart(lambda: workspace.open_trees(specify("x", repository), _identity()) and None))
    assert "--no-protect-git" in refused.value.hint


@needs_namespaces
@pytest.mark.live
def test_a_directory_without_a_repository_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()

    async def scene() -> None:
        trees = await kernel.apart(lambda: workspace.open_trees(specify("x", tmp_path / "w"), _identity()))
        assert [tree.target for tree in trees] == [str(tmp_path / "w")]
        for tree in trees:
            tree.close()

    play(scene())
    assert not list((tmp_path / "w").iterdir())
