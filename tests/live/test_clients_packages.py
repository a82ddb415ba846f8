"""Package clients with their own defaults: git, pip, npm, apt, cargo, Go, and the way an image is pulled.

Every one fetches; where it can also publish, a rule about methods or paths lets it fetch and not publish.
"""

from __future__ import annotations

import pytest
from tests.live.clients import Clients, Row

AS_SOMEBODY = ("-c", "user.name=Agent", "-c", "user.email=agent@clients.example")


def rows(verdict: str, host: str, *asked: str, status: str = "200") -> list[Row]:
    return [(verdict, host, "-" if verdict == "BLOCKED" else status, each) for each in asked]


# -- git ------------------------------------------------------------------------------------------------------

PROJECT = "https://github.com/team/project.git"
REFS, UPLOAD, RECEIVE = (
    "GET /team/project.git/info/refs",
    "POST /team/project.git/git-upload-pack",
    "POST /team/project.git/git-receive-pack",
)


def commit(clients: Clients, place: str, text: str) -> str:
    """Commit something that does not fit one buffer, so that a push of it is sent in chunks."""
    clients.run("sh", "-c", f"head -c 2000000 /dev/urandom > {place}/{text}")
    clients.run("git", "-C", place, "add", ".")
    ran = clients.run("git", "-C", place, *AS_SOMEBODY, "commit", "-q", "-m", text)
    assert ran.code == 0, ran.said
    return clients.run("git", "-C", place, "rev-parse", "HEAD").out.strip()


def at_the_origin(clients: Clients) -> str:
    repository = f"{clients.world.root}/git/team/project.git"
    return clients.lab.host("git", "-C", repository, "rev-parse", "main").out.strip()


def test_git_clones_fetches_and_pushes_over_https(clients: Clients) -> None:
    cloned = clients.run("git", "clone", "-q", PROJECT, "over-https")
    assert cloned.code == 0, cloned.said
    head = commit(clients, "over-https", "large")
    pushed = clients.run("git", "-C", "over-https", "push", "-q", "origin", "main")
    assert (pushed.code, at_the_origin(clients)) == (0, head), pushed.said
    assert clients.run("git", "-C", "over-https", "fetch", "-q").code == 0
    assert clients.log.take(8) == [
        *rows("ALLOWED", "github.com", REFS, UPLOAD, UPLOAD),
        *rows("ALLOWED", "github.com", REFS, RECEIVE, RECEIVE),  # the first asks whether it may send much
        *rows("ALLOWED", "github.com", REFS, UPLOAD),
    ]


def test_git_may_fetch_and_not_push(clients: Clients) -> None:
    clients.run("git", "clone", "-q", PROJECT, "read-only")
    clients.log.take(3)
    before = at_the_origin(clients)
    commit(clients, "read-only", "unwanted")
    with clients.rule("deny", "github.com", "--method", "POST", "--path", "/**/git-receive-pack"):
        pushed = clients.run("git", "-C", "read-only", "push", "-q", "origin", "main")
        fetched = clients.run("git", "-C", "read-only", "fetch", "-q")
    assert (pushed.code, fetched.code, at_the_origin(clients)) == (1, 0, before)
    assert "403" in pushed.err
    assert clients.log.take(4) == [
        *rows("ALLOWED", "github.com", REFS),
        *rows("BLOCKED", "github.com", RECEIVE),
        *rows("ALLOWED", "github.com", REFS, UPLOAD),
    ]


def test_git_says_why_it_is_blocked(clients: Clients) -> None:
    refused = clients.run("git", "clone", "https://paste.ee/team/project.git", "nothing")
    assert refused.code == 128
    assert "remote: Blocked by network policy: domain paste.ee:443\n" in refused.err
    assert "The requested URL returned error: 403" in refused.err
    assert clients.log.take(1) == rows("BLOCKED", "paste.ee", "GET /team/project.git/info/refs")


# -- pip ------------------------------------------------------------------------------------------------------


def test_pip_installs(clients: Clients) -> None:
    if clients.run("python3", "-m", "pip", "--version").code:
        pytest.skip("the host's python3 has no pip (apt-get install python3-pip)")
    pip = (
        "python3",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--no-cache-dir",
        "--target",
        "pips",
    )
    ran = clients.run(*pip, "httpx")
    assert "Successfully installed httpx-0.28.1" in ran.out, ran.said
    index, file = clients.log.take(2)
    assert [index] == rows("ALLOWED", "pypi.org", "GET /simple/httpx/")
    assert file[:3] == ("ALLOWED", "files.pythonhosted.org", "200")
    refused = clients.run(*pip, "--index-url", "https://paste.ee/simple", "httpx")
    assert refused.code == 1
    assert "ERROR: No matching distribution found for httpx" in refused.err
    assert clients.log.take(1) == rows("BLOCKED", "paste.ee", "GET /simple/httpx/")


# -- npm ------------------------------------------------------------------------------------------------------


