"""ZeroGPU: the real `spaces` package with its forked workers, and a stand-in for the platform that lends the GPUs."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import psutil
import pytest
import uvicorn
from gradio_client import Client
from gradio_client.exceptions import AppError
from processes import ROOT, OtherServer, other_server
from servers import free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llava_demo.chat import ChatRequest, Chunk, Message, SamplingParams
from llava_demo.engines import complete
from llava_demo.engines.load import load_engine
from llava_demo.engines.zero_gpu import LONGEST_S, START_S, ZeroGpuEngine, duration_of
from llava_demo.errors import EngineBusy, GenerationFailed
from llava_demo.settings import SettingError, Settings

STEP_S = "0.02"
LONG = {"messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 900, "temperature": 0}
SHORT = LONG | {"max_tokens": 12}


@dataclass
class Platform:
    """Lends as many GPUs as are wanted, until `has_quota` says no."""

    url: str
    has_quota: bool = True
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{what:path}", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        what, given = request.path_params["what"], dict(request.query_params)
        self.asked.append((what, given))
        if what != "schedule":
            return Response()
        if not self.has_quota:
            return JSONResponse({"left": 7, "wait": 3600}, 429, {"X-Authenticated": "regular"})
        number = len(self.of("schedule"))
        lent = {"idle": False, "nvidiaIndex": number, "nvidiaUUID": str(number), "allowToken": f"token-{number}"}
        return JSONResponse(lent)

    def of(self, what: str) -> list[dict[str, str]]:
        return [given for asked, given in self.asked if asked == what]

    def wait_until_given_back(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len([1 for asked, _ in self.asked if asked.startswith("release")]) < count:
            assert time.monotonic() < deadline, f"not given back: {self.asked}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    port = free_port()
    platform = Platform(f"http://127.0.0.1:{port}")
    server = uvicorn.Server(uvicorn.Config(platform.app, port=port, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield platform
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def space(platform: Platform, tiny_folder: str) -> Iterator[OtherServer]:
    variables = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": platform.url, "OMP_NUM_THREADS": "1"}
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = ["zero_gpu_space", "PORT", tiny_folder, STEP_S]
    with other_server(*command, health="health/ready", variables=variables | path) as server:
        yield server


def chat(server: OtherServer, body: dict[str, object], **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}v1/chat/completions", json=body, headers=headers, timeout=60)


def visitor() -> str:
    """The token that the platform puts on a visitor's calls: a JWT, whose signature is not checked here."""
    part = base64.urlsafe_b64encode(json.dumps({"user": "ada"}).encode()).decode().rstrip("=")
    return f"{part}.{part}.{part}"


def wait_until_free(server: OtherServer) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{server.url}health/ready").json()["running"]:
        assert time.monotonic() < deadline, "the engine is still busy"
        time.sleep(0.05)


def test_the_platform_is_told_at_the_start_that_there_is_a_function_for_the_gpu(
    space: OtherServer, platform: Platform
) -> None:
    assert len(platform.of("startup-report")) == 1
    info = Client(space.url, verbose=False).predict(api_name="/info")
    assert (info["engine"], info["device"]) == ("generate", "ZeroGPU")


def test_two_at_once_are_answered_as_the_local_engine_does(
    space: OtherServer, platform: Platform, tiny_folder: str
) -> None:
    engine = load_engine(Settings(model=tiny_folder, engine="generate"))
    request = ChatRequest((Message("user", "Tell me a long story."),), SamplingParams(temperature=0, max_tokens=12))
    expected = asyncio.run(complete(engine, request)).text
    asyncio.run(engine.aclose())
    before = len(platform.of("schedule"))
    with ThreadPoolExecutor(2) as pool:
        page = pool.submit(Client(space.url, verbose=False).predict, **SHORT, api_name="/chat")
        rest = pool.submit(chat, space, SHORT)
        assert page.result() == expected
        assert rest.result().json()["choices"][0]["message"]["content"] == expected
    assert len(platform.of("schedule")) == before + 2
    assert {call["durationSeconds"] for call in platform.of("schedule")[before:]} == {str(duration_of(request))}


def test_the_callers_own_quota_is_charged_by_every_way_in(space: OtherServer, platform: Platform) -> None:
    token = visitor()
    Client(space.url, verbose=False, headers={"X-IP-Token": token}).predict(**SHORT, api_name="/chat")
    assert platform.of("schedule")[-1]["token"] == token
    assert chat(space, SHORT, **{"X-IP-Token": token}).status_code == 200
    assert platform.of("schedule")[-1]["token"] == token
    assert chat(space, SHORT).status_code == 200
    assert "token" not in platform.of("schedule")[-1]


