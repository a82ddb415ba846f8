"""REQ-07: what is decided is what is served. Sixty spellings of a path, where a path matters and where it does not.

On a host with HTTP rules a path that two servers could read in two ways is refused; what is clear is decided on its
segments and sent on as it came, byte for byte. On a host without, the path is the origin's own business: it is sent on
as it came, and only what is no path at all is refused.
"""

from __future__ import annotations

import pytest
from tests.escapes.escape_stage import Lab, Outcome, allowed, get, inside, refused, rule

OPEN, DENIED, DEFAULT, UNCLEAR, NO_PATH = "open", "denied", "default", "unclear", "no path"

PATHS: list[tuple[str, str]] = [
    ("/repos", OPEN),
    ("/repos/", OPEN),
    ("/repos/a", OPEN),
    ("/repos/a?x=1", OPEN),
    ("/repos/a?x=/../secret", OPEN),
    ("/repos/%61", OPEN),
    ("/%72epos/a", OPEN),
    ("/repos/a%20b", OPEN),
    ("/repos/%C3%A4", OPEN),
    ("/repos/a:b@c,d=e", OPEN),
    ("/repos/...", OPEN),
    ("/repos/.hidden", OPEN),
    ("/repos/a..b", OPEN),
    ("/repos/*", OPEN),
    ("/repos/a%25", OPEN),
    ("/repos/a%3Fsecret", OPEN),
    ("/repos/secret", DENIED),
    ("/repos/secret/", DENIED),
    ("/repos/secret?x", DENIED),
    ("/repos/%73ecret", DENIED),
    ("/repos/s%65cret/x", DENIED),
    ("/%72%65%70%6F%73/%73%65%63%72%65%74", DENIED),
    ("/repos/secret/a/b", DENIED),
    ("/Repos/a", DEFAULT),
    ("/REPOS/a", DEFAULT),
    ("/repos2", DEFAULT),
    ("/repo", DEFAULT),
    ("/", DEFAULT),
    ("/x/repos/a", DEFAULT),
    ("/repos%20/a", DEFAULT),
    ("/repos/../x", UNCLEAR),
    ("/x/../repos/a", UNCLEAR),
    ("/repos/./a", UNCLEAR),
    ("/repos/a/..", UNCLEAR),
    ("/repos/.", UNCLEAR),
    ("/repos/%2e%2e/x", UNCLEAR),
    ("/repos/.%2e/x", UNCLEAR),
    ("/repos/%2E%2E/x", UNCLEAR),
    ("/repos/%2e/secret", UNCLEAR),
    ("/repos%2fsecret", UNCLEAR),
    ("/repos%2Fa", UNCLEAR),
    ("/repos/a%5cb", UNCLEAR),
    ("/repos/a%5C..%5Csecret", UNCLEAR),
    ("/repos/..\\secret", UNCLEAR),
    ("/repos\\secret", UNCLEAR),
    ("//repos/a", UNCLEAR),
    ("/repos//secret", UNCLEAR),
    ("/repos/a//", UNCLEAR),
    ("///", UNCLEAR),
    ("/repos/a;x=y", UNCLEAR),
    ("/repos;/secret", UNCLEAR),
    ("/repos/..;/secret", UNCLEAR),
    ("/repos/a%3bx", UNCLEAR),
    ("/repos/%252e%252e/x", UNCLEAR),
    ("/repos/a%252fb", UNCLEAR),
    ("/repos/a%", UNCLEAR),
    ("/repos/a%2", UNCLEAR),
    ("/repos/a%zz", UNCLEAR),
    ("/repos/%u002e%u002e/x", UNCLEAR),
    ("/repos/a%00", UNCLEAR),
    ("/repos/a%0d%0aX:y", UNCLEAR),
    ("/repos/a%7f", UNCLEAR),
    ("/repos/%c0%ae%c0%ae/x", UNCLEAR),  # an overlong dot
    ("/repos/%c0%af", UNCLEAR),  # an overlong slash
    ("/repos/%e0%80%ae", UNCLEAR),
    ("/repos/%ff", UNCLEAR),
    ("/repos/" + "a" * 4_096, UNCLEAR),
    ("/repos/a#secret", NO_PATH),
    ("/repos/a b", NO_PATH),
    ("/repos/a\tb", NO_PATH),
    ("/repos/a\0", NO_PATH),
    ("/repos/ä", NO_PATH),
    ("/repos/a\x7f", NO_PATH),
    ("repos/a", NO_PATH),
    ("", NO_PATH),
    ("?x", NO_PATH),
    ("\\repos", NO_PATH),
]


def outcome(path: str, kind: str) -> Outcome:
    return {
        OPEN: allowed(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode("latin-1")),
        DENIED: refused("rule"),
        DEFAULT: refused(),
        UNCLEAR: refused("failure"),
        NO_PATH: refused("failure", 400),
    }[kind]


@pytest.mark.parametrize(("path", "kind"), PATHS, ids=[ascii(each[0][:40]) for each in PATHS])
def test_req_07_where_paths_matter_a_path_is_clear_or_refused(lab: Lab, path: str, kind: str) -> None:
    lab.bind(rule("allow", "a.test", paths=["/repos/**"]), rule("deny", "a.test", paths=["/repos/secret/**"]))
    lab.serve("a.test")
    lab.expect(inside("a.test", get("a.test", "/repos/control")), outcome("/repos/control", OPEN))
    lab.expect(inside("a.test", get("a.test", path)), outcome(path, kind))


@pytest.mark.parametrize(("path", "kind"), PATHS, ids=[ascii(each[0][:40]) for each in PATHS])
def test_req_07_where_paths_do_not_matter_they_pass_as_they_are(lab: Lab, path: str, kind: str) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test")
    lab.expect(inside("a.test", get("a.test", path)), outcome(path, NO_PATH if kind == NO_PATH else OPEN))


@pytest.mark.parametrize(
    ("path", "kind"), [each for each in PATHS if each[1] in (OPEN, DENIED, UNCLEAR)][::4]
)
def test_req_07_a_path_that_follows_a_clear_one_is_read_as_strictly(lab: Lab, path: str, kind: str) -> None:
    """The second request of a connection is read in a shorter way; it says the same."""
    lab.bind(rule("allow", "a.test", paths=["/repos/**"]), rule("deny", "a.test", paths=["/repos/secret/**"]))
    lab.serve("a.test")
    first, second = outcome("/repos/a", OPEN), outcome(path, kind)
    whole = Outcome(
        seen=(200, *second.seen),
        verdict=second.verdict,
        reason=second.reason,
        upstream=first.upstream + second.upstream,
        dials=1,
        records=2,
    )
    lab.expect(inside("a.test", get("a.test", "/repos/a") + get("a.test", path)), whole)
