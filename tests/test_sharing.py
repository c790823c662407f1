"""Links that fill the page and files that keep a conversation: what goes in comes out, and what is wrong is said."""

import io
import json
import zipfile
from dataclasses import asdict

import pytest
from pictures import png
from starlette.datastructures import QueryParams

from llava_demo.chat import Message, SamplingParams
from llava_demo.errors import InvalidImage, InvalidRequest
from llava_demo.images import Image, ImageLimits
from llava_demo.ui.saved import FORMAT, Note, Saved, archive_of, saved_from
from llava_demo.ui.sharing import filling_from, link_to

USUAL = SamplingParams(top_p=0.7)
CHANGED = SamplingParams(temperature=0, top_p=1, max_tokens=7, min_p=0.05, seed=2**60, stop=("a b", "&=?#"))
RED, BLUE = Image.from_bytes(png("red")), Image.from_bytes(png("blue"))
SAVED = Saved(
    (
        Message("user", "Is <b> a tag?\nReally? é 😀", (RED, BLUE)),
        Message("assistant", "Yes & no."),
        Message("user", "", (BLUE,)),
        Message("assistant", "Blue."),
    ),
    CHANGED,
    "tiny",
    (
        Note(after=2, title="4 tokens · cut at max tokens", tokens=20),
        Note(after=4, title="The answer broke off", text="Why"),
    ),
    (2,),
)


def query_of(link: str) -> QueryParams:
    return QueryParams(link.partition("?")[2])


def test_a_link_brings_back_what_it_was_made_of() -> None:
    link = link_to("http://a:1", "What? é 日本 & <b>\n#1", "night-star.png", CHANGED, USUAL)
    filling = filling_from(query_of(link), USUAL)
    assert filling is not None
    assert (filling.prompt, filling.image) == ("What? é 日本 & <b>\n#1", "night-star.png")
    assert (filling.sampling, filling.complaints) == (CHANGED, ())


def test_a_link_names_only_what_is_not_usual() -> None:
    assert link_to("http://a:1", "", "", USUAL, USUAL) == "http://a:1/"
    assert link_to("http://a:1", "Hi", "", SamplingParams(top_p=0.7, temperature=0), USUAL) == (
        "http://a:1/?prompt=Hi&temperature=0"
    )


def test_an_address_without_anything_of_ours_fills_nothing() -> None:
    assert filling_from(QueryParams("__theme=dark&view=api&prompt="), USUAL) is None


@pytest.mark.parametrize("wrong", ["temperature=hot", "temperature=nan", "top_k=1.5", "seed=-1", "max_tokens=0"])
def test_a_value_that_is_wrong_is_left_out_and_said(wrong: str) -> None:
    filling = filling_from(QueryParams(f"prompt=Hi&{wrong}"), USUAL)
    assert filling is not None
    assert (filling.prompt, filling.sampling) == ("Hi", USUAL)
    [complaint] = filling.complaints
    assert complaint.startswith(wrong.split("=")[0])


def test_a_saved_conversation_comes_back_whole() -> None:
    assert saved_from(archive_of(SAVED), ImageLimits()) == SAVED


def test_its_json_alone_is_enough_and_the_rest_is_for_people() -> None:
    with zipfile.ZipFile(io.BytesIO(archive_of(SAVED))) as archive:
        assert saved_from(archive.read("conversation.json"), ImageLimits()) == SAVED
        text = archive.read("conversation.md").decode()
        assert archive.read("pictures/3.png") == BLUE.data
    assert "![A picture](pictures/2.png)" in text
    assert "Is &lt;b&gt; a tag?" in text
    assert "Yes &amp; no.\n\n*4 tokens · cut at max tokens*" in text


def json_with(**changed: object) -> bytes:
    body = {"format": FORMAT, "model": "tiny", "sampling": asdict(CHANGED), "messages": []} | changed
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no saved conversation"),
        (b"\xff\xd8 a picture", "no saved conversation"),
        (b"{}", "its format is not"),
        (b"[1]", "its format is not"),
        (json_with(format="other"), "its format is not"),
        (json_with(sampling={"speed": 1}), "not of the right form"),
        (json_with(sampling={"temperature": 9}), "temperature is 9"),
        (
            json_with(notes=[{"after": "2", "title": "Stopped"}]),
            r"notes\[0\].after is a string; it must be a whole number",
        ),
        (json_with(sampling={"stop": 5}), "stop is 5; it must be"),
        (json_with(messages=[{"role": "nobody", "content": "x"}]), "messages"),
    ],
)
def test_what_is_no_saved_conversation_is_said_to_be_none(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        saved_from(data, ImageLimits())


def test_pictures_of_a_file_are_checked_like_any_others() -> None:
    with pytest.raises(InvalidImage, match="at most"):
        saved_from(archive_of(SAVED), ImageLimits(max_bytes=10))


def test_a_zip_of_something_else_or_one_that_swells_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_demo.ui import saved

    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InvalidRequest, match="no saved conversation"):
        saved_from(other.getvalue(), ImageLimits())
    monkeypatch.setattr(saved, "MAX_JSON_BYTES", 1000)
    with pytest.raises(InvalidRequest, match="more than"):
        saved_from(archive_of(SAVED), ImageLimits())
