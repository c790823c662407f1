"""What goes wrong on the Internet, one scenario each: `scenario(site, is_short)` gives rows of the report."""

import asyncio
import itertools
import json
import multiprocessing
import resource
import signal
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO
from multiprocessing.synchronize import Event
from typing import Any

import httpx
from PIL import Image

from tests.load.report import Row
from tests.load.site import PATIENCE_S, Site, answer_of, body_of, crowd, wait_until
from tests.load.watch import Watch, held, rss_mb

GREEDY, POLITE = {"X-Forwarded-For": "10.200.0.1"}, {"X-Forwarded-For": "10.200.0.2"}
GREEDY_ANSWERS = 16  # then the queue is full
HEAD_S = 15  # for the head of a request, which the server waits for


def hang_ups(site: Site, is_short: bool) -> list[Row]:
    """Three of ten callers go before their answer is whole, others in the middle of what they send."""
    count, users = (40, 16) if is_short else (1000, 64)
    crowd(site, users, [], MOST_REQUESTS=str(users))  # threads and connections that stay anyway
    for _ in range(3):  # on a busy machine pools of threads fill up meanwhile; what leaks grows at each round
        site.wait_until_idle()
        before = held(site.pid)
        with ThreadPoolExecutor() as beside:
            broken = beside.submit(_break_off, site, count // 10)
            measured = crowd(site, users, [], MOST_REQUESTS=str(count), HANG_UPS="0.3")
            broken.result()
        gauges = site.wait_until_idle()
        wait_until(lambda most=before["handles"]: held(site.pid)["handles"] <= most and not site.parts(), 30)
        after = held(site.pid)
        if after["threads"] <= before["threads"]:
            break
    outcomes = total(measured)
    rows = [
        Row("hang-ups", "callers that hung up", f"{outcomes.get('HungUp', 0)} of {sum(outcomes.values())}"),
        Row.of("hang-ups", "answers wrong, mixed up or failed", _failures(outcomes), most=0),
    ]
    for name in ("running", "waiting", "held_tokens", "held_pictures"):
        rows.append(Row.of("hang-ups", f"{name.replace('_', ' ')} afterwards", int(gauges[f"llava_{name}"]), most=0))
    for name in ("threads", "handles"):
        left = max(0, after[name] - before[name])
        rows.append(Row.of("hang-ups", f"{name} more than before", left, most=0))
    return [*rows, Row.of("hang-ups", "parts of uploads left", site.parts(), most=0)]


def greedy(site: Site, is_short: bool) -> list[Row]:
    """One caller asks as often as it can, beside another one that asks, reads, and asks again."""
    in_flight, turns = (40, 3) if is_short else (200, 20)
    question = site.questions[0]
    with httpx.Client(base_url=site.url, timeout=PATIENCE_S) as client:
        alone = [_timed(client, question) for _ in range(turns)]
        with _greedy(site.url, question, in_flight):
            beside = [_timed(client, question) for _ in range(turns)]
    firsts = [first for first, _ in beside if first is not None]
    answer_s = statistics.median(rest for _, rest in beside)
    allowed = 3 * statistics.median(first or 0 for first, _ in alone) + answer_s
    refused = Row.of("greedy", f"refusals of {turns} polite questions beside {in_flight}", turns - len(firsts), most=0)
    first = f"{max(firsts, default=0):.2f} s, median {statistics.median(firsts or [0]):.2f} s"
    slowest = Row("greedy", "slowest first text of the polite caller", first, f"<= {allowed:.2f} s")
    return [refused, slowest if is_short else slowest.judged(max(firsts, default=0) <= allowed)]


def _timed(client: httpx.Client, question: dict[str, str]) -> tuple[float | None, float]:
    """The polite caller waits so long for its first text, None if it is refused, and then for the rest of 64 tokens."""
    start = time.perf_counter()
    body, first = body_of(question, stream=True, ignore_eos=True), None
    with client.stream("POST", "v1/chat/completions", json=body, headers=POLITE) as response:
        for line in response.iter_lines():
            if first is None and '"content":"' in line and '"content":""' not in line:
                first = time.perf_counter() - start
    return first, time.perf_counter() - start - (first or 0)


@contextmanager
def _greedy(url: str, question: dict[str, str], in_flight: int) -> Iterator[None]:
    """Within the block a process of its own, so that it delays no clock here, keeps so many questions in flight."""
    context = multiprocessing.get_context("spawn")
    begun, end = context.Event(), context.Event()
    process = context.Process(
        target=_ask_greedily, args=(url, body_of(question, ignore_eos=True), in_flight, begun, end)
    )
    process.start()
    begun.wait(PATIENCE_S)
    try:
        yield
    finally:
        end.set()
        process.join()


def _ask_greedily(url: str, body: dict[str, Any], in_flight: int, begun: Event, end: Event) -> None:
    answers = itertools.count(1)

    async def ask_again_and_again(client: httpx.AsyncClient) -> None:
        while not end.is_set():
            response = await client.post("v1/chat/completions", json=body, headers=GREEDY)
            if response.status_code != 200:
                await asyncio.sleep(0.5)
            elif next(answers) == GREEDY_ANSWERS:
                begun.set()

    async def ask() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits) as client:
            await asyncio.gather(*(ask_again_and_again(client) for _ in range(in_flight)))

    asyncio.run(ask())


