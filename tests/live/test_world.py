"""The world itself: no internet is needed, real clients find what they expect, and nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ringfence.demo.installation import Installation, own_environment
from ringfence.demo.internet.places import ECHO, FOREIGN_DNS, ORIGINS
from ringfence.demo.world import World

CODE = ("-o", "/dev/null", "-w", "%{http_code} %{http_version} %{ssl_verify_result}")


@pytest.fixture
def host(world: World) -> Installation:
    installation = Installation(world, environ=own_environment(), name="host")
    installation.prepare()
    return installation


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_every_origin_answers_with_a_trusted_certificate(host: Installation, family: str) -> None:
    for place in ORIGINS:
        assert host.host("curl", "-sS", family, *CODE, f"https://{place.name}/").out == "200 1.1 0", (
            place.name
        )
        assert host.host("curl", "-sS", family, *CODE, f"http://{place.name}/").out == "200 1.1 0", place.name


def test_a_client_without_the_worlds_root_trusts_nobody(host: Installation) -> None:
    ran = host.host(
        "curl", "-sS", "--cacert", "/etc/ssl/certs/ca-certificates.crt", "https://paste.ee/", must=False
    )
    assert ran.code == 60


def test_the_internet_remembers_who_was_asked(host: Installation, world: World) -> None:
    world.forget()
    host.host("curl", "-sS", "https://github.com/somebody")
    seen = world.sightings()
    assert (seen.connections_to("github.com"), seen.requests_for("github.com"), seen.lost) == (1, 1, 0)
    assert seen.packets_to("github.com") >= 3
    assert seen.heard_of("paste.ee") == 0


def test_pip_installs_from_the_worlds_index(host: Installation) -> None:
    target = str(host.scratch / "installed")
    ran = host.host(
        *("/usr/bin/python3", "-m", "pip", "--isolated", "install", "--cert", str(host.world_ca)),
        *("--no-cache-dir", "--target", target, "httpx"),
        must=False,
    )
    if "No module named pip" in ran.err or ran.code == 127:
        pytest.skip("the system's python3 has no pip (apt-get install python3-pip)")
    assert "Successfully installed httpx-0.28.1" in ran.out, ran.said
    read = host.host(
        "/usr/bin/python3", "-c", f"import sys; sys.path.insert(0, {target!r}); import httpx; print(httpx)"
    )
    assert "httpx" in read.out


def test_large_bodies_pass_both_ways(host: Installation) -> None:
    assert (
        host.host("sh", "-c", "curl -sS https://example.com/bytes/20000000 | wc -c").out.strip() == "20000000"
    )
    sent = host.host("curl", "-sS", "-T", "-", "https://example.com/echo", stdin=bytes(3_000_000))
    assert '"body": 3000000' in sent.out


@pytest.mark.parametrize("address", [ECHO.v4, ECHO.v6, FOREIGN_DNS.v4, FOREIGN_DNS.v6])
def test_icmp_and_dns_and_echo_exist(host: Installation, address: str) -> None:
    script = Path(__file__).parents[2] / "src/ringfence/demo/attempt.py"
    kinds = [("udp", "7", "x"), ("tcp", "7", "x"), ("icmp",)]
    if address in (FOREIGN_DNS.v4, FOREIGN_DNS.v6):
        kinds = [("dns", "A", "paste.ee"), ("dns-tcp", "A", "paste.ee")]
    for kind, *rest in kinds:
        assert host.host(sys.executable, str(script), kind, address, *rest).out.startswith("answered:"), kind


def test_an_address_that_nobody_has_is_refused_at_once(host: Installation) -> None:
    assert host.host("curl", "-sS", "-m", "10", "http://9.9.9.9/", must=False).code == 7


def namespaces_of(pid: int) -> set[str]:
    return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "pid", "mnt")}


def every_namespace() -> set[str]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found |= namespaces_of(int(entry.name))
            except OSError:
                continue
    return found


def test_nothing_of_it_stays_behind() -> None:
    world = World.open()
    theirs = namespaces_of(world.pid) - namespaces_of(os.getpid())
    assert len(theirs) == 3
    world.close()
    world.close()
    assert not theirs & every_namespace()
    assert not world.root.exists()


OPENER = """
import sys, time
from ringfence.demo.world import World
world = World.open()
program = world.start(["sleep", "600"], environment={"PATH": "/usr/bin:/bin"})
print(world.pid, world.root, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_whoever_opened_it(ending: signal.Signals) -> None:
    opener = subprocess.Popen(
        [sys.executable, "-c", OPENER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert opener.stdout is not None
    with opener.stdout:
        match = re.fullmatch(rb"(\d+) (\S+)\n", opener.stdout.readline())
        assert match
        first = os.pidfd_open(int(match[1]))
        opener.send_signal(ending)
        opener.wait()
    signal_when_gone(first)
    assert not Path(os.fsdecode(match[2])).exists()


def signal_when_gone(pidfd: int) -> None:
    """Return when the process is gone; pytest's own limit is the deadline."""
    import select

    try:
        select.select([pidfd], [], [])
    finally:
        os.close(pidfd)