def test_a_cancelled_answer_gives_the_gpu_back(space: OtherServer, platform: Platform) -> None:
    before = len([1 for asked, _ in platform.asked if asked.startswith("release")])
    job = Client(space.url, verbose=False).submit(**LONG, api_name="/chat")
    while not job.outputs():
        time.sleep(0.05)
    job.cancel()
    with httpx.stream("POST", f"{space.url}v1/chat/completions", json=LONG | {"stream": True}) as answer:
        for line in answer.iter_lines():
            if '"content":"' in line.replace(" ", "") and '"content":""' not in line.replace(" ", ""):
                break  # and hang up
    platform.wait_until_given_back(before + 2)
    wait_until_free(space)


def test_a_quota_that_is_used_up_is_said_in_the_platforms_words(space: OtherServer, platform: Platform) -> None:
    platform.has_quota = False
    try:
        client = Client(space.url, verbose=False, headers={"X-IP-Token": visitor()})
        with pytest.raises(AppError, match=r"exceeded your free ZeroGPU quota .* Try again in 1:00:00"):
            client.predict(**SHORT, api_name="/chat")
        refused = chat(space, SHORT)
        assert refused.status_code == 503
        assert "ZeroGPU quota exceeded" in refused.json()["error"]["message"]
    finally:
        platform.has_quota = True
    assert chat(space, SHORT).status_code == 200


def test_a_worker_that_dies_is_said_and_the_next_question_is_answered(space: OtherServer) -> None:
    job = Client(space.url, verbose=False).submit(**LONG, api_name="/chat")
    while not job.outputs():
        time.sleep(0.05)
    before = psutil.Process(space.process.pid).children()
    for worker in before:
        worker.kill()
    with pytest.raises(AppError, match="The GPU was taken away before the answer was whole"):
        job.result(timeout=30)
    assert chat(space, SHORT).status_code == 200
    wait_until_free(space)


def test_a_question_that_is_wrong_is_said_as_anywhere(space: OtherServer) -> None:
    too_long = chat(space, LONG | {"messages": [{"role": "user", "content": "word " * 1200}]})
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(("max_tokens", "least", "most"), [(1, START_S, START_S + 1), (100_000, LONGEST_S, LONGEST_S)])
def test_longer_answers_ask_for_more_of_the_gpu(max_tokens: int, least: int, most: int) -> None:
    request = ChatRequest((Message("user", "Hello"),), SamplingParams(max_tokens=max_tokens))
    assert least <= duration_of(request) <= most


def test_batches_are_refused_on_zero_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert Settings().is_zero_gpu
    assert not Settings(remote_url="http://a").is_zero_gpu
    with pytest.raises(SettingError, match="cannot run on ZeroGPU"):
        load_engine(Settings(engine="batched"))


def test_elsewhere_it_answers_in_this_process(tiny_folder: str) -> None:
    async def ask_two() -> list[object]:
        answers = (complete(zero, request) for _ in range(2))
        return await asyncio.gather(*answers, return_exceptions=True)

    local = load_engine(Settings(model=tiny_folder, engine="generate"))
    zero = ZeroGpuEngine(local.llava, local.info, max_queue=0, slots=1)  # type: ignore[attr-defined]
    request = ChatRequest((Message("user", "Hello"),), SamplingParams(temperature=0, max_tokens=20))
    answers = asyncio.run(ask_two())
    assert [type(answer) for answer in answers].count(EngineBusy) == 1
    assert asyncio.run(complete(local, request)) in answers


def test_a_call_of_the_platform_that_ends_without_an_end_is_said(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = load_engine(Settings(model=tiny_folder, engine="generate"))
    zero = ZeroGpuEngine(local.llava, local.info, max_queue=0)  # type: ignore[attr-defined]
    monkeypatch.setattr(zero, "_on_gpu", lambda _: (chunk for chunk in [Chunk("A red")]))
    request = ChatRequest((Message("user", "Hello"),))
    with pytest.raises(GenerationFailed, match="The GPU was taken away before the answer was whole"):
        asyncio.run(asyncio.wait_for(complete(zero, request), timeout=30))
    assert (zero.status().running, zero.status().waiting) == (0, 0)


def test_callers_take_turns_in_front_of_the_platform(tiny_folder: str) -> None:
    local = load_engine(Settings(model=tiny_folder, engine="generate"))
    zero = ZeroGpuEngine(local.llava, local.info, max_queue=8, slots=1)  # type: ignore[attr-defined]
    ended: list[str] = []

    async def ask(caller: str) -> None:
        sampling = SamplingParams(temperature=0, max_tokens=3)
        await complete(zero, ChatRequest((Message("user", "Hello"),), sampling, caller=caller))
        ended.append(caller)

    async def ask_all() -> None:
        tasks = [asyncio.create_task(ask(caller)) for caller in ("greedy",) * 4]
        await asyncio.sleep(0)  # they are in the queue before the others
        tasks += [asyncio.create_task(ask(caller)) for caller in ("polite", "third")]
        await asyncio.gather(*tasks)

    asyncio.run(ask_all())
    assert ended.index("polite") < 3 > ended.index("third"), ended
    assert (zero.status().running, zero.status().waiting) == (0, 0)
