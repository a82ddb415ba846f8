"""Ways out with real clients in a real sandbox: SOCKS5, an upstream proxy, and clients that refuse the authority."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.demo.installation import Installation, Ran, own_environment
from ringfence.demo.world import World, end_session

SOCKS = "gateway.docker.internal:3128"
CURL = ("curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code} %{ssl_verify_result}")
ECHO = "echo.example.net"


@pytest.fixture(scope="module")
def box(lab: Installation) -> Iterator[Installation]:
    lab.sbx("create", "--name=box", "shell", ".")
    lab.sbx("policy", "allow", "network", f"{ECHO}:7")
    yield lab
    lab.sbx("rm", "--force", "box", must=False)


def inside(lab: Installation, *argv: str) -> Ran:
    return lab.sbx("exec", "box", *argv, must=False)


def logged(lab: Installation) -> list[dict[str, str]]:
    """What was decided, newest last, as the log's summary has it."""
    summary = lab.sbx_json("policy", "log", "box")
    return [*summary["allowed_hosts"], *summary["blocked_hosts"]]


# -- SOCKS5 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--socks5-hostname", "--socks5"])
def test_curl_over_socks_by_name_and_by_synthetic_address(box: Installation, flag: str) -> None:
    ran = inside(box, *CURL, flag, SOCKS, "https://pypi.org/simple/")
    assert (ran.code, ran.out) == (0, "200 0"), ran.said
    assert any(row["host"] == "pypi.org:443" for row in logged(box))


def test_a_refused_destination_is_reply_two(box: Installation) -> None:
    ran = inside(box, *CURL, "--socks5-hostname", SOCKS, "https://paste.ee")
    assert ran.code == 97, ran.said
    assert "(2)" in ran.err
    (row,) = [row for row in logged(box) if row["host"] == "paste.ee:443"]
    assert row["rule"] == "default-deny"


def test_any_protocol_over_socks(box: Installation) -> None:
    """What ``ssh -o ProxyCommand='nc -X 5 -x gateway.docker.internal:3128 %h %p'`` does."""
    if shutil.which("nc") is None:
        pytest.skip("nc is not installed (apt-get install netcat-openbsd)")
    nc = f"nc -w 10 -X 5 -x {SOCKS} {ECHO}"
    # The client goes on talking until it was answered: the first line of the answer opens the fifo's other end.
    script = f"mkfifo /tmp/f; (echo SSH-2.0-hello; cat /tmp/f) | {nc} 7 | (head -n 1; : >/tmp/f)"
    assert inside(box, "sh", "-c", script).out == "SSH-2.0-hello\n"
    refused = inside(box, "sh", "-c", f"echo SSH-2.0-hello | {nc} 9")
    assert (refused.code, refused.out) == (1, ""), refused.said


# -- clients that refuse the authority -------------------------------------------------------------------------


def test_a_client_with_roots_of_its_own_is_diagnosed_and_the_shown_command_helps(box: Installation) -> None:
    ran = inside(box, *CURL, "--cacert", str(box.world_ca), "https://pypi.org/simple/")
    assert ran.code in (60, 77), ran.said
    box.write(box.scratch / "world-ca.pem", box.host("cat", str(box.world_ca)).out)
    pinned = (*CURL, "--cacert", f"{box.scratch}/world-ca.pem", "https://pypi.org/simple/")
    assert inside(box, *pinned).code == 60
    command = "sbx policy allow network --inspect never pypi.org:443"
    assert f"`{command}`" in box.sbx("policy", "log", "box", "--no-follow").out
    checks = [check for check in box.sbx_json("doctor")["checks"] if check["name"] == "certificate"]
    assert len(checks) == 1
    assert "`box` for `pypi.org:443`" in checks[0]["message"]
    assert command in checks[0]["hint"]
    assert inside(box, *pinned).code == 60, "nothing is bypassed by itself"
    box.sbx(*command.split()[1:])
    assert inside(box, *pinned).out == "200 0"
    assert not [check for check in box.sbx_json("doctor")["checks"] if check["name"] == "certificate"]


# -- an upstream proxy -----------------------------------------------------------------------------------------

PORT = 3129


class Behind(Installation):
    def configuration(self) -> str:
        proxy = f'[proxy]\nupstream = "http://ada:s3cret@127.0.0.1:{PORT}"\nno_proxy = ["files.pythonhosted.org"]\n'
        return f"{proxy}\n{super().configuration()}"


@pytest.fixture(scope="module")
def behind(world: World, _sandboxes_work: None) -> Iterator[Behind]:
    lab = Behind(world, environ=own_environment(), name="behind")
    lab.prepare()
    script = lab.scratch / "forward_proxy.py"
    lab.write(script, (Path(__file__).parent / "forward_proxy.py").read_text())
    proxy = world.start(
        (sys.executable, str(script), str(PORT), f"{lab.scratch}/heard"),
        environment=lab.environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert proxy.stdout is not None
        assert proxy.stdout.readline() == b"ready\n"
        lab.sbx("policy", "init", "balanced")
        lab.sbx("create", "--name=box", "shell", ".")
        yield lab
    finally:
        lab.leave()
        end_session(proxy)
        proxy.communicate()


def heard(lab: Behind) -> list[str]:
    return lab.host("cat", f"{lab.scratch}/heard", must=False).out.splitlines()


def test_everything_goes_through_the_proxy_but_what_is_exempt(behind: Behind) -> None:
    assert inside(behind, *CURL, "https://pypi.org/simple/").out == "200 0"
    assert inside(behind, *CURL, "https://paste.ee").out.startswith("403")
    said = heard(behind)
    assert len(said) == 1, said
    assert re.fullmatch(
        r"CONNECT ([0-9.]+):443 HTTP/1\.1\|Host: \1:443\|Proxy-Authorization: Basic YWRhOnMzY3JldA==\|\|",
        said[0],
    )
    inside(behind, *CURL, "https://files.pythonhosted.org/")
    assert heard(behind) == said
    assert inside(behind, *CURL, "http://deb.debian.org/").out.startswith(("200", "404"))
    # By address, because the configuration says where this name is; Host says the name.
    assert re.match(r"GET http://[0-9.]+/ HTTP/1\.1\|.*\|Host: deb\.debian\.org\|", heard(behind)[-1])


def test_doctor_shows_the_proxy_and_the_sandbox_never_sees_its_password(behind: Behind) -> None:
    (check,) = [check for check in behind.sbx_json("doctor")["checks"] if check["name"] == "proxy"]
    assert check["message"] == f"sandboxes go out through http://***:***@127.0.0.1:{PORT}"
    shown = inside(behind, "sh", "-c", "env; cat /etc/environment 2>/dev/null").out
    assert "s3cret" not in shown + behind.sbx("policy", "log", "box", "--no-follow").out


def test_the_proxy_itself_is_out_of_reach(behind: Behind) -> None:
    behind.sbx("policy", "allow", "network", f"localhost:{PORT}")
    ran = inside(behind, "curl", "-sS", f"http://host.docker.internal:{PORT}/")
    assert "the upstream proxy itself is not a destination" in ran.out, ran.said
