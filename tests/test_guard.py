"""No request stops the server: sizes, nests, silence, other origins, wrong keys; each refusal has words and a 4xx."""

import asyncio
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path

import gradio as gr
import httpx
import psutil
import pytest
from checkpoints import engine_of
from pictures import png
from servers import Server, serving
from starlette.requests import HTTPConnection
from starlette.types import Message, Scope
from uvicorn import Config

from llava_demo.callers import Callers, caller_name, is_gone
from llava_demo.errors import InvalidRequest, RequestTimeout, RequestTooLarge, TooManyRequests
from llava_demo.images import ImageLimits
from llava_demo.model.llava import Llava
from llava_demo.serve import bodies, connections, multipart
from llava_demo.serve.bodies import Bodies, BodyLimits, check_json
from llava_demo.serve.connections import LimitedProtocol, limit_connections
from llava_demo.serve.gate import Gate
from llava_demo.serve.guard import Guard, Rules
from llava_demo.serve.origins import Origins

JSON = {"content-type": "application/json"}
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


def answered(server: Server, path: str, **call: object) -> httpx.Response:
    """The answer to a POST; a refusal must have words."""
    response = httpx.post(f"{server.url}{path}", timeout=60, **call)  # type: ignore[arg-type]
    if response.status_code >= 400:
        told = response.json()
        assert told.get("detail") or told.get("error") or told["errors"], response.text
    return response


# Sizes


@pytest.mark.parametrize("path", ["gradio_api/queue/join", "gradio_api/call/ask", "gradio_api/run/predict", "login"])
def test_a_body_beyond_any_use_is_refused_by_its_length_alone(tiny: Server, path: str) -> None:
    """Only the head is sent: 45 MB of [],[],... took 3.6 GB and 19 s."""
    with socket.create_connection(("127.0.0.1", httpx.URL(tiny.url).port or 0), timeout=20) as connection:
        head = f"POST /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 45000000\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"data":[' + b"[]," * 300_000 + b"[]]}", "more than 20,000 values"),
        (b'{"data":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "nested more than 32 deep|not valid JSON"),
        (b'{"data":' + b'{"a":' * 40 + b"1" + b"}" * 41, "nested more than 32 deep"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"data": "text"}', "data is a string; it must be a list"),
    ],
)
@pytest.mark.parametrize("path", ["gradio_api/call/ask", "gradio_api/run/predict"])
def test_a_json_body_that_no_conversation_has_is_refused(tiny: Server, path: str, body: bytes, words: str) -> None:
    response = answered(tiny, path, content=body, headers=JSON)
    assert response.status_code == 400
    assert any(each in response.json()["detail"] for each in words.split("|"))


def test_megabytes_of_empty_lists_are_counted_not_parsed(tiny: Server) -> None:
    """15 MB, parsed on the event loop, gave 6.6 s without any answer, and 650 MB."""
    body = b'{"data":[' + b"[]," * 1_000_000 + b"[]]}"
    start = time.thread_time()
    with pytest.raises(InvalidRequest):
        check_json(body)
    checked_at = time.thread_time()
    json.loads(body)
    assert time.thread_time() - checked_at > 3 * (checked_at - start)
    assert answered(tiny, "gradio_api/queue/join", content=body, headers=JSON).status_code == 400


def test_what_a_conversation_has_passes() -> None:
    assert check_json(b'{"data": [{"a": [1, 2, {"b": null}]}], "fn_index": 3}')["fn_index"] == 3


def test_uploads_are_bounded_by_count(tiny: Server) -> None:
    files = [("files", (f"{number}.png", png())) for number in range(multipart.MAX_FILES + 1)]
    assert answered(tiny, "gradio_api/upload", files=files).status_code == 400
    assert answered(tiny, "gradio_api/upload", files=files[1:]).status_code == 200


