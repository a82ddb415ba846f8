"""``/v1/policy``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from ringfence.api import views
from ringfence.api.bodies import AddRule, CheckTarget, ChoosePreset, RemoveRules, ResetPolicy, SwitchGroup
from ringfence.api.services import Services
from ringfence.application.errors import InvalidInput
from ringfence.policy.model import Transport

DOCUMENT_BYTES = 32 * 1024 * 1024
_YAML = "text/yaml; charset=utf-8"


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/v1/policy", default_response_class=JSONResponse)
    rules, presets, decisions, exchange = (
        services.rules,
        services.presets,
        services.decisions,
        services.exchange,
    )

    @routes.get("")
    async def listing(sandbox: str = "") -> views.Json:
        return views.listing_view(rules.listing(sandbox))

    @routes.post("/rules")
    async def add(body: AddRule) -> views.Json:
        added = await rules.add(body.request())
        return {"rules": [added], "warnings": added["warnings"]}

    @routes.delete("/rules")
    async def remove(body: RemoveRules) -> views.Json:
        removed = await rules.remove(
            identifier=body.id or "", resources=body.resources, sandbox=body.sandbox or ""
        )
        return {"removed": removed}

    @routes.get("/preset")
    async def choice() -> views.Json:
        return views.choice_view(presets.choice())

    @routes.put("/preset")
    async def choose(body: ChoosePreset) -> views.Json:
        return views.choice_view(await presets.choose(body.preset, implicit=body.implicit))

    @routes.post("/preset/groups")
    async def switch(body: SwitchGroup) -> views.Json:
        return views.choice_view(await presets.switch(body.name, enabled=body.enabled))

    @routes.get("/reset")
    async def what_reset_removes() -> views.Json:
        local, own = presets.what_reset_removes()
        return {"local": local, "sandbox": own}

    @routes.post("/reset")
    async def reset(body: ResetPolicy) -> views.Json:
        preset, removed, undo = await presets.reset(body.preset)
        return {"preset": preset, "removed": removed, "undo": undo}

    @routes.post("/check")
    async def check(body: CheckTarget) -> views.Json:
        checked = decisions.check(
            body.target,
            sandbox=body.sandbox or "",
            transport=body.transport or Transport.TCP,
            method=body.method or "",
            path=body.path or "",
        )
        return views.checked_view(checked)

    @routes.get("/decisions/{identifier}")
    async def explain(identifier: str) -> views.Json:
        explanation = await decisions.explain(identifier)
        rule = rules.show(explanation.entry, explanation.policy) if explanation.entry else None
        return {"records": list(explanation.records), "rule": rule, "advice": explanation.advice}

    @routes.get("/log")
    async def log(sandbox: str = "", limit: int = 0, follow: bool = False) -> StreamingResponse:
        if limit < 0:
            raise InvalidInput(f"`{limit}` is not a number of entries")
        records = decisions.log(sandbox=sandbox, newest=limit, follow=follow)

        async def lines() -> AsyncIterator[bytes]:
            # A first empty line carries the head to the client before anything has happened.
            yield b"\n" if follow else b""
            async for record in records:
                yield json.dumps(record, separators=(",", ":")).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @routes.get("/document")
    async def export(sandbox: str = "") -> PlainTextResponse:
        return PlainTextResponse(exchange.export(sandbox), media_type=_YAML)

    @routes.put("/document")
    async def put(request: Request, sandbox: str = "", dry_run: bool = False) -> views.Json:
        text = await _text(request)
        return views.imported_view(await exchange.put(text, sandbox=sandbox, dry_run=dry_run))

    @routes.post("/document/validate")
    async def validate(request: Request) -> views.Json:
        return views.validated_view(exchange.validate(await _text(request)))

    @routes.post("/document/format")
    async def format_text(request: Request) -> PlainTextResponse:
        return PlainTextResponse(exchange.format(await _text(request)), media_type=_YAML)

    @routes.post("/document/test")
    async def test(request: Request) -> views.Json:
        return views.tested_view(exchange.test(await _text(request)))

    return routes


async def _text(request: Request) -> str:
    """Return a document's text, as long as it is not longer than any document may be."""
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > DOCUMENT_BYTES:
            raise InvalidInput(f"a document of more than {DOCUMENT_BYTES} bytes", hint="divide it")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the document is not UTF-8: byte {error.start}") from error
