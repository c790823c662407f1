"""OpenAI's error object, `{"error": {"message", "type", "param", "code"}}`, to and from our errors."""

from typing import Any

from llava_demo.errors import (
    DemoError,
    EngineBusy,
    EngineUnavailable,
    GenerationFailed,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    ModelNotFound,
    PromptTooLong,
    RequestTooLarge,
    UnsupportedParameter,
)

MAX_MESSAGE_CHARACTERS = 500  # of another server's message that are passed on

_TOO_LONG = "maximum context length"  # vLLM's and OpenAI's words; vLLM's code is the status

_BY_CODE: dict[str, type[InvalidRequest]] = {
    error.code: error
    for error in (InvalidImage, ImageTooLarge, ModelNotFound, PromptTooLong, RequestTooLarge, UnsupportedParameter)
}


def error_json(message: str, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an answer with this status."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None if code == kind else code}}


def error_from(status: int, body: Any, retry_after_s: int = 5) -> DemoError:
    """What a server's refusal means to our callers; `body` is its JSON, or whatever it sent in place of it.

    A key that the other server does not take is not our caller's to mend, nor are its words his business.
    """
    fields = _fields_of(body)
    message = str(fields.get("message") or f"The model's server answered with status {status}.")
    message = message[:MAX_MESSAGE_CHARACTERS]
    code, param = fields.get("code"), fields.get("param")
    if status in (401, 403):
        return EngineUnavailable("The model's server does not take this server's key.")
    if status in (408, 429) or code == EngineBusy.code:
        return EngineBusy(message, retry_after_s)
    if status in (502, 503, 504):
        return EngineUnavailable(message, retry_after_s)
    if status >= 500:
        return GenerationFailed("The model's server failed while it answered; please try again.")
    kind = _BY_CODE.get(code, InvalidRequest) if isinstance(code, str) else InvalidRequest
    if _TOO_LONG in message:
        kind = PromptTooLong
    return kind(message, param if isinstance(param, str) else None)


def _fields_of(body: Any) -> dict[str, Any]:
    """The error of a body: OpenAI's `{"error": {...}}`, vLLM's `{"message": ...}`, FastAPI's `{"detail": ...}`."""
    if not isinstance(body, dict):
        return {}
    error = body.get("error", body)
    fields = error if isinstance(error, dict) else {"message": error}
    return {"message": fields.get("detail")} | fields
