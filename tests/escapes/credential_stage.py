"""What the credential cases share: bindings with values that must not be seen, and a client that shows what it got."""

from __future__ import annotations

from tests.escapes.escape_stage import Lab

from ringfence.sandbox.credentials import GITHUB_PLACEHOLDER, SERVICES, Binding, Form, Target

KEY = "sk-ant-REAL-0123456789abcdef"
TOKEN = "ghp_REAL0123456789abcdef"
VALUE = "custom+value/0123456789"
MARK = "sbx-cs-4f9a7c21d0"
AWS = (("access_key_id", "AKIDREAL000000000000"), ("secret_access_key", "real/secret+key/0123456789"))
SECRETS = (KEY, TOKEN, VALUE, *(value for _, value in AWS))
GITHUB = GITHUB_PLACEHOLDER


def service(name: str, value: str = KEY, **more: object) -> Binding:
    row = SERVICES[name]
    placeholders = tuple(dict.fromkeys(each for _, each in row.variables))
    given = {"values": (("value", value),) if value else (), "placeholders": placeholders, **more}
    return Binding(name=name, targets=row.targets, **given)  # type: ignore[arg-type]


def custom(host: str = "api.test", *, header: str = "authorization", **more: object) -> Binding:
    target = Target(hosts=(host,), form=Form.REPLACE, header=header)
    given = {"values": (("value", VALUE),), "placeholders": (MARK,), **more}
    return Binding(name="MY_KEY", targets=(target,), **given)  # type: ignore[arg-type]


def arm(lab: Lab, *bindings: Binding) -> None:
    lab.stage.guest.arm(bindings)


def ask(lab: Lab, host: str, payload: bytes, *, port: int = 443) -> tuple[int, dict[str, str], bytes]:
    """Ask inside of TLS; return what the client sees, after every connection is gone."""

    async def scene() -> tuple[int, dict[str, str], bytes]:
        client = await lab.stage.secure(host, port)
        client.send(payload)
        answer = await client.response(headless=payload.startswith(b"HEAD "))
        client.close()
        await lab._quiet()
        return answer

    lab.forget()
    return lab.run(scene())
