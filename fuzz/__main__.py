"""``python -m fuzz [NAME …] [--seconds N]``: fuzz the named readers, or all, one after another. See the package."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

TARGETS = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz what reads hostile bytes.")
    parser.add_argument(
        "names", nargs="*", choices=[*TARGETS, []], default=[], metavar="NAME", help=", ".join(TARGETS)
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each (default: 60)")
    asked = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed\nhint: pip install 'atheris>=2.3'", file=sys.stderr)
        return 1
    failed = []
    for name in asked.names or TARGETS:
        print(f"fuzzing {name} for {asked.seconds} s", flush=True)
        command = [
            sys.executable,
            "-m",
            "fuzz._run",
            name,
            f"-max_total_time={asked.seconds}",
            "-verbosity=0",
        ]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"found something in {', '.join(failed)}: see fuzz/corpus", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
