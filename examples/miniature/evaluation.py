"""How often the miniature's answers are true, per type of question, through the real processor and `generate`.

Four sets, none of which training has seen: its own renderer with other seeds, in trained and in held-out wordings, and
plain Pillow drawings in both. Dialogues go on from the model's own answers. Beside them stand the families of
`near_misses`, where an answer may be right, declined, or false.
"""

import io
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image as Pillow
from tqdm import tqdm

from examples.miniature import near_misses, plain
from examples.miniature.answers import NOT_A_DRAWING, NOT_MY_TOPIC, Turn
from examples.miniature.drawing import draw
from examples.miniature.near_misses import Purpose
from examples.miniature.questions import Asker
from examples.miniature.scenes import Scene, World
from llava_demo.chat import Message
from llava_demo.images import Image
from llava_demo.model.device import Hardware, Weights, Wishes, planned
from llava_demo.model.llava import Llava

SETS = ("scenes", "wordings", "plain", "plain wordings")
_SEEDS = {"validation": 40_000_000, "test": 50_000_000}  # far from any of training's
_BATCH, _MAX_TOKENS = 96, 64
_PHOTOS = (".jpg", ".jpeg", ".png", ".webp")
_REFUSALS = (NOT_A_DRAWING, NOT_MY_TOPIC)
_NOT_CLAIMED = ("several",)  # "the circle" where there are two: it is taught, but is not said to be known


@dataclass(frozen=True)
class Talk:
    """Turns of one dialogue; `images[k]` are the pictures that are shown with turn k."""

    turns: tuple[Turn, ...]
    images: tuple[tuple[Image, ...], ...]


@dataclass(frozen=True)
class Mark:
    turn: Turn
    answer: str

    @property
    def is_right(self) -> bool:
        return _canonical(self.answer) == _canonical(self.turn.answer)


def loaded(folder: Path, quantize: str = "auto") -> Llava:
    """The checkpoint in `folder`, loaded as the demo loads it."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    plan = planned(Wishes(quantize=quantize), Hardware.found(), Weights(dtype=None, nbytes=size))
    return Llava.load(str(folder), plan, is_local=True)


def evaluate(llava: Llava, pictures: int, purpose: Purpose = "test") -> dict[str, list[Mark]]:
    """Marks of every answer that is claimed to be known in each of SETS, on `pictures` pictures each."""
    torch.set_num_threads(1)  # with more, such small matrices are slower
    marks = {name: marks_of(llava, list(talks(name, pictures, purpose))) for name in SETS}
    return {name: [mark for mark in each if mark.turn.type not in _NOT_CLAIMED] for name, each in marks.items()}


def talks(name: str, pictures: int, purpose: Purpose = "test") -> Iterator[Talk]:
    """The dialogues of one of SETS."""
    rng = random.Random(_SEEDS[purpose] + SETS.index(name))
    asker, is_plain = Asker(rng, "wordings" in name), name.startswith("plain")
    for k in range(pictures):
        scene, image = _picture(rng, is_plain)
        for _ in range(4):
            turns = asker.dialogue(scene)
            yield Talk(tuple(turns), ((image,), *[()] * (len(turns) - 1)))
        if k % 2 == 0:
            other, other_image = _picture(rng, is_plain)
            yield Talk((asker.about_two(scene, other, is_later=False),), ((image, other_image),))
            turn = asker.about_two(scene, other, is_later=True)
            before = asker.dialogue(scene)
            yield Talk((*before, turn), ((image,), *[()] * (len(before) - 1), (other_image,)))
            many = (image, other_image, image)[: rng.randint(2, 3)]
            yield Talk((asker.about_many(),), ((*many, other_image),))
        if k % 8 == 0:
            yield Talk(tuple(asker.without_picture()), ((),))


def marks_of(llava: Llava, talks: Sequence[Talk]) -> list[Mark]:
    """Hold the dialogues, turn by turn, in batches; the model's own answers are the history."""
    histories: list[tuple[Message, ...]] = [() for _ in talks]
    marks = []
    longest = max(len(talk.turns) for talk in talks)
    for turn in range(longest):
        live = [k for k, talk in enumerate(talks) if len(talk.turns) > turn]
        for k in live:
            histories[k] += (Message("user", talks[k].turns[turn].question, talks[k].images[turn]),)
        for k, answer in zip(live, _answers(llava, [histories[k] for k in live]), strict=True):
            histories[k] += (Message("assistant", answer),)
            marks.append(Mark(talks[k].turns[turn], answer))
    return marks


def near_misses_of(llava: Llava, pictures: int, purpose: Purpose = "test") -> dict[str, Counter[str]]:
    """How many answers are right, declined and false in each family: three questions each on `pictures` pictures."""
    torch.set_num_threads(1)
    verdicts_of = {family: verdicts(llava, family, pictures, purpose) for family in near_misses.FAMILIES}
    return {family: Counter(verdict for verdict, *_ in each) for family, each in verdicts_of.items()}


