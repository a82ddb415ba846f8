"""The table of services, and what a sandbox is told of what counts in it."""

from __future__ import annotations

import base64
import json
import re

import pytest

from ringfence.policy.patterns import compile_glob, parse_resource
from ringfence.sandbox.credentials import SERVICES, Binding, Form
from ringfence.sandbox.environment import OWN_VARIABLES
from ringfence.sandbox.secrets import HOST_ONLY, Kind, Secret, binding, effective, files, variables


def secret(kind: Kind = Kind.SERVICE, name: str = "openai", scope: str = "", **fields: object) -> Secret:
    return Secret(kind=kind, name=name, scope=scope, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_hosts_that_policy_understands_and_variables_of_its_own(name: str) -> None:
    service = SERVICES[name]
    for target in service.targets:
        for host in target.hosts:
            assert not parse_resource(host).catch_all
    assert service.variables
    assert not OWN_VARIABLES & {variable for variable, _ in service.variables}


@pytest.mark.parametrize(
    ("host", "yes"),
    [
        ("bedrock.eu-west-1.amazonaws.com", True),
        ("bedrock-runtime.us-east-1.amazonaws.com", True),
        ("sts.eu-central-1.amazonaws.com", True),
        ("bedrock.evil.example.com", False),
        ("s3.eu-west-1.amazonaws.com", False),
        ("bedrock.a.b.amazonaws.com", False),
    ],
)
def test_aws_is_bedrock_and_sts_of_every_region(host: str, yes: bool) -> None:
    (target,) = SERVICES["aws"].targets
    assert any(re.fullmatch(compile_glob(pattern), host) for pattern in target.hosts) is yes


def test_a_sandbox_s_own_counts_there_instead_of_the_global_one_in_either_order() -> None:
    mine, everybody, theirs = secret(scope="a", created=1), secret(), secret(scope="b")
    host = secret(Kind.REGISTRY, "ghcr.io", HOST_ONLY)
    for order in ((mine, everybody, theirs, host), (host, theirs, everybody, mine)):
        assert effective(order, "a") == (mine,)
        assert effective(order, "c") == (everybody,)


def test_services_come_first_then_custom_ones_then_registries() -> None:
    found = effective(
        (
            secret(Kind.REGISTRY, "a"),
            secret(Kind.CUSTOM, "B"),
            secret(name="xai"),
            secret(Kind.CUSTOM, "A"),
            secret(name="aws"),
        ),
        "s",
    )
    assert [each.name for each in found] == ["aws", "xai", "A", "B", "a"]


def test_a_binding_without_a_value_is_unavailable_whatever_was_forgotten() -> None:
    assert binding(secret(), ()).unavailable == "it has no value"
    assert binding(secret(), (), unavailable="because").unavailable == "because"


def test_a_binding_travels_whole() -> None:
    custom = secret(
        Kind.CUSTOM,
        "TOKEN",
        hosts=("*.example.com", "example.org:8443"),
        headers=("authorization", "x-key"),
        placeholder="sbx-cs-abcdefgh",
        in_query=True,
        exclusive=True,
    )
    made = binding(custom, (("value", "v"),))
    assert [(target.header, target.form) for target in made.targets] == [
        ("authorization", Form.REPLACE),
        ("x-key", Form.REPLACE),
    ]
    assert Binding.from_wire(json.loads(json.dumps(made.to_wire()))) == made


def test_variables_say_for_every_service_whether_there_is_something() -> None:
    found = variables(
        [secret(), secret(Kind.CUSTOM, "TOKEN", placeholder="sbx-cs-1"), secret(Kind.REGISTRY, "r")]
    )
    assert found["OPENAI_API_KEY"] == "proxy-managed"
    assert found["TOKEN"] == "sbx-cs-1"
    modes = {name: value for name, value in found.items() if name.startswith("SBX_CRED_")}
    assert len(modes) == len(SERVICES)
    assert {name for name, value in modes.items() if value != "none"} == {"SBX_CRED_OPENAI_MODE"}
    assert modes["SBX_CRED_OPENAI_MODE"] == "apikey"
    assert len(found) == len(modes) + 2


def test_docker_is_told_placeholders_under_the_names_that_it_looks_for() -> None:
    assert files([secret()]) == {}
    registries = [
        secret(Kind.REGISTRY, "docker.io", username="ada", placeholder="sbx-cs-hub"),
        secret(Kind.REGISTRY, "ghcr.io", username="bob", placeholder="sbx-cs-ghcr"),
    ]
    ((path, content),) = files(registries).items()
    assert path == "/home/agent/.docker/config.json"
    auths = {
        host: base64.b64decode(entry["auth"]).decode() for host, entry in json.loads(content)["auths"].items()
    }
    assert auths == {"https://index.docker.io/v1/": "ada:sbx-cs-hub", "ghcr.io": "bob:sbx-cs-ghcr"}


@pytest.mark.parametrize(
    ("registry", "endpoint", "hosts"),
    [
        ("ghcr.io", "", ("ghcr.io",)),
        ("ghcr.io", "auth.example.com", ("ghcr.io", "auth.example.com")),
        ("docker.io", "", ("registry-1.docker.io", "index.docker.io", "auth.docker.io")),
        ("registry.gitlab.com", "", ("registry.gitlab.com", "gitlab.com")),
        ("registry.example.com:5000", "", ("registry.example.com:5000",)),
    ],
)
def test_a_registry_s_password_goes_to_it_and_to_where_its_clients_get_a_token(
    registry: str, endpoint: str, hosts: tuple[str, ...]
) -> None:
    made = binding(
        secret(Kind.REGISTRY, registry, auth_endpoint=endpoint, placeholder="p"), (("value", "v"),)
    )
    assert [target.hosts for target in made.targets] == [hosts]
