"""Errors in the form of the interface that was called: Cloudflare's below /client and /ai, OpenAI's elsewhere."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from llava_demo.errors import DemoError, EngineUnavailable, TooManyRequests
from llava_demo.wire import cloudflare, openai

HUNG_UP = 499  # nginx's number for a caller who did not wait; nobody receives it

_CLOUDFLARE_CODES = {404: 7000, 405: 7001}  # "no route for that URI", "method not allowed for this route"


def is_cloudflare(path: str) -> bool:
    return path.startswith(("/client", "/ai"))


async def demo_error(request: Request, error: Exception) -> Response:
    """Answer with an error of ours."""
    assert isinstance(error, DemoError)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if isinstance(error, EngineUnavailable | TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, TooManyRequests):  # OpenAI's names
        headers["x-ratelimit-limit-requests"] = str(error.limit)
        headers["x-ratelimit-remaining-requests"] = "0"
        headers["x-ratelimit-reset-requests"] = f"{error.retry_after_s}s"
    return JSONResponse(body_of(request, error), error.status, headers)


def body_of(request: Request, error: DemoError) -> dict[str, Any]:
    """The JSON that tells of `error`."""
    if is_cloudflare(request.url.path):
        return cloudflare.error_json(str(error), cloudflare.code_of(error))
    return openai.error_json(str(error), error.status, error.code, getattr(error, "param", None))


async def http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown route or a wrong method."""
    assert isinstance(error, HTTPException)
    path, status = request.url.path, error.status_code
    what = {404: "There is no such route", 405: f"This route takes no {request.method}"}.get(status, str(error.detail))
    message = f"{what}; see /v1/docs."
    if is_cloudflare(path):
        body = cloudflare.error_json(message, _CLOUDFLARE_CODES.get(status, status))
    else:
        body = openai.error_json(message, status, {404: "not_found", 405: "method_not_allowed"}.get(status))
    return JSONResponse(body, status, dict(error.headers or {}))


async def hung_up(request: Request, error: Exception) -> Response:  # noqa: ARG001, the signature of all handlers
    """The caller has gone; nobody reads this."""
    assert isinstance(error, ClientDisconnect)
    return Response(status_code=HUNG_UP)
