"""The package index of the demo's internet: tiny wheels made in memory, and the pages that lead to them.

The pages are PEP 503 (HTML) and PEP 691 (JSON), so that any pip reads them. The wheels carry the names that a
person would ask for, say in their summary that they are stand-ins, import, and know their version; nothing
else.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Final

FILES_HOST: Final = "files.pythonhosted.org"
JSON_TYPE: Final = "application/vnd.pypi.simple.v1+json"
HTML_TYPE: Final = "text/html; charset=utf-8"

PROJECTS: Final = (("httpx", "0.28.1"), ("requests", "2.32.5"), ("idna", "3.11"))

_METADATA: Final = "Metadata-Version: 2.1\n"
_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: ringfence-demo\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A distribution file and where it is served."""

    project: str
    version: str
    content: bytes

    @property
    def filename(self) -> str:
        return f"{self.project}-{self.version}-py3-none-any.whl"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def path(self) -> str:
        digest = self.digest
        return f"/packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/{self.filename}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a site answers."""

    status: int
    media_type: str
    body: bytes


NOT_FOUND: Final = Page(status=404, media_type="text/plain; charset=utf-8", body=b"404 Not Found\n")


def build_wheel(project: str, version: str) -> Wheel:
    """Return a wheel with one module that knows its version. The same bytes every time."""
    note = f"{project} {version}: a stand-in from the demo's own package index"
    record = f"{project}-{version}.dist-info"
    members = {
        f"{project}/__init__.py": f'"""{note}."""\n\n__version__ = "{version}"\n',
        f"{record}/METADATA": f"{_METADATA}Name: {project}\nVersion: {version}\nSummary: {note}\n",
        f"{record}/WHEEL": _WHEEL,
    }
    lines = [f"{name},sha256={_record_hash(text)},{len(text.encode())}" for name, text in members.items()]
    members[f"{record}/RECORD"] = "\n".join([*lines, f"{record}/RECORD,,", ""])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(2025, 1, 1, 0, 0, 0)), text)
    return Wheel(project=project, version=version, content=buffer.getvalue())


def _record_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@cache
def wheels() -> tuple[Wheel, ...]:
    """Return everything that the index holds."""
    return tuple(build_wheel(project, version) for project, version in PROJECTS)


def index_page(path: str, accept: str) -> Page:
    """Answer for pypi.org: ``/simple/`` and ``/simple/<project>/``, in the form that the client prefers."""
    if path == "/simple/":
        return _listing(accept)
    if (match := re.fullmatch(r"/simple/([A-Za-z0-9._-]+)/", path)) is None:
        return NOT_FOUND
    project = re.sub(r"[-_.]+", "-", match[1]).lower()
    found = [wheel for wheel in wheels() if wheel.project == project]
    return _project(project, found, accept) if found else NOT_FOUND


def file_page(path: str) -> Page:
    """Answer for files.pythonhosted.org."""
    for wheel in wheels():
        if wheel.path == path:
            return Page(status=200, media_type="application/octet-stream", body=wheel.content)
    return NOT_FOUND


def _listing(accept: str) -> Page:
    names = [project for project, _ in PROJECTS]
    if JSON_TYPE in accept:
        return _json({"meta": {"api-version": "1.0"}, "projects": [{"name": name} for name in names]})
    return _html("Simple index", "".join(f'<a href="/simple/{name}/">{name}</a>\n' for name in names))


def _project(project: str, found: list[Wheel], accept: str) -> Page:
    urls = {wheel: f"https://{FILES_HOST}{wheel.path}" for wheel in found}
    if JSON_TYPE in accept:
        files = [
            {"filename": wheel.filename, "url": url, "hashes": {"sha256": wheel.digest}}
            for wheel, url in urls.items()
        ]
        return _json({"meta": {"api-version": "1.0"}, "name": project, "files": files})
    links = "".join(
        f'<a href="{escape(url)}#sha256={wheel.digest}">{wheel.filename}</a><br/>\n'
        for wheel, url in urls.items()
    )
    return _html(f"Links for {project}", links)


def _json(document: object) -> Page:
    return Page(status=200, media_type=JSON_TYPE, body=json.dumps(document).encode())


def _html(title: str, links: str) -> Page:
    text = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>\n{links}</body></html>\n"
    return Page(status=200, media_type=HTML_TYPE, body=text.encode())
