"""The API as `gradio_client` sees it, against a running server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pictures import png
from servers import MAX_QUEUE, Server

from llava_demo.chat import KNOBS, SamplingParams
from llava_demo.images import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
FAILED = "The model('s server)? failed while it answered"
LONG = {"prompt": "Tell me a long story.", "max_tokens": 900, "temperature": 0}

KILLED_WHILE_IT_READS = """
import sys
from gradio_client import Client, handle_file
url, picture = sys.argv[1:]
job = Client(url, verbose=False).submit(handle_file(picture), "Tell me a long story.", max_tokens=900, api_name="/ask")
for text in job:
    print(len(text), flush=True)
"""


@pytest.fixture(scope="module")
def client(tiny: Server) -> Iterator[Client]:
    client = Client(tiny.url, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    path.write_bytes(png("red"))
    return str(path)


# --- what there is


def test_there_are_three_endpoints_and_every_knob_has_its_type_its_range_and_words(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert endpoints.keys() == {"/ask", "/chat", "/info"}
    assert all(endpoint["description"] for endpoint in endpoints.values())
    for name, first in (("/ask", ["image", "prompt"]), ("/chat", ["messages"])):
        parameters = endpoints[name]["parameters"]
        others = ("top_logprobs", "ignore_eos", "stop_token_ids", "json_schema")
        knobs = [field.name for field in fields(SamplingParams) if field.name not in others]
        assert [p["parameter_name"] for p in parameters] == first + knobs
        for parameter in parameters:
            assert parameter["python_type"]["type"] != "Any"
            assert parameter["python_type"]["description"]
            if knob := KNOBS.get(parameter["parameter_name"]):
                assert f"From {knob.low:g} to {knob.high:g}." in parameter["python_type"]["description"]
                assert parameter["python_type"]["type"] == ("int" if knob.is_whole else "float")
                assert parameter["parameter_default"] == getattr(SamplingParams(), parameter["parameter_name"])
    assert endpoints["/ask"]["parameters"][0]["python_type"]["type"] == "filepath"


def test_info_tells_what_is_served_and_what_is_allowed(client: Client, tiny: Server) -> None:
    info = client.predict(api_name="/info")
    served = tiny.engine.info
    assert (info["model"], info["engine"], info["device"]) == ("tiny", served.engine, served.device)
    assert info["limits"]["context_tokens"] == 1024
    assert info["load"] == asdict(tiny.engine.status())
    assert (info["load"]["state"], info["load"]["running"], info["load"]["waiting"]) == ("ready", 0, 0)


# --- answers


def data_url_of(path: Path) -> str:
    return Image.from_path(path).to_data_url()


def test_the_miniature_answers_truthfully_and_knows_the_turns_before(miniature: Server) -> None:
    client = Client(miniature.url, verbose=False)
    star = handle_file(EXAMPLES / "night-star.png")
    answer = client.predict(image=star, prompt="What is in this picture?", temperature=0, api_name="/ask")
    assert "yellow star" in answer
    square = {"type": "image_url", "image_url": {"url": data_url_of(EXAMPLES / "circle-and-square.png")}}
    messages = [
        {"role": "user", "content": [square, {"type": "text", "text": "Is there a square?"}]},
        {"role": "assistant", "content": "Yes, there is a square."},
        {"role": "user", "content": "And what color is it?"},
    ]
    assert "blue" in client.predict(messages=messages, temperature=0, api_name="/chat")
    client.close()


def test_the_text_grows_while_it_streams(client: Client, tiny: Server, picture: str) -> None:
    with tiny.slow():
        job = client.submit(image=handle_file(picture), prompt="Hello", max_tokens=40, temperature=0, api_name="/ask")
        texts = list(job)
    assert len(texts) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert isinstance(job.result(), str)
    assert job.result() == texts[-1]


def test_ask_and_chat_and_the_same_seed_agree(client: Client, picture: str) -> None:
    sampling: dict[str, Any] = {"temperature": 1, "seed": 2**62 + 1, "max_tokens": 20}
    asked = client.predict(image=handle_file(picture), prompt="Hello", api_name="/ask", **sampling)
    content = [handle_file(picture), {"type": "text", "text": "Hello"}]
    chatted = client.predict(messages=[{"role": "user", "content": content}], api_name="/chat", **sampling)
    assert asked == chatted
    other = client.predict(image=handle_file(picture), prompt="Hello", api_name="/ask", **(sampling | {"seed": 1}))
    assert asked != other


# --- hanging up


def test_cancelling_a_job_frees_the_engine(client: Client, tiny: Server, picture: str) -> None:
    with tiny.slow():
        job = client.submit(image=handle_file(picture), api_name="/ask", **LONG)
        next(iter(job))
        assert tiny.health()["running"] == 1
        job.cancel()
        tiny.wait_until_free()


def test_a_killed_client_frees_the_engine(tiny: Server, picture: str) -> None:
    with tiny.slow():
        reader = subprocess.Popen(
            [sys.executable, "-c", KILLED_WHILE_IT_READS, tiny.url, picture], stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None
        assert reader.stdout.readline()
        assert tiny.health()["running"] == 1
        reader.kill()
        tiny.wait_until_free()
        reader.communicate()


# --- errors


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temperature": 9}, r"temperature is 9; it must be a number from 0 to 2\."),
        ({"max_tokens": 2.5}, r"max_tokens is 2\.5; it must be a whole number"),
        ({"seed": -1}, "seed is -1; it must be a whole number"),
        ({"stop": ["a"] * 5}, "stop has 5 values; it must be at most 4 strings"),
        ({"prompt": "word " * 7000}, "the model holds"),
        ({"prompt": 5}, "prompt is a number; it must be a string"),
        ({"image": None}, "picture must be uploaded"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_value_comes_back_as_words(client: Client, picture: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(AppError, match=words):
        client.predict(**{"image": handle_file(picture), "prompt": "Hello", "api_name": "/ask"} | given)


def test_what_is_no_picture_comes_back_as_words(client: Client, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(httpx.HTTPStatusError) as refused:  # at its upload
        client.predict(image=handle_file(tmp_path / "notes.txt"), prompt="Hello", api_name="/ask")
    assert "send a JPEG, PNG" in refused.value.response.text


def test_a_failure_inside_the_model_comes_back_as_words_and_the_next_question_is_answered(
    client: Client, tiny: Server, picture: str
) -> None:
    with tiny.broken(), pytest.raises(AppError, match=FAILED) as failure:
        client.predict(image=handle_file(picture), prompt="Hello", max_tokens=5, api_name="/ask")
    assert "secret" not in str(failure.value)
    assert client.predict(image=handle_file(picture), prompt="Hello", max_tokens=5, api_name="/ask")


def test_one_too_many_is_told_to_come_again(client: Client, tiny: Server, picture: str) -> None:
    file = handle_file(picture)
    with tiny.slow(0.1):
        jobs = [client.submit(image=file, api_name="/ask", **LONG)]
        tiny.wait_until(running=1, waiting=0)
        jobs += [client.submit(image=file, api_name="/ask", **LONG) for _ in range(MAX_QUEUE - 1)]
        tiny.wait_until(running=1, waiting=MAX_QUEUE - 1)
        with pytest.raises(AppError, match="your share of this server now; try again"):
            client.predict(image=file, api_name="/ask", **LONG)
        for job in jobs:
            job.cancel()
        tiny.wait_until_free()


def test_a_raw_call_works(tiny: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert "event: complete" in outcome_of(tiny.url, "chat", {"messages": messages, "max_tokens": 3})


SECRET_PLACES = ["/etc/passwd", "{uploads}/../../etc/passwd", "{uploads}/tmp123", "file:///etc/passwd", "a\0b"]


@pytest.mark.parametrize("place", SECRET_PLACES)
@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["bare", "marked"])
def test_a_path_that_is_no_finished_upload_is_refused(tiny: Server, place: str, meta: dict[str, Any]) -> None:
    """Gradio 6.31 checks the paths of marked files only. Posted raw: the client would upload the file itself."""
    import gradio

    file = {"path": place.format(uploads=gradio.utils.get_upload_folder())} | meta
    messages = [{"role": "user", "content": [file, {"type": "text", "text": "Hello"}]}]
    for name, first in (("ask", {"image": file, "prompt": "Hello"}), ("chat", {"messages": messages})):
        events = outcome_of(tiny.url, name, first)
        assert "event: error" in events
        assert "root:" not in events


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["bare", "marked"])
@pytest.mark.parametrize("place", ["beside", "in the folder", "linked", "climbing"])
def test_a_real_picture_that_was_not_uploaded_is_refused(
    tiny: Server, tmp_path: Path, place: str, meta: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Pictures of this machine, which could be read: only the check of the path keeps them from callers."""
    import gradio

    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    uploads = Path(gradio.utils.get_upload_folder())
    whole = uploads / ("0" * 64)
    whole.mkdir(parents=True, exist_ok=True)
    unfinished = uploads / "secret.png"  # what is not below a folder named by a hash is not finished
    request.addfinalizer(lambda: unfinished.unlink())
    unfinished.write_bytes(png())
    link = whole / "link.png"
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    paths = {
        "beside": secret,
        "in the folder": unfinished,
        "linked": link,
        "climbing": f"{whole}/../../{os.path.relpath(secret, uploads.parent)}",
    }
    file = {"path": str(paths[place]), "orig_name": "secret.png"} | meta
    contents = [
        [file, {"type": "text", "text": "Hello"}],
        [{"type": "image_url", "image_url": file}],
        [{"type": "image_url", "image_url": {"url": file["path"]}}],
    ]
    calls = [("chat", {"messages": [{"role": "user", "content": content}]}) for content in contents]
    for name, arguments in [("ask", {"image": file, "prompt": "Hello"}), *calls]:
        events = outcome_of(tiny.url, name, arguments | {"max_tokens": 3})
        assert "event: error" in events, (name, arguments)
        assert "event: complete" not in events


def outcome_of(url: str, name: str, arguments: dict[str, Any]) -> str:
    """The events that a raw call of an endpoint ends in."""
    call = httpx.post(f"{url}gradio_api/call/v2/{name}", json=arguments)
    if call.status_code != 200:
        return f"event: error\ndata: {call.text}"
    return httpx.get(f"{url}gradio_api/call/{name}/{call.json()['event_id']}", timeout=30).text
