"""Any protocol by synthetic address: what speaks neither TLS nor HTTP, over TCP and UDP, in every runtime.

A name is all that a rule needs; nothing inside knows of a proxy. What no rule allows is refused so that the client
hears of it at once, and is on record once.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.live.clients import Clients, Log, Row, in_the_internet, serving

from ringfence.demo.installation import Installation, own_environment
from ringfence.demo.world import World, end_session

HERE = Path(__file__).parent
ADDRESS = "203.0.113.99"
HOST, FORBIDDEN = "raw.example", "forbidden.example"


class RawInstallation(Installation):
    def configuration(self) -> str:
        names = [f'"{name}" = "{ADDRESS}"' for name in (HOST, FORBIDDEN)]
        return "\n".join([super().configuration().rstrip(), *names, ""])


@pytest.fixture(scope="module")
def lab(world: World, _sandboxes_work: None) -> Iterator[RawInstallation]:
    subprocess.run(
        in_the_internet(world, ["ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo"]), check=True
    )
    lab = RawInstallation(world, environ=own_environment(), name="raw")
    lab.prepare()
    lab.write(lab.scratch / "raw_client.py", (HERE / "raw_client.py").read_text())
    with serving(world, [sys.executable, str(HERE / "raw_services.py"), ADDRESS]):
        try:
            lab.sbx("policy", "init", "balanced")
            yield lab
        finally:
            lab.leave()


@pytest.fixture(scope="module", params=["gvisor", "namespaces"])
def box(lab: RawInstallation, request: pytest.FixtureRequest) -> Iterator[Clients]:
    """A sandbox of each runtime, and its log."""
    if request.param == "namespaces" and shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed (apt-get install bubblewrap)")
    lab.sbx("create", f"--name={request.param}", f"--runtime={request.param}", "shell", ".")
    lab.sbx("exec", request.param, "true")
    watching = lab.start("policy", "log", "--json", "--follow", request.param)
    try:
        yield Clients(lab=lab, log=Log(watching=watching), box=request.param)  # type: ignore[arg-type]
    finally:
        end_session(watching)
        watching.communicate()
        lab.sbx("rm", "--force", request.param)


def speak(box: Clients, protocol: str, host: str, port: int) -> tuple[int, str]:
    ran = box.run("python3", "raw_client.py", protocol, host, str(port))
    assert not ran.err, ran.err
    return ran.code, ran.out.rstrip("\n")


GIT = "0" * 40 + " refs/heads/main for git-upload-pack /project.git\n0000"
SPOKEN = [
    # who speaks first, protocol, port, what comes back
    ("the server", "ssh", 22, "SSH-2.0-raw_1.0\r\nyou are SSH-2.0-client\r"),
    ("the client", "git", 9418, f"{len(GIT):04x}{GIT}"),
    ("the client", "postgres", 5432, "forty-two"),
    ("the client", "redis", 6379, "+PONG\r\n$5\r\nhello\r"),
    ("the client, which closes its half", "count", 7001, "300000 bytes"),
    ("the server, which closes its half", "speech", 7002, "100000 bytes"),
]


@pytest.mark.parametrize(("first", "protocol", "port", "answer"), SPOKEN, ids=[each[1] for each in SPOKEN])
def test_it_is_carried_when_a_rule_names_its_host(
    box: Clients, first: str, protocol: str, port: int, answer: str
) -> None:
    with box.rule("allow", f"{HOST}:{port}", "--sandbox", box.box):
        code, out = speak(box, protocol, HOST, port)
    assert code == 0
    assert answer in out
    assert box.log.take(1) == [("ALLOWED", f"{HOST}:{port}", "-", "tcp")]


def test_what_a_client_says_after_the_servers_last_word_arrives(box: Clients) -> None:
    with box.rule("allow", f"{HOST}:7002-7003", "--sandbox", box.box):
        speak(box, "speech", HOST, 7002)
        assert speak(box, "report", HOST, 7003) == (0, "300000 bytes")
    assert len(box.log.take(2)) == 2


REFUSED: list[tuple[str, int]] = [
    ("git", 9418),
    ("postgres", 5432),
    ("redis", 6379),
    ("count", 7001),
    ("silent", 22),
]


@pytest.mark.parametrize(("protocol", "port"), REFUSED)
def test_without_a_rule_it_is_reset_and_recorded_once(box: Clients, protocol: str, port: int) -> None:
    assert speak(box, protocol, FORBIDDEN, port) == (1, "reset")
    assert box.log.take(1) == [("BLOCKED", f"{FORBIDDEN}:{port}", "-", "tcp")]


def test_psql_is_a_client_like_any(box: Clients) -> None:
    if not box.has("psql"):
        pytest.skip("psql is not installed (apt-get install postgresql-client)")
    argv = ("psql", "-h", HOST, "-U", "agent", "-w", "-At", "-c", "select 42", "any")
    with box.rule("allow", f"{HOST}:5432", "--sandbox", box.box):
        ran = box.run(*argv)
    assert (ran.code, ran.out) == (0, "forty-two\n"), ran.said
    assert box.run(*argv).code == 2
    said: list[Row] = box.log.take(2)
    assert {row[:2] for row in said} == {("ALLOWED", f"{HOST}:5432"), ("BLOCKED", f"{HOST}:5432")}


# -- UDP -----------------------------------------------------------------------------------------------------

DATAGRAMS = [("ntp", 123, "mode 4"), ("echo", 7, "20000 bytes")]


@pytest.mark.parametrize(("protocol", "port", "answer"), DATAGRAMS)
def test_a_udp_service_is_reached_by_a_rule_that_names_udp(
    box: Clients, protocol: str, port: int, answer: str
) -> None:
    with box.rule("allow", f"{HOST}:{port}", "--protocol", "udp", "--sandbox", box.box):
        assert speak(box, protocol, HOST, port) == (0, answer)
        assert speak(box, protocol, FORBIDDEN, port) == (1, "ConnectionRefusedError")
    assert sorted(box.log.take(2)) == [
        ("ALLOWED", f"{HOST}:{port}", "-", "udp"),
        ("BLOCKED", f"{FORBIDDEN}:{port}", "-", "udp"),
    ]
    # The rule is gone: what it carried is over, and what it would carry is refused as before.
    assert speak(box, protocol, HOST, port) == (1, "ConnectionRefusedError")
    assert box.log.take(1) == [("BLOCKED", f"{HOST}:{port}", "-", "udp")]


@pytest.mark.parametrize("port", [7, 123])
def test_udp_without_a_rule_is_refused_at_once_and_recorded_once(box: Clients, port: int) -> None:
    with box.rule("allow", f"{HOST}:{port}", "--sandbox", box.box):  # TCP alone
        assert speak(box, "echo", HOST, port) == (1, "ConnectionRefusedError")
    assert box.log.take(1) == [("BLOCKED", f"{HOST}:{port}", "-", "udp")]
