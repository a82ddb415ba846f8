"""Credentials as the lesson shows them: the agent prints its key and sees a placeholder, the origin sees the real
one, and the value is nowhere that anybody can look.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from ringfence.demo.installation import Installation
from ringfence.demo.world import World, end_session

CANARY = "sk-ant-canary-7d1f0c9e2b4a8635"
OTHER = "tok-canary-19c0ffee5eedbead"
API = "https://api.anthropic.com/v1/messages"


@pytest.fixture(scope="module")
def box(lab: Installation) -> Iterator[str]:
    """A sandbox that runs before anything is stored."""
    lab.sbx("create", "--name=box", "shell", ".")
    lab.sbx("exec", "box", "true")
    yield "box"
    lab.sbx("rm", "--force", "box", must=False)


@pytest.fixture
def stored(lab: Installation, box: str) -> Iterator[str]:
    """The key of Anthropic, set while the sandbox runs."""
    ran = lab.sbx("secret", "set", "-g", "anthropic", stdin=f"{CANARY}\n".encode())
    assert CANARY not in ran.said
    yield box
    for scope in ([], ["--sandbox", box]):
        lab.sbx("secret", "rm", "--all", "-f", *scope)


def seen(world: World, name: str, header: str) -> list[str]:
    """What an origin saw in a header, request by request."""
    return [request.get(header, "") for request in world.sightings().requests if request["host"] == name]


def curl(lab: Installation, box: str, *arguments: str) -> str:
    """The status that a client inside is answered."""
    script = 'exec curl -sS -o /dev/null -w "%{http_code}" "$@"'
    return lab.sbx("exec", box, "sh", "-c", script, "curl", *arguments, must=False).out


def test_the_agent_sees_a_placeholder_and_the_origin_the_real_key(
    lab: Installation, world: World, stored: str
) -> None:
    assert lab.sbx("secret", "ls").out.splitlines() == [
        "SCOPE      SERVICE     SECRET",
        "(global)   anthropic   ****...****",
    ]
    printed = lab.sbx("exec", stored, "sh", "-c", "printenv | grep -i -e api_key -e SBX_CRED_ANTHROPIC").out
    assert sorted(printed.split()) == ["ANTHROPIC_API_KEY=proxy-managed", "SBX_CRED_ANTHROPIC_MODE=apikey"]
    world.forget()
    script = f'curl -sS -o /dev/null -w "%{{http_code}}" -H "x-api-key: $ANTHROPIC_API_KEY" {API}'
    assert lab.sbx("exec", stored, "sh", "-c", script).out == "200"
    assert curl(lab, stored, API) == "200", "also a client that sends no key"
    assert seen(world, "api.anthropic.com", "x-api-key") == [CANARY, CANARY]
    lab.sbx("secret", "rm", "-f", "anthropic")
    world.forget()
    curl(lab, stored, API)
    assert CANARY not in seen(world, "api.anthropic.com", "x-api-key")
    lab.sbx("secret", "set", "anthropic", stdin=CANARY.encode())
    curl(lab, stored, API)
    assert seen(world, "api.anthropic.com", "x-api-key")[-1] == CANARY


def test_an_answer_that_repeats_the_key_does_not_bring_it_in(lab: Installation, stored: str) -> None:
    said = lab.sbx("exec", stored, "curl", "-sS", "https://api.anthropic.com/echo").out
    assert '"x-api-key"' in said
    assert CANARY not in said


def test_other_hosts_and_plain_http_never_see_it(lab: Installation, world: World, stored: str) -> None:
    world.forget()
    for url in ("https://github.com/", "http://api.anthropic.com/", "https://statsig.anthropic.com/"):
        curl(lab, stored, url)
    requests = world.sightings().requests
    assert requests, "something was let out"
    assert CANARY not in str(requests)


def test_a_sandbox_s_own_key_counts_there(lab: Installation, world: World, stored: str) -> None:
    lab.sbx("secret", "set", "--sandbox", stored, "anthropic", stdin=OTHER.encode())
    world.forget()
    curl(lab, stored, API)
    assert seen(world, "api.anthropic.com", "x-api-key") == [OTHER]


def test_a_custom_secret_is_replaced_where_it_was_declared(
    lab: Installation, world: World, stored: str
) -> None:
    lab.sbx("secret", "set-custom", "--host", "pypi.org", "--env", "INDEX_TOKEN", stdin=OTHER.encode())
    placeholder = lab.sbx("exec", stored, "printenv", "INDEX_TOKEN").out.strip()
    assert placeholder.startswith("sbx-cs-")
    world.forget()
    assert (
        curl(lab, stored, "-H", f"Authorization: Bearer {placeholder}", "https://pypi.org/simple/") == "200"
    )
    assert curl(lab, stored, "-u", f"ada:{placeholder}", "https://pypi.org/simple/") == "200"
    encoded = base64.b64encode(f"ada:{OTHER}".encode()).decode()
    assert seen(world, "pypi.org", "authorization") == [f"Bearer {OTHER}", f"Basic {encoded}"]
    answered = curl(lab, stored, "-H", f"Authorization: Bearer {placeholder}", "https://github.com/")
    assert answered == "403", "sent anywhere else it is misuse"


def test_docker_inside_finds_a_placeholder_for_its_registry(lab: Installation, stored: str) -> None:
    lab.sbx(
        *(
            "secret",
            "set",
            "--registry",
            "ghcr.io",
            "--username",
            "ada",
            "--password-stdin",
            "--sandbox",
            stored,
        ),
        stdin=OTHER.encode(),
    )
    lab.sbx("stop", stored)
    config = lab.sbx("exec", stored, "cat", "/home/agent/.docker/config.json").out
    assert '"ghcr.io"' in config
    assert OTHER not in config


def test_a_value_that_cannot_be_made_is_a_502_and_never_a_bare_request(
    lab: Installation, world: World, stored: str
) -> None:
    key = lab.home / "of-the-host/key"  # no sandbox sees this directory
    lab.write(key, CANARY)
    lab.sbx("secret", "set", "anthropic", "--command", f"cat {key}")
    world.forget()
    assert curl(lab, stored, API) == "200"
    lab.host("rm", str(key))
    lab.sbx("daemon", "stop")
    lab.sbx("ls")
    world.forget()
    assert curl(lab, stored, API) == "502"
    assert seen(world, "api.anthropic.com", "x-api-key") == []
    assert "left with 1" in lab.sbx("secret", "ls").out
    lab.write(key, CANARY)
    lab.sbx("daemon", "stop")
    lab.sbx("ls")
    assert curl(lab, stored, API) == "200"
    lab.host("rm", str(key))


SPELLINGS = (
    CANARY,
    CANARY.encode().hex(),
    base64.b64encode(CANARY.encode()).decode().rstrip("="),
    CANARY[::-1],
)


def holding(lab: Installation, *where: str, needles: tuple[str, ...] = SPELLINGS, box: str = "") -> list[str]:
    """Files that hold a needle, on the host or in a sandbox. The needles go in by a pipe, not as an argument."""
    script = 'grep -rlaF --devices=skip -f - -- "$@" 2>/dev/null; exit 0'
    patterns = "\n".join(needles).encode()
    if box:
        return lab.sbx("exec", "-i", box, "sh", "-c", script, "grep", *where, stdin=patterns).out.split()
    return lab.host("sh", "-c", script, "grep", *where, stdin=patterns).out.split()


PROCESSES = 'for f in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do cat "$f" 2>/dev/null; echo; done'


def test_the_value_is_nowhere_in_the_clear(lab: Installation, world: World, stored: str) -> None:
    holder = lab.start("exec", stored, "sh", "-c", "echo ready; exec sleep 600")
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"ready\n"
        assert curl(lab, stored, API) == "200"
        inside = lab.sbx("exec", stored, "sh", "-c", PROCESSES).out
        host = lab.host("sh", "-c", PROCESSES).out
    finally:
        end_session(holder)
        holder.communicate()
    assert "ANTHROPIC_API_KEY=proxy-managed" in inside, "the search sees processes"
    assert "ringfence.daemon" in host
    assert "sleep" in inside
    for needle in SPELLINGS:
        assert needle not in inside
        assert needle not in host

    own = ("/home", "/tmp", "/etc", "/run", "/root", "/var/tmp", "/dev/shm")
    assert holding(lab, *own, box=stored) == []
    assert holding(lab, "/etc", needles=("agent:x:",), box=stored), "the search sees files"

    state, runtime = lab.environment["SBX_STATE_DIR"], lab.environment["SBX_RUNTIME_DIR"]
    assert holding(lab, state, runtime, str(lab.home)) == []
    ledger = holding(lab, state, needles=('"secret set"',))
    assert len(ledger) == 1, "the act is in the ledger"
    assert f"{state}/secrets/sealed" in lab.host("find", state, "-name", "sealed").out
    assert holding(lab, f"{state}/daemon.log", needles=("sbxd",)), "and the log was searched"
    shown = lab.sbx("inspect", stored, "--json").out + lab.sbx("doctor", "--json", must=False).out
    assert CANARY not in shown + lab.sbx("policy", "log", "--json").out
