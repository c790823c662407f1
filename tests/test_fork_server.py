"""A forked program cannot be told from one that was started, but that torch is there at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fork_server import PIPE, Program, run

TELLS = """
import atexit, gc, json, os, resource, signal, sys, threading

standard = (sys.stdin, sys.stdout, sys.stderr)
streams = [(s.encoding, s.errors, s.line_buffering, s.seekable(), s.isatty()) for s in standard]
told = {
    "arguments": sys.argv, "folder": os.getcwd(), "variables": dict(os.environ), "path": sys.path, "streams": streams,
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "groups": (os.getpgid(0), os.getsid(0)), "umask": os.umask(0o22), "files": sorted(os.listdir("/proc/self/fd")),
    "limits": [resource.getrlimit(number) for number in range(16)], "threads": len(os.listdir("/proc/self/task")),
    "main": (__name__, __file__), "warnings": sys.warnoptions, "collects": gc.isenabled(),
    "ours": [name for name in sys.modules if name.partition(".")[0] in ("llava_demo", "gradio", "tests")],
}
print(json.dumps(told, indent=1))
atexit.register(lambda: print("at the end", file=sys.stderr))
threading.Thread(target=lambda: print("of a thread")).start()
sys.exit(3)
"""


def test_a_program_finds_what_a_new_interpreter_finds_and_ends_as_it_does(tmp_path: Path) -> None:
    (program := tmp_path / "program.py").write_text(TELLS)
    words, variables = [str(program), "a", "b c"], {"SOMETHING": "else"}
    forked = run(words, tmp_path, 60, variables=variables)
    started = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (forked.returncode, forked.stderr) == (started.returncode, started.stderr) == (3, "at the end\n")
    assert forked.stdout.splitlines() == started.stdout.splitlines()


def test_it_can_be_ended_by_a_signal_and_nobody_else_gets_its_number_before_that_is_known(tmp_path: Path) -> None:
    with Program(["-m", "http.server", "0"], tmp_path, stdout=PIPE) as program:
        assert program.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.01)
        program.kill()
        while "State:\tZ" not in Path(f"/proc/{program.pid}/status").read_text():
            time.sleep(0.01)
        assert program.wait() == -signal.SIGKILL
        program.kill()  # without effect


def test_what_would_be_read_too_late_is_refused(tmp_path: Path) -> None:
    for name in ("HF_ENDPOINT", "PYTHONOPTIMIZE"):
        with pytest.raises(AssertionError, match="needs a real start"):
            Program(["-m", "this"], tmp_path, {name: "1"})
