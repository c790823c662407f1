"""The bench, run as people run it, with a real model of random weights. No test looks at how fast anything was."""

import asyncio
import importlib.util
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from checkpoints import ON_CPU, engine_of
from transformers import LlavaForConditionalGeneration

from examples.bench import vocabulary
from examples.bench.command import main
from examples.bench.llama_cpp import INSTALL
from examples.bench.pictures import picture
from examples.bench.report import JSON_NAME, PLOT_NAME, TABLE_NAME
from examples.bench.shapes import architecture, make_checkpoint
from examples.bench.side import Side, SideFailed, our_engine
from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.engines import Engine
from llava_demo.model.llava import Llava
from llava_demo.settings import Settings

CHATS, TOKENS, ROUNDS = (1, 2), 12, 2
TOKENS_COMPARED = 40
FIRST, STEP = "first token, median", "from one token to the next, median"
CROWD_ROWS = {
    1: ["throughput", FIRST, STEP],
    2: ["throughput", FIRST, "first token, 95th percentile", "first token, longest", STEP],
}
OTHER_ROWS = [
    "first token, new picture",
    "first token, next question on it",
    "first token, another user's question on it",
    "longest pause of 4 chats as one more comes",
    "first token of the one that comes",
    "most memory",
]


@dataclass(frozen=True)
class Run:
    printed: str
    folder: Path

    @property
    def json(self) -> dict:
        return json.loads((self.folder / JSON_NAME).read_text())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the weights of the shape are kept for all tests."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def run(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`bench` on the smallest shape, once for all tests."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    options = ["--chats", "2,1", "--max-tokens", str(TOKENS), "--rounds", str(ROUNDS), "--out", str(folder)]
    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout.write", written.append)
        assert main(["--shape", "miniature", "--engine", "batched", "--cache", cache, *options]) == 0
    return Run("".join(written), folder)


def test_every_figure_is_there_for_both_sides(run: Run) -> None:
    figures = run.json["figures"]
    expected = [(name, chats) for chats in CHATS for name in CROWD_ROWS[chats]] + [(name, None) for name in OTHER_ROWS]
    assert [(figure["name"], figure["chats"]) for figure in figures] == expected
    for figure in figures:
        assert figure["plain"] > 0
        assert figure["ours"] > 0
        assert figure["gain"] > 0
        is_time_of_work = figure["unit"] == "tokens/s" or figure["name"].startswith("first token")
        assert (figure["cpu_gain"] is not None) == is_time_of_work


def test_the_report_says_what_was_run_where_and_with_what(run: Run) -> None:
    about = run.json["about"]
    assert about["model"] == "random-miniature"
    assert about["command"].startswith("python -m examples.bench --shape miniature --engine batched --cache ")
    assert (about["chats"], about["max_tokens"], about["rounds"]) == (list(CHATS), TOKENS, ROUNDS)
    assert about["device"] in ("CPU", torch.cuda.is_available() and torch.cuda.get_device_name())
    assert about["versions"]["torch"] == torch.__version__
    assert about["date"].startswith("20")
    sides = run.json["sides"]
    assert [sides[name]["info"]["engine"] for name in ("plain", "ours")] == ["generate", "batched"]
    assert sides["ours"]["limits"]["threads"] >= 1


def test_both_sides_say_the_same_and_answers_have_the_length_asked_for(run: Run) -> None:
    answers = ROUNDS * sum(CHATS)
    assert run.json["about"]["equal_answers"] == [answers, answers]
    for side in run.json["measured"].values():
        for chats in CHATS:
            assert [crowd["tokens"] for crowd in side["crowds"][str(chats)]] == [chats * TOKENS] * ROUNDS
            assert len({text for crowd in side["crowds"][str(chats)] for text in crowd["texts"]}) == chats * ROUNDS


def test_only_the_engine_of_ours_reads_a_picture_once(run: Run) -> None:
    for visits in run.json["measured"]["ours"]["visits"]:
        assert visits["new"]["cached_tokens"] == 0
        assert visits["follow_up"]["cached_tokens"] > visits["another_user"]["cached_tokens"] >= 64  # the picture's
    for visits in run.json["measured"]["plain"]["visits"]:
        assert visits["follow_up"]["cached_tokens"] == 0


