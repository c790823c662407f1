"""What /v1/openapi.json says of bodies and answers. The knobs' ranges and words are `SamplingParams`'."""

from typing import Any

from llava_demo.chat import (
    KNOBS,
    MAX_MESSAGE_CHARACTERS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
    Knob,
    SamplingParams,
)
from llava_demo.images import MIME_TYPES, ImageLimits
from llava_demo.wire.cloudflare import DEFAULT_PROMPT
from llava_demo.wire.openai.requests import MAX_CHOICES, NEUTRAL_VALUES, WITHOUT_EFFECT

Schema = dict[str, Any]

DESCRIPTION = """Ask LLaVA about pictures with programs written for OpenAI, DeepInfra or Cloudflare Workers AI: they
only change their base URL. With `gradio_client`, see the page's own *Use via API*."""

_STATUSES = {
    400: "The request is wrong; the message names the field and what is allowed.",
    401: "The server has API keys, and none of them was given.",
    403: "The server has a login and no API keys.",
    404: "Not served here.",
    413: "The request or a picture in it is too large.",
    500: "The model failed while it answered.",
    503: "Busy, starting or broken; `Retry-After` says when to try again.",
}
_STRING: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def chat_completions(limits: ImageLimits) -> dict[str, Any]:
    """How FastAPI documents `POST /chat/completions`."""
    return {
        "summary": "Chat completion",
        "openapi_extra": {"requestBody": _body({"application/json": _chat_request(limits)})},
        "responses": {
            200: {
                "description": "The answer; with `stream` as server-sent events, each a `chat.completion.chunk`.",
                "content": {
                    "application/json": {"schema": _chat_completion()},
                    "text/event-stream": {"schema": _STRING},
                },
            }
        }
        | _errors(_openai_error(), 400, 401, 403, 404, 413, 500, 503),
    }


def models() -> dict[str, Any]:
    """How FastAPI documents `GET /models`."""
    listing = _object({"object": {"const": "list"}, "data": {"type": "array", "items": _model()}})
    return {
        "summary": "Models",
        "responses": {200: _json("What is served.", listing)} | _errors(_openai_error(), 401, 403),
    }


def model() -> dict[str, Any]:
    """How FastAPI documents `GET /models/{model}`."""
    return {
        "summary": "Model",
        "responses": {200: _json("The model.", _model())} | _errors(_openai_error(), 401, 403, 404),
    }


def cloudflare_run(limits: ImageLimits, is_bare: bool) -> dict[str, Any]:
    """How FastAPI documents a run of the model; the bare answer is the one that a Worker gets."""
    answer = _object({"description": _STRING})
    if not is_bare:
        answer = _envelope({"result": answer, "success": {"const": True}, "errors": {"type": "array", "maxItems": 0}})
    failure = _object({"code": {"type": "integer"}, "message": _STRING})
    failed: dict[str, Schema] = {
        "result": {"type": "null"},
        "success": {"const": False},
        "errors": {"type": "array", "items": failure},
    }
    picture: Schema = {"type": "string", "format": "binary"}
    bodies = {"application/json": _run_request(limits), "application/octet-stream": picture}
    return {
        "summary": "Run, as a Worker's binding answers" if is_bare else "Run",
        "openapi_extra": {"requestBody": _body(bodies | dict.fromkeys(MIME_TYPES.values(), picture))},
        "responses": {200: _json("The answer.", answer)} | _errors(_envelope(failed), 400, 401, 403, 413, 500, 503),
    }


def health(is_always_200: bool) -> dict[str, Any]:
    """How FastAPI documents the health routes."""
    counts = dict.fromkeys(("running", "waiting", "cached_tokens"), _COUNT)
    schema = _object({"status": _STRING, "model": _STRING, "engine": _STRING, **counts})
    schema["properties"]["stage"] = {**_STRING, "description": "While the model is loaded: what is done, how far it is"}
    ready = {200: _json("It is.", schema)}
    return {"responses": ready if is_always_200 else ready | {503: _json("Not now.", schema)}}


def metrics() -> dict[str, Any]:
    """How FastAPI documents `/metrics`."""
    return {
        "responses": {200: {"description": "Prometheus' text form.", "content": {"text/plain": {"schema": _STRING}}}}
    }


