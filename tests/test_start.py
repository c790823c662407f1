"""The server starts whatever its user's surroundings are, or one line says what to change."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pictures import png
from processes import ROOT, START_LIMIT_S, other_server

from llava_demo import cli
from llava_demo.__main__ import main
from llava_demo.environment import check_limits, claim_upload_folder, drop_variables

BARE = {"PATH": "/usr/bin:/bin"}  # as of `env -i`
NOWHERE = "127.0.0.1:9"
SERVE = ("llava_demo", "serve", "--model", "miniature", "--port", "PORT")


def run(*command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with these variables and no others."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=BARE | variables,
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_the_caller_has_closed_leads_nowhere(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    monkeypatch.setattr(sys, stream, None)  # Python's sign of `>&-`

    def speak(*_: object) -> int:
        return 3 if getattr(sys, stream).write("a word") else 1

    assert cli.run(speak, [], "the program") == 3
    getattr(sys, stream).close()


def serves(**variables: str) -> None:
    """With these variables and no others: start, show the page, and answer a picture and a question of `ask`."""
    with (
        other_server(*SERVE, health="health/ready", variables=BARE | variables, is_bare=True) as server,
        httpx.Client(base_url=server.url, timeout=START_LIMIT_S) as client,
    ):
        answer = client.post("ai/run/@cf/llava-hf/llava-1.5-7b-hf", content=png())
        assert answer.status_code == 200, answer.text
        assert client.get("").status_code == 200
        assert client.get("gradio_api/mcp/schema").status_code == 200
        done = run("-m", "llava_demo", "ask", "--remote-url", server.url, "What can you do?", **variables)
        assert done.returncode == 0, done.stderr
        assert "I" in done.stdout


def test_it_starts_in_a_bare_shell_and_with_a_developers_variables() -> None:
    """And with Gradio's, of which any would end the start, stop it half-way, or open files to everybody."""
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    strict = {"PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNDEFAULTENCODING": "1"}
    gradio = {"NUM_PORTS": "0", "SERVER_PORT": "soon", "DEBUG": "1", "ANALYTICS_MAX_EVENTS": "", "ALLOWED_PATHS": "/"}
    ended = {f"GRADIO_{name}": value for name, value in gradio.items()} | {"WEB_CONCURRENCY": "many"}
    serves(**ascii_only, **strict, **ended, HOME="/nowhere")


def test_variables_of_gradio_that_have_no_effect_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        monkeypatch.delenv(name)
    for name, value in {"SERVER_PORT": "soon", "NODE_PATH": "/", "ROOT_PATH": "/demo", "TEMP_DIR": "/tmp"}.items():
        monkeypatch.setenv(f"GRADIO_{name}", value)
    assert drop_variables() == [
        "GRADIO_NODE_PATH has no effect here.",
        "GRADIO_SERVER_PORT has no effect here; --port has.",
    ]
    assert {name for name in os.environ if name.startswith("GRADIO_")} == {"GRADIO_ROOT_PATH", "GRADIO_TEMP_DIR"}


def test_a_variable_that_a_library_cannot_use_is_named() -> None:
    done = run("-m", "llava_demo", "serve", "--model", "miniature", HF_HUB_DOWNLOAD_TIMEOUT="soon")
    assert done.returncode == 2
    assert "HF_HUB_DOWNLOAD_TIMEOUT has a value that a library cannot use" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_it_starts_on_a_companys_laptop() -> None:
    """Every request of this machine goes through a proxy, and no exception is made for its own addresses."""
    proxy = f"http://{NOWHERE}"
    serves(HTTP_PROXY=proxy, https_proxy=proxy, ALL_PROXY=f"socks5h://{NOWHERE}", NO_PROXY="intranet.example")


