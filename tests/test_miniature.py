"""The miniature: its world and words, how dialogues become sequences, a training run, and the truth of what we ship."""

import colorsys
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from transformers import AutoProcessor

from examples.miniature import near_misses, plain
from examples.miniature.__main__ import main
from examples.miniature.answers import NOT_A_DRAWING, NOT_MY_TOPIC, Turn
from examples.miniature.architecture import build
from examples.miniature.drawing import draw, random_font
from examples.miniature.evaluation import SETS, Talk, loaded, marks_of, talks, uploaded, verdicts
from examples.miniature.held_out import HELD_OUT, OFF_TOPIC
from examples.miniature.neighbours import _Neighbour
from examples.miniature.packing import Packer, Row
from examples.miniature.phrasing import phrase, roughened
from examples.miniature.processor import CHAT_TEMPLATE, saved_processor
from examples.miniature.questions import Asker
from examples.miniature.refusals import BEYOND_PATTERNS, GENERAL_PATTERNS, NOUNS, THING_PATTERNS
from examples.miniature.scenes import _PALETTE, COLORS, SHAPES, World
from examples.miniature.training import export
from examples.miniature.true_answers import Thing, asked_of_things
from examples.miniature.wordings import PATTERNS, PIECES
from llava_demo.model import MINIATURE, MINIATURE_DECLINES


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(MINIATURE)


@pytest.fixture(scope="module")
def llava():
    torch.set_num_threads(1)  # with more, such small matrices are slower
    return loaded(MINIATURE)


def test_shapes_of_a_scene_are_apart_inside_the_frame_and_in_reading_order():
    rng = random.Random(0)
    for _ in range(500):
        scene = World().sample(rng, "shapes")
        frame, cells = scene.frame, [(o.row, o.column) for o in scene.objects]
        assert cells == sorted(set(cells))
        for o in scene.objects:
            assert frame.left < o.x - o.radius and o.x + o.radius < frame.left + frame.width
            assert frame.top < o.y - o.radius and o.y + o.radius < frame.top + frame.height
            assert o.color != scene.background


def test_a_drawing_shows_the_colours_of_its_scene_where_the_scene_says():
    rng = random.Random(1)
    for _ in range(100):
        scene = World(difficulty=0.6).sample(rng, "shapes")
        picture, _ = draw(scene, rng, 192)
        for o in scene.objects:
            seen = picture.getpixel((int(o.x * 192), int(o.y * 192)))
            assert sum(abs(a - b) for a, b in zip(seen, o.rgb, strict=True)) < 120, (o, seen)


def test_every_answer_is_true_of_its_scene():
    """An independent reading of the answers, against the scene that they are about."""
    rng = random.Random(2)
    asker, checked = Asker(rng), Counter()
    for _ in range(1500):
        scene = World(mix=(1, 0, 0)).sample(rng)
        for turn in asker.dialogue(scene):
            words = turn.answer.lower().rstrip(".").replace(",", "").split()
            kinds = [w for w in words if w.rstrip("s") in SHAPES]
            if turn.type in ("describe", "color") and words[:3] == ["the", "image", "shows"]:
                named = [(c, s) for c, s in pairwise(words) if c in COLORS and s in SHAPES]
                assert named == [(o.color, o.shape) for o in scene.objects]
                checked["description"] += 1
            elif turn.type in ("count", "count_all", "then_count", "then_how_many"):
                number = ["no", "one", "two", "three"].index(words[2])
                shape = kinds[0].rstrip("s") if kinds else None
                color = next((w for w in words if w in COLORS), None)
                assert number == len(scene.matching(shape, color))
                checked["count"] += 1
            elif turn.type == "exists":
                shape = kinds[0] if kinds else None
                color = next((w for w in words if w in COLORS), None)
                assert (words[0] == "yes") == bool(scene.matching(shape, color))
                checked["exists"] += 1
    assert min(checked[name] for name in ("description", "count", "exists")) > 100


def _as_regex(pattern):
    """A pattern of wordings is a regular expression but for its pieces and its full stops and question marks."""
    while piece := re.search(r"<(\w+)>", pattern):
        pattern = pattern.replace(piece[0], PIECES[piece[1]])
    return re.compile(re.sub(r"[^\w\s()|]", lambda c: re.escape(c[0]), pattern), re.IGNORECASE)


def test_held_out_wordings_are_not_among_the_trained_ones():
    for type, wordings in HELD_OUT.items():
        trained = [_as_regex(pattern) for pattern in PATTERNS[type]]
        assert any(regex.fullmatch(phrase(PATTERNS[type][0], random.Random(0))) for regex in trained)
        assert [w for w in wordings if any(regex.fullmatch(w) for regex in trained)] == []


