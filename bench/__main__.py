"""``python -m bench``: the gateway's table, the policy engine, sandbox start-up. Prints Markdown; ``--write`` keeps it.

The gateway's rows run in a private network and mount namespace (``unshare``), so they need root and touch nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".deps" / "peers"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["gateway", "policy", "startup", []], help="default: all")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one load")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", default="", help="keys of gateway rows, comma-separated")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return _inside(options)
    parts = options.parts or ["gateway", "policy", "startup"]
    sections: dict[str, list[str]] = {"machine": [machine()]}
    if "gateway" in parts:
        if os.geteuid() != 0:
            print("bench: the gateway's rows need root (a network namespace of their own)", file=sys.stderr)
            return 1
        _peers()
        sections["gateway"] = _gateway(options)
    if "policy" in parts:
        done = subprocess.run(
            [sys.executable, "-m", "bench.policy"], capture_output=True, text=True, cwd=ROOT, check=True
        )
        sections["policy"] = done.stdout.splitlines()
    if "startup" in parts:
        from bench.startup import table as startup

        sections["startup"] = startup(options.repetitions)
    for name, lines in sections.items():
        print(f"\n## {name}\n", *lines, sep="\n")
    if options.write:
        _write(sections)
    return 0


def _gateway(options: argparse.Namespace) -> list[str]:
    from bench.gateway import table

    argv = ["unshare", "-n", "-m", "--propagation", "private", sys.executable, "-m", "bench", "--inside"]
    argv += [
        "--seconds",
        str(options.seconds),
        "--repetitions",
        str(options.repetitions),
        "--only",
        options.only,
    ]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    return table(json.loads(done.stdout))


def _inside(options: argparse.Namespace) -> int:
    from bench.gateway import inside

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    only = frozenset(k for k in options.only.split(",") if k)
    print(json.dumps(inside(options.seconds, options.repetitions, only, PEERS)))
    return 0


def _peers() -> None:
    """Peers from Python's registry, in an environment of their own: their pins do not fit ours."""
    wanted = ROOT / "bench" / "peers.txt"
    stamp = PEERS / ".ready"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        print("bench: installing mitmproxy and Envoy beside us", file=sys.stderr)
        venv.create(PEERS, with_pip=True, clear=True)
        pip = [str(PEERS / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(wanted)], check=True)
        stamp.write_text(wanted.read_text())


def machine() -> str:
    model = next(
        (
            ln.split(":")[1].strip()
            for ln in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in ln
        ),
        "?",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def _write(sections: dict[str, list[str]]) -> None:
    """Replace what stands between the markers ``<!-- name -->`` and ``<!-- /name -->``."""
    page = ROOT / "docs" / "performance.md"
    text = page.read_text()
    for name, lines in sections.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start in text:
            before, rest = text.split(start, 1)
            text = before + start + "\n" + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]
    page.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
