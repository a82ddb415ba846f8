"""The process that is the demo's internet: sites, services, the packet counter, and one line of control.

Control is a stream of JSON lines from the demo: ``sightings`` is answered with what was seen, ``forget``
starts a new page. The end of the stream ends the process.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from ringfence.demo.internet.authority import WorldAuthority
from ringfence.demo.internet.places import SITES
from ringfence.demo.internet.services import serve_dns, serve_echo
from ringfence.demo.internet.sites import Sites
from ringfence.demo.internet.witness import Notebook, PacketCounter


async def _serve(control: socket.socket, interface: str, root_certificate: Path) -> None:
    notebook = Notebook()
    counter = PacketCounter(interface, notebook)
    asyncio.get_running_loop().add_reader(counter.socket, counter.drain)
    authority = WorldAuthority(datetime.fromtimestamp(int(time.time()), UTC))
    root_certificate.write_bytes(authority.root_pem)
    sites = Sites({place.name: authority.context(place) for place in SITES}, notebook)
    sites.listen()
    await serve_dns(notebook)
    await serve_echo(notebook)
    reader, writer = await asyncio.open_connection(sock=control)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(sites.serve())
        writer.write(b'{"ready": true}\n')
        while line := await reader.readline():
            counter.drain()
            notebook.lost += counter.lost()
            reply = notebook.snapshot()
            if json.loads(line)["do"] == "forget":
                notebook.forget()
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        serving.cancel()


def serve(control: socket.socket, interface: str, root_certificate: Path) -> None:
    """Serve until the control stream ends."""
    asyncio.run(_serve(control, interface, root_certificate))
