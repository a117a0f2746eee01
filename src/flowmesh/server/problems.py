"""FlowMeshError -> RFC 9457 problem details, in one place; handlers have no `try`."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from flowmesh.base.errors import FlowMeshError, SpecError
from flowmesh.wire import ErrorBody, ProblemView

_log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    app.add_exception_handler(FlowMeshError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)


def answer(body: ErrorBody) -> JSONResponse:
    return JSONResponse(
        body.model_dump(mode="json"), body.status, media_type="application/problem+json"
    )


def body_of(error: FlowMeshError) -> ErrorBody:
    problems = error.problems if isinstance(error, SpecError) else ()
    return ErrorBody(
        title=error.code.replace("_", " "),
        status=error.http_status,
        code=error.code,
        detail=str(error),
        retryable=error.retryable,
        problems=[ProblemView.of(problem) for problem in problems],
    )


async def _told(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FlowMeshError)
    return answer(body_of(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        ProblemView(message=found["msg"], path=".".join(str(part) for part in found["loc"][1:]))
        for found in error.errors()
    ]
    detail = "; ".join(f"{problem.path}: {problem.message}" for problem in problems)
    body = ErrorBody(
        title="invalid request",
        status=422,
        code="invalid_request",
        detail=detail,
        problems=problems,
    )
    return answer(body)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = "the server met an error of its own; its log has the details"
    return answer(ErrorBody(title="internal", status=500, code="internal", detail=detail))
