"""Decodes in other processes, so that decoding has a time limit, ends with its caller and delays no other request.

A decoder cannot be interrupted, and some decoders hold Python's lock: a JPEG of 200 KB with many scans takes ten
seconds, a WebP of 24 megapixels stops every thread for 60 ms. So a picture goes to one of a few worker processes, which
live on. A picture that takes long is given up there, and decoded by workers for slow pictures only.
"""

import asyncio
import faulthandler
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import PIL.Image

from llava_demo.errors import EngineUnavailable, ImageTooLarge, InvalidImage
from llava_demo.images.decode import Fit, Header, ImageLimits, header_of, pixels_of
from llava_demo.images.opened import formats

LIMIT_S = 2.0  # CPU time for reading a header, and for decoding pixels
QUICK_S = 0.8  # the same at the first try: the pixels of a photo of 12 megapixels take 0.2 to 0.7
HEADER_PROCESSES, QUICK_PROCESSES, SLOW_PROCESSES = 2, 4, 2
SILENT_S = 60.0  # wall time after which a worker that does nothing, such as a stopped one, is ended and replaced
MAX_MEMORY_BYTES = 2 * 2**30  # of a process; the largest picture with transparency takes a third

_LENGTHS = struct.Struct(">II")  # lengths of the JSON and of the bytes after it
_TIMED_OUT = -getattr(signal, "SIGPROF", -1)  # a worker's exit code when the time is over, see `_begin_clock`
_RUN = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from llava_demo.images.workers import work; work()"


class TookTooLong(InvalidImage):
    """Decoding took more than the time limit."""


