"""Turns dialogues into training sequences: one picture, and behind it several dialogues that do not see each other.

Each dialogue attends to the picture and to itself, and its positions go on from the picture's, so it is exactly the
prompt that the chat template renders, at a fraction of the work.
"""

import functools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from transformers import LlavaProcessor

from examples.miniature.answers import DIGIT, NOT_A_DRAWING, About, Turn
from examples.miniature.architecture import BOS, EOS, IMAGE_TOKEN, PAD, PATCHES
from examples.miniature.questions import Asker
from examples.miniature.scenes import BACKGROUNDS, COLORS, DIGITS, SHAPES, Scene, World
from examples.miniature.vision_training import Labels, paint

_IGNORED = -100  # as a target: nothing is learned there
_DECISION = 3  # tokens that begin a refusal
_TURN = 50  # tokens of a long question and its answer
_ITEM = re.compile(r" an? \w+ \w+| the number \d in \w+")  # an item of a description
_PICTURE, _ALONE, _PADDING = 0, -2, -1  # segments; dialogues count from 1, _ALONE has no picture
_CONTENT = (
    *COLORS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *BACKGROUNDS, *DIGITS,
    "Yes", "No", "no", "one", "two", "three", "top", "bottom", "left", "right", "center", "first", "second",
)  # fmt: skip


@dataclass
class Row:
    """A sequence in the making; `spans` are (start, end, type) of the answers within the targets.

    `pictures` are the positions where image tokens begin; `looks` are positions that predict a word of an answer, each
    with the things that the word speaks of.
    """

    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, str]] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    looks: list[tuple[int, About]] = field(default_factory=list)

    def add(self, ids: Sequence[int], targets: Sequence[int], segment: int, start: int) -> None:
        self.ids += ids
        self.targets += targets
        self.segments += [segment] * len(ids)
        self.positions += range(start, start + len(ids))

    def note(self, at: int, answers: "Answers") -> None:
        """Remember where the answers of a dialogue that begins at `at` stand."""
        self.spans += [(start + at, end + at, type) for start, end, type in answers.spans]
        self.looks += [(position + at, about) for position, about in answers.looks]


@dataclass(frozen=True)
class Answers:
    """Turns as tokens: ids, targets, and where in these the answers stand (see `Row`)."""

    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, str]] = field(default_factory=list)
    looks: list[tuple[int, About]] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """Sequences of `length` tokens and the pictures that their image tokens stand for, in order."""

    pixels: Tensor  # (pictures, 3, SIDE, SIDE)
    labels: Labels
    ids: Tensor  # (rows, length)
    targets: Tensor  # (rows, length), aligned with the input that predicts them
    sees: Tensor  # (rows, 1, length, length), bool: who attends to whom
    positions: Tensor  # (rows, length)
    spans: list[list[tuple[int, int, str]]]
    looks: Tensor  # (looks, 2): row and position
    shown: Tensor  # (looks, length), bool: the image tokens that show what the word there speaks of

    def to(self, device: torch.device) -> "Batch":
        tensors = {f.name: v.to(device) for f in fields(self) if not isinstance(v := getattr(self, f.name), list)}
        return replace(self, **tensors)


