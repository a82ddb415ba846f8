"""Who the test origins are: names, one address, and the ports behind them."""

from __future__ import annotations

from typing import Final

from tests.live.origins.registries import REGISTRIES

ADDRESS: Final = "203.0.113.200"
PLAIN_PORT: Final = 8080
SECURE_PORT: Final = 8443
GRPC_PORT: Final = 50051
"""On the loopback, without TLS: the front at :data:`SECURE_PORT` passes it what asks for :data:`GRPC_HOST`."""

WEB_HOST: Final = "web.clients.example"
"""HTTPS, over HTTP/1.1 or HTTP/2 as the client likes."""
PLAIN_HOST: Final = "plain.clients.example"
GRPC_HOST: Final = "grpc.clients.example"
GIT_HOST: Final = "github.com"
RAW_HOST: Final = "raw.clients.example"
"""Every port as it is: ssh on 22, git's own protocol on 9418."""
PLAIN_NAMES: Final = (PLAIN_HOST, "deb.debian.org")
TLS_NAMES: Final = (WEB_HOST, GRPC_HOST, GIT_HOST, *(name for name in REGISTRIES if name not in PLAIN_NAMES))

RESOLVE: Final = {
    RAW_HOST: ADDRESS,
    **dict.fromkeys(PLAIN_NAMES, f"{ADDRESS}:{PLAIN_PORT}"),
    **dict.fromkeys(TLS_NAMES, f"{ADDRESS}:{SECURE_PORT}"),
}
"""The installation's static names for them."""
