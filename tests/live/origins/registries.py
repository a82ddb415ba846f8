"""Package registries in the shape that unchanged clients expect: npm, crates.io, Debian, a container registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from base64 import b64encode

from tests.live.origins.exchange import Exchange, Site


def archive(members: dict[str, str], *, compressed: bool = True) -> bytes:
    """Return a tar file of these texts (and directories, which end with a slash), the same bytes every time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, text in members.items():
            if name.endswith("/"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
                continue
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(buffer.getvalue(), mtime=0) if compressed else buffer.getvalue()


async def missing(exchange: Exchange) -> None:
    await exchange.answer(b'{"error": "not found"}\n', 404, content_type="application/json")


# -- npm ------------------------------------------------------------------------------------------------------

NPM_HOST = "registry.npmjs.org"
_PAD = archive(
    {
        "package/package.json": json.dumps({"name": "left-pad", "version": "1.3.0", "main": "index.js"}),
        "package/index.js": "module.exports = (text, width) => String(text).padStart(width)\n",
    }
)
_PAD_PATH = "/left-pad/-/left-pad-1.3.0.tgz"
_PAD_VERSION = {
    "name": "left-pad",
    "version": "1.3.0",
    "main": "index.js",
    "dist": {
        "tarball": f"https://{NPM_HOST}{_PAD_PATH}",
        "shasum": hashlib.sha1(_PAD, usedforsecurity=False).hexdigest(),
        "integrity": f"sha512-{b64encode(hashlib.sha512(_PAD).digest()).decode()}",
    },
}
_PAD_DOCUMENT = {
    "name": "left-pad",
    "dist-tags": {"latest": "1.3.0"},
    "versions": {"1.3.0": _PAD_VERSION},
}


async def npm(exchange: Exchange) -> None:
    """``registry.npmjs.org`` with one package; whoever publishes is thanked."""
    match exchange.method, exchange.path:
        case "GET", "/left-pad":
            await exchange.answer(json.dumps(_PAD_DOCUMENT).encode(), content_type="application/json")
        case "GET", path if path == _PAD_PATH:
            await exchange.answer(_PAD, content_type="application/octet-stream")
        case "PUT", _:
            await exchange.read()
            await exchange.answer(b'{"ok": true}', 201, content_type="application/json")
        case _:
            await missing(exchange)


# -- cargo ----------------------------------------------------------------------------------------------------

INDEX_HOST, CRATES_HOST = "index.crates.io", "static.crates.io"
_CRATE = archive(
    {
        "itoa-1.0.9/Cargo.toml": '[package]\nname = "itoa"\nversion = "1.0.9"\nedition = "2021"\n',
        "itoa-1.0.9/src/lib.rs": "pub fn seven() -> u8 { 7 }\n",
    }
)
_CRATE_LINE = {
    "name": "itoa",
    "vers": "1.0.9",
    "deps": [],
    "cksum": hashlib.sha256(_CRATE).hexdigest(),
    "features": {},
    "yanked": False,
}


async def crates(exchange: Exchange) -> None:
    """The sparse index of crates.io, and the host that its ``config.json`` names for downloads."""
    match exchange.host, exchange.path:
        case "index.crates.io", "/config.json":
            settings = {"dl": f"https://{CRATES_HOST}/crates", "api": "https://crates.io"}
            await exchange.answer(json.dumps(settings).encode(), content_type="application/json")
        case "index.crates.io", "/it/oa/itoa":
            await exchange.answer(json.dumps(_CRATE_LINE).encode() + b"\n")
        case "static.crates.io", "/crates/itoa/1.0.9/download" | "/crates/itoa/itoa-1.0.9.crate":
            await exchange.answer(_CRATE, content_type="application/gzip")
        case _:
            await missing(exchange)


# -- Debian ---------------------------------------------------------------------------------------------------


def _member(name: str, content: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    return head + content + b"\n" * (len(content) % 2)


_CONTROL = """Package: greeting
Version: 1.0
Architecture: all
Maintainer: Origin <origin@clients.example>
Description: a stand-in from a test's own archive
"""
_DATA = {
    "./usr/": "",
    "./usr/share/": "",
    "./usr/share/greeting/": "",
    "./usr/share/greeting/hello": "hello\n",
}
_DEB = b"!<arch>\n" + b"".join(
    (
        _member("debian-binary", b"2.0\n"),
        _member("control.tar.gz", archive({"./control": _CONTROL})),
        _member("data.tar.gz", archive(_DATA)),
    )
)
_DEB_PATH = "pool/greeting_1.0_all.deb"
_PACKAGES = (
    f"{_CONTROL}Filename: {_DEB_PATH}\nSize: {len(_DEB)}\nSHA256: {hashlib.sha256(_DEB).hexdigest()}\n\n"
).encode()
_ARCHIVE = {
    "/debian/dists/stable/Release": (
        "Suite: stable\nCodename: stable\nComponents: main\nArchitectures: amd64 arm64 all\n"
        "Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
        + "".join(
            f" {hashlib.sha256(_PACKAGES).hexdigest()} {len(_PACKAGES)} main/binary-{arch}/Packages\n"
            for arch in ("amd64", "arm64", "all")
        )
    ).encode(),
    **{f"/debian/dists/stable/main/binary-{arch}/Packages": _PACKAGES for arch in ("amd64", "arm64", "all")},
    f"/debian/{_DEB_PATH}": _DEB,
}


async def debian(exchange: Exchange) -> None:
    """An unsigned archive with one package."""
    if content := _ARCHIVE.get(exchange.path):
        await exchange.answer(content, content_type="application/octet-stream")
    else:
        await missing(exchange)


# -- Go -------------------------------------------------------------------------------------------------------


def _zip(members: dict[str, str]) -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, text in members.items():
            packed.writestr(zipfile.ZipInfo(name, date_time=(2025, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()


_MODULE = "module example.org/seven\n\ngo 1.20\n"
_MODULES = {
    "/example.org/seven/@v/list": b"v1.0.0\n",
    "/example.org/seven/@v/v1.0.0.info": b'{"Version": "v1.0.0", "Time": "2025-01-01T00:00:00Z"}',
    "/example.org/seven/@v/v1.0.0.mod": _MODULE.encode(),
    "/example.org/seven/@v/v1.0.0.zip": _zip(
        {
            "example.org/seven@v1.0.0/go.mod": _MODULE,
            "example.org/seven@v1.0.0/seven.go": "package seven\n\nfunc Seven() int { return 7 }\n",
        }
    ),
}


async def golang(exchange: Exchange) -> None:
    """``proxy.golang.org`` with one module."""
    if content := _MODULES.get(exchange.path):
        await exchange.answer(content, content_type="application/octet-stream")
    else:
        await missing(exchange)


# -- containers -----------------------------------------------------------------------------------------------

_LAYER = archive({"hello": "hello\n"})
_LAYER_DIGEST = f"sha256:{hashlib.sha256(_LAYER).hexdigest()}"
_CONFIG = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}).encode()
_CONFIG_DIGEST = f"sha256:{hashlib.sha256(_CONFIG).hexdigest()}"
_TYPE = "application/vnd.oci.image"
_MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": {"mediaType": f"{_TYPE}.config.v1+json", "digest": _CONFIG_DIGEST, "size": len(_CONFIG)},
        "layers": [{"mediaType": f"{_TYPE}.layer.v1.tar+gzip", "digest": _LAYER_DIGEST, "size": len(_LAYER)}],
    }
).encode()
_STORE = "production.cloudfront.docker.com"
_BLOBS = {_LAYER_DIGEST: _LAYER, _CONFIG_DIGEST: _CONFIG}


async def containers(exchange: Exchange) -> None:
    """Docker Hub's three hosts: tokens, manifests, and blobs behind a redirect."""
    path = exchange.path
    if exchange.host == "auth.docker.io":
        await exchange.answer(b'{"token": "t0ken"}', content_type="application/json")
    elif exchange.host == _STORE:
        await exchange.answer(_BLOBS[path.rpartition("/")[2]], content_type="application/octet-stream")
    elif exchange.headers.get("authorization") != "Bearer t0ken":
        realm = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'
        await exchange.answer(b"{}", 401, www_authenticate=realm, content_type="application/json")
    elif path == "/v2/library/hello/manifests/latest":
        digest = f"sha256:{hashlib.sha256(_MANIFEST).hexdigest()}"
        await exchange.answer(
            _MANIFEST, content_type=f"{_TYPE}.manifest.v1+json", docker_content_digest=digest
        )
    elif path.startswith("/v2/library/hello/blobs/"):
        place = f"https://{_STORE}/{path.rpartition('/')[2]}"
        await exchange.answer(b"", 307, location=place)
    else:
        await missing(exchange)


REGISTRIES: dict[str, Site] = {
    NPM_HOST: npm,
    INDEX_HOST: crates,
    CRATES_HOST: crates,
    "deb.debian.org": debian,
    "security.debian.org": debian,
    "proxy.golang.org": golang,
    "registry-1.docker.io": containers,
    "auth.docker.io": containers,
    _STORE: containers,
}
