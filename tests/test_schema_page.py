"""Gradio's own routes with anything that a program could send: no 5xx, no hang, and words with each refusal."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from servers import Server

HEAD_S = 30

FEW = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "0", "..", "../../etc/passwd", "/etc/passwd", "null", "a" * 3000, "\0", "%00", "http://a.b/"]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
FILES = st.fixed_dictionaries(
    {"path": TEXTS, "meta": st.just({"_type": "gradio.FileData"}) | VALUES},
    optional={"url": TEXTS, "size": VALUES, "orig_name": VALUES, "mime_type": VALUES, "is_stream": VALUES},
)
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "data": st.lists(VALUES | FILES, max_size=6) | VALUES,
        "fn_index": st.integers(0, 60) | VALUES,
        "session_hash": TEXTS | VALUES,
        "event_id": TEXTS | VALUES,
        "event_data": VALUES,
        "trigger_id": VALUES,
        "batched": VALUES,
        "simple_format": VALUES,
        "request": VALUES,
    },
)
BODIES = st.one_of(CALLS.map(json.dumps), VALUES.map(json.dumps), TEXTS, st.binary(max_size=200))
KINDS = st.sampled_from(["application/json", "text/plain", "multipart/form-data; boundary=b", "", "application/x-y"])

POSTS = [
    *("queue/join", "call/ask", "call/chat", "call/info", "call/v2/ask", "call/v2/info", "run/predict", "run/ask"),
    *("run/info", "api/predict", "api/ask", "cancel", "reset", "upload", "upload?upload_id=x", "mcp/", "{}", "run/{}"),
]
GETS = [
    *("queue/data?session_hash={}", "call/ask/{}", "call/v2/ask/{}", "call/{}/{}", "file={}", "file/{}", "info"),
    *("openapi.json", "login_check", "user", "token", "app_id", "startup-events", "theme.css", "heartbeat/{}"),
    *("upload_progress?upload_id={}", "mcp/", "mcp/{}", "info?all_endpoints={}", "{}"),
]
PAGE = ["{}", "?{}={}", "config?{}", "config?deep_link={}", "?deep_link={}", "?view={}", "logout", "manifest.json"]
PAGE += ["assets/{}", "static/{}", "svelte/{}", "custom_component/{}/{}/{}/{}", "robots.txt", "theme.css", "login"]


def check(server: Server, method: str, path: str, **call: Any) -> None:
    """Only the head of an answer is waited for: events and heartbeats go on for as long as their client stays."""
    with httpx.Client(base_url=server.url, timeout=HEAD_S) as client:
        try:
            with client.stream(method, path, **call) as response:
                status = response.status_code
                if status >= 400:
                    words = response.read().decode()
                    assert words.strip(), f"{status} without words"
                    assert "Traceback" not in words
        except httpx.RemoteProtocolError as error:  # the path or a header is no HTTP
            assert "illegal" in str(error).lower() or "disconnected" in str(error).lower(), error
            return
    assert status < 500 or (status == 503 and "retry-after" in response.headers), f"{status}: {words}"


@pytest.mark.parametrize("path", POSTS)
def test_whatever_is_sent_to_a_route_that_takes_a_body(tiny: Server, path: str) -> None:
    @FEW
    @given(body=BODIES, kind=KINDS, text=TEXTS)
    def run(body: str | bytes, kind: str, text: str) -> None:
        content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        filled = path.replace("{}", quote(text, safe=""))
        check(tiny, "POST", f"gradio_api/{filled}", content=content, headers={"content-type": kind})

    run()
    tiny.wait_until(running=0, waiting=0)


@pytest.mark.parametrize("path", [*(f"gradio_api/{each}" for each in GETS), *PAGE])
def test_whatever_is_asked_of_a_route_that_takes_none(tiny: Server, path: str) -> None:
    @FEW
    @given(texts=st.lists(TEXTS, min_size=4, max_size=4))
    def run(texts: list[str]) -> None:
        filled = path
        for text in texts:
            filled = filled.replace("{}", quote(text, safe=""), 1)
        check(tiny, "GET", filled)

    run()