@pytest.mark.parametrize("content", [b"#!/bin/sh", b"<svg/>", b"%PDF-1.7", b"", b"{not a conversation"])
def test_what_is_no_picture_is_refused_at_upload_and_deleted(tiny: Server, content: bytes) -> None:
    folder = Path(gr.utils.get_upload_folder())
    before = set(folder.rglob("*"))
    response = answered(tiny, "gradio_api/upload", files={"files": ("a.png", content)})
    assert response.status_code == 400
    assert set(folder.rglob("*")) <= before


def scope_of(path: str, caller: str = "a", **headers: str) -> dict[str, object]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "method": "POST", "headers": pairs, "llava_demo.caller": caller}


def test_bodies_under_way_are_bounded_together_and_by_caller() -> None:
    """Ten callers that hold back the last byte of 100 MB held 1.2 GB."""
    held = Bodies(BodyLimits(image_bytes=100, rest_bytes=100, total_bytes=250), Gate())

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"x" * 90, "more_body": True}

    async def scenario() -> None:
        with ExitStack() as stack:
            await stack.enter_context(held.counted(scope_of("/v1"), receive, is_rest=True)).receive()
            with held.counted(scope_of("/v1"), receive, is_rest=True) as another, pytest.raises(TooManyRequests):
                await another.receive()
            await stack.enter_context(held.counted(scope_of("/v1", "b"), receive, is_rest=True)).receive()
        assert len(held.in_memory) == 0
        with held.counted(scope_of("/v1"), receive, is_rest=True) as body:
            await body.receive()
            with pytest.raises(RequestTooLarge):
                await body.receive()
        assert len(held.in_memory) == 0

    asyncio.run(scenario())


def test_a_body_that_is_refused_takes_nothing_off_the_count_of_the_others() -> None:
    """A caller that sent one body too large after another could hold any number of bytes beside them."""

    async def receive() -> Message:
        return {"type": "http.request", "body": bytes(60), "more_body": True}

    async def count() -> None:
        held = Bodies(BodyLimits(image_bytes=100, rest_bytes=100, total_bytes=1000), Gate())
        with held.counted(scope_of("/v1/chat/completions"), receive, is_rest=True) as kept:
            await kept.receive()
            with (
                pytest.raises(RequestTooLarge),
                held.counted(scope_of("/v1/chat/completions"), receive, is_rest=True) as refused,
            ):
                await refused.whole()
            assert len(held.in_memory) == 60
        assert len(held.in_memory) == 0

    asyncio.run(count())


def test_a_body_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SILENCE_S", 0.05)
    held = Bodies(BodyLimits.of(ImageLimits(), 10**6), Gate())

    async def receive() -> dict[str, object]:
        await asyncio.sleep(60)
        return {}

    async def scenario() -> None:
        with held.counted(scope_of("/v1"), receive, is_rest=True) as body, pytest.raises(RequestTimeout):
            await body.receive()

    asyncio.run(scenario())


# Connections


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0), timeout=30)


def wait_until(holds: Callable[[], bool], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def silent(server: Server, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connected(server)) for _ in range(count)]