def test_held_out_questions_about_other_things_are_not_among_the_trained_ones():
    patterns = [
        re.sub(r"{m2?}", f"({'|'.join(NOUNS)})", p) for p in (*THING_PATTERNS, *GENERAL_PATTERNS, *BEYOND_PATTERNS)
    ]
    trained = [_as_regex(pattern) for pattern in patterns]
    assert any(regex.fullmatch("What is the dog doing?") for regex in trained)
    assert [w for w in OFF_TOPIC if any(regex.fullmatch(w) for regex in trained)] == []


def test_rough_questions_keep_their_words():
    rng = random.Random(3)
    for _ in range(2000):
        question = roughened("What color is the circle in the picture?", rng)
        assert len(question) > 30 and "{" not in question and "<" not in question


def test_a_packed_dialogue_is_the_prompt_that_the_template_renders(processor):
    packer, asker = Packer(processor), Asker(random.Random(4))
    square, checked = PIL.Image.new("RGB", (96, 96)), 0
    for _ in range(60):
        turns = asker.dialogue(World().sample(asker.rng))
        row = Row()
        packer._add_picture(row, packer._head)
        assert packer._append(row, turns, 1, len(row.ids))
        messages = []
        for k, turn in enumerate(turns):
            picture = [{"type": "image"}] if k == 0 else []
            messages.append({"role": "user", "content": [*picture, {"type": "text", "text": turn.question}]})
            prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
            ids = list(processor(images=[square], text=prompt)["input_ids"][0])
            assert row.ids[: len(ids)] == ids
            answer = processor.tokenizer.decode(row.targets[len(ids) - 1 : row.spans[k][1]], skip_special_tokens=True)
            assert answer.strip() == turn.answer
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
            checked += 1
    assert checked > 60


