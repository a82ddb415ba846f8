"""Which directories may be workspaces: a table of paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.sandbox.workspaces import SHARED, SYSTEM, WorkspaceRefused, check

HOME = "/home/ann"
OWN = ("/home/ann/.local/state/ringfence", "/home/ann/.config/ringfence", "/home/ann/.local/share/ringfence")

REFUSED = [
    ("", "not an absolute path"),
    ("work", "not an absolute path"),
    ("./work", "not an absolute path"),
    ("~/work", "not an absolute path"),
    ("/srv/a\0b", "not an absolute path"),
    ("/srv/a\x1b[2Jb", "control characters"),
    ("/srv/a\nb", "control characters"),
    ("/srv/../etc", "not a canonical path"),
    ("/srv/./a", "not a canonical path"),
    ("/srv//a", "not a canonical path"),
    ("//srv/a", "not a canonical path"),
    ("/srv/a/", "not a canonical path"),
    ("/", "contains your home"),
    ("/home", "contains your home"),
    ("/home/ann", "is your home"),
    ("/home/ann/.local", "ringfence's own directory"),
    ("/home/ann/.local/state", "ringfence's own directory"),
    ("/home/ann/.local/state/ringfence", "ringfence's own directory"),
    ("/home/ann/.local/state/ringfence/sandboxes", "ringfence's own directory"),
    ("/home/ann/.config", "ringfence's own directory"),
    ("/home/agent", "directory of the system"),
    ("/home/agent/x", "directory of the system"),
    ("/root", "directory of the system"),
    ("/root/x", "directory of the system"),
    ("/etc", "directory of the system"),
    ("/etc/nginx", "directory of the system"),
    ("/usr/local/src/x", "directory of the system"),
    ("/var/lib/x", "directory of the system"),
    ("/var/tmp", "directory of the system"),
    ("/run/user/1000/x", "directory of the system"),
    ("/proc/1/root/srv", "directory of the system"),
    ("/dev/shm/x", "directory of the system"),
    ("/tmp", "directory of the system"),
    ("/opt", "directory of the system"),
]

ACCEPTED = [
    "/home/ann/work",
    "/home/ann/.local/share/chezmoi",
    "/home/annette",
    "/home/bob/shared",
    "/srv/a",
    "/tmp/x",
    "/var/tmp/x",
    "/work",
    "/etcetera",
    "/home/ann/with space, colon: and ünïcode",
]


@pytest.mark.parametrize(("path", "reason"), REFUSED)
def test_refused(path: str, reason: str) -> None:
    with pytest.raises(WorkspaceRefused, match=reason) as refused:
        check(path, home=HOME, reserved=OWN)
    assert refused.value.hint


@pytest.mark.parametrize("path", ACCEPTED)
def test_accepted(path: str) -> None:
    check(path, home=HOME, reserved=OWN)


def test_root_s_own_home_is_root_s_to_use() -> None:
    check("/root/work", home="/root")
    with pytest.raises(WorkspaceRefused, match="is your home"):
        check("/root", home="/root")


def test_a_home_of_slash_opens_nothing() -> None:
    for path in (*SYSTEM, *SHARED):
        with pytest.raises(WorkspaceRefused):
            check(path, home="/")


segments = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=8
)


@given(st.lists(segments, max_size=5))
def test_no_path_breaks_it_and_what_is_accepted_is_canonical_and_apart(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    try:
        check(path, home=HOME, reserved=OWN)
    except WorkspaceRefused:
        return
    assert not {"", ".", ".."} & set(path[1:].split("/"))
    for reserved in (*OWN, HOME):
        assert not reserved.startswith(f"{path}/")
        assert reserved != path
    for reserved in OWN:
        assert not path.startswith(f"{reserved}/")
