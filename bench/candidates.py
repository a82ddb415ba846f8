"""Who is measured: our gateway with everything on, and the peers that Debian's and Python's packages bring.

A candidate is started on core 1, answers as an explicit proxy on 127.0.0.1, trusts ``root.pem``, refuses
``*.denied.test`` and tunnels ``*.bypass.test`` unread.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.envoy import write_bootstrap

PORT = 3128


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    name: str
    argv: tuple[str, ...]
    skip: frozenset[str] = frozenset()
    """Rows that this candidate cannot do, and so are not asked of it."""
    few: bool = False
    """Whether thousands of idle connections would take it minutes."""


def ringfence(work: Path, origin: str, *, tls: str = "ssl", port: int = PORT) -> Candidate:
    """The gateway, with a TLS backend on both sides."""
    script = str(Path(__file__).with_name("gateway_standalone.py"))
    argv = [
        sys.executable,
        script,
        "--tls",
        tls,
        "--port",
        str(port),
        "--address",
        origin,
        "--roots",
        str(work / "root.pem"),
    ]
    argv += ["--certificate", str(work / "ringfence-ca.pem"), "--records", str(work / "audit.jsonl")]
    if tls == "ssl":
        return Candidate(name="ringfence", argv=tuple(argv))
    unlike = {"tls403", "plain403", "new403", "open403", "plain", "tunbulk", "tunnew", "tunmsg"}
    return Candidate(name=f"ringfence, {tls}", argv=tuple(argv), skip=frozenset(unlike))


def squid(work: Path) -> Candidate | None:
    program = shutil.which("squid") or shutil.which("squid", path="/usr/sbin")
    minter = Path("/usr/lib/squid/security_file_certgen")
    if not program or not minter.exists():
        return None
    home = work / "squid"
    home.mkdir()
    subprocess.run([str(minter), "-c", "-s", str(home / "db"), "-M", "16MB"], check=True, capture_output=True)
    shutil.copy(work / "peer-ca-both.pem", home / "ca.pem")
    (home / "squid.conf").write_text(
        f"""
http_port 127.0.0.1:{PORT} ssl-bump cert={home}/ca.pem generate-host-certificates=on dynamic_cert_mem_cache_size=16MB
sslcrtd_program {minter} -s {home}/db -M 16MB
sslcrtd_children 2 startup=2
tls_outgoing_options cafile={work}/root.pem
acl denied dstdomain .denied.test
acl bypass ssl::server_name .bypass.test
acl first at_step SslBump1
ssl_bump peek first
ssl_bump splice bypass
ssl_bump bump all
http_access deny denied
http_access allow all
cache deny all
cache_mem 8 MB
hosts_file /etc/hosts
dns_nameservers 127.0.0.1
visible_hostname bench
access_log stdio:{home}/access.log
cache_log {home}/cache.log
pid_filename {home}/pid
max_filedescriptors 20000
client_persistent_connections on
server_persistent_connections on
"""
    )
    for path in (home, *home.rglob("*")):
        shutil.chown(path, "proxy", "proxy")
    home.chmod(0o755)
    return Candidate(
        name="squid",
        argv=(program, "-N", "-f", str(home / "squid.conf")),
        skip=frozenset({"h2", "open403"}),  # it takes what follows any CONNECT for TLS
    )


def envoy(work: Path, program: Path) -> Candidate | None:
    if not program.exists():
        return None
    argv = (str(program), "-c", str(write_bootstrap(work, PORT)), "--concurrency", "1", "-l", "critical")
    return Candidate(name="envoy", argv=argv, skip=frozenset({"cold"}))


def mitmproxy(work: Path, program: Path) -> Candidate | None:
    if not program.exists():
        return None
    home = work / "mitmproxy"
    home.mkdir()
    shutil.copy(work / "peer-ca-both.pem", home / "mitmproxy-ca.pem")
    addon = home / "deny.py"
    addon.write_text(
        "from mitmproxy import http\n"
        "def request(flow):\n"
        "    if flow.request.pretty_host.endswith('.denied.test'):\n"
        "        flow.response = http.Response.make(403, b'no')\n"
    )
    argv = [str(program), "-q", "--listen-host", "127.0.0.1", "-p", str(PORT), "--set", f"confdir={home}"]
    argv += ["--set", f"ssl_verify_upstream_trusted_ca={work}/root.pem", "--set", "connection_strategy=lazy"]
    argv += ["--ignore-hosts", r"\.bypass\.test", "-s", str(addon)]
    return Candidate(name="mitmproxy", argv=tuple(argv), few=True)


@contextmanager
def started(candidate: Candidate, work: Path, *, core: int, port: int = PORT) -> Iterator[int]:
    """Run a candidate pinned to a core until the block ends; yields its pid once it listens."""
    with (work / f"{candidate.name}.log").open("ab") as log:
        child = subprocess.Popen(
            ["taskset", "-c", str(core), *candidate.argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if child.poll() is not None or time.monotonic() > deadline:
                tail = (work / f"{candidate.name}.log").read_text(errors="replace")[-600:]
                raise RuntimeError(f"{candidate.name} does not listen: {tail}")
            time.sleep(0.05)
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        _until_closed(port)


def _until_closed(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)
    raise RuntimeError(f"something still listens on port {port}")
