"""The code for other clients: it reads back as it was written, says only what is needed, and asks exactly the same."""

import ast
import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import png
from servers import Server

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.engines import complete
from llava_demo.images import Image
from llava_demo.ui.code import (
    JAVASCRIPT,
    PYTHON,
    CodeRequest,
    Snippet,
    heredoc_string,
    json_string,
    python_string,
    snippets_of,
    written,
)

RED, BLUE = Image.from_bytes(png("red")), Image.from_bytes(png("blue"))
FILES = {"it's red; $(rm x) é.png": RED, "blue.png": BLUE}
NASTY = (
    'She said "it\'s" \'\'\'fine\'\'\' """really"""; $HOME `id` $(id) \\n \\\\ \\" !! !x %s {0} #{} ${a}\n'
    "JSON\nEOF\r\n\t<image> </s> <b>&lt;</b> 👨\u200d👩\u200d👧 \u202egnp.\u202c \u2028\u00a0\u200b*/ // -- é中\x00"
    "\x7f end\\"
)


def call_of(*messages: Message, **sampling: object) -> CodeRequest:
    request = ChatRequest(messages, SamplingParams(**sampling))  # type: ignore[arg-type]
    names = {image.digest: name for name, image in FILES.items()}
    return CodeRequest(request, names, "http://127.0.0.1:7860", "miniature")


ONE = call_of(Message("user", "What is this?", (RED,)))
NAMES = [snippet.name for snippet in snippets_of(ONE)]


def snippet(name: str, call: CodeRequest) -> Snippet:
    return next(snippet for snippet in snippets_of(call) if snippet.name == name)


# --- literals


def drawn_texts() -> list[str]:
    draw = random.Random(0)
    pieces = ["\\", '"', "'", "$", "`", "!", "\n", "\r", "$(", ")", "n", "u0041", "x", " ", "é", "😀", "\u200d", "\x01"]
    return [NASTY, *("".join(draw.choices(pieces, k=12)) for _ in range(300))]


def test_python_reads_any_text_back() -> None:
    for text in drawn_texts():
        assert ast.literal_eval(python_string(text)) == text
        assert python_string(text).isprintable()


def test_json_and_javascript_read_any_text_back(node_folder: Path) -> None:
    texts = drawn_texts()
    literals = [json_string(text) for text in texts]
    assert [json.loads(literal) for literal in literals] == texts
    assert all(literal.isprintable() for literal in literals)
    script = f"process.stdout.write(JSON.stringify([{','.join(literals)}]))"
    (node_folder / "literals.mjs").write_text(script, encoding="utf-8")
    done = subprocess.run(["node", "literals.mjs"], cwd=node_folder, capture_output=True, check=True)
    assert json.loads(done.stdout) == texts


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_shell_changes_nothing_in_a_here_document(shell: str) -> None:
    texts = drawn_texts()
    script = "cat <<JSON\n[" + ",\n".join(map(heredoc_string, texts)) + "]\nJSON\n"
    done = subprocess.run([shell], input=script.encode(), capture_output=True, check=True)
    assert json.loads(done.stdout) == texts


def test_values_are_laid_out_as_formatters_do() -> None:
    value = {"role": "user", "content": ["a" * 30, {"type": "text", "n": 2.0}, "b" * 40]}
    assert written(value, PYTHON) == (
        '{\n    "role": "user",\n    "content": [\n'
        f'        "{"a" * 30}",\n        {{"type": "text", "n": 2}},\n        "{"b" * 40}"\n    ]\n}}'
    )
    assert written({"a-b": 0.5, "c": []}, JAVASCRIPT) == '{"a-b": 0.5, "c": []}'


# --- what is said


def test_only_what_differs_from_the_defaults_is_written() -> None:
    for code in (each.code for each in snippets_of(ONE)):
        assert not any(name in code for name in ("temperature", "top_p", "max_tokens", "seed", "stop"))
    changed = call_of(*ONE.request.messages, top_p=0.7, seed=5, stop=("a", "b"))
    assert changed.knobs == {"top_p": 0.7, "seed": 5, "stop": ["a", "b"]}
    for each in snippets_of(changed):
        assert "temperature" not in each.code
        assert each.code.count("top_p") == each.code.count("seed") == each.code.count("stop") == 1


