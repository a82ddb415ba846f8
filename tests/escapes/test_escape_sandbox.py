"""REQ-01, DNS-03, UDP-01, ICMP-01, RAW-01, V6-01 and others that need a real sandbox: nothing leaves, nobody saw it.

The attempts are those of ``sbx demo network --bypass-attempts``: each must work on the demo's host (the positive
control) and then fail inside, by what the client got, what the internet's packet counter saw, and what its servers
were asked. After each the sentinel: a request that no rule allows, refused by the gateway.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.world import installed, why_no_sandbox, why_no_world

from ringfence.demo import attempt as attempt_module
from ringfence.demo.bypass import ATTEMPTS, LOOPBACK_PORT, judge, loopback_service
from ringfence.demo.installation import PYTHON, Installation
from ringfence.demo.internet.places import ECHO, ECHO_PORT
from ringfence.demo.world import World, end_session

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("escapes")]

BOX = "escapist"
ROWS = {
    "wrong SNI": "TLS-01",
    "wrong Host": "TLS-02",
    "CONNECT to an allowed host's raw address": "NAM-09",
    "another DNS server": "DNS-03",
    "DNS tunnel": "DNS-01",
    "UDP": "UDP-02",
    "QUIC": "UDP-01",
    "ICMP": "ICMP-01",
    "UDP over IPv6": "V6-01",
    "raw IPv6 address": "V6-01",
    "the cloud's metadata service": "NAM-11",
    "another port of the gateway itself": "NAM-12",
    "a service on the host's loopback": "NAM-12",
}
"""Rows by how an attempt's title begins, the longest first; every other attempt is a way around the proxy (REQ-01)."""


def row(title: str) -> str:
    found = [start for start in ROWS if title.startswith(start)]
    return ROWS[max(found, key=len)] if found else "REQ-01"


def of(*rows: str) -> pytest.MarkDecorator:
    chosen = [each for each in ATTEMPTS if row(each.title) in rows]
    return pytest.mark.parametrize("tried", chosen, ids=[each.title for each in chosen])


@pytest.fixture(scope="module")
def lab() -> Iterator[Installation]:
    if reason := why_no_world() or why_no_sandbox(os.environ):
        pytest.skip(reason)
    with World.open() as world, installed(world, "escapes") as installation:
        script = Path(attempt_module.__file__).read_text()
        installation.write(installation.scratch / "attempt.py", script)
        installation.sbx("create", f"--name={BOX}", "shell", ".")
        yield installation
        installation.sbx("rm", "--force", BOX, must=False)


def inside(lab: Installation, *argv: str) -> str:
    ran = lab.sbx("exec", BOX, *argv, timeout=60.0, must=False)
    return ran.out + ran.err


def sentinel(lab: Installation) -> None:
    code = inside(
        lab, "curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "https://sentinel.invalid/"
    )
    assert code == "403", code


def escape(lab: Installation, tried: object) -> None:
    attempt = next(each for each in ATTEMPTS if each is tried)
    with loopback_service(lab, LOOPBACK_PORT):
        control = lab.host(*(attempt.control or attempt.inside), must=False)
        lab.world.forget()
        ran = lab.sbx("exec", BOX, *attempt.inside, timeout=60.0, must=False)
        check = judge(attempt, control, ran, lab.world.sightings())
    assert check.passed, check
    sentinel(lab)


@of("REQ-01")
def test_req_01_a_client_that_ignores_the_proxy_meets_the_gateway(lab: Installation, tried: object) -> None:
    escape(lab, tried)


@of("DNS-01", "DNS-03")
def test_dns_03_every_server_is_ours(lab: Installation, tried: object) -> None:
    escape(lab, tried)


@of("TLS-01", "TLS-02", "NAM-09")
def test_tls_02_names_agree_or_nothing_passes(lab: Installation, tried: object) -> None:
    escape(lab, tried)


@of("UDP-01", "UDP-02")
def test_udp_01_datagrams_are_refused_at_once(lab: Installation, tried: object) -> None:
    escape(lab, tried)


@of("ICMP-01")
def test_icmp_01_nobody_outside_hears_an_echo(lab: Installation, tried: object) -> None:
    escape(lab, tried)


@of("V6-01")
def test_v6_01_ipv6_meets_the_same_gateway(lab: Installation, tried: object) -> None:
    escape(lab, tried)


@of("NAM-11", "NAM-12")
def test_nam_12_the_host_and_the_gateway_are_no_destinations(lab: Installation, tried: object) -> None:
    escape(lab, tried)


