"""Git's smart HTTP (``git http-backend``), over whatever HTTP carries it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from tests.live.origins.exchange import Exchange, Site


def prepare(root: Path) -> None:
    """Make one repository that may be cloned and pushed to: ``team/project.git``, one commit on ``main``."""
    bare, work = root / "team/project.git", root / "seed"
    settings = {"GIT_CONFIG_GLOBAL": "/dev/null", "PATH": os.environ["PATH"], "HOME": str(root)}
    who = ("-c", "user.name=Origin", "-c", "user.email=origin@clients.example")
    for argv in (
        ("git", "init", "-q", "--bare", "-b", "main", str(bare)),
        ("git", "-C", str(bare), "config", "http.receivepack", "true"),
        ("git", "-C", str(bare), "config", "core.hooksPath", "/dev/null"),
        ("git", "init", "-q", "-b", "main", str(work)),
        ("git", "-C", str(work), *who, "commit", "-q", "--allow-empty", "-m", "first"),
        ("git", "-C", str(work), "push", "-q", str(bare), "main"),
    ):
        subprocess.run(argv, env=settings, check=True)
    (bare / "git-daemon-export-ok").touch()


def serve(root: Path) -> Site:
    """Return a site that is a git server."""

    async def site(exchange: Exchange) -> None:
        parts = urlsplit(exchange.target)
        headers = exchange.headers
        variables = {
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "PATH": os.environ["PATH"],
            "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query,
            "REQUEST_METHOD": exchange.method,
            "CONTENT_TYPE": headers.get("content-type", ""),
            "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
            "GIT_PROTOCOL": headers.get("git-protocol", ""),
            "REMOTE_USER": "agent",
        }
        body = await exchange.read()
        variables["CONTENT_LENGTH"] = str(len(body))
        backend = await asyncio.create_subprocess_exec(
            "git",
            "http-backend",
            env=variables,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await backend.communicate(body)
        head, _, content = said.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(fields.pop("Status", "200").split(" ")[0])
        await exchange.answer(content, status, **{k.replace("-", "_").lower(): v for k, v in fields.items()})

    return site
