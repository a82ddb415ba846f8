"""The one error shape, as the command line sees it, and how the daemon's problems become it.

The daemon answers failures as ``application/problem+json`` (RFC 9457) with a stable ``code`` and the
``exit_code`` that belongs to it. Here they become the same :class:`RingfenceError` that the daemon raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ringfence.application.errors import (
    Conflict,
    Denied,
    InvalidInput,
    NotFound,
    RingfenceError,
    SignInNeeded,
    Unavailable,
    Unreachable,
)

__all__ = [
    "Conflict",
    "Denied",
    "InvalidInput",
    "NotFound",
    "RingfenceError",
    "SignInNeeded",
    "Unavailable",
    "Unreachable",
    "from_problem",
    "sandbox_not_found",
]

NOT_INITIALISED = "policy-not-initialised"
"""The code of the refusal that asks for a preset before the first sandbox."""

SANDBOX_NOT_FOUND = "sandbox-not-found"

_BY_STATUS: Mapping[int, type[RingfenceError]] = {
    kind.status: kind for kind in (InvalidInput, NotFound, Conflict, Denied, Unavailable, SignInNeeded)
} | {413: InvalidInput, 422: InvalidInput}


def from_problem(status: int, problem: Mapping[str, Any], *, sandbox: str = "") -> RingfenceError:
    """Return the error that a problem document stands for. ``sandbox`` is the name that was asked about."""
    kind = _BY_STATUS.get(status, RingfenceError)
    message = _text(problem.get("detail")) or _text(problem.get("title")) or f"the daemon answered {status}"
    if sandbox and problem.get("code") == SANDBOX_NOT_FOUND:
        return sandbox_not_found(sandbox)
    error = kind(message, hint=_text(problem.get("hint")), code=_text(problem.get("code")))
    exit_code = problem.get("exit_code")
    if isinstance(exit_code, int) and 0 < exit_code < 126:
        error.exit_code = exit_code
    return error


def sandbox_not_found(name: str) -> NotFound:
    """Both spellings that clients look for are in it: ``sandbox 'X' not found`` and ``no such sandbox``."""
    return NotFound(
        f"sandbox '{name}' not found: no such sandbox",
        hint="`sbx ls` lists the sandboxes that there are",
        code=SANDBOX_NOT_FOUND,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