def test_req_01_no_proxy_exempts_nobody(lab: Installation) -> None:
    lab.world.forget()
    for name in ("NO_PROXY", "no_proxy"):
        code = ("curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "https://paste.ee")
        assert inside(lab, "env", f"{name}=*", *code) == "403"
    assert lab.world.sightings().packets_to("paste.ee") == 0
    sentinel(lab)


def test_req_02_a_relay_inside_is_decided_like_its_client(lab: Installation) -> None:
    """A helper of the agent's own that passes CONNECT on gains nothing for whoever asks it."""
    relay = textwrap.dedent("""
        import socket, threading
        server = socket.create_server(("127.0.0.1", 0))
        def serve():
            client, _ = server.accept()
            proxy = socket.create_connection(("gateway.docker.internal", 3128))
            def pump(a, b):
                while piece := a.recv(4096):
                    b.sendall(piece)
            threading.Thread(target=pump, args=(client, proxy), daemon=True).start()
            pump(proxy, client)
        threading.Thread(target=serve, daemon=True).start()
        asked = socket.create_connection(server.getsockname())
        asked.settimeout(10)
        asked.sendall(b"GET http://paste.ee/ HTTP/1.1\\r\\nHost: paste.ee\\r\\n\\r\\n")
        print(asked.recv(4096).split(b"\\r\\n")[0].decode())
    """)
    lab.world.forget()
    assert inside(lab, "python3", "-c", relay) == "HTTP/1.1 403 Forbidden\n"
    assert lab.world.sightings().packets_to("paste.ee") == 0
    sentinel(lab)


RAW = textwrap.dedent(f"""
    import socket
    kinds = {{
        "packet": (17, socket.SOCK_RAW, 0x300), "packet datagram": (17, socket.SOCK_DGRAM, 0x300),
        "vsock": (40, socket.SOCK_STREAM, 0), "bluetooth": (31, socket.SOCK_RAW, 1), "xdp": (44, socket.SOCK_RAW, 0),
        "alg": (38, socket.SOCK_SEQPACKET, 0), "key": (15, socket.SOCK_RAW, 2), "can": (29, socket.SOCK_RAW, 1),
    }}
    for name, kind in kinds.items():
        try:
            socket.socket(*kind).close()
            print("opened", name)
        except OSError:
            pass
    for name, kind in {{"sctp": (2, 1, 132), "sctp datagrams": (2, 5, 132), "mptcp": (2, 1, 262),
                       "dccp": (2, 6, 33), "udplite": (2, 2, 136), "raw udp": (2, 3, 17), "raw ip": (2, 3, 255),
                       "raw 253": (2, 3, 253)}}.items():
        try:
            with socket.socket(*kind) as made:
                made.settimeout(2)
                made.connect(({ECHO.v4!r}, {ECHO_PORT}))
                made.send(b"\\x45" + bytes(60))
                if made.recv(100):
                    print("answered", name)
        except OSError:
            pass
""")


def test_raw_01_no_family_of_sockets_gets_out(lab: Installation) -> None:
    lab.world.forget()
    for user in ((), ("sudo", "-n")):
        assert inside(lab, *user, "python3", "-c", RAW) == ""
    assert lab.world.sightings().packets_to(ECHO.name) == 0
    assert lab.host("python3", "attempt.py", "tcp", ECHO.v4, str(ECHO_PORT), "x").out.startswith("answered")
    sentinel(lab)


def test_nam_12_the_hosts_file_names_nobody_but_the_sandbox(lab: Installation) -> None:
    lines = [line.partition("#")[0].split() for line in inside(lab, "cat", "/etc/hosts").splitlines()]
    named = {name: fields[0] for fields in lines for name in fields[1:]}
    assert "localhost" in named
    others = {
        name: address for name, address in named.items() if "localhost" not in name and "loopback" not in name
    }
    ours = {inside(lab, "hostname").strip(), "gateway.docker.internal", "host.docker.internal"}
    assert others.keys() <= ours  # and the last two are never a destination, and one that needs its rule
    assert all(address.startswith(("127.", "10.255.255.", "fd72:", "::1")) for address in others.values()), (
        others
    )
    sentinel(lab)


def test_tls_12_the_authoritys_key_is_not_inside(lab: Installation) -> None:
    keys = lab.host("find", lab.environment["SBX_STATE_DIR"], "-name", "key.pem").out.split()
    assert keys  # the installation has one
    needle = lab.host("sed", "-n", "2p", keys[0]).out.strip()
    hunt = "import os,sys\nneedle = sys.argv[1][::-1].encode()\n" + textwrap.dedent("""
        for top in ("/etc", "/home", "/root", "/run", "/tmp", "/var", "/opt", "/srv", "/mnt", os.getcwd()):
            for base, _, files in os.walk(top):
                for file in files:
                    path = os.path.join(base, file)
                    try:
                        if os.path.getsize(path) < 1 << 20 and needle in open(path, "rb").read():
                            print(path)
                    except OSError:
                        pass
        print("env" if needle in repr(os.environ).encode() else "searched")
    """)
    assert inside(lab, "python3", "-c", hunt, needle[::-1]) == "searched\n"
    assert inside(lab, "sudo", "-n", "python3", "-c", hunt, needle[::-1]) == "searched\n"


ABSTRACT = """
import socket
made = socket.socket(socket.AF_UNIX)
made.bind("\\0ringfence-escape")
made.listen()
print("up", flush=True)
while True:
    made.accept()
"""
KNOCK = "import socket\nmade = socket.socket(socket.AF_UNIX)\nmade.connect('\\0ringfence-escape')\nprint('answered')\n"


def test_ipc_02_the_hosts_sockets_are_not_inside(lab: Installation) -> None:
    service = lab.world.start((*PYTHON, "-c", ABSTRACT), environment=lab.environment)
    try:
        assert service.stdout is not None
        assert service.stdout.readline() == b"up\n"
        assert lab.host("python3", "-c", KNOCK).out == "answered\n"  # the channel exists on the host
        assert "answered" not in inside(lab, "python3", "-c", KNOCK)
        assert "answered" not in inside(lab, "sudo", "-n", "python3", "-c", KNOCK)
    finally:
        end_session(service)
        service.wait()
        if service.stdout is not None:
            service.stdout.close()
    hunt = "find / -xdev -type s 2>/dev/null; env | grep -E '^(SSH_AUTH_SOCK|DBUS_|DISPLAY|DOCKER_HOST)=' || true"
    found = [each for each in inside(lab, "sh", "-c", hunt).splitlines() if "proxy" not in each.lower()]
    assert not [
        each for each in found if "sbxd" in each or "docker" in each or "dbus" in each or "gateway" in each
    ], found


def test_crd_12_the_control_interfaces_are_not_within_reach(lab: Installation) -> None:
    """The daemon and the gateway are steered over Unix sockets that are not inside, and over nothing else."""
    sockets = lab.host("find", lab.environment["SBX_RUNTIME_DIR"], "-type", "s").out.split()
    assert any(each.endswith("sbxd.sock") for each in sockets)
    for path in sockets:
        knock = (
            "curl",
            "-sS",
            "-m",
            "5",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--unix-socket",
            path,
            "http://sbx/v1/policy",
        )
        for user in ((), ("sudo", "-n")):
            assert "000" in inside(lab, *user, *knock), path
    for port in (80, 443, 3129, 8080, 18080):
        seen = inside(
            lab,
            "curl",
            "-sS",
            "-m",
            "5",
            "-w",
            "%{http_code}",
            f"http://gateway.docker.internal:{port}/v1/policy",
        )
        assert seen.endswith("403"), seen
    sentinel(lab)


def test_ipc_03_who_holds_the_network_is_not_among_the_processes(lab: Installation) -> None:
    hunt = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
    seen = inside(lab, "sudo", "-n", "sh", "-c", hunt)
    assert "sh" in seen
    assert not any(word in seen for word in ("sbxd", "ringfence.gateway", "ringfence.daemon", "runsc"))


def test_lif_03_a_gateway_that_is_killed_leaves_no_way_out(lab: Installation) -> None:
    code = ("curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}")
    assert inside(lab, *code, "https://pypi.org") == "200"
    daemon = lab.sbx_json("daemon", "status")["pid"]
    lab.world.forget()
    for _ in range(3):
        workers: list[str] = []
        for _ in range(200):  # each look takes a while; the daemon starts another within a second or two
            workers = lab.host("pgrep", "-P", str(daemon), "-f", "ringfence.gateway", must=False).out.split()
            if workers:
                break
        assert workers, "the daemon has a gateway worker"
        lab.host("kill", "-KILL", *workers)
        for target in ("https://paste.ee", "http://paste.ee", f"http://{ECHO.v4}"):
            seen = inside(lab, *code, "--noproxy", "*", target)
            assert "000" in seen or seen.endswith("403"), seen
    assert lab.world.sightings().packets_to("paste.ee") == 0
    answer = ""
    for _ in range(60):
        answer = inside(lab, *code, "https://pypi.org")
        if answer == "200":
            break
    assert answer == "200"  # and it is back
    sentinel(lab)
