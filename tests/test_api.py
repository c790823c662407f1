"""Around the interfaces: who may call, how much may be sent, and what tells of it."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from cloudflare import AuthenticationError, Cloudflare
from openai import OpenAI
from pictures import png
from prometheus_client.parser import text_string_to_metric_families
from servers import Server, serving

from llava_demo.api.application import PREFIXES
from llava_demo.engines.generate import GenerateEngine

HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
CLOUDFLARE = "@cf/llava-hf/llava-1.5-7b-hf"
OPEN = ["health/live", "health/ready", "healthz", "metrics", "v1/docs", "v1/openapi.json"]
CLOSED = [
    "v1/chat/completions",
    "v1/responses",
    "api/chat",
    "api/generate",
    "api/show",
    "api/pull",
    "v1/openai/chat/completions",
    f"ai/run/{CLOUDFLARE}",
]


# --- keys


@pytest.fixture
def keyed(tiny_engine: GenerateEngine) -> Iterator[Server]:
    with serving(tiny_engine, api_key=["k3y-one", "k3y-two"]) as server:
        yield server


def test_with_keys_every_call_needs_one_of_them(keyed: Server) -> None:
    for key in ("k3y-one", "k3y-two"):
        with OpenAI(base_url=f"{keyed.url}v1", api_key=key) as client:
            assert client.chat.completions.create(model="tiny", **HELLO).choices  # type: ignore[call-overload]
    for wrong in ("k3y-on", "k3y-one2", "é"):
        answer = httpx.post(
            f"{keyed.url}v1/chat/completions", json=HELLO, headers={"Authorization": f"Bearer {wrong}".encode()}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "k3y" not in answer.text
    with OpenAI(base_url=f"{keyed.url}v1", api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="tiny", **HELLO)  # type: ignore[call-overload]
    with Cloudflare(base_url=f"{keyed.url}client/v4", api_token="wrong") as cloudflare:
        with pytest.raises(AuthenticationError) as caught:
            cloudflare.ai.run(CLOUDFLARE, account_id="a", image=list(png()))
        assert [error.code for error in caught.value.errors] == [10000]
    for place in CLOSED:
        assert httpx.post(keyed.url + place, json=HELLO).status_code == 401
    assert httpx.get(f"{keyed.url}v1/models").status_code == 401
    for place in OPEN:
        assert httpx.get(keyed.url + place).status_code == 200


def test_with_a_login_and_no_keys_rest_is_closed(tiny_engine: GenerateEngine) -> None:
    """Gradio's login does not cover routes that are not its own."""
    with serving(tiny_engine, auth="ada:secret") as server, httpx.Client(base_url=server.url) as browser:
        assert browser.post("login", data={"username": "ada", "password": "secret"}).status_code == 200
        for place in CLOSED:
            answer = browser.post(place, json=HELLO, headers={"Authorization": "Bearer ada:secret"})
            assert answer.status_code == 403
            assert "--api-key" in answer.text
        for place in OPEN:
            assert httpx.get(server.url + place).status_code == 200


def test_with_a_login_and_a_key_the_key_opens_rest(tiny_engine: GenerateEngine) -> None:
    with serving(tiny_engine, auth="ada:secret", api_key=["k3y"]) as server:
        headers = {"Authorization": "Bearer k3y"}
        assert httpx.post(f"{server.url}v1/chat/completions", json=HELLO, headers=headers).status_code == 200
        assert httpx.post(f"{server.url}v1/chat/completions", json=HELLO).status_code == 401


# --- limits


@pytest.fixture
def narrow(tiny_engine: GenerateEngine) -> Iterator[Server]:
    with serving(tiny_engine, max_image_mb=1) as server:
        yield server


