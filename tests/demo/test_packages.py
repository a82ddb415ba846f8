"""The demo's package index: real wheels, pages that any pip reads."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import zipfile

import pytest

from ringfence.demo.internet.packages import HTML_TYPE, JSON_TYPE, build_wheel, file_page, index_page, wheels

PIP_ACCEPTS = f"{JSON_TYPE}, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01"


@pytest.mark.parametrize("wheel", wheels(), ids=lambda wheel: wheel.filename)
def test_a_wheels_record_is_true(wheel) -> None:
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        assert archive.testzip() is None
        record = f"{wheel.project}-{wheel.version}.dist-info/RECORD"
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
        assert {name for name, _, _ in rows} == set(archive.namelist())
        for name, digest, size in rows:
            if name != record:
                content = archive.read(name)
                expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={expected}", str(len(content)))


def test_a_wheel_imports_and_knows_its_version() -> None:
    with zipfile.ZipFile(io.BytesIO(build_wheel("httpx", "0.28.1").content)) as archive:
        module: dict[str, str] = {}
        exec(archive.read("httpx/__init__.py"), module)
    assert module["__version__"] == "0.28.1"


def test_a_wheel_is_the_same_bytes_every_time() -> None:
    assert build_wheel("httpx", "0.28.1").content == build_wheel("httpx", "0.28.1").content


def test_json_pages_lead_to_files_with_their_hash() -> None:
    page = index_page("/simple/httpx/", PIP_ACCEPTS)
    assert (page.status, page.media_type) == (200, JSON_TYPE)
    (file,) = json.loads(page.body)["files"]
    content = file_page(file["url"].removeprefix("https://files.pythonhosted.org")).body
    assert hashlib.sha256(content).hexdigest() == file["hashes"]["sha256"]


def test_html_pages_lead_to_the_same_files() -> None:
    page = index_page("/simple/httpx/", "text/html")
    assert (page.status, page.media_type) == (200, HTML_TYPE)
    (path, digest), *_ = re.findall(
        r'href="https://files\.pythonhosted\.org([^"#]+)#sha256=(\w+)"', page.body.decode()
    )
    assert hashlib.sha256(file_page(path).body).hexdigest() == digest


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/simple/", 200),
        ("/simple/httpx/", 200),
        ("/simple/HTTPX/", 200),
        ("/simple/httpx", 404),
        ("/simple/nothing/", 404),
        ("/simple/../httpx/", 404),
        ("/", 404),
    ],
)
def test_what_the_index_knows(path: str, status: int) -> None:
    assert index_page(path, "text/html").status == status


def test_a_file_that_is_not_there_is_not_found() -> None:
    assert file_page("/packages/aa/bb/cc/httpx-0.28.1-py3-none-any.whl").status == 404
