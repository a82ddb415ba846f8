"""How the gateway gets out: what a person wrote, what the environment says, and what an organisation leaves of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import Home, installed

from ringfence.application.errors import InvalidInput
from ringfence.daemon.configuration import Configuration, load
from ringfence.daemon.egress import Egress, in_force, written
from ringfence.daemon.trust import extra_roots
from ringfence.gateway.authority import create_authority
from ringfence.gateway.core.chain import Chain, parse_proxy
from ringfence.policy.effective import Sources, compose
from ringfence.policy.governance import Delegation, Statement
from ringfence.policy.model import Kind

CANARY = "s3cret-canary"
PROXY = parse_proxy("http://proxy.test:3128")
OTHER = parse_proxy("socks5h://other.test")


def configured(**proxy: Any) -> Configuration:
    return Configuration.model_validate({"proxy": proxy, "resolve": {"a.test": "203.0.113.1"}})


@pytest.mark.parametrize(
    ("proxy", "environment", "chain", "origin"),
    [
        ({}, {}, None, ""),
        ({"upstream": "http://proxy.test:3128"}, {}, Chain(plain=PROXY, tunnels=PROXY), "proxy.upstream"),
        (
            {"upstream": "http://proxy.test:3128", "no_proxy": [".corp.test"], "resolve": "remote"},
            {"HTTPS_PROXY": "http://ignored.test", "NO_PROXY": "ignored.test"},
            Chain(plain=PROXY, tunnels=PROXY, exemptions=(".corp.test",), remote=True),
            "proxy.upstream",
        ),
        ({"upstream": "direct"}, {"HTTPS_PROXY": "http://proxy.test:3128"}, None, "proxy.upstream"),
        ({}, {"HTTPS_PROXY": "http://proxy.test:3128"}, Chain(tunnels=PROXY), "HTTPS_PROXY"),
        ({}, {"http_proxy": "proxy.test:3128"}, Chain(plain=PROXY), "HTTP_PROXY"),
        (
            {},
            {
                "https_proxy": "http://proxy.test:3128",
                "HTTPS_PROXY": "http://shadowed.test",
                "HTTP_PROXY": "socks5h://other.test",
            },
            Chain(tunnels=PROXY, plain=OTHER),
            "HTTPS_PROXY and HTTP_PROXY",
        ),
        (
            {},
            {"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "localhost, 127.0.0.1,.corp.test,/run/x,"},
            Chain(tunnels=PROXY, exemptions=("localhost", "127.0.0.1", ".corp.test")),
            "HTTPS_PROXY",
        ),
        (
            {"no_proxy": ["b.test"]},
            {"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "c.test"},
            Chain(tunnels=PROXY, exemptions=("b.test",)),
            "HTTPS_PROXY",
        ),
        ({}, {"NO_PROXY": "c.test", "HTTPS_PROXY": " "}, None, ""),
    ],
)
def test_the_configuration_comes_before_the_environment(
    proxy: dict[str, Any], environment: dict[str, str], chain: Chain | None, origin: str
) -> None:
    found = written(configured(**proxy), "", environment)
    assert (found.chain, found.origin) == (chain, origin)
    assert found.unread == (("/run/x",) if "/run/x" in environment.get("NO_PROXY", "") else ())


@pytest.mark.parametrize("value", [f"ftp://u:{CANARY}@proxy.test", f"http://u:{CANARY}@proxy.test:x"])
def test_an_environment_that_is_not_understood_is_no_reason_to_go_out_directly(value: str) -> None:
    with pytest.raises(
        InvalidInput, match="`HTTPS_PROXY` in the daemon's environment is no proxy"
    ) as refused:
        written(configured(), "", {"HTTPS_PROXY": value})
    assert CANARY not in str(refused.value)


def test_a_configured_proxy_that_is_none_is_refused_with_its_line_and_without_its_password(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[proxy]\nresolve = "remote"\nupstream = "htp://ada:{CANARY}@proxy.test"\n')
    with pytest.raises(InvalidInput, match="a proxy is written") as refused:
        load(path)
    assert f"line 3 of `{path}`" in str(refused.value)
    assert CANARY not in str(refused.value) + repr(refused.value.__cause__)
    path.write_text(f'[proxy]\nupstream = "http://ada:{CANARY}@proxy.test"\nno_proxy = ["a b"]\n')
    with pytest.raises(InvalidInput, match="`a b` is neither a name") as refused:
        load(path)
    assert CANARY not in str(refused.value) + repr(refused.value.__cause__)
    path.write_text(f'[proxy]\nupstream = "http://ada:{CANARY}@proxy.test"\n')
    assert CANARY not in repr(load(path))


# -- an organisation -----------------------------------------------------------------------------------------

OWN = Egress(
    resolve={"a.test": "203.0.113.1"}, extra_ca="pem", chain=Chain(tunnels=PROXY), origin="HTTPS_PROXY"
)


def governed(*kinds: Kind) -> frozenset[Kind]:
    """What a policy says that it governs, as the daemon reads it."""
    statement = Statement(organisation="acme", delegation=dict.fromkeys(kinds, Delegation.EXTEND))
    return compose(Sources(statement=statement), revision=1, now=0.0).governs


def test_while_the_network_is_governed_nothing_of_it_is_a_persons_to_set() -> None:
    found = in_force(OWN, governed(Kind.NETWORK, Kind.FILESYSTEM))
    assert found == Egress(inactive=("resolve", "tls.extra_ca", "HTTPS_PROXY"))
    assert in_force(Egress(resolve={"a.test": "x"}), governed(Kind.NETWORK)).inactive == ("resolve",)
    assert in_force(Egress(), governed(Kind.NETWORK)) == Egress()


@pytest.mark.parametrize("kinds", [(), (Kind.FILESYSTEM,)])
def test_else_it_is(kinds: tuple[Kind, ...]) -> None:
    assert in_force(OWN, governed(*kinds)) is OWN


# -- a daemon ------------------------------------------------------------------------------------------------


@pytest.fixture
def home() -> Iterator[Home]:
    with installed() as home:
        yield home


def checks(home: Home) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in home.must("GET", "/v1/doctor")["checks"]}


def test_doctor_shows_the_way_out_and_no_password(home: Home, tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(create_authority(now=1_700_000_000.0)[1])
    home.configure(f'runtime = "fake"\n[tls]\nextra_ca = ["{roots}"]\n')
    home.environment |= {
        "HTTPS_PROXY": f"http://ada:{CANARY}@proxy.test:3128",
        "NO_PROXY": ".corp.test,/run/x",
    }
    home.start()
    found = checks(home)
    assert found["proxy"]["message"] == (
        "sandboxes go out through plain HTTP directly, all else http://***:***@proxy.test:3128"
    )
    assert found["proxy"]["detail"].startswith("from HTTPS_PROXY; not for .corp.test; asked for addresses")
    assert (found["proxy"]["status"], "/run/x" in found["proxy"]["hint"]) == ("warn", True)
    assert str(roots) in found["tls.extra_ca"]["detail"]
    written_down = [
        path for path in home.root.rglob("*") if path.is_file() and CANARY in path.read_text("latin-1")
    ]
    assert written_down == []
    for pid in [home.must("GET", "/v1/daemon")["pid"]]:
        assert CANARY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_daemon_does_not_start_with_a_proxy_that_it_does_not_understand(home: Home) -> None:
    home.environment["HTTP_PROXY"] = f"gopher://ada:{CANARY}@proxy.test"
    assert home.spawn().wait(20) == 2
    assert "`HTTP_PROXY` in the daemon's environment is no proxy" in home.log
    assert "proxy.upstream" in home.log
    assert CANARY not in home.log


def test_further_roots_that_are_none_keep_it_from_starting(home: Home, tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_text("-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n")
    with pytest.raises(InvalidInput, match="holds no certificates"):
        extra_roots([str(roots)])
    home.configure(f'runtime = "fake"\n[tls]\nextra_ca = ["{roots}"]\n')
    assert home.spawn().wait(20) == 2
    assert f"`tls.extra_ca`: `{roots}` holds no certificates" in home.log
    assert os.path.exists(home.socket) is False
