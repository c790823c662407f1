"""Questions about a picture with every answer that is true of it: of a ring, "a red circle" and "a red ring".

Of a picture that lies outside of the world most true answers are none that the miniature could give.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from examples.miniature.answers import CELLS, joined, with_article
from examples.miniature.plain import KINDS, PAINT

COUNTS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """A thing in a picture, with all names, colours and places that are true of it."""

    names: tuple[str, ...]
    colors: tuple[str, ...]
    cells: tuple[str, ...] = CELLS


@dataclass(frozen=True)
class Asked:
    question: str
    truths: frozenset[str]  # every true answer; none where the miniature could only decline


def asked_of_things(rng: random.Random, things: Sequence[Thing], has_places: bool = True) -> tuple[Asked, ...]:
    """What is there, how many, and one question about a shape that is there or not."""
    shown = {
        f"The image shows {joined(with_article(f'{c} {n}') for n, c in chosen)}."
        for chosen in product(*(product(t.names, t.colors) for t in things))
    }
    what = rng.choice(("What is in this picture?", "What do you see?", "Describe the image.", "What is this?"))
    total = f"There {'is' if len(things) < 2 else 'are'} {COUNTS[len(things)]} shape{'s' * (len(things) > 1)}."
    how_many = rng.choice(("How many shapes are there?", "Count the shapes.", "How many objects do you see?"))
    one = rng.choice((_color_of, _is_there, _where_is) if has_places else (_color_of, _is_there))
    return Asked(what, frozenset(shown)), Asked(how_many, frozenset({total})), one(rng, things)


def _color_of(rng: random.Random, things: Sequence[Thing]) -> Asked:
    shape = _likely(rng, things)
    found = [t for t in things if shape in t.names]
    truths = {f"The {shape} is {color}." for t in found for color in t.colors} if len(found) == 1 else set()
    return Asked(f"What color is the {shape}?", frozenset(truths | _counted(shape, found)))


def _where_is(rng: random.Random, things: Sequence[Thing]) -> Asked:
    shape = _likely(rng, things)
    found = [t for t in things if shape in t.names]
    truths = {f"The {shape} is {cell}." for t in found for cell in t.cells} if len(found) == 1 else set()
    return Asked(f"Where is the {shape}?", frozenset(truths | _counted(shape, found)))


def _is_there(rng: random.Random, things: Sequence[Thing]) -> Asked:
    shape = _likely(rng, things)
    near = [c for t in things for c in t.colors if c in PAINT]
    color = rng.choice([*near, *PAINT])
    is_there = any(shape in t.names and color in t.colors for t in things)
    name = f"{color} {shape}"
    answer = f"Yes, there is {with_article(name)}." if is_there else f"No, there is no {name}."
    return Asked(f"Is there {with_article(name)}?", frozenset({answer}))


def _likely(rng: random.Random, things: Sequence[Thing]) -> str:
    """A known shape, of those that are there if there are any."""
    known = [n for t in things for n in t.names if n in KINDS]
    return rng.choice([*known, *known, *KINDS])


def _counted(shape: str, found: Sequence[Thing]) -> set[str]:
    if len(found) == 1:
        return set()
    return {f"There {'are' if found else 'is'} {COUNTS[len(found)]} {shape}{'s' * bool(found)}."}


def asked_of_glyph(rng: random.Random, text: str, color: str) -> tuple[Asked, ...]:
    is_number = text.isdigit()
    what = rng.choice(("What is in this picture?", "What do you see?", "Describe the image.", "What is this?"))
    shown = f"The image shows the {'number' if is_number else 'letter'} {text} in {color}."
    read = rng.choice(("What number is this?", "Which number do you see?", "What digit is it?"))
    told = f"The number is {text}." if is_number else "There is no number."
    other = rng.choice(
        (
            Asked("What color is the number?", frozenset({f"The number is {color}." if is_number else told})),
            Asked(f"Is this a {text[0] if is_number else rng.randrange(10)}?",
                  frozenset({f"{'Yes' if len(text) == 1 else 'No'}, the number is {text}."} if is_number
                            else {"No, there is no number."})),
            Asked("Is there a red circle?", frozenset({"No, there is no red circle."})),
        )
    )  # fmt: skip
    return Asked(what, frozenset({shown})), Asked(read, frozenset({told})), other
