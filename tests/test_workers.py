"""Decoding has a time limit, ends with its caller, and stands in nobody's way."""

import asyncio
import functools
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import PIL.Image
import psutil
import pytest
from pictures import encoded, png

from llava_demo.engines import Engine, complete
from llava_demo.errors import InvalidImage
from llava_demo.images import Fit, Image, ImageLimits, workers

GIVE_UP_S = 60  # of a test on a machine that does other things too


@functools.cache
def progressive_jpeg(side: int) -> bytes:
    return encoded(PIL.Image.new("L", (side, side)), "JPEG", progressive=True)


def jpeg_with_scans(count: int, side: int = 4096) -> bytes:
    """A progressive JPEG of a few hundred KB whose last scan is repeated: each goes through all of its blocks."""
    data = progressive_jpeg(side)
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * count + data[-2:]


def bmp_of_single_pixels(side: int = 3000) -> bytes:
    """Run-length encoded in runs of one pixel, which Pillow reads in Python: no other thread runs meanwhile."""
    body = (b"\1\0" * side + b"\0\0") * side
    palette = bytes(4 * 256)
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + palette + body


def jpeg_with_empty_comments() -> bytes:
    """Pillow reads 4.9 million of them one by one, which takes 8 seconds: the header is never read."""
    data = encoded(PIL.Image.new("L", (8, 8)), "JPEG")
    return data[:2] + b"\xff\xfe\0\2" * 4_900_000 + data[2:]


SLOW_PIXELS: dict[str, Callable[[], bytes]] = {
    "a JPEG of 2,000 scans": lambda: jpeg_with_scans(2000),
    "a BMP of single pixels": bmp_of_single_pixels,
}


def decoders() -> list[psutil.Process]:
    """Our processes that decode, and no other child of the tests, such as what multiprocessing started."""
    return [child for child in psutil.Process().children() if workers.__name__ in _command_of(child)]


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it has ended
        return ""


def busy_workers() -> list[psutil.Process]:
    """Processes of ours that decode at this moment."""
    return [child for child in decoders() if _cpu_s_in(child, 0.2) > 0.05]


def _cpu_s_in(process: psutil.Process, seconds: float) -> float:
    try:
        before = sum(process.cpu_times()[:2])
        time.sleep(seconds)
        return sum(process.cpu_times()[:2]) - before
    except psutil.NoSuchProcess:
        return 0


@pytest.mark.parametrize("name", SLOW_PIXELS)
def test_a_picture_that_takes_long_to_decode_is_refused(name: str) -> None:
    image = Image.from_bytes(SLOW_PIXELS[name]())
    with pytest.raises(InvalidImage, match="takes more than 2 seconds to decode"):
        assert image.pixels
    assert Image.from_bytes(png()).pixels  # the next one finds a new process


def test_a_header_that_takes_long_to_read_is_refused() -> None:
    with pytest.raises(InvalidImage, match="seconds to decode"):
        Image.from_bytes(jpeg_with_empty_comments())


def test_what_takes_long_stands_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LIMIT_S", 1.0)  # after which the last of them is given up; they take ten
    slow = [Image.from_bytes(jpeg_with_scans(2000 + number)) for number in range(4)]
    photo = encoded(PIL.Image.effect_noise((2000, 1500), 60).convert("RGB"), "JPEG")
    with ThreadPoolExecutor(4) as threads:
        refused = [threads.submit(getattr, image, "pixels") for image in slow]
        assert Image.from_bytes(photo).pixels.size == (2000, 1500)
        assert not all(each.done() for each in refused)
        assert all(isinstance(each.exception(GIVE_UP_S), InvalidImage) for each in refused)


def test_decoding_ends_with_its_caller() -> None:
    async def go(image: Image) -> list[psutil.Process]:
        looking = asyncio.create_task(image.decode(None))
        while not (busy := await asyncio.to_thread(busy_workers)):
            assert not looking.done()
        looking.cancel()
        await asyncio.wait([looking])
        assert looking.cancelled()
        return busy

    image = Image.from_bytes(jpeg_with_scans(2000))
    busy = asyncio.run(asyncio.wait_for(go(image), GIVE_UP_S))
    assert not psutil.wait_procs(busy, GIVE_UP_S)[1]


