"""What the server refuses with: OpenAI's error object, whatever went wrong."""

from __future__ import annotations

from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request

from model.json_file import shown

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
LONGEST_SHOWN = 200  # characters of what a client sent
LONGEST_MESSAGE = 1000


class APIError(HTTPException):
    """Something a client is told.

    status   400, 401, 403, 404, 405, 408, 413, 429, 500 or 503
    message  what was expected and what came, in one line
    param    the field of the request that it is about
    code     a word that programs look at
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(status, message, headers)
        self.status, self.message, self.param, self.code = status, message, param, code


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    """What every answer is that is not 200: for /openapi.json."""

    error: ErrorFields


def error_object(status: int, message: str, param: str | None, code: str | None) -> dict:
    # what is repeated of a request may be long, and hold lone surrogates, which an answer cannot
    message, param = (text and shown(text, LONGEST_MESSAGE) for text in (message, param))
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(error: APIError) -> JSONResponse:
    """An error as the server answers with it."""
    content = error_object(error.status, error.message, error.param, error.code)
    return JSONResponse(content, error.status, error.headers)


async def api_error(_request: Request, error: APIError) -> JSONResponse:
    return response(error)


async def http_error(request: Request, error: HTTPException) -> JSONResponse:
    """What the web framework refuses: unknown routes, other methods, a body that is no JSON."""
    message = str(error.detail)
    if error.status_code == 404:
        message = f"no such route: {request.method} {request.url.path[:LONGEST_SHOWN]}"
    content = error_object(error.status_code, message, None, None)
    return JSONResponse(content, error.status_code, error.headers)


async def validation_error(_request: Request, error: RequestValidationError) -> JSONResponse:
    """A field that is missing, unknown or wrong: named, with what was expected and what came."""
    # where a field may be of several kinds, each complains: the one that came furthest counts
    first = max(
        error.errors(), key=lambda one: (not one["type"].endswith("_type"), len(one["loc"]))
    )
    place = [str(part) for part in first["loc"][1:] if not _is_a_kind(part)]
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        message = (
            f"{param}: this field is not supported here (docs/serving.md lists those that are)"
        )
    elif first["type"] == "json_invalid":
        param, message = None, f"the body is not JSON: {first['ctx']['error']}"
    else:
        message = f"{param or 'body'}: {first['msg'].removeprefix('Value error, ')}"
        if first["type"] != "missing" and isinstance(first.get("input"), str | int | float):
            message += f", got {first['input']!r}"[:LONGEST_SHOWN]
    return response(APIError(400, message, param))


def _is_a_kind(part: object) -> bool:
    """Whether a part of a place is not a field but one of the kinds that it may be of."""
    return isinstance(part, str) and ("[" in part or "-" in part or part in ("str", "int", "float"))


async def unforeseen(_request: Request, error: Exception) -> JSONResponse:
    """A bug: told to the client without its traceback, which the log has."""
    name = HTTPStatus(500).phrase.lower()
    content = error_object(500, f"{name} ({type(error).__name__})", None, None)
    return JSONResponse(content, 500)
