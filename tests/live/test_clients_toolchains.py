"""cargo and Go, which often live under a home directory: their toolchains are lent to the sandbox, read-only."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from tests.live.clients import Clients


def toolchain(*ask: str) -> str:
    """Return the root of a toolchain as its own program tells it, or nothing."""
    if shutil.which(ask[0]) is None:
        return ""
    ran = subprocess.run(ask, capture_output=True, text=True, check=False)
    return ran.stdout.strip() if ran.returncode == 0 else ""


RUST = toolchain("rustc", "--print", "sysroot")
GO = toolchain("go", "env", "GOROOT")
WORKSPACES = [root for root in (RUST, GO) if root and not root.startswith(("/usr", "/bin"))]


@pytest.mark.skipif(not RUST or shutil.which("cargo") is None, reason="cargo is not installed")
def test_cargo_fetches_a_crate_and_builds_with_it(clients: Clients) -> None:
    clients.write(
        "crate/Cargo.toml",
        '[package]\nname = "seven"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\nitoa = "1"\n',
    )
    clients.write("crate/src/main.rs", 'fn main() { println!("{}", itoa::seven()) }\n')
    place, path = str(clients.lab.scratch / "crate"), f"PATH={RUST}/bin:/usr/bin:/bin"
    fetched = clients.run("env", path, "cargo", "fetch", cwd=place)
    assert fetched.code == 0, fetched.said
    assert clients.log.take(3) == [
        ("ALLOWED", "index.crates.io", "200", "GET /config.json"),
        ("ALLOWED", "index.crates.io", "200", "GET /it/oa/itoa"),
        ("ALLOWED", "static.crates.io", "200", "GET /crates/itoa/1.0.9/download"),
    ]
    if shutil.which("cc"):
        built = clients.run("env", path, "cargo", "run", "-q", "--offline", cwd=place)
        assert built.out == "7\n", built.said
    with clients.rule("deny", "index.crates.io"):
        refused = clients.run("env", path, "CARGO_HOME=/tmp/cargo", "cargo", "update", cwd=place)
    assert refused.code == 101
    assert "403" in refused.err
    assert "Blocked by network policy: domain index.crates.io:443" in refused.err
    assert clients.log.take(1) == [("BLOCKED", "index.crates.io", "-", "GET /config.json")]


GO_CLIENT = """package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"example.org/seven"
)

func main() {
	fmt.Println(seven.Seven())
	for _, url := range os.Args[1:] {
		answer, err := http.Get(url)
		if err != nil {
			panic(err)
		}
		body, _ := io.ReadAll(answer.Body)
		fmt.Println(answer.StatusCode, answer.Proto, strings.Split(string(body), "\\n")[0])
	}
}
"""


@pytest.mark.skipif(not GO, reason="go is not installed")
def test_go_gets_a_module_and_speaks_http(clients: Clients) -> None:
    clients.write(
        "go/go.mod", "module clients.example/client\n\ngo 1.20\n\nrequire example.org/seven v1.0.0\n"
    )
    clients.write("go/main.go", GO_CLIENT)
    place = str(clients.lab.scratch / "go")
    go = ("env", "GONOSUMDB=*", "GOFLAGS=-mod=mod", "GOTOOLCHAIN=local", f"PATH={GO}/bin:/usr/bin:/bin", "go")
    built = clients.run(*go, "build", "-o", "client", ".", cwd=place, timeout=120)
    assert built.code == 0, built.said
    module = "GET /example.org/seven/@v/v1.0.0"
    assert {row[:3] for row in clients.log.take(2)} == {("ALLOWED", "proxy.golang.org", "200")}, module
    ran = clients.run("./client", "https://web.clients.example/", "https://paste.ee/", cwd=place)
    assert ran.out.splitlines() == [
        "7",
        "200 HTTP/2.0 hello from web.clients.example",
        "403 HTTP/2.0 Blocked by network policy: domain paste.ee:443",
    ], ran.said
    assert clients.log.take(2) == [
        ("ALLOWED", "web.clients.example", "200", "GET /"),
        ("BLOCKED", "paste.ee", "-", "GET /"),
    ]
    with clients.rule("deny", "proxy.golang.org"):
        refused = clients.run(*go, "list", "-m", "-versions", "example.org/other", cwd=place)
    assert refused.code == 1
    assert "403 Forbidden" in refused.err
    asked = ("BLOCKED", "proxy.golang.org", "-", "GET /example.org/other/@v/list")
    assert clients.log.take(2) == [asked, asked], "go asks again before it gives up"
