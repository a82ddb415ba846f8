"""``/v1/secrets``. Values come in and never go out: no answer, error or ``repr`` here holds one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field, SecretStr

from ringfence.api import views
from ringfence.api.bodies import Body, Line
from ringfence.api.services import Services
from ringfence.application.secret_requests import VALUE_BYTES, CustomWish, Given
from ringfence.application.secrets import Selection, Shown
from ringfence.sandbox.secrets import Kind

HIDDEN = "****...****"
Value = Annotated[SecretStr, Field(max_length=4 * VALUE_BYTES)]


class Source(Body):
    """One of ``parts``, ``text``, ``command`` and ``reference`` is given."""

    parts: dict[Line, Value] = Field(default={}, max_length=8)
    text: Value = SecretStr("")
    command: list[Line] = Field(default=[], max_length=64)
    reference: Line = ""
    refresh: float | None = None
    on_demand: bool = False
    sandbox: Line = ""

    def given(self) -> Given:
        return Given(
            parts={name: value.get_secret_value() for name, value in self.parts.items()},
            text=self.text.get_secret_value(),
            command=tuple(self.command),
            reference=self.reference,
            refresh=0.0 if self.on_demand else self.refresh,
        )


class SetService(Source):
    service: Line
    exclusive: bool = False
    overwrite: bool = False


class SetCustom(Source):
    env: Line
    hosts: list[Line] = Field(max_length=64)
    placeholder: Line = ""
    headers: list[Line] = Field(default=[], max_length=8)
    in_query: bool = False
    in_body: bool = False
    exclusive: bool = False
    overwrite: bool = False


class SetRegistry(Source):
    registry: Line
    username: Line = ""
    auth_endpoint: Line = ""
    all_sandboxes: bool = False
    overwrite: bool = False


class RemoveSecrets(Body):
    name: Line = ""
    registry: Line = ""
    placeholder: Line = ""
    everything: bool = False
    sandbox: Line = ""


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/v1/secrets", default_response_class=JSONResponse)
    secrets = services.secrets

    @routes.get("")
    async def listing(sandbox: str = "", only_global: bool = False, service: str = "") -> views.Json:
        return listing_view(await secrets.listing(sandbox=sandbox, only_global=only_global, service=service))

    @routes.put("/service")
    async def set_service(body: SetService) -> views.Json:
        shown, warnings = await secrets.set_service(
            body.service,
            body.given(),
            sandbox=body.sandbox,
            exclusive=body.exclusive,
            overwrite=body.overwrite,
        )
        return {"secret": secret_view(shown), "warnings": list(warnings)}

    @routes.put("/custom")
    async def set_custom(body: SetCustom) -> views.Json:
        wish = CustomWish(
            env=body.env,
            hosts=tuple(body.hosts),
            placeholder=body.placeholder,
            headers=tuple(body.headers),
            in_query=body.in_query,
            in_body=body.in_body,
            exclusive=body.exclusive,
        )
        shown, warnings = await secrets.set_custom(
            wish, body.given(), sandbox=body.sandbox, overwrite=body.overwrite
        )
        return {"secret": secret_view(shown), "warnings": list(warnings)}

    @routes.put("/registry")
    async def set_registry(body: SetRegistry) -> views.Json:
        shown = await secrets.set_registry(
            body.registry,
            body.given(),
            username=body.username,
            auth_endpoint=body.auth_endpoint,
            sandbox=body.sandbox,
            all_sandboxes=body.all_sandboxes,
            overwrite=body.overwrite,
        )
        return {"secret": secret_view(shown), "warnings": []}

    @routes.delete("")
    async def remove(body: RemoveSecrets) -> views.Json:
        removed = await secrets.remove(Selection(**body.model_dump()))
        return {"removed": [secret_view(shown) for shown in removed]}

    return routes


def listing_view(shown: Sequence[Shown]) -> views.Json:
    """The shape that scripts for this command know: services and registries, then custom secrets."""
    return {
        "secrets": [secret_view(each) for each in shown if each.secret.kind is not Kind.CUSTOM],
        "custom_secrets": [secret_view(each) for each in shown if each.secret.kind is Kind.CUSTOM],
        "shadowed_services": sorted(
            {each.secret.name for each in shown if each.shadows and each.secret.kind is Kind.SERVICE}
        ),
        "env_only_count": 0,
    }


def secret_view(shown: Shown) -> views.Json:
    secret = shown.secret
    view: views.Json = {
        "scope": shown.scope,
        "type": secret.kind.value,
        "name": secret.name,
        "secret": HIDDEN,
        "created": secret.created,
    }
    if secret.command:
        view |= {"source": secret.reference or list(secret.command), "refresh": secret.refresh}
    if shown.unavailable:
        view["unavailable"] = shown.unavailable
    if secret.exclusive:
        view["exclusive"] = True
    if secret.kind is Kind.CUSTOM:
        view |= {
            "env": secret.name,
            "targets": list(secret.hosts),
            "headers": list(secret.headers),
            "placeholder": secret.placeholder,
        }
        view |= {name: True for name in ("in_query", "in_body") if getattr(secret, name)}
    if secret.kind is Kind.REGISTRY:
        view |= {"username": secret.username, "placeholder": secret.placeholder}
    return view
