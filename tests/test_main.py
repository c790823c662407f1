"""The command line, run as people run it, with a real model of random weights."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pictures import png
from processes import free_port
from servers import Server

from llava_demo import log
from llava_demo.__main__ import main
from llava_demo.chat import KNOBS, ChatRequest, Message, SamplingParams
from llava_demo.cli import COMMANDS, SOME_FAILED
from llava_demo.engines import complete
from llava_demo.engines.generate import GenerateEngine
from llava_demo.images import Image
from llava_demo.model import FOR_PHOTOS, MINIATURE_DECLINES
from llava_demo.settings import GROUPS
from tests.fork_server import PIPE, Program

ROOT = Path(__file__).parents[1]
QUESTION = "What is in this picture?"
MAX_S = 400  # for a process that imports torch, loads a model and answers


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("LLAVA_")]:
        monkeypatch.delenv(name)
    before = list(log.logger.handlers), log.logger.level
    yield
    log.logger.handlers[:], log.logger.level = before


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    return str(path)


def answer_line(written: str) -> dict[str, str]:
    """The fields of the one line that the log has for the answer."""
    [line] = [line for line in written.splitlines() if " INFO answer " in line]
    return dict(field.split("=") for field in line.split(" answer ")[1].split())


@contextmanager
def started(*arguments: str) -> Iterator[Program]:
    """The command as a process of its own."""
    with Program(["-m", "llava_demo", *arguments], ROOT, stdout=PIPE, stderr=PIPE) as process:
        guard = threading.Timer(MAX_S, process.kill)  # whatever hangs ends, and fails its test
        guard.start()
        yield process
        guard.cancel()


def test_ask_writes_the_engines_own_answer_and_nothing_else(
    tiny_folder: str, tiny_engine: GenerateEngine, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=24)
    request = ChatRequest((Message("user", QUESTION, (Image.from_path(picture),)),), sampling)
    expected = asyncio.run(complete(tiny_engine, request))
    options = ["--temperature", "0", "--max-tokens", "24", "--model", tiny_folder]
    assert main(["ask", picture, QUESTION, *options]) == 0
    printed = capsys.readouterr()
    assert printed.out == expected.text + "\n"
    fields = answer_line(printed.err)
    assert fields["endpoint"] == "ask"
    assert fields["images"] == "1"
    assert int(fields["prompt_tokens"]) == expected.usage.prompt_tokens
    assert fields["completion_tokens"] == "24"
    assert fields["finish"] == "length"
    assert QUESTION not in printed.err


def test_ask_tells_on_standard_error_which_model_knows_photos_where_the_miniature_declines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, is_known in (("circle-and-square.png", True), ("cottage.png", False)):
        picture = str(ROOT / "examples" / name)
        assert main(["ask", picture, QUESTION, "--model", "miniature", "--temperature", "0"]) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith(MINIATURE_DECLINES) is not is_known
        assert (FOR_PHOTOS in printed.err) is not is_known
        assert FOR_PHOTOS not in printed.out


def test_ask_takes_pictures_and_options_in_any_order_or_no_picture(
    tiny_folder: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", tiny_folder, "--max-tokens", "5.0", "--seed", "7", "--top-p", "0.9", "--temperature=1.5"]
    assert main(["ask", picture, *options[:4], picture, *options[4:], QUESTION]) == 0
    first = capsys.readouterr()
    assert answer_line(first.err)["images"] == "2"
    assert main(["ask", *options, picture, picture, QUESTION]) == 0
    assert capsys.readouterr().out == first.out  # the same seed
    assert main(["ask", QUESTION, *options]) == 0
    alone = answer_line(capsys.readouterr().err)
    assert (alone["images"], alone["completion_tokens"]) == ("0", "5")


def test_what_is_answered_and_logged_on_one_terminal_are_lines_of_their_own() -> None:
    asked = ["examples/circle-and-square.png", "What color is the circle?", "--model=miniature", "--temperature=0"]
    command = [sys.executable, "-m", "llava_demo", "ask", *asked]
    shown = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True).stdout
    assert b"\nThe circle is red.\n" in shown


def test_ask_says_that_it_takes_no_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "https://example.org/cat.jpg", QUESTION, "--model", "miniature"]) == 1
    assert "'https://example.org/cat.jpg' is an address." in capsys.readouterr().err


def test_ask_ends_before_a_stop_string(tiny_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", tiny_folder, "--temperature", "0", "--max-tokens", "40"]
    assert main(["ask", QUESTION, *options]) == 0
    whole = capsys.readouterr().out
    end = whole[10:14]
    assert main(["ask", QUESTION, *options, "--stop", "never said by it", "--stop", end]) == 0
    assert capsys.readouterr().out == whole[: whole.index(end)] + "\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "arguments are required: serve|ask|caption|check"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["ask"], "arguments are required"),
        (["ask", QUESTION, "--temperature", "3"], "temperature is 3; it must be a number from 0 to 2."),
        (["ask", QUESTION, "--temperature", "nan"], "temperature is nan; it must be a number from 0 to 2."),
        (["ask", QUESTION, "--top-k", "warm"], "top_k is 'warm'; it must be a whole number from 0 to 1000."),
        (["ask", QUESTION, "--seed", "-1"], "seed is -1"),
        (["ask", QUESTION, "--stop", ""], "stop has ''; it must be at most 4 strings, none of them empty."),
        (["ask", QUESTION, "--image-mode", "zoom"], "--image-mode is 'zoom'; it must be one of pad, crop, resize."),
        (["ask", QUESTION, "--port", "1"], "unrecognized arguments: --port"),
        (["check", "--dtype", "int3"], "--dtype is 'int3'"),
        (["check", "stray"], "unrecognized arguments: stray"),
        (["serve", "--port", "0"], "--port is '0'; it must be a whole number from 1 to 65535."),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("python -m llava_demo")
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_a_picture_without_a_question_is_told_so(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["ask", picture])
    assert stopped.value.code == 2
    assert "a question is missing after the picture" in capsys.readouterr().err


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says before it ends with exit code 1: the last line, and no traceback."""
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err.splitlines()[-1]


