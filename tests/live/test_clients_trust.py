"""What makes clients inside trust the gateway, one at a time: each variable, each bundle, each default place.

A client gets exactly one source of trust and must verify with it; without any it must refuse. So every
variable is there for a reason, and none covers for another.
"""

from __future__ import annotations

import pytest
from tests.live.clients import Clients

from ringfence.demo.installation import Ran

HOST = "web.clients.example"
WEB = f"https://{HOST}/"
BUNDLE, OWN = "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ringfence.pem"
ROW = ("ALLOWED", HOST, "200", "GET /")

PYTHON = "import urllib.request; print(urllib.request.urlopen('%s').status)"
NODE = "fetch('%s').then(got => console.log(got.status), why => { console.log(why.cause.code); process.exit(1) })"


def bare(clients: Clients, *argv: str, **variables: str) -> Ran:
    """Run a client with no variables but these: transparent interception, one source of trust."""
    given = [f"{name}={value}" for name, value in variables.items()]
    return clients.run("env", "-i", "PATH=/usr/bin:/bin", "HOME=/home/agent", *given, *argv)


def test_every_session_has_them(clients: Clients) -> None:
    said = clients.run("env").out.splitlines()
    variables = dict(line.split("=", 1) for line in said if "=" in line)
    bundles = (
        *("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO"),
        *("AWS_CA_BUNDLE", "PIP_CERT"),
    )
    assert {variables[name] for name in bundles} == {BUNDLE}
    assert {variables[name] for name in ("NODE_EXTRA_CA_CERTS", "DENO_CERT")} == {OWN}


@pytest.mark.parametrize(
    ("variable", "argv"),
    [
        ("SSL_CERT_FILE", ("/usr/bin/python3", "-c", PYTHON % WEB)),
        ("SSL_CERT_FILE", ("openssl", "s_client", "-verify_return_error", "-connect", f"{HOST}:443")),
        ("CURL_CA_BUNDLE", ("curl", "-sS", WEB)),
        ("GIT_SSL_CAINFO", ("git", "ls-remote", "https://github.com/team/project.git")),
        ("PIP_CERT", ("python3", "-m", "pip", "download", "-q", "--no-deps", "-d", "/tmp/pips", "idna")),
    ],
    ids=["SSL_CERT_FILE-python", "SSL_CERT_FILE-openssl", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT"],
)
def test_a_variable_is_what_its_client_trusts(clients: Clients, variable: str, argv: tuple[str, ...]) -> None:
    if argv[2] == "pip" and clients.run(*argv[:3], "--version").code:
        pytest.skip("the host's python3 has no pip (apt-get install python3-pip)")
    trusted = bare(clients, *argv, **{variable: OWN})
    assert trusted.code == 0, trusted.said
    nothing = "/etc/ssl/certs/no-such-file.pem"
    refused = bare(clients, *argv, **{variable: nothing}, PIP_RETRIES="0")
    assert refused.code != 0
    clients.log.forget()


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CARGO_HTTP_CAINFO"])
def test_a_library_trusts_its_own_variable(
    clients: Clients, variable: str, request: pytest.FixtureRequest
) -> None:
    if variable == "REQUESTS_CA_BUNDLE":
        site = request.getfixturevalue("python_libraries")
        clients.lab.host("cp", "-r", str(site), str(clients.lab.scratch / "site"))
        program = f"import requests; print(requests.get('{WEB}').status_code)"
        argv = ("env", f"PYTHONPATH={clients.lab.scratch / 'site'}", "/usr/bin/python3", "-c", program)
    else:
        if not clients.has("cargo"):
            pytest.skip("cargo is not among the system's own programs")
        clients.write("Cargo.toml", '[package]\nname = "a"\nversion = "0.1.0"\n[dependencies]\nitoa = "1"\n')
        clients.write("src/lib.rs", "")
        argv = ("cargo", "update")
    assert bare(clients, *argv, **{variable: OWN}).code == 0
    refused = bare(clients, *argv, **{variable: "/usr/share/zoneinfo/UTC"})
    assert refused.code != 0
    clients.log.forget()


def test_node_trusts_by_its_own_variable(clients: Clients) -> None:
    if not clients.has("node"):
        pytest.skip("node is not installed")
    assert bare(clients, "node", "-e", NODE % WEB, NODE_EXTRA_CA_CERTS=OWN).out == "200\n"
    assert clients.log.take(1) == [ROW]
    refused = bare(clients, "node", "-e", NODE % WEB)
    assert (refused.code, refused.out) == (1, "UNABLE_TO_VERIFY_LEAF_SIGNATURE\n")
    clients.log.forget()


@pytest.mark.parametrize(
    "argv",
    [
        ("curl", "-sS", WEB),
        ("wget", "-qO-", WEB),
        ("/usr/bin/python3", "-c", PYTHON % WEB),
        ("openssl", "s_client", "-verify_return_error", "-connect", f"{HOST}:443"),
    ],
    ids=["curl", "wget", "python", "openssl"],
)
def test_the_bundle_is_at_the_place_that_clients_read_without_being_told(
    clients: Clients, argv: tuple[str, ...]
) -> None:
    if not clients.has(argv[0]):
        pytest.skip(f"{argv[0]} is not installed")
    ran = bare(clients, *argv)
    assert ran.code == 0, ran.said
    clients.log.forget()


def test_the_java_store_opens_with_and_without_its_usual_password(clients: Clients) -> None:
    """The JVM itself reads it without one (``test_clients_http.py::test_java``); tools name ``changeit``."""
    if not clients.has("keytool"):
        pytest.skip("no Java is installed (apt-get install default-jre-headless)")
    listed = clients.run("keytool", "-list", "-v", "-cacerts", "-storepass", "changeit")
    assert listed.code == 0, listed.said
    assert "O=Ringfence" in listed.out
    assert "O=Demo World" in listed.out, "the configured extra roots are there too"
    wrong = clients.run("keytool", "-list", "-cacerts", "-storepass", "not-this")
    assert wrong.code == 1


def test_a_client_that_trusts_only_its_own_roots_needs_a_bypass(clients: Clients) -> None:
    """What `docs/guides/clients.md` says to do for a client that pins: its host is tunnelled, not read."""
    theirs = str(clients.lab.scratch / "theirs.pem")
    clients.lab.host("cp", clients.lab.origins_ca, theirs)
    pinned = ("curl", "-sS", "--cacert", theirs, WEB)
    refused = clients.run(*pinned)
    assert refused.code == 60
    assert "unable to get local issuer certificate" in refused.err
    clients.log.forget()
    with clients.rule("allow", HOST, "--inspect", "never"):
        read = clients.run("curl", "-sS", "-v", "--cacert", theirs, WEB)
        assert read.out == f"hello from {HOST}\n"
        assert "issuer: O=Let's Demo; CN=R3" in read.err
        assert clients.log.take(1) == [("ALLOWED", HOST, "-", "tls")]
    assert clients.run(*pinned).code == 60, "without the rule it is intercepted again"
    clients.log.forget()