def test_silent_connections_are_bounded_and_closed(tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(engine_of(tiny_llava)) as server:
        monkeypatch.setattr(LimitedProtocol, "most", 20)
        monkeypatch.setattr(LimitedProtocol, "head_s", 1.0)
        with silent(server, 30) as sockets:
            refusals = 0
            for each in sockets:
                each.settimeout(30)
                refusals += each.recv(100).startswith(b"HTTP/1.1 503")  # the others are closed without a word
            assert refusals >= 10
            assert httpx.get(f"{server.url}health/live").status_code == 200


def test_a_head_that_never_ends_is_given_up(tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(engine_of(tiny_llava)) as server:
        monkeypatch.setattr(LimitedProtocol, "head_s", 1.0)
        with silent(server, 1) as (slow,):
            slow.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
            slow.settimeout(30)
            assert slow.recv(100) == b""


def test_no_address_has_more_than_its_share_of_the_connections(
    tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this machine's own addresses all are exempt; so one that leads to it from outside is needed."""
    found = (each.address for many in psutil.net_if_addrs().values() for each in many if each.family == socket.AF_INET)
    outside = next((address for address in found if not address.startswith("127.")), None)
    if outside is None:
        pytest.skip("this machine has no address but its own")
    with serving(engine_of(tiny_llava), host="0.0.0.0") as server, ExitStack() as stack:
        monkeypatch.setattr(LimitedProtocol, "most", 40)
        port = httpx.URL(server.url).port or 0
        for _ in range(12):
            greedy = stack.enter_context(socket.create_connection((outside, port), 20))
        assert greedy.recv(100).startswith(b"HTTP/1.1 503")
        assert httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
        monkeypatch.setattr(LimitedProtocol, "is_proxy", staticmethod(lambda host: host == outside))
        assert httpx.get(f"http://{outside}:{port}/health/live").status_code == 200


def test_clients_and_proxies_are_the_first_to_close_a_connection_that_they_keep() -> None:
    """A request that meets the end of its connection is lost: httpx keeps one for 5 seconds, nginx for 60."""
    config = Config("llava_demo:app")
    limit_connections(config, None, lambda _: False)
    assert min(config.timeout_keep_alive, LimitedProtocol.next_head_s) > 60


def test_there_are_fewer_connections_than_file_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (120, 120))
    assert connections.max_connections() == 60
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (1024, 1024))
    assert connections.max_connections() == 960


# Routes and events


@pytest.mark.parametrize(
    "path",
    ["deep_link?session_hash=a", "dev/reload", "runs", "proxy=https://a.hf.space/x", "vibe-code", "profiling/summary"],
)
def test_routes_of_gradio_that_the_page_does_not_need_are_closed(tiny: Server, path: str) -> None:
    assert httpx.get(f"{tiny.url}gradio_api/{path}").status_code == 404


@pytest.mark.parametrize("path", ["process_recording", "component_server", "vibe-edit", "stream/a"])
def test_so_are_those_that_write(tiny: Server, path: str) -> None:
    assert answered(tiny, f"gradio_api/{path}", files={"video": ("a.mp4", b"x")}).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("queue/join", {"data": [], "fn_index": 9999, "session_hash": "a"}, 404),
        ("queue/join", {"data": [], "fn_index": "one", "session_hash": "a"}, 404),
        ("queue/join", {"data": [], "fn_index": True, "session_hash": "a"}, 404),
        ("queue/join", {"data": []}, 404),
        ("queue/join", {"data": [], "fn_index": 0, "session_hash": "a" * 129}, 400),
        ("call/nobody", {"data": []}, 404),
        ("call/v2/nobody", {}, 404),
        ("run/predict", {"data": ["x"], "fn_index": 9999}, 404),
        ("run/nobody", {"data": ["x"]}, 400),
        ("run/ask", {"data": []}, 400),
        ("call/v2/ask", {"no_such_argument": 1}, 400),
    ],
)
def test_unknown_events_and_wrong_inputs_are_the_callers_fault(
    tiny: Server, path: str, body: dict[str, object], status: int
) -> None:
    response = answered(tiny, f"gradio_api/{path}", json=body)
    assert response.status_code == status


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
ARGUMENTS = "/ask takes image, prompt, temperature, "


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("call/ask", {"data": []}, f"data has 0 values; {ARGUMENTS}"),
        ("call/info", {"data": [1]}, "data has 1 values; /info takes nothing"),
        ("call/ask", {"data": "x"}, "data is a string; it must be a list"),
        ("call/v2/ask", {"prompt": "x"}, f"image is missing; {ARGUMENTS}"),
        ("call/v2/ask", {"image": FILE, "prompt": "x", "temprature": 1}, f"temprature is no argument; {ARGUMENTS}"),
        ("call/send", {"data": []}, "no such endpoint"),
        ("run/ask", {"data": [None]}, "ask takes 12 inputs; 1 were given."),
        ("run/ask", {"data": [FILE, "x", *[1] * 8, None, None]}, "no upload of this server"),
        ("run/chat", {"data": [[], *[1] * 8, None, None]}, "There are no messages"),
    ],
)
def test_arguments_that_do_not_fit_an_endpoint_are_named(
    tiny: Server, path: str, body: dict[str, object], words: str
) -> None:
    response = answered(tiny, f"gradio_api/{path}", json=body)
    assert response.status_code in (400, 404)
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "takes 12 inputs; 0 were given."),
        ([{"text": "x", "files": [FILE]}], "no upload of this server"),
        ([{"text": "x", "files": 5}], "right form: files: Input should be a valid list"),
        ([{"text": "x", "files": []}, [], 9], "greater than maximum value 1"),
        ([{"text": "x", "files": []}, [], "much"], "wrong kind"),
    ],
)
def test_values_that_an_event_of_the_page_cannot_read_end_it_with_words(
    tiny: Server, values: list[object], words: str
) -> None:
    [event] = [each for each in httpx.get(f"{tiny.url}config").json()["dependencies"] if each["api_name"] == "send"]
    data = values + [1] * (len(event["inputs"]) - len(values)) * bool(values)
    body = {"data": data, "fn_index": event["id"], "session_hash": f"s{hash(str(values))}"}
    assert answered(tiny, "gradio_api/queue/join", json=body).status_code == 200
    told = httpx.get(f"{tiny.url}gradio_api/queue/data", params={"session_hash": body["session_hash"]}, timeout=60).text
    [ended] = [line for line in told.splitlines() if "process_completed" in line]
    assert words in json.loads(ended.removeprefix("data: "))["output"]["error"]
    assert "passwd" not in told


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "v2/chat/completions", 404),
        ("POST", "messages", 404),
        ("GET", "docs", 404),
        ("GET", "nothing/at/all", 404),
        ("DELETE", "messages", 404),
        ("GET", "monitoring", 404),
        ("GET", "gradio_api/nothing", 404),
        ("PUT", "config", 405),
        ("GET", "gradio_api/queue/join", 405),
    ],
)
def test_what_is_not_served_is_refused_with_a_way_on(tiny: Server, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{tiny.url}{path}")
    assert response.status_code == status
    assert response.json()["error"].endswith("see /v1/docs.")


def test_no_event_of_the_page_answers_wrong_inputs_with_500(tiny: Server) -> None:
    events = httpx.get(f"{tiny.url}config").json()["dependencies"]
    assert len(events) > 10
    for event in events:
        for data in (["x"], [], [{"path": "/etc/passwd"}] * 40):
            response = answered(tiny, "gradio_api/run/predict", json={"data": data, "fn_index": event["id"]})
            assert response.status_code < 500, (event["api_name"], data)


@pytest.mark.parametrize("endpoint", ["send", "retry"])
@pytest.mark.parametrize("value", [None, "x", {"path": "/etc/passwd"}])
def test_inputs_that_no_event_can_read_are_one_line_of_the_log(
    endpoint: str, value: object, tiny: Server, caplog: pytest.LogCaptureFixture
) -> None:
    events = httpx.get(f"{tiny.url}config").json()["dependencies"]
    [event] = [each for each in events if each["api_name"] == endpoint]
    data = [value] * len(event["inputs"])
    answered(tiny, "gradio_api/run/predict", json={"data": data, "fn_index": event["id"]})
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert re.fullmatch(r"the inputs of an event do not fit: \w+(, from \w+)?, \w+/\w+\.py:\d+", record.message)
    assert record.exc_info is None


def test_an_upload_that_is_no_file_is_refused_with_words(tiny: Server) -> None:
    wrong = [{"files": (None, "just text")}, {"others": ("a.png", png())}, {"others": (None, "text")}]
    for files in wrong:
        for path in ("gradio_api/upload", "gradio_api/upload?upload_id=a"):
            assert answered(tiny, path, files=files).status_code == 400
    assert answered(tiny, "gradio_api/upload", json={}).status_code == 400
    for boundary in ("", "; boundary=" + "b" * 300, "; boundary=" + "é" * 300):
        headers = {"content-type": f"multipart/form-data{boundary}".encode("latin-1")}
        assert answered(tiny, "gradio_api/upload", headers=headers).status_code == 400


@pytest.mark.parametrize("name", ["..", "a/..", ".", "/", "\\", "?..", ". .", "a" * 1000, "con\u202egnp.exe", "%2e%2e"])
def test_an_upload_of_any_name_is_a_file_in_a_folder_of_its_own(tiny: Server, name: str) -> None:
    files = [("files", ("a.png", png())), ("files", (name, png()))]
    response = answered(tiny, "gradio_api/upload", files=files)
    folder = Path(gr.utils.get_upload_folder()).resolve()
    assert [Path(path).resolve().parents[1] for path in response.json()] == [folder, folder]
    assert all(Path(path).is_file() for path in response.json())


def test_the_same_upload_again_is_the_same_file_and_as_new(tiny: Server) -> None:
    """It is not written twice: ext4 waits for the disk where a file replaces another."""
    path = Path(answered(tiny, "gradio_api/upload", files={"files": ("again.png", png("navy"))}).json()[0])
    os.utime(path, (0, 0))
    before = path.stat()
    assert answered(tiny, "gradio_api/upload", files={"files": ("again.png", png("navy"))}).json() == [str(path)]
    after = path.stat()
    assert (after.st_ino, path.read_bytes()) == (before.st_ino, png("navy"))
    assert after.st_ctime > before.st_ctime and after.st_mtime > 0
    assert not parts()


def test_browsers_ask_once_for_a_file_that_is_named_by_its_content(tiny: Server) -> None:
    assets = re.findall(r"assets/[\w.-]+-[\w-]{8}\.(?:js|css)", httpx.get(tiny.url).text)
    assert assets
    unchanging = httpx.get(f"{tiny.url}{assets[0]}")
    assert (unchanging.status_code, "immutable" in unchanging.headers["cache-control"]) == (200, True)
    for path in ("", "config", "theme.css", assets[0].replace("-", "-none-")):
        assert "immutable" not in httpx.get(f"{tiny.url}{path}").headers.get("cache-control", "")


# Uploads that end early


def parts() -> set[str]:
    """The files of uploads that are neither whole nor deleted, and those that this process has open."""
    folder = Path(gr.utils.get_upload_folder())
    on_disk = {str(path) for path in folder.iterdir() if path.is_file()}
    held = {file.path for file in psutil.Process().open_files() if file.path.startswith(str(folder))}
    return on_disk | held


def head_of_upload(length: int, boundary: str = "b") -> bytes:
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n"
    return f"{head}Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n".encode()


def part_of_upload(name: str = "a.png", field: str = "files") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()


def test_uploads_that_break_off_leave_no_part_and_no_open_file(tiny: Server) -> None:
    with ExitStack() as stack:
        connections_ = [stack.enter_context(connected(tiny)) for _ in range(50)]
        for each in connections_:
            each.sendall(head_of_upload(10**6) + part_of_upload() + png() + b"\r\n" + part_of_upload() + b"x" * 5000)
        wait_until(lambda: len(parts()) >= 100)
    wait_until(lambda: not parts())


def test_uploads_that_are_refused_leave_no_part_and_no_open_file(tiny: Server) -> None:
    whole = part_of_upload() + png() + b"\r\n"
    wrong = {
        "has another field": whole + part_of_upload(field="others") + png() + b"\r\n--b--\r\n",
        "has too many files": whole * (multipart.MAX_FILES + 1),
        "has no end": part_of_upload() + png(),
        "has an end that is none": whole + b"--c--",
        "is no form": whole + b"--b\r\nnonsense",
        "is no picture": whole + part_of_upload() + b"#!/bin/sh" + b"\r\n--b--\r\n",
    }
    for name, body in wrong.items():
        with connected(tiny) as connection:
            connection.sendall(head_of_upload(len(body)) + body)
            assert connection.recv(100).split()[1] in (b"400", b"200"), name
        assert not parts(), name


# Origins


FOREIGN = {"origin": "https://evil.example"}


def test_on_this_machine_no_foreign_page_asks_a_question(tiny: Server) -> None:
    """A form of a web page can send text/plain without asking first."""
    for path in ("v1/chat/completions", "ai/run/@cf/llava-hf/llava-1.5-7b-hf", "gradio_api/call/ask"):
        for headers in (FOREIGN, {"origin": "null"}, {"origin": "http://127.0.0.1.evil.example"}):
            response = answered(tiny, path, json=HELLO, headers=headers | {"content-type": "text/plain"})
            assert response.status_code == 403
            assert "access-control-allow-origin" not in response.headers


def test_on_this_machine_only_its_own_names_are_answered(tiny: Server) -> None:
    port = httpx.URL(tiny.url).port
    names = {"evil.example": 403, f"evil.example:{port}": 403, f"localhost:{port}": 200, "[::1]": 200}
    for host, status in names.items():
        assert httpx.get(f"{tiny.url}health/live", headers={"host": host}).status_code == status


def test_other_pages_of_this_machine_may_ask(tiny: Server) -> None:
    response = answered(tiny, "v1/chat/completions", json=HELLO, headers={"origin": "http://localhost:3000"})
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "access-control-allow-credentials" not in response.headers


def test_with_a_login_no_foreign_page_gets_anything_but_with_a_key(tiny_llava: Llava) -> None:
    options = {"auth": "ada:secret", "api_key": ("key",), "host": "0.0.0.0"}
    with serving(engine_of(tiny_llava), **options) as server:
        url = server.url
        for path in ("", "config", "gradio_api/info"):
            response = httpx.get(f"{url}{path}", headers=FOREIGN)
            assert response.status_code == 403
            assert not [name for name in response.headers if name.startswith("access-control")]
        asked = FOREIGN | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        assert httpx.options(f"{url}login", headers=asked).status_code == 403
        preflight = httpx.options(f"{url}v1/chat/completions", headers=asked)
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        response = httpx.post(
            f"{url}v1/chat/completions", json=HELLO, headers=FOREIGN | {"authorization": "Bearer key"}
        )
        assert response.status_code == 200
        assert "access-control-allow-credentials" not in response.headers
        assert httpx.get(f"{url}", headers={"origin": url.rstrip("/")}).status_code == 200


# Callers


def test_wrong_keys_and_passwords_are_slowed_down(tiny_llava: Llava) -> None:
    with serving(engine_of(tiny_llava), auth="ada:secret", api_key=("key",)) as server:
        wrong = {"authorization": "Bearer wrong"}
        for _ in range(100):
            response = answered(server, "v1/chat/completions", json=HELLO, headers=wrong)
            if response.status_code != 401:
                break
        assert (response.status_code, int(response.headers["retry-after"]) > 0) == (429, True)
        login = httpx.post(f"{server.url}login", data={"username": "ada", "password": "guess"})
        assert login.status_code == 429
        right = {"authorization": "Bearer key"}
        assert answered(server, "v1/chat/completions", json=HELLO, headers=right).status_code == 200


def named(callers: Callers, peer: str, **headers: str) -> str:
    scope = scope_of("/", **headers) | {"client": (peer, 1)}
    callers.name(scope)
    return str(scope["llava_demo.caller"])


def test_forwarded_addresses_count_only_from_a_trusted_proxy() -> None:
    behind = Callers(proxies=[ip_network("10.0.0.0/8")])
    assert named(Callers(), "10.0.0.1", x_forwarded_for="1.2.3.4") == "10.0.0.1"
    assert named(behind, "10.0.0.1", x_forwarded_for="6.6.6.6, 1.2.3.4, 10.0.0.9") == "1.2.3.4"
    assert named(behind, "192.0.2.1", x_forwarded_for="1.2.3.4") == "192.0.2.1"
    assert named(behind, "10.0.0.1", x_forwarded_for="rubbish") == "10.0.0.1"


def test_a_caller_cannot_rename_itself() -> None:
    callers = Callers(keys=["key"])
    assert named(callers, "2001:db8::1") == named(callers, "2001:db8::ffff"), "one /64 network, one caller"
    assert named(callers, "::ffff:192.0.2.1") == "192.0.2.1"
    assert named(callers, "192.0.2.1", authorization="Bearer made up") == "192.0.2.1"
    assert named(callers, "192.0.2.1", x_llava_demo_caller="0 somebody else") == "192.0.2.1"
    assert named(callers, "192.0.2.1", authorization="Basic key") == "192.0.2.1"
    assert named(callers, "192.0.2.1", authorization="Bearer key").startswith("key ")
    for same in ("bearer key", "BEARER key", "Bearer  key"):  # RFC 9110, 11.1: the scheme has no case
        assert named(callers, "192.0.2.1", authorization=same) == named(callers, "", authorization="Bearer key")
    assert "key " not in named(callers, "192.0.2.1", authorization="Bearer key").removeprefix("key ")


def test_mcp_callers_are_the_same_when_gradio_asks_itself() -> None:
    callers = Callers()
    scope = scope_of("/gradio_api/mcp/") | {"client": ("192.0.2.7", 1)}
    callers.name(scope)

    async def leaving() -> Message:
        return {"type": "http.disconnect"}

    with callers.asked_through_mcp(scope, leaving, {}) as receive:
        again: Scope = {"type": "http", "path": "/gradio_api/queue/join", "method": "POST", "client": ("127.0.0.1", 1)}
        again["headers"] = list(scope["headers"])  # type: ignore[call-overload]
        callers.name(again)
        assert caller_name(again) == "192.0.2.7"
        assert not is_gone(HTTPConnection(again))
        asyncio.run(receive())  # type: ignore[arg-type]
        assert is_gone(HTTPConnection(again))


def test_check_json_raises_invalid_request() -> None:
    with pytest.raises(InvalidRequest):
        check_json(b"{")


@pytest.mark.parametrize("is_ending", [True, False])
def test_what_is_cancelled_while_the_server_ends_is_no_failure(is_ending: bool) -> None:
    """uvicorn wrote a traceback of 40 lines for each answer under way where a second signal came."""

    async def run() -> None:
        gate, begun = Gate(), asyncio.Event()
        limits = BodyLimits(1000, 2000, 3000)
        origins = Origins(is_local=True, has_login=False, has_keys=False)
        rules = Rules(Callers(), origins, gate, Bodies(limits, gate), None, ImageLimits())  # type: ignore[arg-type]

        async def application(*_: object) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def nothing(*_: object) -> Message:
            return {"type": "http.request"}

        scope = scope_of("/health/live") | {"method": "GET", "raw_path": b"/health/live"}
        answering = asyncio.ensure_future(Guard(application, gr.Blocks(), rules)(scope, nothing, nothing))  # type: ignore[arg-type]
        await begun.wait()
        if is_ending:
            gate.close()
        answering.cancel()
        await asyncio.wait([answering])
        assert answering.cancelled() != is_ending

    asyncio.run(run())


@pytest.mark.parametrize("path", ["gradio_api/queue/data?session_hash=unknown", "gradio_api/call/ask/unknown"])
def test_a_request_that_fails_inside_gradio_is_told_whole_and_one_line_of_the_log(
    path: str, tiny: Server, caplog: pytest.LogCaptureFixture
) -> None:
    told = httpx.get(f"{tiny.url}{path}").text
    assert "404: Not Found" in told
    httpx.get(f"{tiny.url}health/live")  # a line behind the first one would be there by now
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert re.search(r"RuntimeError, from HTTPException, starlette/_exception_handler\.py:\d+$", record.message)
    assert record.exc_info is None