def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(png()[:40])
    assert "missing.png: There is no such picture file." in refusal(capsys, "ask", "missing.png", QUESTION)
    assert f"{broken}: This is a PNG that is damaged; send" in refusal(capsys, "ask", str(broken), QUESTION)
    assert "write a question" in refusal(capsys, "ask", " ")
    assert "400,001 characters; at most 400,000" in refusal(capsys, "ask", "x" * 400_001)


def test_the_limits_of_pictures_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = tmp_path / "wide.png"
    wide.write_bytes(png(size=(1500, 1000)))
    said = refusal(capsys, "ask", str(wide), QUESTION, "--max-image-megapixels", "1")
    assert "1,500 x 1,000, 1.5 megapixels; at most 1 are taken" in said


def test_what_the_engine_refuses_is_said_in_one_sentence(
    tiny_folder: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", tiny_folder, "--max-images", "1")
    assert "2 pictures; at most 1" in refusal(capsys, "ask", picture, picture, QUESTION, *options)
    assert "1,024" in refusal(capsys, "ask", "many words " * 500, *options)  # the context


@pytest.mark.parametrize("command", ["ask", "check"])
def test_a_folder_without_a_checkpoint_is_told_so(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = [QUESTION] if command == "ask" else []
    assert "checkpoint" in refusal(capsys, command, *question, "--model", str(tmp_path))


def test_check_says_what_was_chosen_and_why(tiny_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--model", tiny_folder, "--image-mode", "crop"]) == 0
    text = capsys.readouterr().out
    rows = dict(line.split(maxsplit=1) for line in text.split("\n\n")[0].splitlines())
    assert list(rows) == ["model", "engine", "device", "precision", "attention", "memory", "context", "pictures"]
    assert rows["model"] == "tiny"
    assert rows["engine"] == "batched"
    assert rows["context"] == "1,024 tokens"
    assert rows["pictures"].startswith("16 tokens each, at most ")
    assert " GB taken, " in rows["memory"]
    reasons = text.split("\n\n")[1].splitlines()
    assert len(reasons) >= 4
    assert all(reason.startswith("- ") and reason.endswith(".") for reason in reasons)
    assert any("cropped" in reason for reason in reasons)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_and_bad_options_answer_before_anything_heavy_is_imported(command: str) -> None:
    program = (
        "import sys; from llava_demo.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([name for name in ('torch', 'transformers', 'gradio') if name in sys.modules], file=sys.stderr)"
    )
    arguments = [command, "--help"] if command else ["--help"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=MAX_S
    )
    assert done.stdout.startswith(f"usage: python -m llava_demo {command}")
    assert done.stderr == "[]\n"


def test_the_help_of_ask_has_every_knob_and_the_options_that_concern_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ask", "--help"])
    text = capsys.readouterr().out
    for name in (*KNOBS, "seed", "stop", *GROUPS["model"], *GROUPS["pictures"]):
        assert f"--{name.replace('_', '-')} " in text
    for name in GROUPS["server"]:
        assert f"--{name.replace('_', '-')}" not in text
    for knob in KNOBS.values():
        assert knob.doc in " ".join(text.split())


def test_the_help_of_caption_has_its_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["caption", "--help"])
    assert f"{SOME_FAILED} if pictures failed" in " ".join(capsys.readouterr().out.split())


def test_an_unknown_variable_is_named_with_the_nearest_known_one(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LLAVA_MODL", "llava_max_queu", "LLAVA_ZZZZZZ"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LLAVA_MAX_IMAGES", "2")  # a known one
    assert main(["check", "--model", tiny_folder]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "variable" in line]
    assert warnings == [
        "LLAVA_MODL is not a variable of this program; LLAVA_MODEL is.",
        "LLAVA_ZZZZZZ is not a variable of this program.",
        "llava_max_queu is not a variable of this program; LLAVA_MAX_QUEUE is.",
    ]


def test_check_fails_where_no_remote_server_answers(tiny: Server, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"http://127.0.0.1:{free_port()}/v1"
    assert main(["check", "--remote-url", address]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"python -m llava_demo check: no server answers at {address}."
    assert main(["check", "--remote-url", f"{tiny.url}v1"]) == 0
    assert "model      tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["app.py", "--port", "x"], "python app.py"),
        (["-m", "llava_demo", "serve", "--port", "x"], "python -m llava_demo serve"),
        (["-c", "from llava_demo.__main__ import entry; entry()", "ask"], "llava-demo ask"),
        (["-m", "examples.bench", "--chats", "x"], "python -m examples.bench"),
    ],
)
def test_errors_name_the_program_that_was_called(command: list[str], program: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=MAX_S)
    assert done.stderr.startswith(f"{program}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("sys.version_info = (3, 10, 4)", "python app.py needs Python 3.11 or newer; this is 3.10."),
        ("sys.modules['pydantic'] = None", "python app.py: the package pydantic is missing: pip install -r"),
        ("sys.modules['gradio'] = None", "python app.py: the package gradio is missing: pip install -r"),
    ],
)
def test_an_old_python_and_a_missing_package_are_one_line(block: str, words: str) -> None:
    program = f"import sys; {block}; sys.argv = ['app.py']; import runpy; runpy.run_path('app.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=MAX_S)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(words)
    assert "Traceback" not in done.stderr


def test_a_command_ends_without_freeing_what_it_imported_and_without_its_threads() -> None:
    """Python's own end took 2.5 s on an idle machine, 10 on a busy one, where `docker stop` kills."""
    program = (
        "import atexit, sys, threading\n"
        "from llava_demo import __main__ as program\n"
        "class Library:\n"
        "    def __del__(self): print('freed')\n"
        "sys.modules['library'] = library = Library()\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "atexit.register(print, 'put away', end='')\n"
        "program.main = lambda program: print(program) or 3\n"
        "program.entry()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=MAX_S)
    assert (done.returncode, done.stdout, done.stderr) == (3, "llava-demo\nput away", "")


def test_something_is_said_before_anything_heavy_is_imported(tiny_folder: str) -> None:
    program = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('torch', 'transformers', 'gradio'): sys.exit(f'then {name}')\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from llava_demo.__main__ import main; main(sys.argv[1:])"
    )
    for command in (["serve"], ["check"], ["ask", QUESTION]):
        done = subprocess.run(
            [sys.executable, "-c", program, *command, "--model", tiny_folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=MAX_S,
        )
        said, then = done.stderr.splitlines()
        assert said.startswith(("Starting", "Loading"))
        assert then.startswith("then ")


def test_ctrl_c_ends_an_answer_at_once_and_without_a_traceback(tiny_folder: str) -> None:
    with started("ask", QUESTION, "--model", tiny_folder, "--max-tokens", "900") as process:
        assert process.stdout
        assert process.stdout.read(1)  # it is answering
        process.send_signal(signal.SIGINT)
        _, written = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in written
    assert answer_line(written)["finish"] == "cancelled"


def test_a_reader_that_has_read_enough_ends_the_answer_without_a_traceback(tiny_folder: str) -> None:
    with started("ask", QUESTION, "--model", tiny_folder, "--max-tokens", "900") as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(1)
        process.stdout.close()  # as `| head -c 1` does
        written = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in written
    assert "BrokenPipe" not in written
    assert answer_line(written)["finish"] == "cancelled"


def test_serve_answers_on_its_port_until_ctrl_c(tiny_folder: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with started("serve", "--model", tiny_folder, "--port", str(port)) as process:
        assert process.stdout
        lines = iter(process.stdout)
        assert any(url in line for line in lines)
        assert any("Engine          batched on CPU, float32" in line for line in lines)  # it is loaded
        with urllib.request.urlopen(f"{url}/health/ready", timeout=20) as answer:
            health = json.load(answer)
        process.send_signal(signal.SIGINT)
        _, written = process.communicate()
    assert (health["status"], health["model"]) == ("ready", "tiny")
    assert "Traceback" not in written
    assert process.returncode in (0, 130)


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model", "/nonexistent"]) == 2
    assert f"Port {port} on 127.0.0.1 cannot be listened on" in capsys.readouterr().err
