"""The miniature's answers: their canonical words, and what in a picture they speak of."""

from collections.abc import Iterable
from dataclasses import dataclass

from examples.miniature.scenes import Scene, Shape

NOT_A_DRAWING = "I only know simple drawings of shapes and digits, and this does not look like one."
NOT_MY_TOPIC = "Sorry, I can only answer simple questions about drawings of shapes and digits."
NO_PICTURE = "Please show me a picture first."
TWO_PICTURES = "With two pictures I can only say what is in the first or in the second one."
MANY_PICTURES = "I can only tell two pictures apart. Please ask about this one in a new chat."

NUMBERS = ("no", "one", "two", "three")
CELLS = (
    "in the top left", "at the top", "in the top right", "on the left", "in the center", "on the right",
    "in the bottom left", "at the bottom", "in the bottom right",
)  # fmt: skip

DIGIT = -1
About = tuple[tuple[int, int], ...]  # for each thing: its picture's number, and its number in the scene or DIGIT


@dataclass(frozen=True)
class Turn:
    question: str
    answer: str
    type: str
    about: About = ()  # what the answer speaks of; training shows the model where to look


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeio" else "a ") + words


def joined(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def thing(shape: str | None = None, color: str | None = None, is_plural: bool = False) -> str:
    return (f"{color} " if color else "") + (shape or "shape") + ("s" if is_plural else "")


def contents(scene: Scene) -> str:
    """`a red circle and a blue square`, or `the number 7 in red`."""
    if scene.digit:
        return f"the number {scene.digit} in {scene.digit_color}"
    return joined(with_article(f"{o.color} {o.shape}") for o in scene.objects)


def description(scene: Scene) -> str:
    return f"The image shows {contents(scene)}."


def how_many(count: int, shape: str | None = None, color: str | None = None) -> str:
    return f"There {'is' if count < 2 else 'are'} {NUMBERS[count]} {thing(shape, color, count > 1)}."


def place(o: Shape) -> str:
    return CELLS[3 * o.row + o.column]


def matching(scene: Scene, shape: str | None = None, color: str | None = None, picture: int = 0) -> About:
    """The things of this shape and colour, as an answer speaks of them."""
    found = scene.matching(shape, color)
    return tuple((picture, k) for k, o in enumerate(scene.objects) if o in found)


def things(scene: Scene, picture: int = 0) -> About:
    """All that is in the picture: its shapes, or its digit."""
    return ((picture, DIGIT),) if scene.digit else matching(scene, picture=picture)
