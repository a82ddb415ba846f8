"""ALW-01 to ALW-04, ALW-06, ALW-09: what an allowed host lets happen is policy; these rules must hold on the wire.

What a provider does with what it is given is no gateway's to say (THREAT_MODEL.md); what reaches it is.
"""

from __future__ import annotations

import pytest
from tests.escapes.escape_stage import (
    Ask,
    Lab,
    Outcome,
    allowed,
    get,
    inside,
    redirected,
    refused,
    rule,
    tunnel,
)

from ringfence.policy.rule import Rule, warnings

# -- ALW-01 ---------------------------------------------------------------------------------------------------

READ_ONE_REPOSITORY = (
    rule("allow", "github.test", methods=["GET"], paths=["/acme/app.git/info/refs", "/acme/app/archive/**"]),
    rule("allow", "github.test", methods=["POST"], paths=["/acme/app.git/git-upload-pack"]),
    rule("allow", "api.github.test", methods=["GET", "HEAD"], paths=["/repos/acme/app/**"]),
    rule("deny", "api.github.test", paths=["/repos/acme/app/actions/secrets/**"]),
)
ENDPOINTS: list[tuple[str, str, str, bool | str]] = [
    # method, host, path, what becomes of it
    ("GET", "github.test", "/acme/app.git/info/refs?service=git-upload-pack", True),
    ("POST", "github.test", "/acme/app.git/git-upload-pack", True),
    ("GET", "github.test", "/acme/app/archive/refs/heads/main.tar.gz", True),
    ("GET", "api.github.test", "/repos/acme/app", True),
    ("GET", "api.github.test", "/repos/acme/app/issues", True),
    ("POST", "github.test", "/acme/app.git/git-receive-pack", False),
    ("POST", "github.test", "/evil/loot.git/git-receive-pack", False),
    ("POST", "github.test", "/evil/loot.git/git-upload-pack", False),
    ("GET", "github.test", "/evil/loot.git/info/refs?service=git-receive-pack", False),
    ("POST", "github.test", "/acme/app.git/info/lfs/objects/batch", False),
    ("POST", "api.github.test", "/gists", False),
    ("GET", "api.github.test", "/gists", False),
    ("POST", "api.github.test", "/graphql", False),
    ("POST", "api.github.test", "/repos/acme/app/issues", False),
    ("POST", "api.github.test", "/repos/acme/app/issues/1/comments", False),
    ("POST", "api.github.test", "/repos/acme/app/forks", False),
    ("POST", "api.github.test", "/repos/acme/app/releases", False),
    ("PUT", "api.github.test", "/repos/acme/app/contents/x", False),
    ("PATCH", "api.github.test", "/repos/acme/app", False),
    ("DELETE", "api.github.test", "/repos/acme/app", False),
    ("POST", "api.github.test", "/user/repos", False),
    ("PATCH", "api.github.test", "/user/repository_invitations/1", False),
    ("PUT", "api.github.test", "/user/starred/evil/loot", False),
    ("GET", "api.github.test", "/repos/evil/loot", False),
    ("GET", "api.github.test", "/repos/acme/application", False),
    ("GET", "api.github.test", "/repos/acme/app/actions/secrets", "rule"),
    ("GET", "api.github.test", "/repos/acme/app/%61ctions/secrets/x", "rule"),
    ("GET", "api.github.test", "/repos/acme/app/../../evil/loot", "failure"),
    ("GET", "api.github.test", "/repos/acme/app/%2e%2e/%2e%2e/evil/loot", "failure"),
    ("POST", "uploads.github.test", "/repos/acme/app/releases/1/assets?name=x", False),
    ("GET", "camo.github.test", "/c2VjcmV0", False),
    ("POST", "lfs.github.test", "/acme/app", False),
]


def sent(method: str, host: str, path: str) -> tuple[Ask, bytes]:
    """A request, and how it goes on."""
    length = ("Content-Length: 0",) if method in ("POST", "PUT", "PATCH") else ()
    payload = get(host, path, *length, method=method)
    return inside(host, payload), payload


def played(lab: Lab, rules: tuple[Rule, ...], method: str, host: str, path: str, passes: bool | str) -> None:
    lab.bind(*rules)
    lab.serve(host)
    ask, heard = sent(method, host, path)
    if passes is True:
        lab.expect(ask, allowed(heard, questions=(host,)))
    else:
        lab.expect(ask, refused("default" if passes is False else str(passes)))


@pytest.mark.parametrize(("method", "host", "path", "passes"), ENDPOINTS)
def test_alw_01_reading_one_repository_is_all_that_reading_it_allows(
    lab: Lab, method: str, host: str, path: str, passes: bool | str
) -> None:
    played(lab, READ_ONE_REPOSITORY, method, host, path, passes)


# -- ALW-02 ---------------------------------------------------------------------------------------------------