def _chat_request(limits: ImageLimits) -> Schema:
    url = {**_STRING, "description": f"A data URL, or http(s) where the server fetches; {_taken(limits)}"}
    image_url = {"anyOf": [{"type": "object", "properties": {"url": url, "detail": {}}, "required": ["url"]}, url]}
    parts = [
        {"type": "object", "properties": {"type": {"const": "text"}, "text": _STRING}, "required": ["type", "text"]},
        {
            "type": "object",
            "properties": {"type": {"const": "image_url"}, "image_url": image_url},
            "required": ["type", "image_url"],
        },
    ]
    content = {"anyOf": [_STRING, {"type": "array", "items": {"anyOf": parts}}]}
    role = {"enum": ["system", "developer", "user", "assistant"]}
    message = {"type": "object", "properties": {"role": role, "content": content}, "required": ["role", "content"]}
    words = f"The last one is the user's; each of the user's has at most {MAX_MESSAGE_CHARACTERS} characters."
    stream_options = {"type": "object", "properties": {"include_usage": {"type": "boolean"}}}
    optional = {
        "model": _STRING,
        **_knobs(),
        "max_completion_tokens": _knob(KNOBS["max_tokens"], SamplingParams().max_tokens),
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES, "description": "So many answers."},
        "stream": {"type": "boolean"},
        "stream_options": stream_options,
        "logprobs": {"type": "boolean"},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS},
        **{name: {"enum": list(values)} for name, values in NEUTRAL_VALUES.items()},
        **{name: {"description": "Taken; without effect."} for name in sorted(WITHOUT_EFFECT)},
    }
    messages = {"type": "array", "minItems": 1, "items": message, "description": words}
    return _request({"messages": messages}, optional)


def _run_request(limits: ImageLimits) -> Schema:
    numbers = {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 255}}
    image = {"anyOf": [numbers, _STRING], "description": f"The file's bytes, or base64; {_taken(limits)}"}
    turn = _object({"role": {"enum": ["system", "user", "assistant"]}, "content": _STRING})
    optional = {
        "prompt": {**_STRING, "maxLength": MAX_MESSAGE_CHARACTERS, "default": DEFAULT_PROMPT},
        "messages": {"type": "array", "minItems": 1, "items": turn},
        "raw": {"type": "boolean", "description": "The prompt goes to the model as it is, control tokens and all."},
        **_knobs(),
        "stream": {"enum": [False]},
    }
    return _request({"image": image}, optional) | {"not": {"required": ["prompt", "messages"]}}


def _knobs() -> dict[str, Schema]:
    neutral = SamplingParams()
    stop = {"type": "array", "items": {**_STRING, "minLength": 1}, "maxItems": MAX_STOP_STRINGS}
    return {
        **{name: _knob(knob, getattr(neutral, name)) for name, knob in KNOBS.items()},
        "seed": {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_SEED,
            "description": "The same seed, the same answer.",
        },
        "stop": {"anyOf": [{**_STRING, "minLength": 1}, stop], "description": "The answer ends before these."},
    }


def _knob(knob: Knob, default: float) -> Schema:
    kind = "integer" if knob.is_whole else "number"
    return {"type": kind, "minimum": knob.low, "maximum": knob.high, "default": default, "description": knob.doc}


def _taken(limits: ImageLimits) -> str:
    return f"at most {limits.max_bytes / 2**20:g} MB and {limits.max_pixels / 1e6:g} megapixels."


def _request(required: dict[str, Schema], optional: dict[str, Schema]) -> Schema:
    """An object whose optional fields may also be null, and which has no others."""
    nullable = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in optional.items()}
    return {
        "type": "object",
        "properties": required | nullable,
        "required": list(required),
        "additionalProperties": False,
    }


def _chat_completion() -> Schema:
    message = _object({"role": {"const": "assistant"}, "content": _STRING, "refusal": {"type": "null"}})
    choice = _object(
        {
            "index": _COUNT,
            "message": message,
            "logprobs": {"type": ["object", "null"]},
            "finish_reason": {"enum": ["stop", "length"]},
        }
    )
    details = _object({"cached_tokens": _COUNT})
    counts = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT)
    return _object(
        {
            "id": _STRING,
            "object": {"const": "chat.completion"},
            "created": _COUNT,
            "model": _STRING,
            "choices": {"type": "array", "items": choice, "minItems": 1},
            "usage": _object({**counts, "prompt_tokens_details": details}),
        }
    )


def _model() -> Schema:
    numbers = dict.fromkeys(("created", "max_model_len", "image_tokens", "max_images"), _COUNT)
    return _object({"id": _STRING, "object": {"const": "model"}, "owned_by": _STRING, **numbers})


def _openai_error() -> Schema:
    text_or_null = {"type": ["string", "null"]}
    return _object(
        {"error": _object({"message": _STRING, "type": _STRING, "param": text_or_null, "code": text_or_null})}
    )


def _envelope(properties: dict[str, Schema]) -> Schema:
    return _object(properties | {"messages": {"type": "array", "maxItems": 0}})


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _body(schemas: dict[str, Schema]) -> dict[str, Any]:
    return {"required": True, "content": {kind: {"schema": schema} for kind, schema in schemas.items()}}


def _json(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(schema: Schema, *statuses: int) -> dict[int | str, Any]:
    return {status: _json(_STATUSES[status], schema) for status in statuses}