class Decoding:
    """One question to a worker about one file. `cancel` may be called from any thread, at any time."""

    def __init__(self, data: bytes, **question: Any) -> None:
        self._data, self._question = data, question
        self._lock = threading.Lock()  # over the two below
        self._worker: _Worker | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Kill the worker that is at work on it."""
        with self._lock:
            self._is_cancelled = True
            if self._worker:
                self._worker.kill()

    def answered(self, limit_s: float) -> tuple[dict[str, Any], bytes]:
        """The answer of this thread's worker.

        Raises:
            TookTooLong: it took longer than the limit.
            InvalidImage, ImageTooLarge: as `header_of` and `pixels_of` raise them; or the decoder crashed or hung.
            CancelledError: `cancel` was called.
        """
        for _ in range(2):  # a worker may have been killed from outside since its last picture
            worker = _own_worker()
            with self._lock:
                if self._is_cancelled:
                    raise CancelledError
                self._worker = worker
            try:
                answer, body = worker.ask({**self._question, "limit_s": limit_s}, self._data)
            except (EOFError, OSError):
                worker.kill()
            else:
                return _checked(answer), body
            finally:
                with self._lock:
                    self._worker = None
                    if self._is_cancelled:
                        worker.kill()
            if worker.has_timed_out:
                raise TookTooLong(
                    f"The picture takes more than {limit_s:g} seconds to decode; save it as an ordinary JPEG or PNG."
                )
        raise InvalidImage("The picture is damaged: its decoder crashed.")


def header(data: bytes, limits: ImageLimits) -> Header:
    """`decode.header_of` in a worker. Raises what it raises, or `TookTooLong`."""
    answer, _ = _answered_in_time(Decoding(data, limits=asdict(limits)), _pools.headers)
    return Header(**answer)


def pixels(data: bytes, fit: Fit | None = None) -> PIL.Image.Image:
    """`decode.pixels_of` in a worker. Raises what it raises, or `TookTooLong`."""
    call = Decoding(data, fit=fit and asdict(fit))
    answer, body = _answered_in_time(call, _pools.quick)
    return PIL.Image.frombytes("RGB", tuple(answer["size"]), body)


def _answered_in_time(call: Decoding, pool: ThreadPoolExecutor) -> tuple[dict[str, Any], bytes]:
    try:
        return pool.submit(call.answered, QUICK_S).result()
    except TookTooLong:
        return _pools.slow.submit(call.answered, LIMIT_S).result()


async def pixels_for_caller(data: bytes, fit: Fit | None = None) -> PIL.Image.Image:
    """The same for a caller that may disconnect: a cancel kills the worker."""
    call = Decoding(data, fit=fit and asdict(fit))
    try:
        try:
            answer, body = await asyncio.wrap_future(_pools.quick.submit(call.answered, QUICK_S))
        except TookTooLong:
            answer, body = await asyncio.wrap_future(_pools.slow.submit(call.answered, LIMIT_S))
    finally:
        call.cancel()
    return await asyncio.to_thread(PIL.Image.frombytes, "RGB", tuple(answer["size"]), body)


class _Pools:
    """Threads with one worker each, which is started when there is work."""

    def __init__(self) -> None:
        self.begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.begin)  # a forked process has no threads

    def begin(self) -> None:
        self.own = threading.local()
        self.headers = ThreadPoolExecutor(HEADER_PROCESSES, "header")
        self.quick = ThreadPoolExecutor(QUICK_PROCESSES, "decode")
        self.slow = ThreadPoolExecutor(SLOW_PROCESSES, "decode-slow")


_pools = _Pools()


def _own_worker() -> "_Worker":
    worker: _Worker | None = getattr(_pools.own, "worker", None)
    if worker is None or not worker.is_alive:
        worker = _pools.own.worker = _Worker()
    return worker


class _Worker:
    """A process that runs `work`. It ends with this process, which closes its standard input."""

    def __init__(self) -> None:
        path = [str(Path(__file__).parents[2]), *sys.path]
        command = [sys.executable, "-I", "-c", _RUN, json.dumps(path)]  # -I ignores PYTHON... variables
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise EngineUnavailable("This machine can start no process that decodes the picture.") from error
        weakref.finalize(self, _end, self._process)

    def ask(self, question: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdin
        assert self._process.stdout
        guard = threading.Timer(SILENT_S, self.kill)
        guard.daemon = True
        guard.start()
        try:
            _write(self._process.stdin, question, data)
            return _read(self._process.stdout)
        finally:
            guard.cancel()

    def kill(self) -> None:
        self._process.kill()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def has_timed_out(self) -> bool:
        return self._process.wait() == _TIMED_OUT


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with suppress(BrokenPipeError):
        process.__exit__(None, None, None)  # closes the pipes, and waits


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    kinds = {kind.__name__: kind for kind in (InvalidImage, ImageTooLarge)}
    if "error" in answer:
        raise kinds[answer["error"]](answer["message"])
    return answer


def _write(file: IO[bytes], head: dict[str, Any], body: bytes) -> None:
    letters = json.dumps(head).encode()
    file.write(_LENGTHS.pack(len(letters), len(body)) + letters)
    file.write(body)
    file.flush()


def _read(file: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    head_length, body_length = _LENGTHS.unpack(_exactly(file, _LENGTHS.size))
    return json.loads(_exactly(file, head_length)), _exactly(file, body_length)


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


# In the other process


def work() -> None:
    """Answer questions on standard input until it ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # they are for the server, which may finish its answers first
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # decoders may print
    _bound_memory()
    formats()  # takes 0.1 s, which must not count for the first picture
    with suppress(EOFError, BrokenPipeError):
        while True:
            question, data = _read(questions)
            _write(answers, *_answered(question, data))


def _answered(question: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    _begin_clock(question["limit_s"])
    try:
        if "limits" in question:
            return asdict(header_of(data, ImageLimits(**question["limits"]))), b""
        picture = pixels_of(data, question["fit"] and Fit(**question["fit"]))
        return {"size": picture.size}, picture.tobytes()
    except InvalidImage as error:
        return {"error": type(error).__name__, "message": str(error)}, b""
    finally:
        _begin_clock(0)


def _begin_clock(limit_s: float) -> None:
    """End this process after `limit_s` of CPU time (0: never); where that cannot be measured, of wall time."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # SIGPROF ends a process, whatever it does
    elif limit_s:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.stderr)
    else:
        faulthandler.cancel_dump_traceback_later()


def _bound_memory() -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
