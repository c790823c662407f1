"""Turns dialogues into training sequences: one picture, and behind it several dialogues that do not see each other.

Each dialogue attends to the picture and to itself, and its positions go on from the picture's, so it is exactly the
prompt that the chat template renders, at a fraction of the work.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LlavaProcessor

from llava_demo.miniature.architecture import BOS, EOS, IMAGE_TOKEN, PAD, PATCHES
from llava_demo.miniature.questions import Asker, Turn
from llava_demo.miniature.scenes import BACKGROUNDS, COLORS, DIGITS, SHAPES, Scene, World
from llava_demo.miniature.vision_training import Labels, paint

_IGNORED = -100  # as a target: nothing is learned there
_PICTURE, _ALONE, _PADDING = 0, -2, -1  # segments; dialogues count from 1, _ALONE has no picture
_CONTENT = (
    *COLORS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *BACKGROUNDS, *DIGITS,
    "Yes", "No", "no", "one", "two", "three", "top", "bottom", "left", "right", "center", "first", "second",
)  # fmt: skip


@dataclass
class Row:
    """A sequence in the making; `spans` are (start, end, type) of the answers within the targets."""

    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, ids: Sequence[int], targets: Sequence[int], segment: int, start: int) -> None:
        self.ids += ids
        self.targets += targets
        self.segments += [segment] * len(ids)
        self.positions += range(start, start + len(ids))


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


class Packer:
    def __init__(self, processor: LlavaProcessor, length: int = 320) -> None:
        core = processor.tokenizer.backend_tokenizer
        self.length = length
        self.encode = functools.lru_cache(200_000)(lambda text: tuple(core.encode(text, add_special_tokens=False).ids))
        self._head = [BOS, *self.encode("USER:"), *self.encode(" ")]
        self._picture = [IMAGE_TOKEN] * PATCHES + list(self.encode("\n"))
        content = [ids[0] for word in _CONTENT if len(ids := self.encode(f" {word}")) == 1]
        self.content_ids = torch.tensor(sorted(set(content)))  # the words that make an answer right or wrong

    def batch(self, rng: random.Random, asker: Asker, world: World, rows: int, pairs: float) -> Batch:
        """`rows` sequences; a share of `pairs` of them has two pictures."""
        scenes: list[Scene] = []
        packed: list[Row] = []
        for _ in range(rows):
            scenes.append(world.sample(rng))
            if rng.random() < pairs:
                scenes.append(world.sample(rng))
                packed.append(self._two(rng, asker, *scenes[-2:]))
            else:
                packed.append(self._one(rng, asker, scenes[-1]))
        ids, targets = self._filled([r.ids for r in packed], PAD), self._filled([r.targets for r in packed], _IGNORED)
        segments = self._filled([r.segments for r in packed], _PADDING)
        is_same, is_behind_picture = segments[:, :, None] == segments[:, None, :], segments[:, :, None] > 0
        sees = is_same | ((segments[:, None, :] == _PICTURE) & is_behind_picture)
        sees &= torch.ones(self.length, self.length, dtype=torch.bool).tril()
        sees |= torch.eye(self.length, dtype=torch.bool)
        pixels, labels = paint(scenes, rng)
        positions = self._filled([r.positions for r in packed], 0)
        return Batch(pixels, labels, ids, targets, sees[:, None], positions, [r.spans for r in packed])

    def _filled(self, rows: list[list[int]], padding: int) -> Tensor:
        return torch.tensor([row + [padding] * (self.length - len(row)) for row in rows])

    def _tokens(self, turns: Sequence[Turn], is_first: bool) -> tuple[list[int], list[int], list[tuple[int, int, str]]]:
        """Ids, targets and answer spans; `is_first` where `USER:` (and a picture) stand before the turns already."""
        ids: list[int] = []
        targets: list[int] = []
        spans = []
        for k, turn in enumerate(turns):
            lead = () if k == 0 and is_first else self.encode(" USER:")
            question = turn.question if k == 0 and is_first else f" {turn.question}"
            asked = [*lead, *self.encode(question), *self.encode(" ASSISTANT:")]
            answer = self.encode(f" {turn.answer}")
            ids += [*asked, *answer]
            targets += [_IGNORED] * (len(asked) - 1)
            spans.append((len(targets), len(targets) + len(answer) + 1, turn.type))
            targets += [*answer, EOS]
        return ids, targets, spans

    def _append(self, row: Row, turns: Sequence[Turn], segment: int, start: int) -> bool:
        """Put a dialogue behind the picture; False where it does not fit."""
        ids, targets, spans = self._tokens(turns, is_first=True)
        at = len(row.ids)
        if at + len(ids) > self.length:
            return False
        row.add(ids, targets, segment, start)
        row.spans += [(a + at, b + at, type) for a, b, type in spans]
        return True

    def _one(self, rng: random.Random, asker: Asker, scene: Scene) -> Row:
        row = Row()
        prefix = self._head + self._picture
        row.add(prefix, [_IGNORED] * len(prefix), _PICTURE, 0)
        if rng.random() < 0.2:
            self._add_alone(row, asker.without_picture())
        segment, misses = 1, 0
        while misses < 3:
            if self._append(row, asker.dialogue(scene), segment, len(prefix)):
                segment += 1
            else:
                misses += 1
        return row

    def _add_alone(self, row: Row, turns: Sequence[Turn]) -> None:
        """A dialogue without a picture, with its own head."""
        at, head = len(row.ids), [BOS, *self.encode("USER:")]
        first = Turn(f" {turns[0].question}", turns[0].answer, turns[0].type)
        ids, targets, spans = self._tokens([first, *turns[1:]], is_first=True)
        row.add(head + ids, [_IGNORED] * len(head) + targets, _ALONE, 0)
        row.spans += [(a + at + len(head), b + at + len(head), type) for a, b, type in spans]

    def _two(self, rng: random.Random, asker: Asker, first: Scene, second: Scene) -> Row:
        """Two pictures in one turn, or the second one after a question about the first."""
        row, is_later = Row(), rng.random() < 0.5
        prefix = self._head + self._picture
        row.add(prefix, [_IGNORED] * len(prefix), _PICTURE, 0)
        if is_later:
            ids, targets, spans = self._tokens([asker.one(first)], is_first=True)
            row.spans += [(a + len(prefix), b + len(prefix), type) for a, b, type in spans]
            row.add(ids, targets, _PICTURE, len(prefix))
        more = [*self.encode(" USER:"), *self.encode(" "), *self._picture] if is_later else self._picture
        row.add(more, [_IGNORED] * len(more), _PICTURE, len(row.ids))
        segment, start = 1, len(row.ids)
        while self._append(row, [asker.about_two(first, second, is_later)], segment, start):
            segment += 1
        return row
