"""HTTP/1.1 over the daemon's Unix socket: one connection a request, bounded answers, errors of one shape.

A connection costs some fifty microseconds here, so none is kept: there is no idle connection that the daemon
may have closed meanwhile, and no request that must be guessed to be safe to repeat.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from ringfence.client.errors import RingfenceError, Unreachable, from_problem

PATIENCE = 30.0
"""Seconds that an ordinary request may take."""
LONG_PATIENCE = 1200.0
"""Creating or starting a sandbox may build its template from packages first."""
ANSWER_LIMIT = 64 * 1024 * 1024
LINE_LIMIT = 1024 * 1024
PROBLEM_LIMIT = 1024 * 1024


class UnixConnection(HTTPConnection):
    """An ``HTTPConnection`` whose other end is a socket in the file system."""

    def __init__(self, path: str, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = dial(self._path, timeout=self.timeout or PATIENCE)


def dial(path: str, *, timeout: float) -> socket.socket:
    """Connect, and refuse a peer that is neither this user nor root: what is sent may hold secrets."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(timeout)
        link.connect(path)
        _pid, uid, _gid = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            raise Unreachable(
                f"the daemon at `{path}` belongs to user {uid}, not to you",
                hint="check `SBX_RUNTIME_DIR`; another user may be listening there",
            )
    except BaseException:
        link.close()
        raise
    return link


class Wire:
    """Requests to the daemon at one socket."""

    def __init__(self, path: str, *, patience: float = PATIENCE) -> None:
        self.path = path
        self._patience = patience

    def ask(
        self,
        method: str,
        route: str,
        *,
        body: object = None,
        patience: float = 0.0,
        sandbox: str = "",
        accept: str = "application/json",
    ) -> bytes:
        """Send one request and return the answer's body. ``body`` is JSON, or YAML when it is bytes."""
        connection = UnixConnection(self.path, timeout=patience or self._patience)
        try:
            answer = self._send(connection, method, route, body, accept)
            if answer.status >= 400:
                raise self._problem(answer, sandbox)
            content = answer.read(ANSWER_LIMIT + 1)
            if len(content) > ANSWER_LIMIT:
                raise RingfenceError("the daemon's answer is longer than 64 MiB")
            return content
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def ask_json(self, method: str, route: str, **options: Any) -> Any:
        content = self.ask(method, route, **options)
        try:
            return json.loads(content) if content.strip() else {}
        except ValueError as error:
            raise RingfenceError(f"the daemon's answer to {method} {route} is not JSON") from error

    def lines(self, route: str, *, live: bool) -> Iterator[bytes]:
        """Yield the lines of a stream as they come; a ``live`` stream may be silent for any time."""
        connection = UnixConnection(self.path, timeout=self._patience)
        try:
            answer = self._send(connection, "GET", route, None, "application/x-ndjson")
            if answer.status >= 400:
                raise self._problem(answer, "")
            if live and connection.sock is not None:
                connection.sock.settimeout(None)
            while line := answer.readline(LINE_LIMIT):
                yield line
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _send(
        self, connection: UnixConnection, method: str, route: str, body: object, accept: str
    ) -> HTTPResponse:
        headers = {"Accept": accept}
        content = None
        if isinstance(body, bytes):
            content, headers["Content-Type"] = body, "application/yaml"
        elif body is not None:
            content, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection.request(method, route, body=content, headers=headers)
        return connection.getresponse()

    def _problem(self, answer: HTTPResponse, sandbox: str) -> RingfenceError:
        try:
            problem = json.loads(answer.read(PROBLEM_LIMIT))
        except ValueError:
            problem = {}
        return from_problem(answer.status, problem if isinstance(problem, dict) else {}, sandbox=sandbox)

    def _unreachable(self, error: Exception) -> Unreachable:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return Unreachable("the daemon is not running", hint="start it with `sbx daemon start`")
        if isinstance(error, PermissionError):
            return Unreachable(
                f"the daemon's socket `{self.path}` may not be opened", hint="it belongs to another user"
            )
        if isinstance(error, TimeoutError):
            return Unreachable("the daemon did not answer in time", hint="look at `sbx doctor`")
        if "path too long" in str(error):
            return Unreachable(
                f"the socket's path `{self.path}` is longer than a Unix socket's may be",
                hint="set `SBX_RUNTIME_DIR` to a shorter directory",
            )
        return Unreachable(
            f"the connection to the daemon broke: {str(error) or type(error).__name__}",
            hint="it may have been stopped; run the command again",
        )
