"""TLS-10 to TLS-14: whom the gateway believes, and whom it is believed by."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from tests.escapes.bad_certificates import BAD, good
from tests.escapes.escape_stage import (
    Ask,
    Client,
    Lab,
    Outcome,
    allowed,
    forward,
    get,
    inside,
    origin_roots,
    redirected,
    refused,
    rule,
    tunnel,
    until,
    untouched,
)

SECRET = get("a.test", "/", "Authorization: Bearer canary")
HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: Bearer canary\r\n\r\n"


# -- TLS-10 ---------------------------------------------------------------------------------------------------


def test_tls_10_a_chain_that_holds_is_believed(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", tls=good())
    lab.expect(inside("a.test", SECRET), allowed(HEARD, questions=("a.test",)))


@pytest.mark.parametrize(("context", "text"), BAD.values(), ids=BAD.keys())
def test_tls_10_an_origin_that_cannot_prove_its_name_hears_nothing(
    lab: Lab, context: Callable[[], ssl.SSLContext], text: str
) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", tls=context())
    outcome = allowed(b"", 502, ended="upstream", text=text)
    lab.expect(inside("a.test", SECRET), outcome)
    lab.expect(redirected("a.test", SECRET, port=443, tls="a.test"), outcome)


def test_tls_10_an_origin_without_tls_hears_no_request(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", tls=False, greeting=b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    heard: list[bytes] = []
    records = lab.run(_one(lab, inside("a.test", SECRET), heard))
    assert records[-1]["status"] == 502
    assert b"canary" not in lab.upstream
    lab.sentinel()


async def _one(lab: Lab, ask: Ask, heard: list[bytes]) -> list[dict]:  # type: ignore[type-arg]
    lab.forget()
    client = await ask.open(lab)
    assert await lab.talk(client, ask, (502,)) == [502]
    client.close()
    await until(lambda: not lab.stage.guest.links)
    return lab.stage.records


# -- TLS-11 ---------------------------------------------------------------------------------------------------


def test_tls_11_one_name_has_one_leaf_however_many_ask_at_once(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    authority = lab.stage.services.authority
    assert authority is not None
    before = len(authority)

    async def scene() -> set[bytes]:
        clients = await asyncio.gather(*(lab.stage.secure("denied.test") for _ in range(64)))
        shown = {client.tls.getpeercert(binary_form=True) or b"" for client in clients}
        for client in clients:
            client.close()
        return shown

    (leaf,) = lab.run(scene())
    assert len(authority) == before + 1
    certificate = x509.load_der_x509_certificate(leaf)
    assert certificate.not_valid_after_utc.timestamp() - time.time() <= 30 * 86_400
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    lab.sentinel()


def test_tls_11_nothing_is_minted_before_there_is_a_decision(lab: Lab) -> None:
    """Names that nobody is let through with cost no signature until a hello that could go on."""
    authority = lab.stage.services.authority
    assert authority is not None
    before = len(authority)
    for name in ("*.a.test", "a..test", "a.test%00", "x" * 64 + ".test"):
        lab.expect(
            forward(f"CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n".encode()),
            refused("failure", 400),
        )
    lab.bind(rule("allow", "a.test"))
    lab.expect(inside("a.test", get("b.test"), name="c.test"), refused("guard", 421))
    assert len(authority) == before + 1  # for the refusal that a person reads


# -- TLS-13 ---------------------------------------------------------------------------------------------------


def distrusting(host: str) -> Ask:
    """A client with roots of its own, which the gateway's authority is not among."""

    async def opened(lab: Lab) -> Client:
        client = await lab.stage.connect(host)
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.start_tls(host, origin_roots())
        return client

    return Ask(open=opened)


def test_tls_13_a_client_that_refuses_our_authority_is_told_of_and_never_let_past(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test")
    for _ in range(2):  # it bypasses nobody by itself, however often it happens
        lab.expect(
            distrusting("a.test"), Outcome(seen=(), verdict="allowed", reason="rule", ended="mistrusted")
        )
    lab.bind(rule("allow", "a.test", inspect="never"))
    told = lab.expect(untouched("a.test", SECRET), allowed(HEARD, questions=("a.test",)))
    assert told[0].get("inspected") is None  # the reduced guarantee is on record


# -- TLS-14 ---------------------------------------------------------------------------------------------------


def test_tls_14_an_origin_that_hangs_up_on_our_handshake_is_diagnosed(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test"))
    context = good()
    context.set_ciphers("ECDHE+AESGCM")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    lab.serve("a.test", tls=context)
    lab.expect(inside("a.test", SECRET), allowed(HEARD))

    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.transport.abort()

    lab.reset()
    lab.bind(rule("allow", "a.test"))
    lab.run(lab.stage.origin("a.test", slam, tls=False))
    lab.expect(inside("a.test", SECRET), allowed(b"", 502, ended="upstream"))
    lab.expect(tunnel("b.test", b"\0\0\0"), refused("default", "reset"))
