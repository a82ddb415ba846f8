"""A daemon with a memory and no machine: the API over a real Unix socket, its state in plain attributes.

It keeps the promises that the command line relies on (names are unique, ids are found with and without
``local:``, problems have one shape) and none of the work behind them. Tests put state in and look at what
came of it. Run as a program (``fake_daemon.py listen``, ``crash``) it is a daemon to start.
"""

from __future__ import annotations

import json
import os
import re
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

VERSION = "0.1.0"
CREATED = 1_777_554_245.0
PRESETS = [
    {"name": "Open", "value": "allow-all", "line": "1. Open — All network traffic allowed, no restrictions."},
    {
        "name": "Balanced",
        "value": "balanced",
        "line": "2. Balanced — Default deny, with common dev sites allowed.",
    },
    {
        "name": "Locked Down",
        "value": "deny-all",
        "line": "3. Locked Down — All network traffic blocked unless you allow it.",
    },
]


class Problem(Exception):
    def __init__(self, status: int, code: str, detail: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(detail)
        self.status = status
        self.document = {
            "type": "about:blank",
            "title": code,
            "status": status,
            "code": code,
            "detail": detail,
            "hint": hint,
            "exit_code": exit_code,
        }


def no_sandbox(name: str) -> Problem:
    return Problem(404, "sandbox-not-found", f"sandbox `{name}` not found", exit_code=3)


def sandbox(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"00000000-0000-4000-8000-{abs(hash(name)) % 10**12:012d}",
        "name": name,
        "agent": "shell",
        "status": "stopped",
        "isolation": "user-kernel",
        "runtime": "gvisor",
        "enforcement": "off",
        "anonymous": False,
        "workspaces": ["/home/ada/proj"],
        "created": CREATED,
        "socket_path": f"/run/sbx/{name}/sessions.sock",
        **changes,
    }


def rule(
    identity: str, *resources: str, decision: str = "allow", origin: str = "local", **changes: Any
) -> dict[str, Any]:
    preset = origin == "preset"
    return {
        "id": identity,
        "name": identity if preset else "",
        "policy_id": "preset-policy" if preset else "local-policy",
        "scope": origin if origin.startswith("sandbox:") else "global",
        "applies_to": origin if origin.startswith("sandbox:") else "all",
        "resource_type": "network",
        "decision": decision,
        "resources": list(resources),
        "origin": origin,
        "layer": "local",
        "status": "active",
        "active": True,
        "editable": not preset,
        "provenance": {"created_via": "default" if preset else "added"},
        "actions": ["net:connect:tcp"],
        "transports": ["tcp"] if decision == "allow" else ["tcp", "udp"],
        "mode": "enforce",
        "warnings": [],
        **changes,
    }


class FakeDaemon:
    """The state, and the routes over it. ``calls`` is every request as ``METHOD /path``, with its body."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.version, self.api = VERSION, 1
        self.sandboxes: dict[str, dict[str, Any]] = {}
        self.rules: list[dict[str, Any]] = []
        self.preset: str | None = "balanced"
        self.require_init = False
        self.governance: dict[str, Any] | None = None
        self.secrets: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.live: list[dict[str, Any]] = []
        self.checked: dict[str, Any] = {}
        self.doctor = {
            "version": VERSION,
            "checks": [],
            "summary": {"pass": 0, "warn": 0, "fail": 0, "skip": 0},
        }
        self.explained: dict[str, Any] = {}
        self.documents: dict[str, Any] = {}
        self.refusal: Problem | None = None
        """Raised by the next request that would change something."""
        self.calls: list[tuple[str, Any]] = []
        self.stopped = threading.Event()
        self.ids = iter(f"9701dc6e-0000-4000-8000-{n:012d}" for n in range(1, 10_000))
        self._server = _Server(self)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.socket_path.unlink(missing_ok=True)

    def asked(self, call: str) -> list[Any]:
        """The bodies of the requests ``METHOD /path`` so far."""
        return [body for name, body in self.calls if name == call]

    # What the routes do

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        self.calls.append((f"{method} {path}", body))
        if self.refusal and method != "GET":
            refusal, self.refusal = self.refusal, None
            raise refusal
        for verb, pattern, act in ROUTES:
            found = re.fullmatch(pattern, path)
            if verb == method and found:
                return act(self, query, body, *map(unquote, found.groups()))
        raise Problem(404, "no-route", f"no route {method} {path}", exit_code=1)

    def state(self, _query: Any, _body: Any) -> Any:
        return {
            "version": self.version,
            "pid": 4711,
            "started": CREATED,
            "api": self.api,
            "socket": str(self.socket_path),
            "state_dir": "/home/ada/.local/state/ringfence",
            "enforcement": "advisory",
            "gateway": {"pid": 4712, "alive": True},
        }

    def list(self, _query: Any, _body: Any) -> Any:
        return {"sandboxes": list(self.sandboxes.values())}

    def create(self, _query: Any, body: Any) -> Any:
        self._initialised()
        if body["agent"] not in ("shell", "claude"):
            raise Problem(
                400, "agent", f"unknown agent `{body['agent']}`", "agents are claude, shell", exit_code=2
            )
        name = body.get("name") or f"{body['agent']}-{len(self.sandboxes) + 1}"
        if name in self.sandboxes:
            raise Problem(
                409, "exists", f"sandbox `{name}` already exists", f"attach to it with `sbx run {name}`"
            )
        made = sandbox(name, agent=body["agent"], workspaces=body["workspaces"], anonymous=body["anonymous"])
        if body.get("runtime") == "namespaces":
            made |= {"runtime": "namespaces", "isolation": "shared-kernel"}
        self.sandboxes[name] = made
        return made

    def _initialised(self) -> None:
        if self.preset is None:
            raise Problem(
                409,
                "policy-not-initialised",
                "global network policy has not been initialized",
                "run `sbx policy init balanced`",
            )

    def named(self, name: str) -> dict[str, Any]:
        if name not in self.sandboxes:
            raise no_sandbox(name)
        return self.sandboxes[name]

    def inspect(self, _query: Any, _body: Any, name: str) -> Any:
        return {
            **self.named(name),
            "environment": {"TOKEN": "secret"},
            "limits": {"cpus": 2, "memory": 4096},
            "template": "host",
            "sessions": 0,
            "observed": {"condition": "exited"},
            "policy": {"scope": "global"},
            "addresses": {"sandbox4": "10.255.255.2"},
        }

    def start(self, _query: Any, _body: Any, name: str) -> Any:
        self._initialised()
        found = self.named(name)
        found |= {"status": "running", "enforcement": "enforcing"}
        session = {
            "socket": found["socket_path"],
            "command": ["/bin/bash", "-l"],
            "environment": {"IS_SANDBOX": "1", "SANDBOX_NAME": name},
            "cwd": (found["workspaces"] or ["/home/agent/workspace"])[0],
            "user": "agent",
        }
        return {"sandbox": found, "session": session}

    def stop(self, _query: Any, _body: Any, name: str) -> Any:
        self.named(name)["status"] = "stopped"
        return {}

    def remove(self, _query: Any, _body: Any, name: str) -> Any:
        self.named(name)
        del self.sandboxes[name]
        return {}

    def settle(self, _query: Any, _body: Any, name: str) -> Any:
        if self.named(name)["anonymous"]:
            del self.sandboxes[name]
        return {}

    def policy(self, query: Any, _body: Any) -> Any:
        scope = query.get("sandbox")
        if scope:
            self.named(scope)
        rules = [found for found in self.rules if not found["origin"].startswith("sandbox:") or scope]
        return {"governance": self.governance, "preset": self.preset, "revision": 12, "rules": rules}

    def add_rule(self, _query: Any, body: Any) -> Any:
        if not all(re.fullmatch(r"[^ ]+", text) for text in body["resources"]):
            raise Problem(400, "invalid", "`a b` has a space", "separate hosts with commas", exit_code=2)
        origin = f"sandbox:{body['sandbox']}" if body.get("sandbox") else "local"
        keys = ("name", "transports", "methods", "paths", "mode")
        changes = {key: body[key] for key in keys if body.get(key)}
        if body.get("expires_in"):
            changes["expires_at"] = CREATED + body["expires_in"]
        added = rule(next(self.ids), *body["resources"], decision=body["effect"], origin=origin, **changes)
        self.rules.append(added)
        return {"rules": [added], "warnings": []}

    def remove_rules(self, _query: Any, body: Any) -> Any:
        wanted = str(body.get("id", "")).removeprefix("local:")
        gone = [
            found
            for found in self.rules
            if found["id"] == wanted or (body.get("resources") and found["resources"] == body["resources"])
        ]
        if not gone:
            raise Problem(
                404, "rule-not-found", "rule not found", "`sbx policy ls` shows the rules", exit_code=3
            )
        if not all(found["editable"] for found in gone):
            raise Problem(
                400,
                "preset-rule",
                f"`{wanted}` is a rule of the preset",
                f"sbx policy preset disable {wanted}",
                exit_code=2,
            )
        self.rules = [found for found in self.rules if found not in gone]
        return {"removed": gone}

    def list_secrets(self, query: Any, _body: Any) -> Any:
        if scope := query.get("sandbox"):
            self.named(scope)
        found = [
            secret
            for secret in self.secrets
            if (not scope or secret["scope"] == scope)
            and (not query.get("only_global") or secret["scope"] == "global")
            and query.get("service", secret["name"]) == secret["name"]
        ]
        return {
            "secrets": [secret for secret in found if secret["type"] != "custom"],
            "custom_secrets": [secret for secret in found if secret["type"] == "custom"],
            "shadowed_services": [],
            "env_only_count": 0,
        }

    def set_secret(self, _query: Any, body: Any, kind: str) -> Any:
        scope = body.get("sandbox", "")
        if scope:
            self.named(scope)
        name = body.get("service") or body.get("env") or body.get("registry")
        default = "global" if kind != "registry" or body.get("all_sandboxes") else "host only"
        made = {"scope": scope or default, "type": kind, "name": name, "secret": "****...****"}
        if kind == "custom":
            made |= {
                "env": name,
                "targets": body["hosts"],
                "placeholder": body.get("placeholder", "sbx-cs-0000"),
            }
        if body.get("command"):
            made["source"] = body["command"]
        same = [s for s in self.secrets if (s["scope"], s["name"]) == (made["scope"], made["name"])]
        if same and not body.get("overwrite"):
            raise Problem(
                409, "secret-exists", f"secret `{name}` is stored already", "`--force` overwrites it"
            )
        self.secrets = [secret for secret in self.secrets if secret not in same] + [made]
        return {"secret": made, "warnings": []}

    def remove_secrets(self, _query: Any, body: Any) -> Any:
        scopes = (body["sandbox"],) if body.get("sandbox") else ("global", "host only")
        gone = [
            secret
            for secret in self.secrets
            if secret["scope"] in scopes
            and (
                body.get("everything")
                or secret["name"] in (body.get("name"), body.get("registry"))
                or secret.get("placeholder", "") == body.get("placeholder")
            )
        ]
        if not gone and not body.get("everything"):
            raise Problem(404, "secret-not-found", "no such secret is stored", exit_code=3)
        self.secrets = [secret for secret in self.secrets if secret not in gone]
        return {"removed": gone}

    def presets(self, _query: Any, _body: Any) -> Any:
        groups = [
            {
                "name": "default-cloud-infrastructure",
                "enabled": True,
                "resources": ["fastly.com:443", "vercel.com:443"],
                "parts": [{"name": "storage", "enabled": False, "resources": ["**.amazonaws.com:443"]}],
            }
        ]
        return {
            "chosen": self.preset,
            "presets": PRESETS,
            "groups": groups if self.preset == "balanced" else [],
        }

    def choose(self, query: Any, body: Any) -> Any:
        if body.get("implicit") and self.require_init:
            self._initialised()
        if self.preset not in (None, body["preset"]):
            raise Problem(409, "initialised", "a preset was chosen before", "`sbx policy reset` starts over")
        self.preset = body["preset"]
        return self.presets(query, body)

    def switch(self, query: Any, body: Any) -> Any:
        if not body["name"].startswith("default-"):
            raise Problem(404, "group-not-found", f"`{body['name']}` is no group of the preset", exit_code=3)
        return self.presets(query, body)

    def what_reset_removes(self, _query: Any, _body: Any) -> Any:
        mine = [found for found in self.rules if found["editable"]]
        scoped = [found for found in mine if found["origin"].startswith("sandbox:")]
        return {"local": len(mine) - len(scoped), "sandbox": len(scoped)}

    def reset(self, _query: Any, body: Any) -> Any:
        before = len(self.rules)
        self.rules = [found for found in self.rules if not found["editable"]]
        self.preset = body["preset"]
        return {"preset": self.preset, "removed": before - len(self.rules), "undo": "/home/ada/undo.yaml"}

    def check(self, _query: Any, _body: Any) -> Any:
        return self.checked

    def log(self, query: Any, _body: Any) -> Any:
        limit = int(query.get("limit") or 0)
        scope = query.get("sandbox")
        found = [record for record in self.records if not scope or record.get("sandbox_name", scope) == scope]
        return found[-limit:], self.live if query.get("follow") == "1" else None

    def explain(self, _query: Any, _body: Any, decision: str) -> Any:
        if decision not in self.explained:
            raise Problem(404, "not-found", f"no decision `{decision}` is on record", exit_code=3)
        return self.explained[decision]

    def document(self, _query: Any, _body: Any) -> Any:
        return b"# mine\nrules: []\n"

    def import_document(self, _query: Any, _body: Any) -> Any:
        return self.documents["import"]

    def validate(self, _query: Any, _body: Any) -> Any:
        return self.documents["validate"]

    def format(self, _query: Any, body: Any) -> Any:
        return body.replace(b"  ", b" ")

    def test(self, _query: Any, _body: Any) -> Any:
        return self.documents["test"]


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/v1/daemon", FakeDaemon.state),
    ("POST", "/v1/daemon/stop", lambda self, _query, _body: self.stopped.set() or {}),
    ("GET", "/v1/doctor", lambda self, _query, _body: self.doctor),
    ("GET", "/v1/sandboxes", FakeDaemon.list),
    ("POST", "/v1/sandboxes", FakeDaemon.create),
    ("GET", "/v1/sandboxes/([^/]+)", FakeDaemon.inspect),
    ("DELETE", "/v1/sandboxes/([^/]+)", FakeDaemon.remove),
    ("POST", "/v1/sandboxes/([^/]+)/start", FakeDaemon.start),
    ("POST", "/v1/sandboxes/([^/]+)/stop", FakeDaemon.stop),
    ("POST", "/v1/sandboxes/([^/]+)/settle", FakeDaemon.settle),
    ("GET", "/v1/secrets", FakeDaemon.list_secrets),
    ("PUT", "/v1/secrets/(service|custom|registry)", FakeDaemon.set_secret),
    ("DELETE", "/v1/secrets", FakeDaemon.remove_secrets),
    ("GET", "/v1/policy", FakeDaemon.policy),
    ("POST", "/v1/policy/rules", FakeDaemon.add_rule),
    ("DELETE", "/v1/policy/rules", FakeDaemon.remove_rules),
    ("GET", "/v1/policy/preset", FakeDaemon.presets),
    ("PUT", "/v1/policy/preset", FakeDaemon.choose),
    ("POST", "/v1/policy/preset/groups", FakeDaemon.switch),
    ("GET", "/v1/policy/reset", FakeDaemon.what_reset_removes),
    ("POST", "/v1/policy/reset", FakeDaemon.reset),
    ("POST", "/v1/policy/check", FakeDaemon.check),
    ("GET", "/v1/policy/log", FakeDaemon.log),
    ("GET", "/v1/policy/decisions/([^/]+)", FakeDaemon.explain),
    ("GET", "/v1/policy/document", FakeDaemon.document),
    ("PUT", "/v1/policy/document", FakeDaemon.import_document),
    ("POST", "/v1/policy/document/validate", FakeDaemon.validate),
    ("POST", "/v1/policy/document/format", FakeDaemon.format),
    ("POST", "/v1/policy/document/test", FakeDaemon.test),
]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fake: FakeDaemon) -> None:
        self.fake = fake
        super().__init__(str(fake.socket_path), _Exchange)


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_arguments: object) -> None:
        """A test reads what was asked in ``calls``."""

    def _do(self) -> None:
        parts = urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_json = self.headers.get("Content-Type") == "application/json"
        body: Any = json.loads(content) if is_json else content
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        try:
            answer = self.server.fake.answer(self.command, parts.path, query, body)
        except Problem as problem:
            self._send(problem.status, "application/problem+json", json.dumps(problem.document).encode())
            return
        if parts.path == "/v1/policy/log":
            self._stream(*answer)
        elif isinstance(answer, bytes):
            self._send(200, "text/yaml", answer)
        else:
            self._send(200, "application/json", json.dumps(answer).encode())

    do_GET = do_POST = do_PUT = do_DELETE = _do  # noqa: N815

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, backlog: list[dict[str, Any]], live: list[dict[str, Any]] | None) -> None:
        """The backlog at once, then what tests put into ``live``; ``None`` in it ends the stream."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def chunk(content: bytes) -> None:
            self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

        for record in backlog:
            chunk(json.dumps(record).encode() + b"\n")
        at = 0
        while live is not None:
            if at == len(live):
                time.sleep(0.005)
            elif live[at] is None:
                break
            else:
                chunk(json.dumps(live[at]).encode() + b"\n")
                at += 1
        chunk(b"")


def main(mode: str) -> int:
    """A daemon as a program: say who it is and what it was given, then listen until told to stop, or fail."""
    state, runtime = Path(os.environ["SBX_STATE_DIR"]), Path(os.environ["SBX_RUNTIME_DIR"])
    with open(state / "starts", "a") as starts:
        starts.write(
            json.dumps({"pid": os.getpid(), "cwd": os.getcwd(), "environment": dict(os.environ)}) + "\n"
        )
    if mode == "crash":
        sys.stderr.write("reading the database\nthe database is \x1b[31mdamaged\n")
        return 3
    with FakeDaemon(runtime / "sbxd.sock") as fake:
        fake.stopped.wait(120)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