def test_a_body_over_the_limit_is_refused_whether_it_says_so_or_not(narrow: Server) -> None:
    six = 6 * 2**20

    def parts() -> Iterator[bytes]:
        for _ in range(7):
            yield bytes(2**20)

    for content in (bytes(six + 1), parts()):
        answer = httpx.post(f"{narrow.url}v1/chat/completions", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert "more than 6 MB" in answer.text
    answer = httpx.post(f"{narrow.url}ai/run/{CLOUDFLARE}", content=bytes(six + 1))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (413, 3006)
    answer = httpx.post(f"{narrow.url}ai/run/{CLOUDFLARE}", content=png() + bytes(2**20))
    assert answer.status_code == 413
    assert "at most 1 MB" in answer.text


def test_a_wrong_key_is_told_before_the_body_is_read(keyed: Server) -> None:
    answer = httpx.post(f"{keyed.url}v1/chat/completions", content=b"{", headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401


# --- what tells of it


def test_a_request_keeps_its_id_in_the_answer_and_in_the_log(tiny: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "llava_demo"):
        answer = httpx.post(f"{tiny.url}v1/chat/completions", json=HELLO, headers={"x-request-id": "req-7"})
    assert answer.headers["x-request-id"] == "req-7"
    [fields] = [record.__dict__["fields"] for record in caplog.records if "fields" in record.__dict__]
    assert (fields["id"], fields["endpoint"], fields["finish"]) == ("req-7", "openai", "length")
    assert "Hello" not in json.dumps(fields)


def test_every_answer_has_an_id_and_a_strange_one_is_replaced(tiny: Server) -> None:
    for place in ("v1/models", "v1/unknown", "ai/unknown", "health/live"):
        assert len(httpx.get(tiny.url + place).headers["x-request-id"]) == 32
        answer = httpx.get(tiny.url + place, headers={"x-request-id": "a b\tfinish=stop"})
        assert len(answer.headers["x-request-id"]) == 32


def numbers(server: Server) -> dict[tuple[str, str], float]:
    """Prometheus' samples of one server, by name and by what they are of."""
    families = text_string_to_metric_families(httpx.get(f"{server.url}metrics").text)
    return {
        (
            sample.name,
            sample.labels.get("endpoint", "") + sample.labels.get("finish", "") + sample.labels.get("kind", ""),
        ): (sample.value)
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }


def test_the_metrics_count_every_way_in(tiny: Server) -> None:
    before = numbers(tiny)
    httpx.post(f"{tiny.url}v1/chat/completions", json=HELLO | {"n": 2})
    httpx.post(f"{tiny.url}ai/run/{CLOUDFLARE}", json={"image": list(png()), "max_tokens": 3})
    with tiny.broken():
        httpx.post(f"{tiny.url}v1/chat/completions", json=HELLO)
    call = httpx.post(f"{tiny.url}gradio_api/call/v2/chat", json=HELLO).json()
    httpx.get(f"{tiny.url}gradio_api/call/chat/{call['event_id']}")
    after = numbers(tiny)
    grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key)}
    assert grown["llava_answers_total", "openailength"] == 2
    assert grown["llava_answers_total", "openaigeneration_failed"] == 1
    assert grown["llava_answers_total", "cloudflarelength"] == 1
    assert grown["llava_answers_total", "gradio_clientlength"] == 1
    assert grown["llava_tokens_total", "openaicompletion"] == 6
    assert grown["llava_images_total", "cloudflare"] == 1
    assert grown["llava_first_token_seconds_count", "openai"] == 2
    assert grown["llava_answer_seconds_count", "openai"] == 3
    assert (after["llava_ready", ""], after["llava_running", ""], after["llava_waiting", ""]) == (1, 0, 0)


def test_a_running_answer_is_seen_in_the_metrics(tiny: Server) -> None:
    with (
        tiny.slow(),
        httpx.stream("POST", f"{tiny.url}v1/chat/completions", json=HELLO | {"stream": True, "max_tokens": 900}),
    ):
        assert numbers(tiny)["llava_running", ""] == 1
    tiny.wait_until_free()


def test_load_balancers_may_ask_for_the_head_only(tiny: Server) -> None:
    for place in ("health/live", "health/ready", "healthz", "metrics", "v1/models", "api/tags", "api/version"):
        answer = httpx.head(tiny.url + place)
        assert (answer.status_code, answer.content) == (200, b"")
    assert httpx.head(f"{tiny.url}v1/chat/completions").status_code == 405


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/v1//models", "/health/ready/", "/api/tags//"])
def test_slashes_left_over_from_joining_addresses_change_nothing(tiny: Server, path: str) -> None:
    whole = httpx.get(tiny.url + re.sub("/+", "/", path).strip("/")).json()
    assert httpx.get(tiny.url.rstrip("/") + path).json() == whole


@pytest.mark.parametrize("path", ["chat/completions", "openai/v1/chat/completions", "v1/v1/chat/completions"])
def test_a_base_url_that_is_not_ours_is_told_what_ours_is(tiny: Server, path: str) -> None:
    answer = httpx.post(tiny.url + path, json=HELLO)
    assert answer.status_code == 404
    assert "OpenAI's base URL ends in /v1" in answer.json()["error"]["message"]


def test_the_documentation_has_every_route_and_gradios_own_are_untouched(tiny: Server) -> None:
    document = httpx.get(f"{tiny.url}v1/openapi.json").json()
    assert document["paths"].keys() == {
        "/v1/chat/completions",
        "/v1/responses",
        "/api/chat",
        "/api/generate",
        "/api/show",
        "/api/tags",
        "/api/ps",
        "/api/version",
        "/client/v4/accounts/{account_id}/ai/models/search",
        "/v1/models",
        "/v1/models/{model}",
        f"/client/v4/accounts/{{account_id}}/ai/run/{CLOUDFLARE}",
        f"/ai/run/{CLOUDFLARE}",
        "/health/live",
        "/health/ready",
        "/healthz",
        "/metrics",
    }
    assert "/v1/openapi.json" in httpx.get(f"{tiny.url}v1/docs").text
    gradios: dict[str, Any] = httpx.get(f"{tiny.url}gradio_api/openapi.json").json()
    assert not any(path.startswith(PREFIXES) for path in gradios["paths"])
    assert "Ask a picture" in httpx.get(tiny.url).text
    assert httpx.get(f"{tiny.url}v1beta").status_code == 404
    assert isinstance(httpx.get(f"{tiny.url}v1beta").json()["error"], str)  # the form of the page
