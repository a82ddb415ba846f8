"""What may go wrong: two commands at once, a daemon that is killed, a policy that changes under an open
connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
from tests.world import installed

from ringfence.demo.installation import SYSTEM_PATH, Installation
from ringfence.demo.world import World, end_session

Denied = Callable[..., AbstractContextManager[str]]

BAD_RESOURCES = [
    "",
    "*",
    "http://x/",
    "a b",
    "10.0.0.1/33",
    "example.com:0",
    "example.com:99999",
    "exa mple.com",
    "a" * 300,
    "*.*.com",
    "xn--zz",
    "xn--ä.com",
]


@pytest.mark.parametrize("resource", BAD_RESOURCES, ids=lambda text: repr(text[:16]))
def test_a_bad_resource_changes_nothing(lab: Installation, resource: str) -> None:
    before = lab.sbx("policy", "ls").out
    ran = lab.sbx("policy", "allow", "network", resource, must=False)
    assert ran.code == 2, ran.said
    assert ran.err.strip()
    assert "Traceback" not in ran.said
    assert lab.sbx("policy", "ls").out == before


def test_a_name_that_exists_is_refused(lab: Installation) -> None:
    lab.sbx("create", "--name=twice", "shell", ".")
    try:
        assert lab.sbx("create", "--name=twice", "shell", ".", must=False).code == 1
    finally:
        lab.sbx("rm", "--force", "twice")


def test_two_commands_at_once_both_count(lab: Installation) -> None:
    hosts = [f"host-{number}.example" for number in range(4)]
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(lambda host: lab.sbx("policy", "allow", "network", host), hosts))
    listing = lab.sbx("policy", "ls").out
    assert all(host in listing for host in hosts)
    for host in hosts:
        lab.sbx("policy", "rm", "network", "--resource", host)


def daemon_pid(lab: Installation) -> str:
    return str(lab.sbx_json("daemon", "status")["pid"])


def test_a_daemon_killed_in_the_middle_of_create_leaves_nothing_half_there(lab: Installation) -> None:
    creating = lab.start("create", "--name=half", "shell", ".")
    lab.host("kill", "-KILL", daemon_pid(lab))
    creating.communicate(timeout=60)
    names = [each["name"] for each in lab.sbx_json("ls")["sandboxes"]]
    assert names.count("half") <= 1
    lab.sbx("rm", "--force", "half", must=False)
    lab.sbx("create", "--name=half", "shell", ".")
    assert lab.sbx("exec", "half", "echo", "whole").out == "whole\n"
    lab.sbx("rm", "--force", "half")


def test_a_sandbox_and_its_policy_survive_a_daemon_that_is_killed(lab: Installation) -> None:
    lab.sbx("create", "--name=survivor", "shell", ".")
    try:
        with lab.terminal("run", "survivor") as terminal:
            terminal.await_shell()
            assert terminal.enter("cat /proc/self/stat > /dev/null; sleep 600 & echo $!").code == 0
            lab.host("kill", "-KILL", daemon_pid(lab))
            code = 'curl -sS -o /dev/null -w "%{http_code}\\n"'
            assert terminal.enter(f"{code} https://pypi.org").output == "200\n"
            assert terminal.enter(f"{code} https://paste.ee").output == "403\n"
            assert "running" in lab.sbx("ls").out
            assert terminal.enter("jobs | grep -c sleep").output == "1\n"
            lab.sbx("policy", "deny", "network", "pypi.org")
            assert terminal.enter(f"{code} https://pypi.org").output == "403\n"
            lab.sbx("policy", "rm", "network", "--resource", "pypi.org")
            assert terminal.enter(f"{code} https://pypi.org").output == "200\n"
    finally:
        lab.sbx("rm", "--force", "survivor", must=False)


HOLD = """
import socket, ssl, sys
proxy = socket.create_connection(("gateway.docker.internal", 3128))
proxy.sendall(b"CONNECT pypi.org:443 HTTP/1.1\\r\\nHost: pypi.org:443\\r\\n\\r\\n")
proxy.recv(4096)
tls = ssl.create_default_context().wrap_socket(proxy, server_hostname="pypi.org")
tls.sendall(b"GET / HTTP/1.1\\r\\nHost: pypi.org\\r\\n\\r\\n")
print(tls.recv(4096).split(b"\\r\\n")[0].decode(), flush=True)
print("closed" if not tls.recv(4096) else "more", flush=True)
"""


def test_an_open_connection_that_the_new_policy_refuses_is_closed(lab: Installation, denied: Denied) -> None:
    lab.sbx("create", "--name=holder", "shell", ".")
    try:
        holding = lab.start("exec", "holder", "python3", "-c", HOLD)
        assert holding.stdout is not None
        if holding.stdout.readline() != b"HTTP/1.1 200 OK\n":
            pytest.fail(f"{holding.communicate(timeout=30)}")
        with denied("pypi.org"):
            out, err = holding.communicate(timeout=30)
        assert out == b"closed\n" or b"reset" in err.lower() or b"EOF" in err, (out, err)
        log = lab.sbx("policy", "log", "holder", "--no-follow").out
        assert re.search(r"pypi\.org", log)
    finally:
        lab.sbx("rm", "--force", "holder", must=False)


@pytest.mark.usefixtures("_sandboxes_work")
def test_a_full_disk_is_an_error_that_changes_nothing(world: World) -> None:
    state = f"{world.root}/full/state"
    environment = {"PATH": SYSTEM_PATH}
    world.run(["mkdir", "-p", state], environment=environment)
    world.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "small", state], environment=environment)
    with installed(world, "full") as small:
        small.host("sh", "-c", f"cat /dev/zero > {state}/filler", must=False)
        before = small.sbx("policy", "ls").out
        ran = small.sbx(
            "policy", "allow", "network", *(f"host-{number}.example" for number in range(900)), must=False
        )
        assert ran.code == 1, ran.said
        assert "Traceback" not in ran.said
        assert small.sbx("policy", "ls").out == before
        small.host("rm", f"{state}/filler")
        small.sbx("policy", "allow", "network", "host.example")
        assert "host.example" in small.sbx("policy", "ls").out


def test_nothing_is_left_running_when_a_client_is_killed(lab: Installation) -> None:
    lab.sbx("create", "--name=orphan", "shell", ".")
    try:
        program = lab.start("exec", "orphan", "sh", "-c", "echo started; exec sleep 600")
        assert program.stdout is not None
        assert program.stdout.readline() == b"started\n"
        end_session(program)
        program.communicate()
        wait = "while pgrep -x sleep >/dev/null; do :; done; echo gone"
        assert lab.sbx("exec", "orphan", "sh", "-c", wait).out == "gone\n"
    finally:
        lab.sbx("rm", "--force", "orphan", must=False)