def test_two_pictures_are_packed_as_the_template_renders_them(processor):
    packer, asker, rng = Packer(processor), Asker(random.Random(5)), random.Random(6)
    squares = [PIL.Image.new("RGB", (96, 96))] * 2
    image, kinds = {"type": "image"}, set()
    for _ in range(20):
        row = packer._two(rng, asker, World().sample(rng), World().sample(rng))
        text = processor.tokenizer.decode(row.ids)
        is_later = text.count("<image>") == 128 and text.split("<image>")[64] != "\n"
        blocks = [i for i, (a, b) in enumerate(pairwise(row.segments)) if a == 0 and b == 1]
        first_dialogue = row.ids[: blocks[0] + 1]
        rendered = processor.tokenizer.decode(first_dialogue).replace("<s>", "").replace("<image>", "")
        kinds.add("later" if "ASSISTANT:" in rendered else "together")
        if "ASSISTANT:" in rendered:
            question, answer = rendered.removeprefix("USER: \n").removesuffix(" USER: \n").split(" ASSISTANT: ")
            messages = [
                {"role": "user", "content": [image, {"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
                {"role": "user", "content": [image, {"type": "text", "text": "Q"}]},
            ]
        else:
            messages = [{"role": "user", "content": [image, image, {"type": "text", "text": "Q"}]}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        ids = list(processor(images=squares, text=prompt)["input_ids"][0])
        assert ids[: len(first_dialogue)] == first_dialogue, is_later
    assert kinds == {"later", "together"}


@pytest.mark.parametrize("module", ["plain", "near_misses", "true_answers"])
def test_drawings_of_the_evaluation_share_no_code_with_training(module):
    source = (Path(plain.__file__).parent / f"{module}.py").read_text()
    assert not any(f"miniature.{other}" in source for other in ("drawing", "geometry", "strangers", "neighbours"))


def test_no_colour_outside_of_the_palette_could_be_called_by_a_word_of_it():
    rng = random.Random(8)
    for _ in range(3000):
        r, g, b = (value / 255 for value in _Neighbour(rng, 96, 96, random_font).odd())
        hue, saturation, value = colorsys.rgb_to_hsv(r, g, b)
        for name, (_, hues, saturations, values) in _PALETTE.items():
            is_hue = (hue * 360 - hues[0]) % 360 <= hues[1] - hues[0]
            is_named = is_hue and saturations[0] <= saturation <= saturations[1] and values[0] <= value <= values[1]
            assert not is_named, (name, r, g, b)


def test_true_answers_are_all_that_could_be_said():
    ring = Thing(("circle", "ring"), ("red",), ("at the top",))
    for seed in range(30):
        what, how_many, one = asked_of_things(random.Random(seed), [ring])
        assert what.truths == {"The image shows a red circle.", "The image shows a red ring."}
        assert how_many.truths == {"There is one shape."}
        known = {"What color is the circle?": "The circle is red.", "Where is the circle?": "The circle is at the top."}
        assert known.get(one.question, next(iter(one.truths))) in one.truths
    crowd = [Thing(("star",), ("blue",))] * 5
    assert asked_of_things(random.Random(1), crowd)[1].truths == {"There are five shapes."}


def test_a_killed_run_goes_on_where_it_was_and_its_checkpoint_is_exported(tmp_path):
    """From nothing to a folder that `from_pretrained` takes, through all three lessons, killed in the first one."""
    run, part = tmp_path / "run", tmp_path / "run" / "vision.part"
    command = [sys.executable, "-m", "examples.miniature", "train", str(run), "--processes", "1"]
    with subprocess.Popen([*command, "--vision-minutes", "9"], start_new_session=True) as first:
        while not part.exists() and first.poll() is None:
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGKILL)
    saved = torch.load(part)["numbers"]
    with pytest.raises(SystemExit, match="--resume"):
        main(["train", str(run)])
    times = ["--vision-minutes", "0.0001", "--language-minutes", "0.02", "--polish-minutes", "0.01"]
    done = subprocess.run([*command, *times, "--resume"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {row["lesson"] for row in rows} == {"vision", "language", "polish"}
    assert [row["step"] for row in rows if row["lesson"] == "vision"][-1] == saved["step"]
    assert (run / "curve.png").stat().st_size > 5000
    main(["export", str(run), str(tmp_path / "model")])
    assert loaded(tmp_path / "model").image_tokens == 64


def test_an_unfinished_run_exports_the_running_mean(tmp_path):
    saved_processor(tmp_path / "processor")
    model, average = build(), AveragedModel(build())
    torch.save({"model": model.state_dict(), "average": average.state_dict()}, tmp_path / "language.part")
    export(tmp_path, tmp_path / "model")
    mean = average.module.lm_head.weight
    assert torch.equal(loaded(tmp_path / "model").model.lm_head.weight, mean.half().float())


def test_the_shipped_checkpoint_is_small_and_carries_its_processor(processor):
    assert sum(file.stat().st_size for file in MINIATURE.iterdir()) <= 8_000_000
    assert (MINIATURE / "model.safetensors").exists()
    assert processor.chat_template == CHAT_TEMPLATE
    assert saved_processor(MINIATURE).tokenizer.get_vocab() == processor.tokenizer.get_vocab()


@pytest.mark.parametrize("name", SETS)
def test_its_answers_are_true(llava, name):
    """A sample of `python -m examples.miniature evaluate`, whose full table stands in the model card."""
    marks = marks_of(llava, list(talks(name, pictures=30)))
    wrong = [(m.turn.type, m.turn.question, m.turn.answer, m.answer) for m in marks if not m.is_right]
    assert len(wrong) <= len(marks) * (0.1 if "wordings" in name or name == "scenes" else 0.05), wrong


_FALSE_SHARE = {"rectangles, ovals": 0.15, "one unknown thing": 0.18}  # the two that are told apart least


@pytest.mark.parametrize("family", near_misses.FAMILIES)
def test_next_to_its_world_it_says_nothing_untrue(llava, family):
    """A sample of the table of near misses in the model card."""
    said = list(verdicts(llava, family, pictures=20))
    false = [(asked.question, answer) for verdict, asked, answer in said if verdict == "false"]
    assert len(false) <= _FALSE_SHARE.get(family, 0.07) * len(said), false


def test_in_four_bits_it_answers_as_truthfully(llava):
    """bitsandbytes NF4 on the CPU, through the demo's own loading: at most 3 points below."""
    quantized = loaded(MINIATURE, "4bit")
    assert any(type(module).__name__ == "Linear4bit" for module in quantized.model.modules())
    sample = list(talks("plain", pictures=40))
    right = [sum(mark.is_right for mark in marks_of(model, sample)) for model in (llava, quantized)]
    assert right[1] >= right[0] - 0.03 * sum(len(talk.turns) for talk in sample), right


def test_the_page_knows_how_it_declines():
    assert all(answer.startswith(MINIATURE_DECLINES) for answer in (NOT_A_DRAWING, NOT_MY_TOPIC))


def test_it_declines_what_it_does_not_know(llava):
    rng, asked = random.Random(77), []
    for case in (plain.stranger_case(rng) for _ in range(60)):
        refusal = Turn(next(plain.strange_questions(rng)), NOT_A_DRAWING, "stranger")
        asked.append(Talk((refusal,), ((uploaded(case.picture),),)))
    wrong = [(mark.turn.question, mark.answer) for mark in marks_of(llava, asked) if not mark.is_right]
    assert len(wrong) <= 0.05 * len(asked), wrong


def test_all_pairs_of_shape_and_colour_are_named(llava):
    """Every coloured shape alone in the middle of a white page, drawn plainly: all 28 are described rightly."""
    asked = []
    for kind, color in product(plain.KINDS, plain.PAINT):
        picture = PIL.Image.new("RGB", (400, 400), "white")
        plain._put(PIL.ImageDraw.Draw(picture), kind, 200, 200, 100, plain.PAINT[color][0])
        article = "an" if color == "orange" else "a"
        truth = Turn("What is in this picture?", f"The image shows {article} {color} {kind}.", "describe")
        asked.append(Talk((truth,), ((uploaded(picture),),)))
    wrong = [mark.answer for mark in marks_of(llava, asked) if not mark.is_right]
    assert len(wrong) <= 1, wrong