@pytest.mark.parametrize(
    ("address", "command"),
    [
        ("socks://127.0.0.1:9", "serve --model miniature"),
        ("http://127.0.0.1:port", "check --remote-url http://127.0.0.1:9"),
        ("ftp://proxy.example", "ask --remote-url http://127.0.0.1:9 Hello"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_line(address: str, command: str) -> None:
    done = run("-m", "llava_demo", *command.split(), ALL_PROXY=address)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "proxy in ALL_PROXY cannot be used; it must begin with http://" in done.stderr
    assert address not in done.stderr  # it may hold a password


@pytest.mark.parametrize("command", ["serve --model miniature", "check --remote-url https://127.0.0.1:9"])
def test_certificates_that_cannot_be_read_are_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("not a certificate")
    wrong = [("SSL_CERT_FILE", "missing.pem"), ("SSL_CERT_FILE", "no.pem"), ("SSLKEYLOGFILE", "no/folder")]
    for name, file in wrong:
        done = run("-m", "llava_demo", *command.split(), **{name: str(tmp_path / file)})
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert f"{name} must be a file " in done.stderr


def test_without_docstrings_one_line_says_what_to_change() -> None:
    done = run("-m", "llava_demo", "check", "--model", "miniature", PYTHONOPTIMIZE="2")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "needs docstrings, which PYTHONOPTIMIZE=2 and -OO drop" in done.stderr


def test_a_folder_of_a_library_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command(*_: object) -> int:
        Path("/proc/nowhere/cache").mkdir(parents=True)  # as torch does at an import for TORCHINDUCTOR_CACHE_DIR
        return 0

    assert cli.run(command, [], "the program") == 1
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert told.startswith("the program: /proc/nowhere") and "cannot be used" in told


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("-f 0", "ulimit -f allows 0 bytes in a file; at least 20,971,520 are needed"),
        ("-n 16", "ulimit -n allows 16 open files; at least 64"),
        ("-v 1500000", "ulimit -v allows 1,536,000,000 bytes of addresses; at least 2,147,483,648"),
    ],
)
def test_a_limit_below_what_a_server_needs_is_one_line(limit: str, words: str) -> None:
    """Gradio ended with 40 lines, or with none where standard error is a file."""
    command = f"ulimit {limit} && exec {sys.executable} -m llava_demo serve --model miniature"
    environment = BARE | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, timeout=START_LIMIT_S
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert words in done.stderr


def test_a_soft_limit_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 4096) if not raised else (-1, -1))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    check_limits()
    assert raised == [(64, 4096)]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("can't start new thread"), "No more threads can be started; raise ulimit -u"),
        (MemoryError(), "There is too little memory."),
        (OSError(errno.ENOSPC, "No space left on device"), "A file cannot be used: No space left on device."),
    ],
    ids=["threads", "memory", "disk"],
)
def test_what_a_machine_lacks_is_one_line(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*_: object) -> int:
        raise error

    assert cli.run(command, [], "the program") == 1
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert words in told


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    leave = (
        f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {sys.executable} -m llava_demo serve --model miniature"
    )
    (tmp_path / "gone").mkdir()
    environment = BARE | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["/bin/sh", "-c", leave], env=environment, capture_output=True, text=True, timeout=START_LIMIT_S
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "The folder that this was started in is gone" in done.stderr


def test_app_py_finds_its_package_where_python_does_not_look_beside_it() -> None:
    done = run("app.py", "--version-of-nothing", PYTHONSAFEPATH="1")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "python app.py: unrecognized arguments" in done.stderr


def test_without_any_folder_for_uploads_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: nowhere())
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/proc/nowhere")
    assert main(["serve", "--model", "miniature"]) == 2
    assert "no folder where uploads could be kept; set TMPDIR" in capsys.readouterr().err


def test_uploads_can_be_read_whatever_the_umask_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "a" / "b"))
    before = os.umask(0o777)
    try:
        folder = claim_upload_folder(7860)
        file = folder / "picture.png"
        file.write_bytes(b"")
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.stat().st_mode & 0o700 for path in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3


IMPORTS = """
import gc, sys
from llava_demo.environment import quick_imports
collections, stubs = [], []
gc.callbacks.append(lambda phase, info: collections.append(phase))
sys.addaudithook(lambda event, given: stubs.append(given[0]) if event == "open" and ".pyi" in str(given[0]) else None)
with quick_imports():
    import gradio, torch
print(len(collections), len(stubs), gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_imports_wait_for_no_garbage_collection_and_write_no_stubs_of_gradio() -> None:
    done = run("-c", IMPORTS)
    assert done.stdout.split() == ["0", "0", "True", "True"], done.stderr


def test_exceptions_that_were_made_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llava_demo.environment import reach_own_address

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("http_proxy", f"http://{NOWHERE}")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "a.example, .b.example,*.c.example,[fe80::1]")  # as curl and browsers take them
    reach_own_address("10.0.0.7")
    excepted = "a.example,.b.example,.c.example,fe80::1,127.0.0.1,localhost,::1,10.0.0.7"
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == excepted