def silent(site: Site, is_short: bool) -> list[Row]:
    """Connections that send nothing, or the beginning of a request."""
    count = 100 if is_short else 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * count)), hard))
    place = httpx.URL(site.url)
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection((place.host, place.port or 80), 60)) for _ in range(count)
        ]
        for each in sockets[::4]:
            each.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Sl")
        times = []
        for _ in range(20):
            start = time.perf_counter()
            httpx.get(f"{site.url}health/live", timeout=PATIENCE_S).raise_for_status()
            times.append(time.perf_counter() - start)
        is_right = answer_of(site, site.questions[0]) == site.questions[0]["answer"]
        rows = [
            Row("silent", f"slowest health beside {count} connections", f"{max(times) * 1000:.0f} ms"),
            Row.of("silent", "wrong answers beside them", int(not is_right), most=0),
        ]
        if not is_short:
            for each in sockets:
                each.settimeout(2 * HEAD_S)
            left = sum(bool(each.recv(1)) for each in sockets)
            rows.append(Row.of("silent", f"connections left after {HEAD_S} s", left, most=0))
    return rows


def full_disk(site: Site, is_short: bool) -> list[Row]:  # noqa: ARG001, one size
    """No file of the server's may grow beyond a megabyte, as on a disk that is full, until it may again."""
    noise = BytesIO()
    Image.effect_noise((2000, 2000), 100).save(noise, "PNG")
    files = {"files": ("noise.png", noise.getvalue())}
    before = resource.prlimit(site.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(site.pid, resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        refusal = httpx.post(f"{site.url}gradio_api/upload", files=files, timeout=PATIENCE_S)
        question = site.questions[0]
        is_right = answer_of(site, question) == question["answer"]
    finally:
        resource.prlimit(site.pid, resource.RLIMIT_FSIZE, before)
    again = httpx.post(f"{site.url}gradio_api/upload", files=files, timeout=PATIENCE_S)
    said = refusal.json().get("error", "") if refusal.status_code == 503 else refusal.text[:100]
    return [
        Row("full disk", "an upload", f"{refusal.status_code}: {said}").judged("no room" in said),
        Row.of("full disk", "parts of uploads left", site.parts(), most=0),
        Row.of("full disk", "wrong answers meanwhile", int(not is_right), most=0),
        Row("full disk", "an upload afterwards", str(again.status_code)).judged(again.status_code == 200),
    ]


def visits(site: Site, is_short: bool) -> list[Row]:
    """The page is opened and left, and gradio_client called, each time by somebody else."""
    sizes = {"visits": (10, 20) if is_short else (1000, 2000), "calls": (20, 50) if is_short else (1000, 10_000)}
    config = httpx.get(f"{site.url}config", timeout=PATIENCE_S).json()
    info = next(each["id"] for each in config["dependencies"] if each["api_name"] == "info")
    visit: dict[str, Callable[[httpx.Client], None]] = {
        "visits": lambda client: _visit(client, info),
        "calls": lambda client: _event(client, info, uuid.uuid4().hex),
    }
    rows = []
    for name, (warm_up, count) in sizes.items():
        _repeated(site, visit[name], warm_up)
        before = _settled_mb(site)
        _repeated(site, visit[name], count)
        growth = _settled_mb(site) / before - 1
        what = f"memory after {count:,} {name}, {warm_up:,} before: {before:.0f} MB"
        row = Row("visits", what, f"{growth:+.1%}", "<= 2 %")
        rows.append(row if is_short else row.judged(growth <= 0.02))
    return rows


def _settled_mb(site: Site) -> float:
    """The memory once it stays the same for two seconds."""
    values = [rss_mb(site.pid)]
    while len(values) < 30 and (len(values) < 4 or max(values[-4:]) - min(values[-4:]) > 1):
        time.sleep(0.5)
        values.append(rss_mb(site.pid))
    return values[-1]


def _repeated(site: Site, visit: Callable[[httpx.Client], None], count: int) -> None:
    def some(of_these: Iterable[int]) -> None:
        with httpx.Client(base_url=site.url, timeout=PATIENCE_S) as client:
            for _ in of_these:
                visit(client)

    numbers = range(count)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(some, [numbers[each::8] for each in range(8)]))


def _visit(client: httpx.Client, index: int) -> None:
    """What a browser asks for when the page is opened, an event of its session, and that it is closed."""
    session = uuid.uuid4().hex
    for path in ("", "config", "gradio_api/info"):
        client.get(path).raise_for_status()
    with client.stream("GET", f"gradio_api/heartbeat/{session}") as heartbeat:
        next(heartbeat.iter_raw())
        _event(client, index, session)


def _event(client: httpx.Client, index: int, session: str) -> None:
    call = {"data": [], "fn_index": index, "session_hash": session}
    client.post("gradio_api/queue/join", json=call).raise_for_status()
    with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as response:
        (last,) = [line for line in response.iter_lines() if "process_completed" in line]  # to the end, as clients read
    assert json.loads(last.removeprefix("data: "))["success"], last


def ended(site: Site, number: signal.Signals) -> list[Row]:
    """A signal while answers are written through all interfaces: they are finished, others refused, nothing is left."""
    outcome: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: outcome.update(crowd(site, 16, ["--run-time", "6s"])))
    with Watch(site.url, site.pid) as watch:
        thread.start()
        wait_until(lambda: bool(watch.running) and watch.running[-1] >= 4)
    site.server.process.send_signal(number)
    thread.join()
    code = site.server.process.wait(PATIENCE_S)
    counts = total(outcome)
    gone = counts.get("Gone", 0)  # how a server answers that has ended
    files = [path for path in site.uploads.rglob("*") if path.is_file()]
    name = number.name
    return [
        Row(name, "answers finished, refused", f"{counts.get('right', 0)}, {counts.get('Refused', 0)}"),
        Row.of(name, "answers wrong or broken off", _failures(counts) - gone, most=0),
        Row.of(name, "exit code", code, most=0),
        Row.of(name, "uploads left", len(files), most=0),
    ]


def _break_off(site: Site, count: int) -> None:
    """Callers that go in the middle of an upload, of a body of JSON, or of a head."""
    place = httpx.URL(site.url)
    upload = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 1000000\r\n\r\n--b\r\n"
        b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(20_000)
    )
    body = b'POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{"messages":'
    for _ in range(count):
        for begun in (upload, body, upload[:60]):
            with socket.create_connection((place.host, place.port or 80), 60) as connection:
                connection.sendall(begun)
                time.sleep(0.01)


def total(measured: dict[str, Any]) -> dict[str, int]:
    """The outcomes of all interfaces together."""
    counts: dict[str, int] = {}
    for each in measured["outcomes"].values():
        for outcome, count in each.items():
            counts[outcome] = counts.get(outcome, 0) + count
    return counts


def _failures(counts: dict[str, int]) -> int:
    return sum(count for outcome, count in counts.items() if outcome not in ("right", "Refused", "HungUp"))
