"""Programs forked from a process that has imported torch and transformers: a start takes 1.5 s of a CPU in place of 5.

`Program(words)` stands for `subprocess.Popen([sys.executable, *words])`: its process has the arguments, folder,
environment, streams and signals of a new interpreter, imports all else itself, Gradio and this project included, and
ends as any interpreter does. It is forked by a process with one thread that has computed nothing. What is read where
Python, torch or a library of Hugging Face begins cannot be another than the tests have: that needs a real start.
"""

import atexit
import functools
import gc
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import IO, Any

PIPE, NOWHERE = subprocess.PIPE, subprocess.DEVNULL
READ_AT_IMPORT = ("PYTHON", "HF_", "TRANSFORMERS_", "TORCH_", "PYTORCH_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "LD_")
MOST_BYTES = 200_000  # of a message, which has the environment in it


class Program:
    """One that runs. What it has is named as by `subprocess.Popen`, and does the same; `PIPE` gives text."""

    def __init__(
        self,
        words: Sequence[str | Path],
        cwd: str | Path,
        variables: Mapping[str, str] = {},  # beside those of this process
        stdout: int | IO[Any] = NOWHERE,
        stderr: int | IO[Any] = NOWHERE,
    ) -> None:
        self.args = [str(word) for word in words]
        self.returncode: int | None = None
        assert can_have(variables), "variables would be read too late: this needs a real start"
        channel, _ = _server()
        self._keeper, theirs = Pipe()
        start = {"words": self.args, "cwd": str(cwd), "environment": os.environ | variables}
        with ExitStack() as stack, theirs:
            self.stdout, out = _stream(stdout, stack)
            self.stderr, err = _stream(stderr, stack)
            nothing = stack.enter_context(Path(os.devnull).open())
            given = [nothing.fileno(), out, err, theirs.fileno()]
            socket.send_fds(channel, [json.dumps(start).encode()], given)
        self.pid: int = self._keeper.recv()

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not self._keeper.poll(timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._keeper.recv()
            self._keeper.close()
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """What it writes from now on, once it has ended."""
        streams = [stream for stream in (self.stdout, self.stderr) if stream and not stream.closed]
        with ThreadPoolExecutor(2) as readers:
            written = dict(zip(streams, readers.map(lambda stream: stream.read(), streams), strict=True))
        self.wait()
        return written.get(self.stdout, ""), written.get(self.stderr, "")

    def send_signal(self, number: int) -> None:
        """May be called from any thread."""
        if self.returncode is None:  # until then its keeper does not reap it: no other process has its number
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        self.send_signal(SIGKILL)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()


def can_have(variables: Mapping[str, str]) -> bool:
    """Whether a program can be forked that is given these."""
    inherited = _server()[1]
    return not any(name.startswith(READ_AT_IMPORT) and inherited.get(name) != variables[name] for name in variables)


def run(words: Sequence[str | Path], cwd: str | Path, timeout: float, **options: Any) -> Any:
    """What `subprocess.run` returns where it captures text."""
    with Program(words, cwd, stdout=PIPE, stderr=PIPE, **options) as program:
        guard = threading.Timer(timeout, program.kill)
        guard.start()
        written = program.communicate()
        guard.cancel()
    return subprocess.CompletedProcess(program.args, program.wait(), *written)


def _stream(wanted: int | IO[Any], stack: ExitStack) -> tuple[IO[str] | None, int]:
    """This process's end of a pipe, and what the program gets."""
    if wanted == PIPE:
        ours, theirs = os.pipe()
        return os.fdopen(ours, encoding="utf-8"), stack.enter_context(os.fdopen(theirs, "wb")).fileno()
    if wanted == NOWHERE:
        return None, stack.enter_context(Path(os.devnull).open("wb")).fileno()
    assert not isinstance(wanted, int)
    return None, wanted.fileno()


@functools.cache
def _server() -> tuple[socket.socket, dict[str, str]]:
    """The server's socket, and the environment that it was started with."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        server = subprocess.Popen(command, stdin=NOWHERE, stdout=NOWHERE, pass_fds=[theirs.fileno()])
    atexit.register(server.wait)
    atexit.register(ours.close)  # before that, which ends the server
    return ours, dict(os.environ)


# In the other process


def serve(channel: socket.socket) -> dict[str, Any]:
    """Returns in each program that is forked, with what it was started with."""
    while True:
        message, given, *_ = socket.recv_fds(channel, MOST_BYTES, 4)
        if not message:
            sys.exit()
        if not os.fork():
            channel.close()
            if not (program := os.fork()):
                break
            for number in given[:3]:  # a pipe ends where nobody else can write to it
                os.close(number)
            _keep(program, Connection(given[3]))
        for number in given:
            os.close(number)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    for ours, number in enumerate(given[:3]):
        os.dup2(number, ours)
    for number in given:
        os.close(number)
    return json.loads(message)


def _keep(program: int, parent: Connection) -> None:
    """The program's parent tells the test's process its number, and how it has ended."""
    parent.send(program)
    ended = os.waitid(os.P_PID, program, os.WEXITED | os.WNOWAIT)
    parent.send(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
    with suppress(EOFError):
        parent.recv()
    os._exit(0)


def import_libraries() -> None:
    """As `llava_demo.environment.quick_imports` does, which is not here yet."""
    gc.disable()
    import torch
    import transformers.models.clip.modeling_clip
    import transformers.models.llama.modeling_llama
    import transformers.models.llava.modeling_llava
    from transformers import AutoProcessor

    assert torch, transformers
    assert AutoProcessor
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)


def become(words: list[str], cwd: str, environment: dict[str, str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for name in ("stdin", "stdout", "stderr"):  # the old ones believe that they can seek
        old = getattr(sys, name)
        file = os.fdopen(old.fileno(), "rb" if name == "stdin" else "wb", closefd=False)
        options = {"line_buffering": old.line_buffering, "write_through": old.write_through}
        new = io.TextIOWrapper(file, old.encoding, old.errors, **options)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    sys.path[0] = cwd if is_module else str(Path(words[0]).parent)
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    import_libraries()
    become(**serve(socket.socket(fileno=int(sys.argv[1]))))
