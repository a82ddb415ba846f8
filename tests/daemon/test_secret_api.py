"""``/v1/secrets`` of a real daemon: values go in, and come out nowhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_process import Home, installed

CANARY = "sk-canary-5f2a7c"


@pytest.fixture(scope="module")
def shared() -> Iterator[Home]:
    with installed() as home:
        home.configure('runtime = "fake"\n[secrets]\nbackend = "file"\n')
        home.start()
        home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})
        home.must("POST", "/v1/sandboxes", {"agent": "shell", "name": "lab"})
        yield home


@pytest.fixture
def home(shared: Home) -> Iterator[Home]:
    yield shared
    for scope in ("", "lab"):
        shared.must("DELETE", "/v1/secrets", {"everything": True, "sandbox": scope})


def holding(root: Path, needle: bytes) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_set_list_remove(home: Home) -> None:
    made = home.must("PUT", "/v1/secrets/service", {"service": "openai", "text": CANARY})
    assert made["warnings"] == []
    assert made["secret"].items() >= {"scope": "global", "type": "service", "secret": "****...****"}.items()
    home.must(
        "PUT",
        "/v1/secrets/custom",
        {"env": "TOKEN", "hosts": ["*.example.com"], "text": CANARY, "sandbox": "lab"},
    )
    home.must("PUT", "/v1/secrets/registry", {"registry": "ghcr.io", "username": "ada", "text": CANARY})
    listing = home.must("GET", "/v1/secrets")
    assert [(each["scope"], each["name"]) for each in listing["secrets"]] == [
        ("global", "openai"),
        ("host only", "ghcr.io"),
    ]
    (custom,) = listing["custom_secrets"]
    assert (custom["env"], custom["targets"], custom["scope"]) == ("TOKEN", ["*.example.com"], "lab")
    assert custom["placeholder"].startswith("sbx-cs-")
    assert len(custom["placeholder"]) == 23
    detail = home.must("GET", "/v1/sandboxes/lab")
    assert [each["name"] for each in detail["secrets"]] == ["openai", "TOKEN"]
    assert detail["environment"]["TOKEN"] == custom["placeholder"]
    assert CANARY not in json.dumps([listing, detail, home.must("GET", "/v1/doctor")])
    removed = home.must("DELETE", "/v1/secrets", {"name": "openai"})["removed"]
    assert [each["name"] for each in removed] == ["openai"]


def test_a_value_is_in_no_file_no_log_and_no_process(home: Home) -> None:
    home.must("PUT", "/v1/secrets/service", {"service": "anthropic", "text": CANARY})
    home.must("POST", "/v1/sandboxes/lab/start")
    state = home.must("GET", "/v1/daemon")
    for pid in (state["pid"], *(worker["pid"] for worker in state["gateway"]["workers"] if worker["pid"])):
        for name in ("cmdline", "environ"):
            assert CANARY.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert holding(home.root, CANARY.encode()) == []
    assert holding(home.root, b'"secret set"'), "the ledger has the act"
    home.must("POST", "/v1/sandboxes/lab/stop")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/v1/secrets/service", {"service": "nope", "text": CANARY}, 400, "service"),
        (
            "PUT",
            "/v1/secrets/service",
            {"service": "openai", "text": f"{CANARY}\n{CANARY}"},
            400,
            "secret-value",
        ),
        ("PUT", "/v1/secrets/service", {"service": "openai"}, 400, "invalid"),
        ("PUT", "/v1/secrets/service", {"service": "openai", "txt": CANARY}, 400, "invalid-request"),
        ("PUT", "/v1/secrets/service", {"service": "openai", "text": [CANARY]}, 400, "invalid-request"),
        (
            "PUT",
            "/v1/secrets/service",
            {"service": "openai", "text": CANARY * 30_000},
            400,
            "invalid-request",
        ),
        ("PUT", "/v1/secrets/service", f'{{"service": "openai", "text": "{CANARY}', 400, "invalid-request"),
        (
            "PUT",
            "/v1/secrets/service",
            {"service": "openai", "text": CANARY, "sandbox": "no"},
            404,
            "sandbox-not-found",
        ),
        (
            "PUT",
            "/v1/secrets/service",
            {"service": "openai", "command": ["/no/such/x"]},
            503,
            "secret-command",
        ),
        ("PUT", "/v1/secrets/custom", {"env": "X", "hosts": ["*.com"], "text": CANARY}, 400, "secret-host"),
        ("PUT", "/v1/secrets/custom", {"env": "X", "hosts": ["**"], "text": CANARY}, 400, "invalid"),
        ("DELETE", "/v1/secrets", {"name": "openai"}, 404, "secret-not-found"),
        ("GET", "/v1/secrets?sandbox=nobody", None, 404, "sandbox-not-found"),
    ],
)
def test_failures_say_what_is_wrong_and_never_the_value(
    home: Home, method: str, path: str, body: object, status: int, code: str
) -> None:
    answer = home.ask(method, path, body)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert CANARY.encode() not in answer.body
    assert CANARY not in home.log


def test_a_command_is_run_by_the_daemon_and_made_again_after_a_restart(home: Home, tmp_path: Path) -> None:
    script = tmp_path / "mint"
    script.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\necho {CANARY}\n")
    script.chmod(0o755)
    made = home.must("PUT", "/v1/secrets/service", {"service": "github", "command": [str(script)]})
    assert made["secret"]["source"] == [str(script)]
    home.must("POST", "/v1/sandboxes/lab/start")
    assert (tmp_path / "runs").read_text() == "run\n", "what was made when it was stored counts"
    script.write_text("#!/bin/sh\nexit 3\n")
    answer = home.ask("PUT", "/v1/secrets/service", {"service": "github", "command": [str(script)]})
    assert answer.json["detail"] == f"the command made no value: `{script}` left with 3; nothing was stored"
    home.must("POST", "/v1/sandboxes/lab/stop")


def test_doctor_says_where_secrets_are_kept_and_why(home: Home) -> None:
    checks = {check["name"]: check for check in home.must("GET", "/v1/doctor")["checks"]}
    message = checks["secrets"]["message"]
    assert message == '0 kept with a key in `key-file` (`secrets.backend = "file"`: it was chosen)'
    assert "whoever can read your files does" in checks["secrets"]["detail"]


def test_secrets_outlive_the_daemon_and_a_damaged_file_lets_nobody_out() -> None:
    with installed() as home:
        home.configure('runtime = "fake"\n[secrets]\nbackend = "file"\n')
        process = home.start()
        home.must("PUT", "/v1/policy/preset", {"preset": "balanced"})
        home.must("POST", "/v1/sandboxes", {"agent": "shell", "name": "lab"})
        home.must("PUT", "/v1/secrets/service", {"service": "openai", "text": CANARY})
        home.end(process)
        process = home.start()
        assert [each["name"] for each in home.must("GET", "/v1/secrets")["secrets"]] == ["openai"]
        home.end(process)
        sealed = home.root / "state/secrets/sealed"
        content = bytearray(sealed.read_bytes())
        content[len(content) // 2] ^= 1
        sealed.write_bytes(content)
        os.chmod(sealed, 0o600)
        home.start()
        answer = home.ask("POST", "/v1/sandboxes/lab/start")
        assert (answer.status, answer.json["code"]) == (503, "secrets-unread")
        assert "it was changed, or it was sealed with another key" in answer.json["detail"]
        assert "move it away" in answer.json["hint"]
        assert home.must("GET", "/v1/sandboxes")["sandboxes"][0]["status"] == "stopped"