def test_the_table_has_a_row_for_each_figure(run: Run) -> None:
    text = (run.folder / TABLE_NAME).read_text()
    assert run.printed.startswith(text)
    head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert head.split("|")[3:5] == [" model card's way ", " batched engine "]
    assert set(rule) <= set("|-: ")
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    assert [row.split("|")[1].strip() for row in rows] == [figure["name"] for figure in run.json["figures"]]
    assert f"{ROUNDS * sum(CHATS)} of {ROUNDS * sum(CHATS)} answers the same on both sides" in text


def test_the_plot_shows_both_sides(run: Run) -> None:
    with PIL.Image.open(run.folder / PLOT_NAME) as plot:
        assert plot.format == "PNG"
        colors = {color: count for count, color in plot.convert("RGB").getcolors(maxcolors=2**24) or []}
    assert colors[255, 255, 255] > sum(colors.values()) / 2
    for bars in ((0xB8, 0xBE, 0xC9), (0xC2, 0x41, 0x0C)):
        assert colors[bars] > 5000


def test_compare_shows_how_many_times_better_the_second_run_is(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = run.json
    for figure in better["figures"]:
        figure["ours"] *= 2 if figure["unit"] == "tokens/s" else 0.5
    better["figures"].append(better["figures"][0] | {"chats": 64})  # what only one run has is left out
    path = tmp_path / "better.json"
    path.write_text(json.dumps(better))
    assert main(["--compare", str(run.folder), str(path)]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in head.split("|")[3:5]] == ["out", "better.json"]
    assert len(rows) == len(run.json["figures"])
    assert {row.split("|")[5].strip() for row in rows} == {"2.00 x"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chats", "0"], "'0' is not a whole number from 1 to 4096"),
        (["--chats", "1,,4"], "'' is not a whole number"),
        (["--max-tokens", "many"], "'many' is not a whole number"),
        (["--shape", "70b"], "choose from '7b', 'interleave', 'small', 'miniature'"),
        (["--shape", "small", "--model", "auto"], "cannot both be given"),
        (["--engine", "turbo"], "--engine is 'turbo'"),
        (["--engine", "remote"], "another server is measured where it runs"),
        (["--suite", "tpu"], "invalid choice: 'tpu'"),
        (["--suite", "gpu", "--rounds", "3"], "--rounds is not for it"),
        (["--suite", "gpu", "--parts", "speed,luck"], "the parts of --suite gpu are answers, speed, settings"),
        (["--suite", "cpu", "--model", "miniature"], "--suite cpu needs --shape"),
        (["--parts", "ours"], "--parts needs --suite"),
        (["--compare", "nowhere", "nowhere"], "nowhere: there is no bench.json to be read"),
    ],
)
def test_a_bad_option_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in said
    assert said.count("\n") == 1


def test_a_file_that_is_no_report_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, text in enumerate(("not JSON", "{}", '{"figures": [{"name": "x"}]}', "[]")):
        (tmp_path / f"{number}.json").write_text(text)
        with pytest.raises(SystemExit):
            main(["--compare", str(tmp_path / f"{number}.json"), str(tmp_path)])
        assert "this is no report that bench --out wrote" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_ends_the_command_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tmp_path)]) == 1
    assert "plain: " in (said := capsys.readouterr().err)
    assert "is no checkpoint" in said
    assert "Traceback" not in said


async def _dies(engine: Engine) -> None:  # noqa: ARG001, all jobs are alike
    os._exit(3)


async def _raises(engine: Engine) -> None:
    raise ValueError(f"no luck with {engine.info.model}")


def test_a_side_that_fails_or_dies_says_so_and_nothing_hangs(tiny_folder: str) -> None:
    with Side("ours", our_engine, Settings(model=tiny_folder, engine="generate")) as side:
        with pytest.raises(SideFailed, match="ours: ValueError: no luck with tiny"):
            side.run(_raises)
        with pytest.raises(SideFailed, match="ours: its process ended with exit code 3"):
            side.run(_dies)


def test_the_shapes_have_the_sizes_that_they_are_named_for() -> None:
    sizes = {"7b": 7_063_427_072, "small": 180_984_832}
    for shape, size in sizes.items():
        config, processor = architecture(shape)
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
        assert sum(weights.numel() for weights in model.parameters()) == size
        encoded = processor(text="USER: <image>\nHi ASSISTANT:", images=[picture("a").pixels], return_tensors="pt")
        assert int((encoded["input_ids"] == config.image_token_id).sum()) == 576


