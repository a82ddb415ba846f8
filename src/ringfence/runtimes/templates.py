"""Templates: the read-only root file systems that sandboxes are made from.

A template is a stack of layers for ``/`` and, where the host's own directories are used in place, for each of
those; :mod:`ringfence.runtimes.rootfs` puts every sandbox's private writable layer on top. There are two:

* ``host`` is there at once: the host's own programs and libraries (:mod:`ringfence.runtimes.hostroot`).
* ``debian`` is built once from packages with mmdebstrap, from wherever the host's own apt takes its packages.

What is built is built beside its place and renamed into it, so a template is whole or absent.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.application.errors import NotFound, Unavailable
from ringfence.runtimes import accounts, hostroot, kernel
from ringfence.runtimes.identity import identity_of

Progress = Callable[[str], None]

NAMES: Final = ("host", "debian")
_PACKAGES: Final = (
    "bash,ca-certificates,curl,git,iproute2,less,locales-all,nano,netbase,openssh-client,procps,"
    "python3,python3-pip,python3-venv,python-is-python3"
)
_LINE: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What is under a directory of the sandbox: read-only directories of the host, the uppermost first."""

    target: str
    lowers: tuple[str, ...]


class Templates:
    """The templates of one installation, under ``<data>/templates/``."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._building = asyncio.Lock()
        self._host: hostroot.HostRoot | None = None

    async def prepare(self, name: str, progress: Progress = lambda _: None) -> None:
        """Make a template usable; at once when it is. Raises ``NotFound`` or ``Unavailable``."""
        async with self._building:
            if name == "host":
                place, known = self._directory / "host", self._host
                self._host = await kernel.apart(lambda: hostroot.build(place, known), name="template")
            elif name == "debian":
                if not self._debian.is_dir():
                    await _build_debian(self._debian, progress)
            else:
                raise NotFound(f"no template `{name}`", hint=f"there are {', '.join(NAMES)}")

    @property
    def _debian(self) -> Path:
        return self._directory / "debian"

    def layers(self, name: str) -> tuple[Layer, ...]:
        """The stack of a prepared template, ``/`` first."""
        if name == "host" and self._host is not None:
            return tuple(Layer(target=target, lowers=lowers) for target, lowers in self._host.layers)
        if name == "debian" and self._debian.is_dir():
            return (Layer(target="/", lowers=(str(self._debian),)),)
        raise NotFound(f"template `{name}` is not prepared", hint=f"there are {', '.join(NAMES)}")

    def notes(self, name: str) -> tuple[str, ...]:
        """What a person should know about a prepared template, for ``sbx doctor``."""
        return self._host.notes if name == "host" and self._host is not None else ()


@dataclass(frozen=True, slots=True)
class _Source:
    address: str
    release: str
    key: str


async def _sources() -> tuple[_Source, ...]:
    """Where this host's apt takes packages of its own release from, as apt itself understands its configuration."""
    status, output = await _run(
        ("apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"),
        ("Created-By: Packages",),
    )
    rows = [line.split("|") for line in output.splitlines()]
    found = dict.fromkeys(
        _Source(address, release, key)
        for address, release, component, key in (row for row in rows if len(row) == 4)
        if component == "main"
    )
    if status or not found:
        raise Unavailable(
            "cannot tell where this host takes its packages from",
            hint="the `debian` template needs a Debian host with apt sources; the `host` template needs nothing",
        )
    return tuple(found)


async def _build_debian(place: Path, progress: Progress) -> None:
    if shutil.which("mmdebstrap") is None:
        raise Unavailable("mmdebstrap is not installed", hint="install it: apt-get install mmdebstrap")
    sources = await _sources()
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.with_name(f".debian-{secrets.token_hex(6)}")
    lines = [
        f"deb {f'[signed-by={source.key}] ' if source.key.startswith('/') else ''}"
        f"{source.address} {source.release} main"
        for source in sources
    ]
    progress("building the `debian` template: about a minute, once")
    try:
        status, output = await _run(
            (
                "mmdebstrap",
                "--variant=minbase",
                f"--include={_PACKAGES}",
                '--aptopt=Acquire::Retries "3"',
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--format=directory",
                sources[0].release.partition("-")[0],
                str(scratch),
                "-",
            ),
            input_lines=lines,
            progress=progress,
        )
        if status:
            last = [line for line in output.splitlines() if line.startswith("E:")] or output.splitlines()
            raise Unavailable(
                f"cannot build the `debian` template: {last[-1] if last else 'mmdebstrap failed'}",
                hint="the `host` template needs no packages",
            )
        await kernel.apart(lambda: _finish_debian(scratch), name="template")
        with suppress(FileExistsError):  # somebody else built it meanwhile
            scratch.rename(place)
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
    progress("the `debian` template is ready")


def _finish_debian(root: Path) -> None:
    """What a sandbox needs beyond the packages: its user, and no state of the build."""
    kernel.plain_umask()
    accounts.add_agent(root)
    for pattern in ("usr/lib/python3*/EXTERNALLY-MANAGED", "var/cache/apt/archives/*.deb", "dev/*"):
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    with suppress(FileNotFoundError):
        (root / "etc/machine-id").write_text("")
    root.chmod(0o755)
    identity_of("").shift(str(root))


async def _run(
    command: tuple[str, ...],
    arguments: Iterable[str] = (),
    *,
    input_lines: Iterable[str] = (),
    progress: Progress = lambda _: None,
) -> tuple[int, str]:
    """Run a program to its end and return its exit status and the end of what it printed."""
    try:
        program = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **_proxies()},
            limit=1 << 20,
        )
    except FileNotFoundError as error:
        raise Unavailable(f"`{command[0]}` is not installed", hint=f"install {command[0]}") from error
    assert program.stdin is not None
    assert program.stdout is not None
    kept: list[str] = []
    try:
        program.stdin.write("".join(f"{line}\n" for line in input_lines).encode())
        program.stdin.close()
        async for line in program.stdout:
            text = line.decode(errors="replace").rstrip()[:_LINE]
            kept = [*kept[-199:], text]
            progress(text)
        return await program.wait(), "\n".join(kept)
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()


def _proxies() -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    return {name: os.environ[name] for name in names if name in os.environ}
