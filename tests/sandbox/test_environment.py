"""What a command finds in its environment, and what it never finds."""

from __future__ import annotations

from dataclasses import replace

from ringfence.sandbox.environment import RESERVED, environment, network_files, working_directory
from ringfence.sandbox.model import Owner, SandboxSpec, Workspace

SPEC = SandboxSpec(
    id="i-1",
    name="lab",
    agent="shell",
    owner=Owner(uid=1000, gid=1000),
    runtime="gvisor",
    workspaces=(Workspace(path="/home/dev/project"), Workspace(path="/docs", readonly=True)),
    environment=(("PATH", "/mine"), ("TOKEN", "x")),
)


def test_both_cases_of_the_proxy_variables_lead_to_the_gateway() -> None:
    variables = environment(SPEC)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        assert variables[name] == variables[name.lower()] == "http://gateway.docker.internal:3128"


def test_the_host_is_never_exempt_from_policy() -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert environment(SPEC)[name] == "localhost,127.0.0.1,::1"


def test_every_client_finds_the_authority() -> None:
    variables = environment(SPEC)
    for name in (
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "CARGO_HTTP_CAINFO",
        "AWS_CA_BUNDLE",
        "PIP_CERT",
        "CURL_CA_BUNDLE",
    ):
        assert variables[name] == "/etc/ssl/certs/ca-certificates.crt"
    assert variables["NODE_EXTRA_CA_CERTS"] == "/etc/ssl/certs/ringfence.pem"


def test_a_sandbox_knows_that_it_is_one_and_cannot_be_told_otherwise() -> None:
    lying = replace(SPEC, environment=tuple((name, "other") for name in sorted(RESERVED)))
    variables = environment(lying)
    assert (variables["SANDBOX_NAME"], variables["SANDBOX_ID"], variables["IS_SANDBOX"]) == (
        "lab",
        "i-1",
        "1",
    )
    assert variables["WORKSPACE_DIR"] == "/home/dev/project"


def test_a_persons_own_variables_count() -> None:
    variables = environment(SPEC)
    assert (variables["PATH"], variables["TOKEN"]) == ("/mine", "x")


def test_without_a_workspace_there_is_a_directory_of_its_own() -> None:
    bare = replace(SPEC, workspaces=())
    assert working_directory(bare) == environment(bare)["WORKSPACE_DIR"] == "/home/agent/workspace"


def test_names_are_resolved_by_the_gateway_alone() -> None:
    files = network_files(SPEC, gateway="10.255.255.1", host="10.255.255.3", gateway6="fd72::1")
    hosts, resolvers = files["/etc/hosts"].decode(), files["/etc/resolv.conf"].decode()
    assert "10.255.255.1 gateway.docker.internal\n" in hosts
    assert "10.255.255.3 host.docker.internal\n" in hosts
    assert [line.split()[1] for line in resolvers.splitlines() if line.startswith("nameserver")] == [
        "10.255.255.1",
        "fd72::1",
    ]
