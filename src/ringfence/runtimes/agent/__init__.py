"""The agent: the first program in every sandbox (its theory of operation opens ``agent.c``).

It is compiled when Ringfence is installed. Where it is missing nothing falls back to anything else: a sandbox
without an agent could not be spoken to.
"""

from __future__ import annotations

import os
from pathlib import Path

from ringfence.application.errors import Unavailable

PROGRAM = "sbx-agent"


def agent_path() -> Path:
    """Return the path of the agent's program, for a driver to place in a sandbox."""
    path = Path(__file__).with_name(PROGRAM)
    if not os.access(path, os.X_OK):
        raise Unavailable(
            "the agent was not compiled when Ringfence was installed",
            hint="`apt-get install gcc libc6-dev`, then install again or `python hatch_build.py`",
            code="agent-missing",
        )
    return path