def test_one_question_is_asked_in_the_short_form_and_a_conversation_in_the_long_one() -> None:
    answered = call_of(Message("user", "Hi", (RED,)), Message("assistant", "Red."), Message("user", "Sure?"))
    for name in ("Python", "JavaScript"):
        assert "/ask" in snippet(name, ONE).code
        assert "/chat" in snippet(name, answered).code
    assert "prompt=" in snippet("Cloudflare", ONE).code
    assert "messages=" in snippet("Cloudflare", answered).code


@pytest.mark.parametrize(
    "messages",
    [
        [Message("user", "Hi")],
        [Message("user", "Hi", (RED, BLUE))],
        [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "And this?", (RED,))],
    ],
    ids=["no picture", "two pictures", "a picture in the second question"],
)
def test_what_cloudflare_cannot_say_is_said_in_words(messages: list[Message]) -> None:
    told = snippet("Cloudflare", call_of(*messages))
    assert (told.code, "exactly one picture" in told.remark) == ("", True)


def test_a_seed_that_javascript_cannot_write_is_pointed_out() -> None:
    assert "rounds" in snippet("JavaScript", call_of(*ONE.request.messages, seed=2**53)).remark
    assert not snippet("JavaScript", call_of(*ONE.request.messages, seed=2**53 - 1)).remark


def test_keys_and_logins_are_asked_for_and_never_written() -> None:
    locked = CodeRequest(ONE.request, ONE.file_names, "https://a.example/llava", "m", takes_login=True, takes_key=True)
    for each in snippets_of(locked):
        is_rest = each.name in ("OpenAI", "Responses", "Ollama", "Cloudflare", "curl")
        assert ("LLAVA_API_KEY" in each.code) == is_rest
        assert ('"user", "password"' in each.code) == (not is_rest)
        assert "https://a.example/llava" in each.code
    shut = CodeRequest(ONE.request, ONE.file_names, "https://a.example", "m", takes_login=True)
    assert "no API key" in snippet("curl", shut).remark


# --- what is asked

KNOBS = {
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 60,
    "min_p": 0.001,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.3,
    "presence_penalty": -0.2,
    "max_tokens": 12,
    "seed": 2**53 - 1,
    "stop": ("\x00never\n",),
}
CONVERSATIONS = {
    "one question": call_of(Message("user", NASTY, (RED,)), **KNOBS),
    "several turns": call_of(
        Message("user", "What is this?", (RED,)), Message("assistant", NASTY), Message("user", "And so?"), **KNOBS
    ),
    "two pictures": call_of(Message("user", "Which one?", (RED, BLUE)), temperature=0, max_tokens=12),
}


def in_python(folder: Path, code: str, _: Path) -> str:
    (folder / "snippet.py").write_text(code, encoding="utf-8")
    said = output_of([sys.executable, "-X", "utf8", "snippet.py"], folder)
    return re.sub(r"^Loaded as API: .*\n", "", said)  # gradio_client's greeting


def in_javascript(folder: Path, code: str, node_folder: Path) -> str:
    for path in folder.iterdir():
        (node_folder / path.name).write_bytes(path.read_bytes())
    (node_folder / "snippet.mjs").write_text(code + "\nprocess.exit(0);\n", encoding="utf-8")  # a stream stays open
    return output_of(["node", "snippet.mjs"], node_folder)


def in_shell(folder: Path, code: str, _: Path) -> str:
    return json.loads(output_of(["bash", "-c", code], folder))["choices"][0]["message"]["content"]


def output_of(command: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


RUNNERS: dict[str, Callable[[Path, str, Path], str]] = dict.fromkeys(NAMES, in_python) | {
    "JavaScript": in_javascript,
    "curl": in_shell,
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_code_runs_and_asks_exactly_the_same(
    tiny: Server, tmp_path: Path, request: pytest.FixtureRequest, name: str, conversation: str
) -> None:
    """The tiny model's answer to these depends on every token, and every knob is somewhere else than by default."""
    planned = CONVERSATIONS[conversation]
    call = CodeRequest(planned.request, planned.file_names, tiny.url.rstrip("/"), "tiny")
    for file, image in FILES.items():
        (tmp_path / file).write_bytes(image.data)
    code = snippet(name, call).code
    if not code:
        assert (name, conversation) == ("Cloudflare", "two pictures")
        return
    node_folder = request.getfixturevalue("node_folder") if name == "JavaScript" else tmp_path
    answer = RUNNERS[name](tmp_path, code, node_folder)
    expected = asyncio.run(complete(tiny.engine, planned.request)).text
    assert answer.rstrip("\n") == expected.rstrip("\n")
