"""A service on the loopback of the demo's host, as a local model server would be.

``python -m ringfence.demo.loopback PORT`` says `ready` when it listens, and greets whoever gets through.
"""

from __future__ import annotations

import http.server
import sys
from typing import Final

GREETING: Final = "Hello from a service on the host's loopback.\n"


class _Greeter(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{GREETING}Host: {self.headers.get('Host', '')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


def main() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Greeter) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