def test_a_random_checkpoint_never_ends_an_answer_early(cache: str) -> None:
    folder = make_checkpoint("miniature", Path(cache))
    written = (folder / "model-00001.safetensors").stat().st_mtime_ns
    assert make_checkpoint("miniature", Path(cache)) == folder
    assert (folder / "model-00001.safetensors").stat().st_mtime_ns == written
    llava = Llava.load(str(folder), ON_CPU, is_local=True)
    engine = engine_of(llava)
    pieces = []

    async def ask(label: str) -> str:
        request = ChatRequest(
            (Message("user", "What is it?", (picture(label),)),), SamplingParams(temperature=0, max_tokens=40)
        )
        text = ""
        async for chunk in engine.stream(request):
            text += chunk.text
            pieces.append(chunk.text)
        return text

    first, second = asyncio.run(ask("one")), asyncio.run(ask("two"))
    assert first != second  # the picture is seen
    assert sum(map(bool, pieces)) == 80  # and each token is a piece of text, so that a stream shows it at once
    asyncio.run(engine.aclose())


@torch.inference_mode()
def test_greedy_choices_of_random_weights_are_clear_and_depend_on_the_picture(cache: str) -> None:
    """Rounding to 8 bits, eight times as coarse as float16's, changes few of them: answers of two engines compare."""
    folder = str(make_checkpoint("miniature", Path(cache)))
    precise, coarse = (
        Llava.load(folder, replace(ON_CPU, dtype=dtype), is_local=True) for dtype in (torch.float32, torch.bfloat16)
    )

    def choices(llava: Llava, label: str, ids: torch.Tensor) -> torch.Tensor:
        shown = llava.prompt([Message("user", "What is it?", (picture(label),))])["pixel_values"].to(llava.model.dtype)
        return llava.model(input_ids=ids, pixel_values=shown).logits[0, :-1].argmax(-1)[-TOKENS_COMPARED:]

    rounded = changed = 0
    for label in ("one", "two", "three", "four"):
        prompt = precise.prompt([Message("user", "What is it?", (picture(label),))])
        ids = precise.model.generate(**prompt, max_new_tokens=TOKENS_COMPARED, do_sample=False)
        answer = ids[0, -TOKENS_COMPARED:]
        assert torch.equal(choices(precise, label, ids), answer)
        rounded += int((choices(coarse, label, ids) != answer).sum())
        changed += int((choices(precise, f"not {label}", ids) != answer).sum())
    assert rounded <= 4 * TOKENS_COMPARED * 0.03
    assert changed >= 4 * TOKENS_COMPARED * 0.05


def test_the_invented_vocabulary_writes_every_text_and_reads_answers_back_as_they_were() -> None:
    tokenizer = vocabulary.make_tokenizer()
    assert len(tokenizer) == vocabulary.PAD_ID + 1
    assert tokenizer.convert_tokens_to_ids("<image>") == vocabulary.IMAGE_ID
    for text in ("Größe, 大小, 🦙", "two\n\nlines  and\tspaces"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    ids = torch.randint(vocabulary.IMAGE_ID - 20_000, vocabulary.IMAGE_ID, (500,)).tolist()
    assert tokenizer(tokenizer.decode(ids), add_special_tokens=False).input_ids == ids


def test_the_choice_without_a_gpu_is_a_table_with_llama_cpp_beside_ours(
    cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where llama.cpp is not installed, its column is empty, and below is how it is installed."""
    options = ["--chats", "1,2", "--max-tokens", "6", "--rounds", "1", "--out", str(tmp_path)]
    code = main(["--suite", "cpu", "--shape", "miniature", "--parts", "ours,Q8_0", "--cache", cache, *options])
    printed = capsys.readouterr().out
    head, _, *rows = [line for line in printed.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (head, *rows)]
    assert cells[0] == ["", "float32, batched engine", "llama.cpp Q8_0"]
    is_installed = all(map(importlib.util.find_spec, ("llama_cpp", "gguf")))
    assert all(bool(row[1]) and bool(row[2]) == is_installed for row in cells[1:])
    assert (INSTALL in printed) is not is_installed
    assert code == int(not is_installed)
    ours, theirs = json.loads((tmp_path / "suite.json").read_text())["sides"]
    assert [crowd[0]["tokens"] for crowd in ours["crowds"].values()] == [6, 12]
    assert [crowd[0]["tokens"] for crowd in theirs["crowds"].values()] == ([6, 12] if is_installed else [])
