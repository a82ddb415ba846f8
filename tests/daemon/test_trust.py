"""The authority on disk and the trust store inside."""

from __future__ import annotations

import asyncio
import hashlib
import io
import ssl
import struct
from pathlib import Path

import pytest

from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.daemon.trust import TrustStore, extra_roots, load_authority
from ringfence.gateway.authority import create_authority
from ringfence.sandbox.environment import BUNDLE, JAVA_TRUST, OWN_CERTIFICATE


def made() -> tuple[bytes, bytes]:
    return create_authority(now=1_700_000_000.0)


def test_the_authority_is_made_once_and_its_key_is_nobody_elses(tmp_path: Path) -> None:
    directory = tmp_path / "ca"
    first = load_authority(directory, made)
    assert load_authority(directory, made) == first
    assert (directory / "key.pem").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    (directory / "key.pem").chmod(0o640)
    with pytest.raises(Unavailable, match="can be read by others"):
        load_authority(directory, made)


def test_an_authority_that_lost_a_half_is_not_replaced_by_itself(tmp_path: Path) -> None:
    load_authority(tmp_path / "ca", made)
    (tmp_path / "ca" / "certificate.pem").unlink()
    with pytest.raises(Unavailable, match="cannot be used"):
        load_authority(tmp_path / "ca", made)


def test_a_start_that_dies_while_making_it_leaves_nothing_that_counts(tmp_path: Path) -> None:
    def dies() -> tuple[bytes, bytes]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_authority(tmp_path / "ca", dies)
    assert not (tmp_path / "ca").exists()
    load_authority(tmp_path / "ca", made)


def test_inside_the_hosts_roots_the_extra_ones_and_ours_are_trusted_and_no_key_is_there(
    tmp_path: Path,
) -> None:
    _, ours = made()
    _, extra = made()
    files = asyncio.run(TrustStore(ours, extra.decode).files())
    bundle = files[BUNDLE]
    assert ours.strip() in bundle
    assert extra.strip() in bundle
    assert files[OWN_CERTIFICATE] == ours
    assert not any(b"PRIVATE" in content for content in files.values())
    assert {ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in (ours, extra)} <= set(
        in_java(files[JAVA_TRUST])
    )


def in_java(store: bytes) -> list[bytes]:
    """What a JVM finds in its store: Java's default password fits, every entry is a certificate."""
    salted = "changeit".encode("utf-16-be") + b"Mighty Aphrodite" + store[:-20]
    assert store[-20:] == hashlib.sha1(salted, usedforsecurity=False).digest()
    rest = io.BytesIO(store[:-20])
    magic, version, count = struct.unpack(">III", rest.read(12))
    assert (magic, version) == (0xFEEDFEED, 2)
    found, names = [], set()
    for _ in range(count):
        assert rest.read(4) == b"\0\0\0\2", "a trusted certificate"
        names.add(rest.read(int.from_bytes(rest.read(2), "big")))
        assert int.from_bytes(rest.read(8), "big") == 0, "the same bytes whenever it is made"
        assert rest.read(int.from_bytes(rest.read(2), "big")) == b"X.509"
        found.append(rest.read(int.from_bytes(rest.read(4), "big")))
    assert (rest.read(), len(names)) == (b"", count)
    return found


def test_a_file_without_certificates_is_no_root(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    with pytest.raises(InvalidInput, match="holds no certificates"):
        extra_roots([str(path)])
    path.write_text("nothing")
    with pytest.raises(InvalidInput, match="holds no certificates"):
        extra_roots([str(path)])
    path.write_bytes(made()[1])
    assert "BEGIN CERTIFICATE" in extra_roots([str(path)])
