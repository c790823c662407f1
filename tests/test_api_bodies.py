"""JSON out of bodies: what `json.loads` reads, but long pictures sent as numbers in parts."""

import json
import random
import threading
import time
from typing import Any

import pytest

from llava_demo.api.asking import json_from
from llava_demo.errors import InvalidImage, InvalidRequest

BYTES = random.Random(0).randbytes(200_000)
NUMBERS = list(BYTES)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (",\n ", " :\n")])
@pytest.mark.parametrize("body", [{"image": NUMBERS}, {"prompt": "a", "image": NUMBERS, "seed": 5, "messages": None}])
def test_a_long_picture_comes_out_as_bytes(body: dict[str, Any], separators: tuple[str, str]) -> None:
    assert json_from(json.dumps(body, separators=separators).encode()) == body | {"image": BYTES}


@pytest.mark.parametrize("count", [49_000, 51_000, 99_000, 130_000, 300_000])
def test_short_values_are_as_good_as_long_ones(count: int) -> None:
    image = json_from(json.dumps({"image": [0] * count}, separators=(",", ":")).encode())["image"]
    assert bytes(image) == bytes(count)


def test_floats_are_numbers_too() -> None:
    floats = [float(value) for value in NUMBERS]
    assert json_from(json.dumps({"image": floats}).encode()) == {"image": BYTES}


@pytest.mark.parametrize(
    "body",
    [
        {"image": [1, 2, 3]},
        {"image": []},
        {"image": "[1, 2"},
        {"image": None},
        {"prompt": '"image": [' + "1," * 40_000 + "1" * 300_000 + "]", "image": "x"},
        {"prompt": 'image": [1' + "\\" * 300_000, "image": [1]},
        {"a": {"image": NUMBERS[:20_000]}},
        {"a": {"image": NUMBERS[:20_000]}, "image": []},
        {"image": [NUMBERS[:20_000]]},
        [{"image": NUMBERS[:20_000]}],
        5,
    ],
    ids=range(11),
)
def test_everything_else_comes_out_as_json_loads_reads_it(body: Any) -> None:
    assert json_from(json.dumps(body).encode()) == body


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_the_encodings_that_programs_write(encoding: str) -> None:
    assert json_from('{"prompt": "é 😀", "n": 1}'.encode(encoding)) == {"prompt": "é 😀", "n": 1}


@pytest.mark.parametrize("body", [{"images": NUMBERS}, {"a": {"image": NUMBERS}}, [NUMBERS], {"image": [NUMBERS]}])
def test_as_many_values_elsewhere_are_not_read(body: Any) -> None:
    with pytest.raises(InvalidRequest, match="more than 100,000 values"):
        json_from(json.dumps(body).encode())


@pytest.mark.parametrize("wrong", [256, -1, 1.5, True, None, "1", [1]])
@pytest.mark.parametrize("place", [0, 100_000, -1])
def test_what_is_no_byte_is_refused_wherever_it_stands(wrong: Any, place: int) -> None:
    values: list[Any] = list(NUMBERS)
    values[place] = wrong
    with pytest.raises((InvalidImage, InvalidRequest)):
        json_from(json.dumps({"image": values}).encode())


@pytest.mark.parametrize("cut", [100, 300_000, -2, -1])
def test_a_body_that_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises((InvalidRequest, InvalidImage)):
        json_from(json.dumps({"image": NUMBERS}).encode()[:cut])


def test_other_threads_go_on_while_a_picture_is_read() -> None:
    """`json.loads` would let none of them run before it is done."""
    body = json.dumps({"image": NUMBERS * 5}).encode()
    ticks, is_done = [], threading.Event()

    def tick() -> None:
        while not is_done.is_set():
            ticks.append(None)
            time.sleep(0.001)

    clock = threading.Thread(target=tick)
    clock.start()
    before = len(ticks)
    json_from(body)
    during = len(ticks) - before
    is_done.set()
    clock.join()
    assert during >= 5


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"a": 1} x', "Extra data at character 9"),
        (b'{"a": "\xff\xfe"}', "its bytes are no UTF-8"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "a number has too many digits"),
        (b"[" * 100_000 + b"]" * 100_000, "it is nested too deeply"),
    ],
    ids=["more than one", "bytes", "digits", "depth"],
)
def test_why_a_body_is_no_json_is_said(body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        json_from(body)
