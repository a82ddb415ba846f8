"""Names of sandboxes: what is one, what is not, and which one is made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.sandbox.agents import AGENTS, AgentError, find_agent
from ringfence.sandbox.names import MAXIMUM, SandboxNameError, derive_name, parse_name


@pytest.mark.parametrize("text", ["ab", "lab", "My.Box-2", "0x", "a" * 63, "shell2"])
def test_names(text: str) -> None:
    assert parse_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a" * 64,
        "-ab",
        ".ab",
        "ab-",
        "ab.",
        "a b",
        "a/b",
        "a_b",
        "a+b",
        "ä" * 3,
        "ab\n",
        "a\0b",
        "../x",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(SandboxNameError) as refused:
        parse_name(text)
    assert refused.value.hint


@pytest.mark.parametrize("text", ["default", "Default", "shell", "SHELL", "claude", "cagent", "all"])
def test_names_that_mean_something_else(text: str) -> None:
    with pytest.raises(SandboxNameError, match="reserved"):
        parse_name(text)


@pytest.mark.parametrize(
    ("workspace", "taken", "name"),
    [
        ("/home/dev/project", set(), "shell-project"),
        ("/home/dev/My Project!", set(), "shell-my-project"),
        ("/home/dev/project", {"shell-project"}, "shell-project-2"),
        ("/home/dev/project", {"shell-project", "shell-project-2"}, "shell-project-3"),
        ("/home/dev/---", set(), "shell-sandbox"),
        ("", set(), "shell-sandbox"),
        ("/" + "x" * 200, set(), "shell-" + "x" * 57),
        ("/" + "x" * 200, {"shell-" + "x" * 57}, "shell-" + "x" * 55 + "-2"),
    ],
)
def test_names_that_are_made_up(workspace: str, taken: set[str], name: str) -> None:
    assert derive_name("shell", workspace, taken) == name


@given(st.text(max_size=300), st.sets(st.integers(2, 40), max_size=20))
def test_a_made_up_name_is_always_one_and_never_taken(directory: str, numbers: set[int]) -> None:
    first = derive_name("shell", f"/{directory}", frozenset())
    taken = {first} | {f"{first}-{number}" for number in numbers}
    name = derive_name("shell", f"/{directory}", taken)
    assert parse_name(name) == name
    assert name not in taken
    assert len(name) <= MAXIMUM


@given(st.text(max_size=100))
def test_no_text_does_harm(text: str) -> None:
    try:
        name = parse_name(text)
    except SandboxNameError as refused:
        assert len(str(refused)) < 200  # noqa: PT017
    else:
        assert name == text
        assert not set(name) & set("/\\\0 \n\t$`'\"")


def test_only_what_can_run_is_found() -> None:
    assert find_agent("shell").entry == ("bash",)
    for name in AGENTS.keys() - {"shell"}:
        with pytest.raises(AgentError, match="cannot be installed yet") as refused:
            find_agent(name)
        assert refused.value.known
    with pytest.raises(AgentError, match="unknown agent") as refused:
        find_agent("vim")
    assert not refused.value.known
