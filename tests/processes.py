"""Servers in processes of their own, which can be killed as machines die."""

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil

from tests.fork_server import Program, can_have

ROOT = Path(__file__).parents[1]
START_LIMIT_S = 240  # of a process that imports torch and loads a model, on a machine that does other things too
LIFE_LIMIT_S = 900
# Below those that Linux gives to clients, which would take a port between its choice and the server's start.
FIRST_PORT, WORKERS, TURNS = 16_000, 16, 1000
_turns = itertools.count(os.getpid())


def free_port() -> int:
    """A port of 127.0.0.1 that no other worker of pytest-xdist chooses."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = (FIRST_PORT + turn % TURNS * WORKERS + worker % WORKERS for turn in _turns)
    return next(port for port in ports if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class OtherServer:
    """One that is up; `url` ends with a slash."""

    url: str
    process: "subprocess.Popen[bytes] | Program"
    written: IO[bytes]  # to its standard error

    def wait_until_said(self, words: str, limit_s: float = 60) -> None:
        """Until its log has the words."""
        deadline = time.monotonic() + limit_s
        while words not in (said := self.said()):
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    def said(self) -> str:
        """Its log."""
        return os.pread(self.written.fileno(), 10**6, 0).decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def other_server(
    *command: str,
    health: str,
    folder: Path = ROOT,
    variables: dict[str, str] | None = None,
    python: str | Path = sys.executable,
    is_bare: bool = False,  # `variables` are all that it has
) -> Iterator[OtherServer]:
    """Start `python -m command` in `folder`, with a free port for PORT, and wait until `health` answers 200 there.

    It is forked where it can be; see `fork_server`.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    arguments = [word.replace("PORT", str(port)) for word in command]
    written = tempfile.TemporaryFile()  # noqa: SIM115, closed with the server
    uploads = tempfile.mkdtemp(prefix="uploads-")  # a server that ends deletes files, which may not be others'
    given = ({} if is_bare else {"GRADIO_TEMP_DIR": uploads}) | {"HF_HUB_OFFLINE": "1"} | (variables or {})
    words, streams = ["-m", *arguments], {"stdout": subprocess.DEVNULL, "stderr": written}
    if is_bare or python != sys.executable or not can_have(given):
        environment = given if is_bare else os.environ | given
        process = subprocess.Popen([python, *words], cwd=folder, env=environment, **streams)
    else:
        process = Program(words, folder, given, **streams)
    guard = threading.Timer(LIFE_LIMIT_S, process.kill)  # whatever hangs ends, and fails its test
    guard.start()
    try:
        _wait_until_up(url + health, process)
        yield OtherServer(url, process, written)
    finally:
        guard.cancel()
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:  # a process that is terminated leaves its own behind
            with suppress(psutil.NoSuchProcess):
                child.kill()
        written.close()
        shutil.rmtree(uploads, ignore_errors=True)


def _wait_until_up(url: str, process: "subprocess.Popen[bytes] | Program") -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode} before it was up"
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not up in {START_LIMIT_S} s")