def verdicts(
    llava: Llava, family: str, pictures: int, purpose: Purpose = "test"
) -> Iterator[tuple[str, near_misses.Asked, str]]:
    """`right`, `declined` or `false` for each question of a family, with the question and the answer."""
    cases = list(near_misses.cases(family, pictures, purpose))
    asked = [(uploaded(case.picture), each) for case in cases for each in case.asked]
    conversations = [(Message("user", each.question, (image,)),) for image, each in asked]
    for (_, each), answer in zip(asked, _answers(llava, conversations), strict=True):
        is_right = _canonical(answer) in {_canonical(truth) for truth in each.truths}
        yield "right" if is_right else "declined" if answer in _REFUSALS else "false", each, answer


def declined_of(llava: Llava, folder: Path) -> tuple[int, int]:
    """How many answers about the photos in `folder` decline, and how many there are: three questions each."""
    rng, asked = random.Random(7), []
    for file in sorted(file for file in folder.iterdir() if file.suffix.lower() in _PHOTOS):
        image = Image.from_bytes(file.read_bytes())
        asked += [(Message("user", question, (image,)),) for question in plain.strange_questions(rng)]
    return sum(answer in _REFUSALS for answer in _answers(llava, asked)), len(asked)


def near_miss_table(results: dict[str, Counter[str]]) -> str:
    """Markdown: a row for each family with its shares of right, declined and false answers."""
    columns = ("right", "declined", "false")
    rows = ["| family | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for family, counts in results.items():
        rows.append(f"| {family} | {' | '.join(f'{100 * counts[c] / counts.total():.1f} %' for c in columns)} |")
    return "\n".join(rows)


def by_type(marks: Sequence[Mark]) -> dict[str, list[bool]]:
    found = defaultdict(list)
    for mark in marks:
        found[mark.turn.type].append(mark.is_right)
    return dict(found)


def table(results: dict[str, list[Mark]]) -> str:
    """Markdown: a row for each type of question, share of right answers and their number in each set."""
    columns = {name: by_type(marks) for name, marks in results.items()}
    types = sorted({type for column in columns.values() for type in column})
    rows = [f"| type | {' | '.join(results)} |", "|---" * (1 + len(results)) + "|"]
    for type in types:
        cells = [_cell(column.get(type, [])) for column in columns.values()]
        rows.append(f"| {type} | {' | '.join(cells)} |")
    totals = [_cell([m.is_right for m in marks]) for marks in results.values()]
    return "\n".join([*rows, f"| **all** | {' | '.join(totals)} |"])


def write_card(folder: Path, tables: dict[str, str]) -> None:
    """Put each table between the marks of its name in the model card beside the weights."""
    card = folder / "README.md"
    text = card.read_text()
    for name, lines in tables.items():
        before, rest = text.split(f"<!-- {name} -->\n")
        _, after = rest.split(f"<!-- /{name} -->")
        text = f"{before}<!-- {name} -->\n{lines}\n<!-- /{name} -->{after}"
    card.write_text(text)


def _cell(right: Sequence[bool]) -> str:
    return f"{100 * sum(right) / len(right):.1f} % ({len(right)})" if right else "-"


def _picture(rng: random.Random, is_plain: bool) -> tuple[Scene, Image]:
    if not is_plain:
        scene = World().sample(rng)
        return scene, uploaded(draw(scene, rng, rng.choice((224, 336, 448)))[0])
    make = rng.choices((plain.shapes_case, plain.digit_case, plain.stranger_case), (0.6, 0.2, 0.2))[0]
    case = make(rng)
    return case.scene, uploaded(case.picture)


def uploaded(picture: Pillow.Image) -> Image:
    """The picture as the demo gets it from somebody: a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Image.from_bytes(file.getvalue())


def _canonical(answer: str) -> str:
    """Answers that are equally true look alike: the order of a list, and which of the refusals."""
    if answer in _REFUSALS:
        return "declined"
    return re.sub(r"shows ([^.]*)\.", lambda m: f"shows {sorted(re.split(', | and ', m[1]))}.", answer)


@torch.inference_mode()
def _answers(llava: Llava, conversations: Sequence[tuple[Message, ...]]) -> Iterator[str]:
    for at in tqdm(range(0, len(conversations), _BATCH), leave=False, unit="batch"):
        prompts = [llava.prompt(messages) for messages in conversations[at : at + _BATCH]]
        longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
        padding = llava.tokenizer.pad_token_id
        ids = torch.cat([_left_padded(prompt["input_ids"], longest, padding) for prompt in prompts])
        mask = torch.cat([_left_padded(prompt["attention_mask"], longest, 0) for prompt in prompts])
        pixels = [prompt["pixel_values"] for prompt in prompts if "pixel_values" in prompt]
        seen = {"pixel_values": torch.cat(pixels)} if pixels else {}
        made = llava.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=_MAX_TOKENS, do_sample=False, **seen
        )
        for row in made[:, longest:]:
            yield llava.tokenizer.decode(row, skip_special_tokens=True).strip()


def _left_padded(row: torch.Tensor, length: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (length - row.shape[1], 0), value=value)
