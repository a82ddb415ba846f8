"""Who is at the other end: peers' credentials, and the server that asks for them.

The socket has mode 0600 in a directory of mode 0700, and still every connection is asked who it is
(``SO_PEERCRED``, unix(7)): only the daemon's own user and root are served. The answer is handed to the routes, and is
the only identity that the API knows; nothing that a request says about itself counts.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ringfence.sandbox.model import Owner

if TYPE_CHECKING:
    from fastapi import FastAPI

NameOf = Callable[[int], str]

_CREDENTIALS = struct.Struct("3i")
CONNECTIONS = 512
_FAREWELL = 2
"""Seconds that a request under way has when the daemon ends; a followed log would take for ever."""


def owner_of(connection: socket.socket, name_of: NameOf) -> Owner:
    """Return the user who connected, as the kernel knows it."""
    _pid, uid, gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return Owner(uid=uid, gid=gid, name=name_of(uid))


class PeerProtocol(HttpToolsProtocol):
    """HTTP/1.1 for peers that are known; others are hung up on before a byte is read."""

    def __init__(self, *, name_of: NameOf, **options: Any) -> None:
        super().__init__(**options)
        self._name_of = name_of

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = owner_of(transport.get_extra_info("socket"), self._name_of)
        if peer.uid not in (0, os.geteuid()):
            transport.abort()
            return
        self.app_state = {**self.app_state, "peer": peer}


class PeerServer(Server):
    """Serves until told to stop; signals are the daemon's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server(app: FastAPI, *, name_of: NameOf) -> PeerServer:
    """Return the server of an application. ``name_of`` says what a uid is called."""
    settings: dict[str, Any] = {
        "http": partial(PeerProtocol, name_of=name_of),
        "loop": "asyncio",
        "lifespan": "off",
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "limit_concurrency": CONNECTIONS,
        "timeout_graceful_shutdown": _FAREWELL,
    }
    return PeerServer(Config(app, **settings))
