"""``/v1/sandboxes``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ringfence.api import secret_routes, views
from ringfence.api.bodies import CreateSandbox
from ringfence.api.services import Services
from ringfence.application.lives import Life
from ringfence.policy.governance import SANDBOX


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/v1/sandboxes", default_response_class=JSONResponse)
    sandboxes = services.sandboxes

    def summary(life: Life) -> views.Json:
        isolation = services.platforms[life.record.spec.runtime].driver.isolation
        return views.sandbox_view(life, isolation, sandboxes.entrance(life).socket)

    @routes.get("")
    async def listing() -> views.Json:
        return {"sandboxes": [summary(life) for life in sandboxes.list()]}

    @routes.post("", status_code=201)
    async def create(body: CreateSandbox, request: Request) -> views.Json:
        return summary(await sandboxes.create(body.wish(request.state.peer)))

    @routes.get("/{name}")
    async def detail(name: str) -> views.Json:
        life = sandboxes.find(name)
        listed = services.rules.listing(life.name)
        own = sum(1 for rule in listed.rules if rule["origin"].startswith(SANDBOX))
        return {
            **views.sandbox_detail(life, summary(life), own, listed.revision),
            "environment": sandboxes.entrance(life).environment,
            "secrets": [secret_routes.secret_view(shown) for shown in services.secrets.of(life)],
        }

    @routes.post("/{name}/start")
    async def start(name: str) -> views.Json:
        life, entrance = await sandboxes.start(name)
        return {"sandbox": summary(life), "session": views.entrance_view(entrance)}

    @routes.post("/{name}/stop")
    async def stop(name: str) -> views.Json:
        return summary(await sandboxes.stop(name))

    @routes.delete("/{name}")
    async def remove(name: str) -> views.Json:
        await sandboxes.remove(name)
        return {}

    @routes.post("/{name}/settle")
    async def settle(name: str) -> views.Json:
        await sandboxes.settle(name)
        return {}

    return routes
