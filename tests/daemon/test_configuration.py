"""``config.toml``: what is understood, and what is refused with the line it is on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.application.errors import InvalidInput
from ringfence.daemon.configuration import Configuration, load


def test_no_file_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path / "config.toml") == Configuration()


def test_everything_that_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        """
        runtime = "namespaces"
        [policy]
        require_init = true
        [tls]
        extra_ca = ["/etc/ca.pem"]
        backend = "ssl"
        [workers]
        count = 3
        [lifecycle]
        grace = 5
        [resolve]
        "API.example.com" = "203.0.113.1"
        "six.example.com" = "2001:db8::1"
        "port.example.com" = "203.0.113.1:8443"
        "both.example.com" = "[2001:db8::1]:8443"
        [gateway]
        connections = 100
        """
    )
    found = load(path)
    assert (found.runtime, found.policy.require_init, found.lifecycle.grace) == ("namespaces", True, 5.0)
    assert (found.tls.extra_ca, found.tls.backend) == (("/etc/ca.pem",), "ssl")
    assert found.workers.count == 3
    assert found.resolve == {
        "api.example.com": "203.0.113.1",
        "six.example.com": "2001:db8::1",
        "port.example.com": "203.0.113.1:8443",
        "both.example.com": "[2001:db8::1]:8443",
    }
    assert found.gateway == {"connections": 100.0}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('runtime = "auto"\nruntme = "gvisor"\n', 2, "unknown setting `runtme`"),
        ("[policy]\nrequire_init = true\nrequire = true\n", 3, "unknown setting `policy.require`"),
        ("policy.require = true\n", 1, "unknown setting `policy.require`"),
        ("[lifecycle]\n\ngrace = -1\n", 3, "`lifecycle.grace`"),
        ("[workers]\ncount = -1\n", 2, "`workers.count`"),
        ('[tls]\nbackend = "gnutls"\n', 2, "`tls.backend`"),
        ('[lifecycle]\ngrace = "soon"\n', 2, "`lifecycle.grace`"),
        ('\nruntime = "docker"\n', 2, "`runtime`"),
        ("[nothing]\nx = 1\n", 1, "unknown setting `nothing`"),
        ('[resolve]\n"a.example" = "not an address"\n', 1, "not a name and an address"),
        ('[resolve]\n"a.example" = "010.0.0.1"\n', 1, "not a name and an address"),
        ('[resolve]\n"a b" = "10.0.0.1"\n', 1, "not a name and an address"),
        ("[gateway]\nconections = 5\n", 1, "unknown limit `conections`"),
        ("[gateway]\nconnections = 0\n", 1, "is no limit"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        load(path)
    assert message in str(refused.value)
    assert f"line {line} of `{path}`" in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("content", [b"runtime = ", b"\xff\xfe", b"[a]\n[a]\n"])
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="not TOML"):
        load(path)
