"""Calls made up from our own OpenAPI document, proper ones and others: no defect, and nothing that it does not say."""

import base64
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from pictures import png
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from servers import Server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


FEW = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
BODIES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/show"),
    ("POST", "/client/v4/accounts/{account_id}/ai/run/@cf/llava-hf/llava-1.5-7b-hf"),
    ("POST", "/ai/run/@cf/llava-hf/llava-1.5-7b-hf"),
]
OPERATIONS = [
    *BODIES,
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("GET", "/api/version"),
    ("GET", "/client/v4/accounts/{account_id}/ai/models/search"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
]


def document_of(server: Server) -> dict[str, Any]:
    """The server's document, without bodies that are a picture."""
    document: dict[str, Any] = httpx.get(f"{server.url}v1/openapi.json").json()
    for path in document["paths"].values():
        bodies = path.get("post", {}).get("requestBody", {}).get("content", {})
        for kind in [kind for kind in bodies if kind.startswith("image/")]:
            del bodies[kind]
    return document


def with_short_answers(document: dict[str, Any]) -> dict[str, Any]:
    """The document, but what it lets be asked has short answers: a real model writes them, on two cores."""
    for path in document["paths"].values():
        bodies = path.get("post", {}).get("requestBody", {}).get("content", {})
        reference = bodies.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
        body = document["components"]["schemas"].get(reference, {"properties": {}})
        for name in {"max_tokens", "max_completion_tokens", "max_output_tokens"} & body["properties"].keys():
            body["properties"][name] = {"const": 2}
        if "options" in body["properties"]:
            body["properties"]["options"] = {"const": {"num_predict": 2}}
            body["required"] = [*body.get("required", ()), "options"]
        body["required"] = [*{*body.get("required", ()), *({"max_tokens"} & body["properties"].keys())}]
    return document


def test_these_tests_know_every_operation(tiny: Server) -> None:
    paths = httpx.get(f"{tiny.url}v1/openapi.json").json()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert sorted(found) == sorted(OPERATIONS)


def check_calls(server: Server, operation: tuple[str, str], mode: GenerationMode) -> None:
    document = document_of(server)  # whole for wrong calls: the server refuses what its own document does, no more
    schema = schemathesis.openapi.from_dict(
        with_short_answers(document) if mode is GenerationMode.POSITIVE else document
    )
    schema.config.update(base_url=server.url.rstrip("/"))
    method, path = operation
    answered = []

    @FEW
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        answered.append(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

    check()
    assert answered


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
def test_every_proper_call_is_answered_as_the_document_says(tiny: Server, operation: tuple[str, str]) -> None:
    check_calls(tiny, operation, GenerationMode.POSITIVE)


@pytest.mark.parametrize("operation", BODIES, ids=" ".join)
def test_every_wrong_call_is_answered_as_the_document_says(tiny: Server, operation: tuple[str, str]) -> None:
    check_calls(tiny, operation, GenerationMode.NEGATIVE)


HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2}),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 2}),
        ("/api/chat", {"model": "llava", "messages": HELLO, "options": {"num_predict": 2}}),
        ("/api/generate", {"model": "llava", "prompt": "Hello", "options": {"num_predict": 2}}),
        ("/ai/run/@cf/llava-hf/llava-1.5-7b-hf", {"image": base64.b64encode(png()).decode(), "max_tokens": 2}),
    ],
)
def test_a_stream_is_what_the_document_says(tiny: Server, path: str, body: dict[str, Any]) -> None:
    schema = schemathesis.openapi.from_dict(document_of(tiny))
    schema.config.update(base_url=tiny.url.rstrip("/"))
    case = schema[path]["POST"].Case(body=body | {"stream": True}, media_type="application/json")
    response = case.call_and_validate(checks=CHECKS, timeout=60)
    assert "stream" in response.headers["content-type"][0] or "ndjson" in response.headers["content-type"][0]
