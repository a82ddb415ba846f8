"""What these tests need of the machine, and how they say that it is missing."""

from __future__ import annotations

import os
import shutil

import pytest


def lacking() -> str:
    """Why live tests of namespaces cannot run here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    return ""


needs_namespaces = pytest.mark.skipif(bool(lacking()), reason=lacking() or "-")