def test_npm_installs_and_may_not_publish(clients: Clients) -> None:
    if not clients.has("npm"):
        pytest.skip("npm is not installed (apt-get install npm)")
    registry, token = "registry.npmjs.org", "--//registry.npmjs.org/:_authToken=proxy-managed"
    quiet = ("--no-audit", "--no-fund", "--no-update-notifier")
    clients.write("npm/package.json", '{"name": "of-the-agent", "version": "1.0.0"}')
    place = str(clients.lab.scratch / "npm")
    installed = clients.run("npm", "install", *quiet, "left-pad", cwd=place)
    assert installed.code == 0, installed.said
    used = clients.run("node", "-p", "require('left-pad')(7, 3)", cwd=place)
    assert used.out == "  7\n"
    assert clients.log.take(2) == rows(
        "ALLOWED", registry, "GET /left-pad", "GET /left-pad/-/left-pad-1.3.0.tgz"
    )
    with clients.rule("deny", registry, "--method", "PUT,POST,DELETE,PATCH"):
        refused = clients.run("npm", "publish", *quiet, token, cwd=place)
    assert refused.code == 1
    assert f"npm error 403 403 Forbidden - PUT https://{registry}/of-the-agent" in refused.err
    *asked, last = clients.log.take(3)
    assert [row[0] for row in asked] == ["ALLOWED", "ALLOWED"]
    assert [last] == rows("BLOCKED", registry, "PUT /of-the-agent")


# -- apt ------------------------------------------------------------------------------------------------------

APT = """
set -e
root=$HOME/$1; export APT_CONFIG=$root/apt.conf
mkdir -p $root/etc/apt/apt.conf.d $root/etc/apt/preferences.d $root/var/lib/apt/lists/partial $root/var/log/apt
mkdir -p $root/var/cache/apt/archives/partial $root/var/lib/dpkg/updates $root/var/lib/dpkg/info
: > $root/var/lib/dpkg/status
cat > $APT_CONFIG <<END
Dir "$root";
Dir::State::status "$root/var/lib/dpkg/status";
DPkg::Path "/usr/sbin:/usr/bin:/sbin:/bin";
DPkg::Options { "--root=$root"; "--force-not-root"; "--force-script-chrootless"; };
END
echo "$2" > $root/etc/apt/sources.list
shift 2
for line in "$@"; do apt-get -q $line; done
"""
"""apt with its state in the home directory: the ``host`` template has no package database."""


def apt(clients: Clients, place: str, source: str, *lines: str) -> str:
    return clients.run("sh", "-c", APT, "apt", place, source, *lines).said


@pytest.mark.parametrize("archive", ["http://deb.debian.org", "https://security.debian.org"])
def test_apt_updates_and_installs(clients: Clients, archive: str) -> None:
    if not clients.has("apt-get"):
        pytest.skip("apt is not installed")
    host, lists = archive.partition("//")[2], "GET /debian/dists/stable"
    source = f"deb [trusted=yes] {archive}/debian stable main"
    said = apt(clients, host, source, "update", "-y install greeting")
    installed = clients.run("sh", "-c", f"cat ~/{host}/usr/share/greeting/hello")
    assert installed.out == "hello\n", said
    architecture = clients.run("dpkg", "--print-architecture").out.strip()
    assert sorted(clients.log.take(6)) == sorted(
        [
            *rows("ALLOWED", host, f"{lists}/InRelease", f"{lists}/Release.gpg", status="404"),
            *rows("ALLOWED", host, f"{lists}/Release", f"{lists}/main/binary-all/Packages"),
            *rows("ALLOWED", host, f"{lists}/main/binary-{architecture}/Packages"),
            *rows("ALLOWED", host, "GET /debian/pool/greeting_1.0_all.deb"),
        ]
    )


def test_apt_says_that_it_is_blocked(clients: Clients) -> None:
    if not clients.has("apt-get"):
        pytest.skip("apt is not installed")
    said = apt(clients, "blocked", "deb https://paste.ee/debian stable main", "update")
    assert "https://paste.ee/debian stable InRelease\n  403  Forbidden" in said
    assert "is not signed" in said
    assert clients.log.take(1) == rows("BLOCKED", "paste.ee", "GET /debian/dists/stable/InRelease")


# -- containers -----------------------------------------------------------------------------------------------

PULL = """
set -e
token=$(curl -sSf 'https://auth.docker.io/token?service=registry.docker.io' | sed 's/.*"token": "//; s/".*//')
hub=https://registry-1.docker.io/v2/library/hello
curl -sS -o /dev/null -w '%{http_code}\\n' $hub/manifests/latest
layer=$(curl -sSf -H "Authorization: Bearer $token" $hub/manifests/latest | grep -o 'sha256:[0-9a-f]*' | tail -1)
test "sha256:$(curl -sSfL -H "Authorization: Bearer $token" $hub/blobs/$layer | sha256sum | cut -d' ' -f1)" = $layer
echo whole
"""


def test_an_image_is_pulled(clients: Clients) -> None:
    """The shape of a pull, by curl: token, manifest, a blob behind a redirect to another host."""
    ran = clients.run("sh", "-c", PULL)
    assert ran.out == "401\nwhole\n", ran.said
    token, asked, manifest, blob, stored = clients.log.take(5)
    hub, path = "registry-1.docker.io", "GET /v2/library/hello"
    assert [token] == rows("ALLOWED", "auth.docker.io", "GET /token")
    assert [asked] == rows("ALLOWED", hub, f"{path}/manifests/latest", status="401")
    assert [manifest] == rows("ALLOWED", hub, f"{path}/manifests/latest")
    assert blob[:3] == ("ALLOWED", hub, "307")
    assert stored[:3] == ("ALLOWED", "production.cloudfront.docker.com", "200")
    with clients.rule("deny", "production.cloudfront.docker.com"):
        ran = clients.run("sh", "-c", PULL)
        assert (ran.code, ran.out) == (1, "401\n")
        assert "returned error: 403" in ran.err
    *_, last = clients.log.take(5)
    assert last[:3] == ("BLOCKED", "production.cloudfront.docker.com", "-")
