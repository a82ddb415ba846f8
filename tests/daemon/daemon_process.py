"""A real daemon in a directory of its own, and a plain HTTP client on its socket."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE = 60.0


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


class Answer:
    def __init__(self, status: int, kind: str, body: bytes) -> None:
        self.status = status
        self.kind = kind
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Home:
    """An installation; :meth:`start` runs its daemon, as often as wanted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = root / "w"
        self.workspace.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(root / "home"),
            **{f"SBX_{name.upper()}_DIR": str(root / name) for name in ("state", "config", "data")},
            "SBX_RUNTIME_DIR": str(root / "run"),
        }
        (root / "home").mkdir()
        self.configure('runtime = "fake"\n')

    @property
    def socket(self) -> str:
        return str(self.root / "run" / "sbxd.sock")

    @property
    def log(self) -> str:
        path = self.root / "daemon.out"
        return path.read_text() if path.exists() else ""

    def configure(self, text: str) -> None:
        (self.root / "config").mkdir(exist_ok=True)
        (self.root / "config" / "config.toml").write_text(text)

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.root / "daemon.out", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ringfence.daemon.main", *arguments],
                env=self.environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def start(self) -> subprocess.Popen[bytes]:
        """Start the daemon and return when it answers."""
        process = self.spawn()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert self.ask("GET", "/v1/daemon").status == 200
            except (OSError, http.client.HTTPException):
                assert process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.02)
            else:
                return process

    def end(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
        process.send_signal(number)
        return process.wait(PATIENCE)

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        connection = UnixConnection(self.socket)
        try:
            raw = (
                body.encode()
                if isinstance(body, str)
                else json.dumps(body).encode()
                if body is not None
                else None
            )
            kind = "application/yaml" if isinstance(body, str) else "application/json"
            connection.request(method, path, raw, {"Content-Type": kind} if raw is not None else {})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers.get_content_type(), answer.read())
        finally:
            connection.close()

    def must(self, method: str, path: str, body: object = None) -> Any:
        answer = self.ask(method, path, body)
        assert answer.status < 400, (answer.status, answer.body, self.log)
        return answer.json

    def clear(self) -> None:
        """End what runs, the gateway too."""
        try:
            workers = [each["pid"] for each in self.ask("GET", "/v1/daemon").json["gateway"]["workers"]]
        except (OSError, http.client.HTTPException, ValueError):
            workers = []
        for process in self.processes:
            if process.poll() is None:
                self.end(process)
        for pid in filter(None, workers):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def installed() -> Iterator[Home]:
    """An installation in a directory with a short path, since sockets are in it."""
    root = Path(tempfile.mkdtemp(prefix="rf-"))
    home = Home(root)
    try:
        yield home
    finally:
        home.clear()
        shutil.rmtree(root, ignore_errors=True)
