"""The one error shape: ``application/problem+json`` (RFC 9457) with a stable ``code`` and the CLI's exit code."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ringfence.application.errors import InvalidInput, RingfenceError
from ringfence.policy.errors import InvalidPolicy

_log = logging.getLogger(__name__)


def problem(error: RingfenceError) -> JSONResponse:
    return _answer(error.status, error.code, str(error), error.hint, error.exit_code)


def _answer(status: int, code: str, detail: str, hint: str, exit_code: int) -> JSONResponse:
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    content = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "hint": hint,
        "exit_code": exit_code,
    }
    return JSONResponse(content, status_code=status, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Make every failure of a route one of these."""

    async def known(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RingfenceError)
        return problem(error)

    async def policy(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, InvalidPolicy)
        text = f"{error.where}: {error.message}" if error.where else error.message
        return problem(InvalidInput(text, hint=error.hint, code="invalid-policy"))

    async def shape(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"] if step != "body")
        text = f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}" if place else first["msg"]
        return problem(InvalidInput(text, code="invalid-request"))

    async def http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _answer(error.status_code, "no-route", str(error.detail).lower(), "", 1)

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        text = f"the daemon failed: {type(error).__name__}: {error}"
        return _answer(500, "internal", text, "the daemon's log has the details", 1)

    app.add_exception_handler(RingfenceError, known)
    app.add_exception_handler(InvalidPolicy, policy)
    app.add_exception_handler(RequestValidationError, shape)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unknown)