def test_a_request_whose_picture_takes_long_ends_with_its_caller(tiny_engine: Engine) -> None:
    from llava_demo.chat import ChatRequest, Message

    async def go() -> list[psutil.Process]:
        request = ChatRequest((Message("user", "What?", (Image.from_bytes(jpeg_with_scans(3000)),)),))
        asking = asyncio.create_task(complete(tiny_engine, request))
        while not (busy := await asyncio.to_thread(busy_workers)):
            assert not asking.done()
        asking.cancel()
        await asyncio.wait([asking])
        return busy

    busy = asyncio.run(asyncio.wait_for(go(), GIVE_UP_S))
    assert not psutil.wait_procs(busy, GIVE_UP_S)[1]
    assert tiny_engine.status().waiting == 0


def test_a_picture_is_decoded_once_for_all_who_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    answered = workers.Decoding.answered
    monkeypatch.setattr(workers.Decoding, "answered", lambda call, limit: asked.append(limit) or answered(call, limit))
    data, fit = png("orange", (700, 500)), Fit("pad", 336, PIL.Image.Resampling.BICUBIC)
    squares = [Image.from_bytes(data).square(fit) for _ in range(3)]
    asyncio.run(Image.from_bytes(data).decode(fit))
    assert len(asked) == 4 + 1  # the headers, and the pixels
    assert squares[0] is squares[1] is squares[2]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="has no such signals")
def test_a_process_that_was_ended_from_outside_is_replaced() -> None:
    for number in range(2):
        for child in decoders():
            os.kill(child.pid, signal.SIGKILL)
        assert Image.from_bytes(png(size=(30 + number, 20))).pixels


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="has no such signals")
def test_a_process_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SILENT_S", 15.0)  # its replacement has as long to start
    for number in range(workers.HEADER_PROCESSES):
        assert workers.header(png(size=(40 + number, 20)), ImageLimits())
    for child in decoders():
        os.kill(child.pid, signal.SIGSTOP)
    try:
        assert workers.header(png(size=(50, 20)), ImageLimits())
    finally:
        for child in decoders():
            os.kill(child.pid, signal.SIGCONT)


def test_signals_for_the_server_leave_its_decoders_alone() -> None:
    assert Image.from_bytes(png(size=(50, 20))).pixels
    children = decoders()
    for child in children:
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert children
    assert all(child.is_running() for child in children)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_decodes_as_well() -> None:
    """As on ZeroGPU."""
    data = png("brown", (60, 20))
    assert Image.from_bytes(data).pixels.size == (60, 20)
    child = os.fork()
    if not child:
        os._exit(0 if Image.from_bytes(data[:-1] + data[-1:]).square(Fit("resize", 8, 0)).size == (8, 8) else 1)
    ended = threading.Event()
    threading.Timer(GIVE_UP_S, lambda: ended.is_set() or os.kill(child, signal.SIGKILL)).start()
    assert os.waitpid(child, 0)[1] == 0
    ended.set()


def test_many_threads_get_their_own_pictures() -> None:
    colors = [(value, 255 - value, 7) for value in range(0, 240, 10)]
    files = [encoded(PIL.Image.new("RGB", (20, 20), color), "PNG") for color in colors]
    with ThreadPoolExecutor(12) as threads:
        looks = [threads.submit(lambda data: Image.from_bytes(data).pixels.getpixel((3, 3)), data) for data in files]
        wait(looks, GIVE_UP_S)
    assert [look.result() for look in looks] == colors


def test_an_image_tells_its_size_before_it_is_decoded() -> None:
    data = encoded(PIL.Image.effect_noise((40, 30), 50), "PNG")
    image = Image.from_bytes(data[: len(data) // 2])
    assert image.size == (40, 30)
    with pytest.raises(InvalidImage, match="damaged or cut off"):
        assert image.pixels