INSTALL = (
    rule("allow", "registry.test", "pypi.test", "crates.test", "images.test", methods=["GET", "HEAD"]),
)
PUBLISH = [
    ("GET", "registry.test", "/left-pad", True),
    ("GET", "registry.test", "/@scope%20x/pkg/-/pkg-1.tgz", True),
    ("PUT", "registry.test", "/left-pad", False),
    ("PUT", "registry.test", "/-/user/org.couchdb.user:x", False),
    ("DELETE", "registry.test", "/left-pad/-rev/1", False),
    ("GET", "pypi.test", "/simple/requests/", True),
    ("POST", "pypi.test", "/legacy/", False),
    ("PUT", "crates.test", "/api/v1/crates/new", False),
    ("POST", "images.test", "/v2/app/blobs/uploads/", False),
    ("PATCH", "images.test", "/v2/app/blobs/uploads/1", False),
    ("PUT", "images.test", "/v2/app/manifests/latest", False),
    ("HEAD", "images.test", "/v2/app/manifests/latest", True),
]


@pytest.mark.parametrize(("method", "host", "path", "passes"), PUBLISH)
def test_alw_02_who_may_install_may_not_publish(
    lab: Lab, method: str, host: str, path: str, passes: bool
) -> None:
    if method == "HEAD":
        lab.bind(*INSTALL)
        lab.serve(host, reply=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        ask, heard = sent(method, host, path)
        lab.expect(ask, allowed(heard))
        return
    played(lab, INSTALL, method, host, path, passes)


# -- ALW-03 ---------------------------------------------------------------------------------------------------

BUCKET = (
    rule("allow", "mine.s3.test"),
    rule("allow", "s3.test", methods=["GET"], paths=["/mine/**"]),
)
OBJECTS = [
    ("PUT", "mine.s3.test", "/key", True),
    ("GET", "s3.test", "/mine/key", True),
    ("PUT", "evil.s3.test", "/loot", False),
    ("GET", "evil.s3.test", "/", False),
    ("PUT", "s3.test", "/evil/loot?X-Amz-Signature=x", False),
    ("PUT", "s3.test", "/mine/key?X-Amz-Signature=x", False),
    ("GET", "s3.test", "/mine", True),
    ("GET", "s3.test", "/mine2/key", False),
    ("GET", "s3.test", "/mine/../evil/loot", "failure"),
    ("PUT", "mine.s3.test.evil.test", "/key", False),
]


@pytest.mark.parametrize(("method", "host", "path", "passes"), OBJECTS)
def test_alw_03_a_bucket_is_a_host_or_a_path(
    lab: Lab, method: str, host: str, path: str, passes: bool | str
) -> None:
    played(lab, BUCKET, method, host, path, passes)


@pytest.mark.parametrize("written", ["*.s3.amazonaws.com", "**.github.io", "*.web.app"])
def test_alw_03_a_wildcard_over_what_anybody_can_own_is_told(written: str) -> None:
    everybodys = {"s3.amazonaws.com", "github.io", "web.app"}
    assert "public suffix" in "".join(warnings(rule("allow", written), everybodys.__contains__))
    assert not warnings(rule("allow", "mine.s3.amazonaws.com"), everybodys.__contains__)


# -- ALW-04 ---------------------------------------------------------------------------------------------------


def test_alw_04_every_read_is_on_record_and_its_query_is_not(lab: Lab) -> None:
    """Names of allowed hosts and paths are a channel (THREAT_MODEL.md); what goes through it is at least told."""
    lab.bind(rule("allow", "hub.test"))
    lab.serve("hub.test")
    secrets = [get("hub.test", f"/count/{bit}?secret={bit}") for bit in "0110"]
    outcome = allowed(b"".join(secrets), 200, 200, 200, 200, records=4)
    records = lab.expect(inside("hub.test", b"".join(secrets)), outcome)
    told = [each["path"] for each in records if each["step"] == "opened"]
    assert told == ["/count/0", "/count/1", "/count/1", "/count/0"]


# -- ALW-09 ---------------------------------------------------------------------------------------------------


def test_alw_09_however_git_is_told_to_go_it_meets_the_same_verdict(lab: Lab) -> None:
    """``ProxyCommand``, ``core.sshCommand``, ``url.insteadOf`` choose a host and a port, and these are decided."""
    lab.bind(rule("allow", "github.test:443"))
    lab.serve("github.test")
    heard = b"GET /acme/app.git/info/refs HTTP/1.1\r\nHost: github.test\r\n\r\n"
    lab.expect(inside("github.test", get("github.test", "/acme/app.git/info/refs")), allowed(heard))
    ssh = b"SSH-2.0-x\r\n"
    for host, port in (("github.test", 22), ("ssh.github.test", 443), ("evil.test", 22), ("evil.test", 443)):
        lab.expect(tunnel(host, ssh, port=port), refused("default", "reset"))
        lab.expect(redirected(host, ssh, port=port), refused("default", "reset"))
    lab.expect(
        redirected("evil.test", b"003egit-upload-pack /x\0host=evil\0", port=9418),
        refused("default", "reset"),
    )
    outcome = Outcome(seen=(403,), verdict="blocked", reason="default")
    lab.expect(inside("evil.test", get("evil.test", "/acme/app.git/info/refs")), outcome)
