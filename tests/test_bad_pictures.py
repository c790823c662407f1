"""Bad pictures through the REST endpoints: an answer or a clear refusal, little memory, and no standstill."""

import base64
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import bad_pictures
import httpx
import psutil
import pytest
from bad_pictures import REFUSED, UPRIGHT
from processes import OtherServer, other_server

from llava_demo.images import Image

Cases = dict[str, tuple[str, bytes]]
MOST_MEMORY = 500 * 2**20  # above what the server has when it does nothing
CLOUDFLARE = "ai/run/@cf/llava-hf/llava-1.5-7b-hf"


class Watch:
    """Looks at the server's memory all the time, and how long its /health/live takes."""

    def __init__(self, server: OtherServer) -> None:
        self._server, self._process = server, psutil.Process(server.process.pid)
        self._is_over = threading.Event()
        self.idle = self.most = self._process.memory_info().rss
        self.latencies_ms: list[float] = []

    def __enter__(self) -> "Watch":
        self._threads = [threading.Thread(target=each) for each in (self._look_at_memory, self._ask)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _look_at_memory(self) -> None:
        while not self._is_over.wait(0.005):
            self.most = max(self.most, self._process.memory_info().rss)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._server.url, timeout=30) as client:
            while not self._is_over.wait(0.05):
                start = time.perf_counter()
                assert client.get("health/live").status_code == 200
                self.latencies_ms.append((time.perf_counter() - start) * 1000)


@pytest.fixture(scope="module")
def server() -> Iterator[OtherServer]:
    command = ["llava_demo", "serve", "--model", "miniature", "--port", "PORT"]
    with other_server(*command, health="health/ready") as server:
        yield server


@pytest.fixture(scope="module")
def cases() -> Cases:
    return bad_pictures.cases()


def calls(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The endpoints that take a picture's bytes, each with the body that is sent to it."""
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}}
    yield "v1/chat/completions", body_of({"messages": [{"role": "user", "content": [part]}], "max_tokens": 2})
    if len(data) < 2**20:
        yield CLOUDFLARE, body_of({"image": list(data), "max_tokens": 2})


def body_of(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def complaint_of(answer: httpx.Response) -> str:
    """What a refusal says, in whichever of the two forms."""
    body = answer.json()
    return body["error"]["message"] if "error" in body else body["errors"][0]["message"]


def test_what_is_taken_stands_upright(cases: Cases) -> None:
    good = {name: data for name, (fate, data) in cases.items() if fate == UPRIGHT}
    assert (len(cases) >= 60, len(good) >= 30) == (True, True)
    for name, data in good.items():
        pixels = Image.from_bytes(data).pixels
        left, right = (pixels.getpixel((x, pixels.height // 2)) for x in (0, pixels.width - 1))
        assert isinstance(left, tuple)
        assert isinstance(right, tuple)
        assert left[0] > left[2] + 80, f"{name} is not red on the left: {left}"
        assert right[2] > right[0] + 80, f"{name} is not blue on the right: {right}"


def test_each_is_answered_or_refused_and_the_server_stays_small_and_awake(
    server: OtherServer, cases: Cases, capsys: pytest.CaptureFixture[str]
) -> None:
    # Made before the watch begins: making them would hold up its own clock.
    bodies = [(name, place, body) for name, (_, data) in cases.items() for place, body in calls(data)]
    huge = body_of({"messages": [{"role": "user", "content": "A" * 110_000_000}]})
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for place, body in calls(cases["png"][1]):
            client.post(place, content=body)  # what the first request loads is not the pictures' doing
        with Watch(server) as watch:
            for name, place, body in bodies:
                answer = client.post(place, content=body)
                if cases[name][0] == REFUSED:
                    assert answer.status_code in (400, 413), name
                    assert 10 < len(complaint_of(answer)) < 200, name
                else:
                    assert answer.status_code == 200, f"{name}: {answer.text[:300]}"
            assert client.post("v1/chat/completions", content=huge).status_code == 413
        assert client.get("health/ready").json()["running"] == 0
    grown = watch.most - watch.idle
    middle, last = statistics.median(watch.latencies_ms), max(watch.latencies_ms)
    with capsys.disabled():
        sys.stdout.write(f"\n{len(cases)} pictures: {grown / 2**20:.0f} MB above idle; ")
        sys.stdout.write(f"/health/live in {middle:.0f} ms, at worst {last:.0f} ms\n")
    assert grown < MOST_MEMORY


def test_a_large_picture_as_numbers_holds_nobody_up(
    server: OtherServer, cases: Cases, capsys: pytest.CaptureFixture[str]
) -> None:
    """`json.loads` alone would stop the server for seconds."""
    noise = random.Random(0).randbytes(5 * 2**20)
    body = body_of({"image": list(cases["bmp"][1] + noise), "max_tokens": 2})
    with httpx.Client(base_url=server.url, timeout=120) as client, Watch(server) as watch:
        assert client.post(CLOUDFLARE, content=body).status_code == 200
    with capsys.disabled():
        sys.stdout.write(f"\n5 MB as numbers: /health/live at worst in {max(watch.latencies_ms):.0f} ms\n")
