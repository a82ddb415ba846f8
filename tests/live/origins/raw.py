"""Git over ssh, served by asyncssh: ``python3 raw.py ADDRESS DIRECTORY``. Whoever has the one key is let in.

Run by the python3 that has asyncssh, not by the tests' own. ``DIRECTORY`` gets the keys and has the repositories
(:func:`tests.live.origins.git.prepare`).
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from pathlib import Path

import asyncssh


async def serve(address: str, directory: Path) -> None:
    host, person = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (directory / "client_key").write_bytes(person.export_private_key())
    (directory / "client_key.pub").write_bytes(person.export_public_key())
    (directory / "host_key.pub").write_bytes(host.export_public_key())

    async def attend(channel: asyncssh.SSHServerProcess[bytes]) -> None:
        program, repository = shlex.split(channel.command or "")
        assert program in {"git-upload-pack", "git-receive-pack"}
        place = directory / "git" / repository.lstrip("/")
        running = await asyncio.create_subprocess_exec(
            program, str(place), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await channel.redirect(stdin=running.stdin, stdout=running.stdout)
        channel.exit(await running.wait())

    await asyncssh.create_server(
        asyncssh.SSHServer,
        address,
        22,
        server_host_keys=[host],
        authorized_client_keys=str(directory / "client_key.pub"),
        process_factory=attend,
        encoding=None,
    )
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
