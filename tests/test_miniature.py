"""The miniature: its world and words, and how dialogues become sequences."""

import colorsys
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import pytest
from transformers import AutoProcessor

from examples.miniature import near_misses, plain
from examples.miniature.answers import NOT_A_DRAWING
from examples.miniature.architecture import PATCH_CLASSES, PATCHES
from examples.miniature.drawing import draw, font_files, random_font
from examples.miniature.held_out import HELD_OUT, OFF_TOPIC
from examples.miniature.neighbours import _Neighbour
from examples.miniature.packing import Packer, Row
from examples.miniature.phrasing import phrase, roughened
from examples.miniature.questions import Asker
from examples.miniature.refusals import BEYOND_PATTERNS, GENERAL_PATTERNS, NOUNS, THING_PATTERNS
from examples.miniature.scenes import _PALETTE, COLORS, SHAPES, World, exchanged
from examples.miniature.true_answers import Thing, asked_of_things
from examples.miniature.vision_training import paint
from examples.miniature.wordings import PATTERNS, PIECES
from llava_demo.model import MINIATURE


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(MINIATURE)


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
            assert sum(abs(a - b) for a, b in zip(seen, o.rgb, strict=True)) < 240, (o, seen)  # it may have faded


def test_one_thing_of_an_exchanged_scene_is_drawn_otherwise_and_marked_there_alone():
    rng, seen = random.Random(11), Counter()
    for _ in range(300):
        scene = World().sample(rng, rng.choice(("shapes", "digit")))
        other = exchanged(rng, scene)
        assert (scene.kind, other.kind) == ("digit" if scene.digit else "shapes", "other")
        seen[other.digit or next(o.shape for o in other.objects if o not in scene.objects)] += 1
        (_, box), labels = draw(other, rng, 96), paint([scene, other], rng)[1]
        assert (box is None) is (not scene.digit)
        assert not labels.odd[0].any()
        assert labels.odd[1].any() and (scene.digit or not labels.odd[1].all())
        assert set(labels.patches[1, 0].tolist()) == {PATCH_CLASSES["shape"] - 1}  # all of it is a stranger
        assert labels.pictures[1].tolist()[:2] == [2, 0]
    assert {"hexagon", "rectangle", "kite", "B", "O"} <= seen.keys()


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


def test_packed_pictures_that_come_later_are_the_prompt_that_the_template_renders(processor):
    packer, rng = Packer(processor), random.Random(5)
    square, counts, longest = PIL.Image.new("RGB", (96, 96)), set(), 0
    for count in (2, 3, 4, 5) * 10:
        row = packer._several(rng, Asker(rng), [World().sample(rng) for _ in range(count)])
        assert len(row.ids) <= packer.length
        ids = [id for id, segment in zip(row.ids, row.segments, strict=True) if segment in (0, 1)]
        text = processor.tokenizer.decode(ids).replace("<image>" * PATCHES, "<picture>")
        messages = []
        for asked, answer in re.findall(r"USER: (.*?) ASSISTANT:(?: (.*?)(?= USER:|$))?", text, re.DOTALL):
            pictures = [{"type": "image"}] * asked.count("<picture>\n")
            question = {"type": "text", "text": asked.replace("<picture>\n", "")}
            messages += [{"role": "user", "content": [*pictures, question]}]
            messages += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        prompt = processor.apply_chat_template(messages[:-1], add_generation_prompt=True)
        expected = list(processor(images=[square] * count, text=prompt)["input_ids"][0])
        assert ids[: len(expected)] == expected
        counts.add(len(messages[0]["content"]) - 1)
        longest = max(longest, len(messages) // 2)
    assert counts == {1, 2, 3, 4, 5}  # one after the other, and at once
    assert longest > 5  # questions about the first one


def test_a_brief_row_teaches_the_decision_to_decline_and_not_the_rest_of_the_sentence(processor):
    packer, rng = Packer(processor, 96, is_brief=True), random.Random(7)
    declining = list(packer.encode(f" {NOT_A_DRAWING}"))
    for kind in ("other", "shapes"):
        row = packer._one(rng, Asker(rng), World().sample(rng, kind))
        answers = [row.targets[start:end] for start, end, _ in row.spans]
        assert answers and len(row.ids) == len(row.targets) <= 96
        assert all((answer == declining[: len(answer)] and len(answer) < 5) == (kind == "other") for answer in answers)


def test_what_is_reported_is_neither_what_was_chosen_on_nor_written_in_fonts_of_training():
    for family in near_misses.FAMILIES:
        shown = [next(near_misses.cases(family, 1, purpose)).picture.tobytes() for purpose in ("validation", "test")]
        assert shown[0] != shown[1]
    trained = {Path(file).stem for file in font_files()}
    assert not trained & {Path(name).stem for name in near_misses._LETTER_FONTS}


TRAINING = ("drawing", "geometry", "lookalikes", "strangers", "neighbours")


@pytest.mark.parametrize("module", ["plain", "near_misses", "true_answers"])
def test_drawings_of_the_evaluation_share_no_code_with_training(module):
    source = (Path(plain.__file__).parent / f"{module}.py").read_text()
    assert not any(f"miniature.{other}" in source for other in TRAINING)


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
