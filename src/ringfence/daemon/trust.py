"""The installation's certificate authority on disk, and what is trusted inside sandboxes.

The key is made once, written before the certificate and readable by the daemon's user alone; the gateway gets it over
its control socket, a sandbox never. Inside, the bundle holds the host's own roots, the configured extra roots and this
authority, so that clients verify intercepted and uninspected connections alike.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.sandbox.environment import BUNDLE, JAVA_TRUST, OWN_CERTIFICATE

_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)
"""Where distributions keep their bundle: Debian, Fedora, Alpine, SUSE."""
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_JKS_MAGIC, _JKS_TRUSTED = 0xFEEDFEED, 2
_JKS_SALT = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"
"""What the store's digest begins with: Java's default password, and a constant of the format. It guards nothing."""
_INSIDE = (BUNDLE, "/etc/pki/tls/certs/ca-bundle.crt")


def load_authority(directory: Path, create: Callable[[], tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Return key and certificate (PEM), made on first need. The pair is one directory, renamed into place whole."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    try:
        if not directory.is_dir():
            making = directory.with_name(f"{directory.name}.new")
            shutil.rmtree(making, ignore_errors=True)  # of a start that died here; the lock is ours
            making.mkdir(mode=0o700)
            made = create()
            for name, content in zip((key.name, certificate.name), made, strict=True):
                _write(making / name, content)
            _sync(making)
            making.rename(directory)
            _sync(directory.parent)
        if key.stat().st_mode & 0o077:
            raise Unavailable(
                f"the authority's key `{key}` can be read by others",
                hint=f"`chmod 600 {key}`",
                code="authority",
            )
        return key.read_bytes(), certificate.read_bytes()
    except OSError as error:
        raise Unavailable(
            f"the certificate authority in `{directory}` cannot be used: {error.strerror}",
            hint="restore it from a backup, or move it away: a new one is made at the next start",
            code="authority",
        ) from error


def extra_roots(paths: Sequence[str]) -> str:
    """Return the configured roots as one PEM text. Raises ``InvalidInput`` for a file that holds none."""
    texts = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="ascii")
            ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=text)
        except (OSError, ValueError, ssl.SSLError) as error:
            raise InvalidInput(
                f"`tls.extra_ca`: `{path}` holds no certificates: {error}",
                hint="name a file of PEM certificates",
            ) from error
        texts.append(text)
    return "\n".join(texts)


class TrustStore:
    """Implements :class:`ringfence.application.ports.Trust`. ``extra`` are the further roots that count at the moment;
    the host's own are read once for each such moment."""

    def __init__(self, certificate: bytes, extra: Callable[[], str]) -> None:
        self._certificate = certificate
        self._extra = extra
        self._files: tuple[str, Mapping[str, bytes]] | None = None

    async def files(self) -> Mapping[str, bytes]:
        extra = self._extra()
        if self._files is None or self._files[0] != extra:
            self._files = extra, await asyncio.to_thread(self._make, extra)
        return self._files[1]

    def _make(self, extra: str) -> Mapping[str, bytes]:
        parts = (_host_roots(), extra.encode(), self._certificate)
        bundle = b"\n".join(part.strip() for part in parts if part.strip()) + b"\n"
        return {
            **dict.fromkeys(_INSIDE, bundle),
            OWN_CERTIFICATE: self._certificate,
            JAVA_TRUST: _java_store(bundle),
        }


def _host_roots() -> bytes:
    for path in _ROOTS:
        try:
            return Path(path).read_bytes()
        except OSError:
            continue
    return b""  # a host without roots: intercepted connections are verified by the gateway all the same


def _java_store(bundle: bytes) -> bytes:
    """Return the bundle as Java reads it: the JKS format, which every version takes at its default place.

    Not PKCS #12, although newer: a store of that kind without a password cannot be opened with one, and programs
    that name Java's own default, ``changeit`` (``keytool``, build tools), do. A certificate is only framed here, so
    one that a parser would refuse is no reason to fail.
    """
    trusted = [
        ssl.PEM_cert_to_DER_cert(pem.decode("ascii")) for pem in dict.fromkeys(_CERTIFICATE.findall(bundle))
    ]
    store = struct.pack(">III", _JKS_MAGIC, 2, len(trusted)) + b"".join(
        struct.pack(">I", _JKS_TRUSTED)
        + _java_text(f"ca-{number}")
        + struct.pack(">Q", 0)
        + _java_text("X.509")
        + struct.pack(">I", len(der))
        + der
        for number, der in enumerate(trusted)
    )
    return store + hashlib.sha1(_JKS_SALT + store, usedforsecurity=False).digest()


def _java_text(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode("ascii")


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