class Packer:
    """`is_brief`: single questions, and of "I only know ..." no more than the words that decide to decline."""

    def __init__(self, processor: LlavaProcessor, length: int = 448, is_brief: bool = False) -> None:
        core = processor.tokenizer.backend_tokenizer
        self.length, self.is_brief = length, is_brief
        self.encode = functools.lru_cache(200_000)(lambda text: tuple(core.encode(text, add_special_tokens=False).ids))
        self._head = [BOS, *self.encode("USER:"), *self.encode(" ")]
        self._picture = [IMAGE_TOKEN] * PATCHES + list(self.encode("\n"))
        content = [ids[0] for word in _CONTENT if len(ids := self.encode(f" {word}")) == 1]
        self.content_ids = torch.tensor(sorted(set(content)))  # the words that make an answer right or wrong

    def batch(self, rng: random.Random, asker: Asker, world: World, rows: int, pairs: float) -> Batch:
        """`rows` sequences; a share of `pairs` of them has two pictures or more."""
        scenes: list[Scene] = []
        packed: list[Row] = []
        for _ in range(rows):
            count = rng.choices((2, 3, 4, 5), (0.6, 0.2, 0.1, 0.1))[0] if rng.random() < pairs else 1
            shown = [world.sample(rng) for _ in range(count)]
            packed.append(self._several(rng, asker, shown) if count > 1 else self._one(rng, asker, *shown))
            scenes += shown
        ids, targets = self._filled([r.ids for r in packed], PAD), self._filled([r.targets for r in packed], _IGNORED)
        segments = self._filled([r.segments for r in packed], _PADDING)
        is_same, is_behind_picture = segments[:, :, None] == segments[:, None, :], segments[:, :, None] > 0
        sees = is_same | ((segments[:, None, :] == _PICTURE) & is_behind_picture)
        sees &= torch.ones(self.length, self.length, dtype=torch.bool).tril()
        sees |= torch.eye(self.length, dtype=torch.bool)
        pixels, labels = paint(scenes, rng)
        positions = self._filled([r.positions for r in packed], 0)
        looks, shown = self._looks(packed, labels)
        spans = [r.spans for r in packed]
        return Batch(pixels, labels, ids, targets, sees[:, None], positions, spans, looks, shown)

    def _looks(self, rows: list[Row], labels: Labels) -> tuple[Tensor, Tensor]:
        """Where the words of the answers should look, from the patches' labels."""
        rank, digit = labels.patches[:, 3], labels.patches[:, 4]
        looks, shown, first_picture = [], [], 0
        for k, row in enumerate(rows):
            masks: dict[About, Tensor] = {}
            for position, about in row.looks:
                if about not in masks:
                    masks[about] = torch.zeros(self.length, dtype=torch.bool)
                    for picture, thing in about:
                        patches = (
                            digit[first_picture + picture] > 0
                            if thing == DIGIT
                            else rank[first_picture + picture] == 1 + thing
                        )
                        start = row.pictures[picture]
                        masks[about][start : start + PATCHES] |= patches
                looks.append((k, position))
                shown.append(masks[about])
            first_picture += len(row.pictures)
        if not looks:
            return torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, self.length, dtype=torch.bool)
        return torch.tensor(looks), torch.stack(shown)

    def _filled(self, rows: list[list[int]], padding: int) -> Tensor:
        return torch.tensor([row + [padding] * (self.length - len(row)) for row in rows])

    def _tokens(self, turns: Sequence[Turn]) -> Answers:
        """Tokens of turns before which `USER:` (and a picture) stand already."""
        made = Answers()
        for k, turn in enumerate(turns):
            lead, question = (self.encode(" USER:"), f" {turn.question}") if k else ((), turn.question)
            asked = [*lead, *self.encode(question), *self.encode(" ASSISTANT:")]
            answer = (*self.encode(f" {turn.answer}"), EOS)
            if self.is_brief and turn.answer == NOT_A_DRAWING:
                answer = answer[:_DECISION]
            made.ids.extend([*asked, *answer[:-1]])
            made.targets.extend([_IGNORED] * (len(asked) - 1))
            start = len(made.targets)
            made.spans.append((start, start + len(answer), turn.type))
            made.looks.extend((start + at, about) for at, about in self._subjects(turn))
            made.targets.extend(answer)
        return made

    def _subjects(self, turn: Turn) -> Iterator[tuple[int, About]]:
        """Token by token, what an answer speaks of; a description speaks of one thing after the other."""
        text = f" {turn.answer}"
        items = list(_ITEM.finditer(text)) if " shows " in text else []
        if len(items) == len(turn.about):
            for item, subject in zip(items, turn.about, strict=True):
                for at in range(len(self.encode(text[: item.start()])), len(self.encode(text[: item.end()]))):
                    yield at, (subject,)
        elif turn.about:
            for at in range(len(self.encode(text))):
                yield at, turn.about

    def _append(self, row: Row, turns: Sequence[Turn], segment: int, start: int) -> bool:
        """Put a dialogue behind the picture; False where it does not fit."""
        made, at = self._tokens(turns), len(row.ids)
        if at + len(made.ids) > self.length:
            return False
        row.add(made.ids, made.targets, segment, start)
        row.note(at, made)
        return True

    def _add_picture(self, row: Row, lead: Sequence[int]) -> None:
        """A picture that all dialogues behind it see, with the tokens before it."""
        ids = [*lead, *self._picture]
        row.pictures.append(len(row.ids) + len(lead))
        row.add(ids, [_IGNORED] * len(ids), _PICTURE, len(row.ids))

    def _one(self, rng: random.Random, asker: Asker, scene: Scene) -> Row:
        row = Row()
        self._add_picture(row, self._head)
        start = len(row.ids)
        if rng.random() < 0.2 and not self.is_brief:
            self._add_alone(row, asker.without_picture())
        segment, misses = 1, 0
        while misses < 3:
            turns = [asker.one(scene)] if self.is_brief else asker.dialogue(scene)
            if self._append(row, turns, segment, start):
                segment += 1
            else:
                misses += 1
        return row

    def _add_alone(self, row: Row, turns: Sequence[Turn]) -> None:
        """A dialogue without a picture, with its own head, where it fits."""
        head = [BOS, *self.encode("USER:")]
        made = self._tokens([Turn(f" {turns[0].question}", turns[0].answer, turns[0].type), *turns[1:]])
        at = len(row.ids) + len(head)
        if at + len(made.ids) > self.length:
            return
        row.add(head + made.ids, [_IGNORED] * len(head) + made.targets, _ALONE, 0)
        row.note(at, made)

    def _several(self, rng: random.Random, asker: Asker, scenes: Sequence[Scene]) -> Row:
        """Pictures in one turn, or two or three, each after some turns about those before it."""
        row, are_later = Row(), rng.random() < 0.6 and len(scenes) < 4
        self._add_picture(row, self._head)
        for count in range(1, len(scenes)):
            if are_later:
                turns = self._turns_between(rng, asker, scenes[:count])
                self._add_turns(row, turns, room=(len(scenes) - count) * (PATCHES + _TURN) + _TURN)
            self._add_picture(row, [*self.encode(" USER:"), *self.encode(" ")] if are_later else [])
        segment, start = 1, len(row.ids)
        while True:
            turn = asker.about_two(*scenes, are_later) if len(scenes) == 2 else asker.about_many()
            if not self._append(row, [turn], segment, start):
                return row
            segment += 1

    def _turns_between(self, rng: random.Random, asker: Asker, scenes: Sequence[Scene]) -> list[Turn]:
        """What is said before the next picture comes: one to six turns about a first one, one about several."""
        if len(scenes) > 1:
            return [asker.about_two(*scenes, is_later=True) if len(scenes) == 2 else asker.about_many()]
        turns, count = list[Turn](), rng.choice((1, 1, 2, 3, 4, 6))
        while len(turns) < count:
            turns += asker.dialogue(scenes[0])
        return turns[:count]

    def _add_turns(self, row: Row, turns: Sequence[Turn], room: int) -> None:
        """Turns that all dialogues behind them see; the last ones are left out where `room` tokens would not remain."""
        while True:
            made, at = self._tokens(turns), len(row.ids)
            if len(turns) == 1 or at + len(made.ids) + room <= self.length:
                break
            turns = turns[:-1]
        row.add(made.ids, made.targets, _PICTURE, at)
        row.note(at, made)
