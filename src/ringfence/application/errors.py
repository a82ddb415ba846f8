"""The one error shape. Everything that a person may have to read is one of these.

``str(error)`` is what is wrong, lower case, with the person's input in backticks; ``hint`` is what to do. The API
renders it as ``application/problem+json`` with ``code``; the CLI prints both lines and leaves with ``exit_code``.
"""

from __future__ import annotations


class RingfenceError(Exception):
    """A failure with a stable code. Subclasses differ in exit code and HTTP status alone."""

    code = "failure"
    exit_code = 1
    status = 500

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if code:
            self.code = code


class InvalidInput(RingfenceError):
    """Bad input: nothing was changed."""

    code = "invalid"
    exit_code = 2
    status = 400


class NotFound(RingfenceError):
    code = "not-found"
    exit_code = 3
    status = 404


class Conflict(RingfenceError):
    code = "conflict"
    exit_code = 1
    status = 409


class Denied(RingfenceError):
    """Refused by policy."""

    code = "denied"
    exit_code = 4
    status = 403


class Unavailable(RingfenceError):
    """Something that is needed is missing or broken; the hint says how to get it."""

    code = "unavailable"
    exit_code = 1
    status = 503


class Unreachable(RingfenceError):
    """The daemon does not answer."""

    code = "unreachable"
    exit_code = 5
    status = 503


class SignInNeeded(RingfenceError):
    code = "sign-in-needed"
    exit_code = 6
    status = 401
