"""The daemon's API: routes over use cases, one error shape, no state of its own."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from ringfence.api import peer, policy_routes, problems, sandbox_routes, secret_routes, views
from ringfence.api.bodies import StopDaemon
from ringfence.api.services import Services


def server(services: Services, *, name_of: peer.NameOf) -> peer.PeerServer:
    """Return the server of the API. ``name_of`` says what a uid is called."""
    return peer.server(_build(services), name_of=name_of)


def _build(services: Services) -> FastAPI:
    app = FastAPI(
        title="ringfence",
        version=services.version,
        default_response_class=JSONResponse,
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)

    @app.get("/v1/daemon")
    async def daemon() -> views.Json:
        return dict(services.residence.state())

    @app.post("/v1/daemon/stop")
    async def stop(body: StopDaemon | None = None) -> views.Json:
        await services.residence.stop(sandboxes=body is not None and body.sandboxes == "stop")
        return {}

    @app.get("/v1/doctor")
    async def doctor() -> views.Json:
        return views.doctor_view(services.version, list(await services.doctor.examine()))

    app.include_router(sandbox_routes.router(services))
    app.include_router(policy_routes.router(services))
    app.include_router(secret_routes.router(services))
    return app
