"""Builds the agent into the wheel (hatchling's build hook), or by itself: ``python hatch_build.py``.

The agent is a static C program without dependencies. A wheel carries it, so that a person who installs
Ringfence needs no compiler, and an editable install gets it beside its sources. A source distribution carries
only the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # called as a program, where no build backend has to be installed
    BuildHookInterface = object

SOURCES = Path(__file__).resolve().parent / "src" / "ringfence" / "runtimes" / "agent"
PROGRAM = SOURCES / "sbx-agent"
FLAGS = (
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-fstack-protector-strong",
    "-D_FORTIFY_SOURCE=2",
    "-static",
    "-s",
)


class BuildError(RuntimeError):
    """The agent cannot be compiled; says what to install."""


def compiler() -> list[str]:
    """Return the compiler's command: ``$CC``, or the first one that is installed."""
    named = os.environ.get("CC", "").split()
    for command in (named, ["cc"], ["gcc"], ["clang"], ["musl-gcc"]):
        if command and shutil.which(command[0]):
            return command
    raise BuildError("no C compiler for the agent; install one: `apt-get install gcc libc6-dev`")


def build(target: Path = PROGRAM, *, flags: tuple[str, ...] = FLAGS) -> Path:
    """Compile the agent to ``target``, replaced at once or not at all: sandboxes may run the old one."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
    command = [*compiler(), *flags, "-o", str(draft), *sources]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(
                f"`{' '.join(command)}` failed; is libc's static library installed? "
                f"`apt-get install gcc libc6-dev`\n{done.stderr}"
            )
        draft.chmod(0o755)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


class AgentBuildHook(BuildHookInterface):  # type: ignore[misc, valid-type, type-arg, unused-ignore]
    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build()
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(f"error: {error}")
