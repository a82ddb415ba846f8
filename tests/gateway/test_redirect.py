"""Where a redirected connection was going, told by a real kernel: nftables redirect, IPv4 and IPv6."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_RULES = """
table inet t {
  chain out {
    type nat hook output priority -100
    tcp dport { 80, 443 } redirect to :PORT
  }
}
"""

_SCRIPT = """
import asyncio, subprocess, sys
import uvloop
from ringfence.gateway.listener import original_destination

async def main():
    loop = asyncio.get_running_loop()
    seen = asyncio.Queue()
    class Accepted(asyncio.Protocol):
        def connection_made(self, transport):
            seen.put_nowait(original_destination(transport))
            transport.abort()
    four = await loop.create_server(Accepted, "0.0.0.0", 4000)
    six = await loop.create_server(Accepted, "::", 4000)
    subprocess.run(["nft", "-f", "-"], input=sys.argv[1], text=True, check=True)
    for host, port in (("203.0.113.7", 443), ("2001:db8::7", 80), ("127.0.0.1", 4000)):
        _, writer = await asyncio.open_connection(host, port)
        print(*await asyncio.wait_for(seen.get(), 10))
        writer.transport.abort()
    four.close(); six.close()

uvloop.run(main())
"""


@pytest.mark.live
def test_the_kernel_remembers_where_a_redirected_connection_was_going() -> None:
    missing = [program for program in ("unshare", "nft", "ip") if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'namespaces'}")
    setup = [
        "ip link set lo up",
        "ip addr add 203.0.113.0/24 dev lo",
        "ip -6 addr add 2001:db8::7/128 dev lo nodad",
    ]
    shell = " && ".join(setup) + ' && exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["unshare", "-n", "bash", "-c", shell, sys.executable, _SCRIPT, _RULES.replace("PORT", "4000")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")},
        check=False,
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("this machine allows no network namespace")
    assert done.stdout.splitlines() == ["203.0.113.7 443", "2001:db8::7 80", "127.0.0.1 4000"], done.stderr
