"""The installation's certificate authority on disk, and what is trusted inside sandboxes.

The key is made once, written before the certificate and readable by the daemon's user alone; the gateway gets it over
its control socket, a sandbox never. Inside, the bundle holds the host's own roots, the configured extra roots and this
authority, so that clients verify intercepted and uninspected connections alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import ssl
import warnings
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
    """Implements :class:`ringfence.application.ports.Trust`. The host's roots are read once a daemon."""

    def __init__(self, certificate: bytes, extra: str) -> None:
        self._certificate = certificate
        self._extra = extra
        self._files: Mapping[str, bytes] | None = None

    async def files(self) -> Mapping[str, bytes]:
        if self._files is None:
            self._files = await asyncio.to_thread(self._make)
        return self._files

    def _make(self) -> Mapping[str, bytes]:
        parts = (_host_roots(), self._extra.encode(), self._certificate)
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
    """Return the bundle as Java reads it (PKCS #12, which a runtime since version 9 takes for a JKS)."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import NoEncryption
    from cryptography.hazmat.primitives.serialization.pkcs12 import (
        PKCS12Certificate,
        serialize_java_truststore,
    )

    certificates = []
    for number, pem in enumerate(_CERTIFICATE.findall(bundle)):
        # One root in a hundred has a serial number that RFC 5280 forbids; Java can do without it.
        with warnings.catch_warnings(), contextlib.suppress(ValueError):
            warnings.simplefilter("ignore")
            certificates.append(PKCS12Certificate(x509.load_pem_x509_certificate(pem), b"ca-%d" % number))
    return serialize_java_truststore(certificates, NoEncryption())


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
