"""Asks about scenes and answers truthfully: every question has exactly one right answer in canonical words.

A question whose thing is not unique ("What color is the circle?" of two circles) is answered by how many there are, a
question about a picture that is no drawing of the world, or about something else, by a refusal.
"""

import random
from collections.abc import Callable

from examples.miniature.answers import (
    MANY_PICTURES,
    NO_PICTURE,
    NOT_A_DRAWING,
    NOT_MY_TOPIC,
    TWO_PICTURES,
    Turn,
    contents,
    description,
    how_many,
    matching,
    place,
    thing,
    things,
    with_article,
)
from examples.miniature.held_out import HELD_OUT
from examples.miniature.held_out import OFF_TOPIC as HELD_OUT_OFF_TOPIC
from examples.miniature.phrasing import phrase, roughened
from examples.miniature.refusals import SMALL_TALK, off_topic_pattern
from examples.miniature.scenes import COLORS, DIGITS, SHAPES, Scene, Shape, World
from examples.miniature.wordings import PATTERNS

_OF_SHAPES = {  # how often each type is asked about shapes
    "describe": 1.6, "count_all": 0.9, "count": 1.6, "exists": 2.6, "color": 2.4, "is_color": 1.8, "shape": 1.8,
    "where": 3.0, "background": 0.9, "number": 0.15, "has_number": 0.15, "is_number": 0.1, "number_color": 0.1,
    "off_topic": 1.5,
}  # fmt: skip
_IT = 0.05  # share of the dialogues about shapes that begin with a question about "it"
_MAY_BE_SEVERAL = ("color", "is_color", "shape", "where")  # "the circle", where there are two of them
_OF_DIGITS = {
    "describe": 1.6, "number": 2.2, "number_color": 1.2, "has_number": 0.7, "is_number": 1.4, "background": 0.6,
    "off_topic": 1.0, "count_all": 0.2, "count": 0.2, "exists": 0.5, "color": 0.2, "is_color": 0.15, "shape": 0.2,
    "where": 0.2,
}  # fmt: skip


class Asker:
    """Makes dialogues about scenes. With `is_held_out`, in wordings that training never uses, and without roughness.

    `weights` scales how often each type is asked; training raises those that are not yet learned.
    """

    def __init__(self, rng: random.Random, is_held_out: bool = False) -> None:
        self.rng, self.is_held_out = rng, is_held_out
        self.weights: dict[str, float] = {}

    # Wording ------------------------------------------------------------------------------------------------------

    def ask(
        self, type: str, shape: str | None = None, color: str | None = None, other: str = "", digit: str = ""
    ) -> str:
        """A question of this type about a thing; `other` is a colour that is asked for."""
        pattern = self.rng.choice((HELD_OUT if self.is_held_out else PATTERNS)[type])
        return self._worded(pattern, shape, color, other, digit)

    def _worded(
        self, pattern: str, shape: str | None = None, color: str | None = None, other: str = "", digit: str = ""
    ) -> str:
        rng, words = self.rng, phrase(pattern, self.rng)
        if shape and "{s}" in pattern and rng.random() < 0.06 and not self.is_held_out:
            words = words.replace("the {s}", "the {s} shape")
        shape_word = shape or rng.choice(SHAPES)
        name = thing(shape, color)
        question = words.format(
            s=shape_word, p=f"{shape_word}s", s2=rng.choice(SHAPES), n=name, ns=f"{name}s", a=with_article(name),
            x=other or color or rng.choice(COLORS), d=digit or rng.choice(DIGITS),
        )  # fmt: skip
        question = question[0].upper() + question[1:]
        return question if self.is_held_out else roughened(question, rng)

    def _target(self, scene: Scene, present: float, kinds: str = "scb") -> tuple[str | None, str | None]:
        """A (shape, colour) to ask about: s shape only, c colour only, b both. Absent ones are made to look likely."""
        rng, kind = self.rng, self.rng.choice(kinds)
        wants_present = bool(scene.objects) and rng.random() < present
        while True:
            if wants_present:
                o = rng.choice(scene.objects)
                shape, color = o.shape, o.color
            else:
                shape, color = rng.choice(SHAPES), rng.choice(COLORS)
                if kind == "b" and scene.objects and rng.random() < 0.8:  # one thing's shape, perhaps another's color
                    if rng.random() < 0.7:
                        shape = rng.choice(scene.objects).shape
                    if rng.random() < 0.7:
                        color = rng.choice(scene.objects).color
            found = (None if kind == "c" else shape, None if kind == "s" else color)
            if wants_present or not scene.matching(*found) or rng.random() < 0.05:
                return found

    # One method for each type of question -------------------------------------------------------------------------

    def describe(self, scene: Scene) -> Turn:
        return Turn(self.ask("describe"), description(scene), "describe", things(scene))

    def count_all(self, scene: Scene) -> Turn:
        return Turn(self.ask("count_all"), how_many(len(scene.objects)), "count_all", matching(scene))

    def count(self, scene: Scene) -> Turn:
        target = self._target(scene, 0.7, "ssbb")
        return self._counted("count", scene, *target)

    def exists(self, scene: Scene) -> Turn:
        target = self._target(scene, 0.5)
        return self._whether("exists", scene, *target)

    def color(self, scene: Scene) -> Turn:
        shape, _ = self._target(scene, 0.88, "s")
        return self._told("color", scene, shape, None, lambda o: f"The {shape} is {o.color}.")

    def is_color(self, scene: Scene) -> Turn:
        shape, _ = self._target(scene, 0.93, "s")
        truth = [o.color for o in scene.matching(shape)]
        asked = (
            truth[0]
            if truth and self.rng.random() < 0.5
            else self.rng.choice([o.color for o in scene.objects] + list(COLORS))
        )
        return self._told(
            "is_color",
            scene,
            shape,
            None,
            lambda o: f"{'Yes' if o.color == asked else 'No'}, the {shape} is {o.color}.",
            asked,
        )

    def it(self, scene: Scene) -> Turn:
        """What is asked about "it" before anything was said; of several things, how many there are."""
        asked = self.rng.choice(("color", "color", "where"))
        question, found = self.ask(f"it_{asked}"), matching(scene)
        if len(found) > 1:
            return Turn(question, how_many(len(found)), "it", found)
        (only,) = scene.objects
        return Turn(question, f"It is {only.color if asked == 'color' else place(only)}.", "it", found)

    def shape(self, scene: Scene) -> Turn:
        _, color = self._target(scene, 0.88, "c")
        return self._told("shape", scene, None, color, lambda o: f"The {color} shape is {with_article(o.shape)}.")

    def where(self, scene: Scene) -> Turn:
        target = self._target(scene, 0.9, "ssbc")
        return self._told("where", scene, *target, lambda o: f"The {thing(*target)} is {place(o)}.")

    def background(self, scene: Scene) -> Turn:
        return Turn(self.ask("background"), f"The background is {scene.background}.", "background")

    def number(self, scene: Scene) -> Turn:
        answer = f"The number is {scene.digit}." if scene.digit else "There is no number."
        return Turn(self.ask("number"), answer, "number", things(scene))

    def has_number(self, scene: Scene) -> Turn:
        answer = f"Yes, the number is {scene.digit}." if scene.digit else "No, there is no number."
        return Turn(self.ask("has_number"), answer, "has_number", things(scene))

    def is_number(self, scene: Scene) -> Turn:
        asked = scene.digit if scene.digit and self.rng.random() < 0.5 else self.rng.choice(DIGITS)
        answer = (
            f"{'Yes' if asked == scene.digit else 'No'}, the number is {scene.digit}."
            if scene.digit
            else "No, there is no number."
        )
        return Turn(self.ask("is_number", digit=asked), answer, "is_number", things(scene))

    def number_color(self, scene: Scene) -> Turn:
        answer = f"The number is {scene.digit_color}." if scene.digit else "There is no number."
        return Turn(self.ask("number_color"), answer, "number_color", things(scene))

    def off_topic(self, scene: Scene) -> Turn:
        pattern = self.rng.choice(HELD_OUT_OFF_TOPIC) if self.is_held_out else off_topic_pattern(self.rng)
        target = self._target(scene, 0.7) if scene.objects else (None, None)
        return Turn(self._worded(pattern, *target), NOT_MY_TOPIC, "off_topic")

    def small_talk(self) -> Turn:
        answer = self.rng.choice(list(SMALL_TALK))
        return Turn(self._worded(self.rng.choice(SMALL_TALK[answer])), answer, "small_talk")

    def _counted(self, type: str, scene: Scene, shape: str | None, color: str | None = None) -> Turn:
        found = matching(scene, shape, color)
        return Turn(self.ask(type, shape, color), how_many(len(found), shape, color), type, found)

    def _whether(self, type: str, scene: Scene, shape: str | None, color: str | None = None) -> Turn:
        found, name = matching(scene, shape, color), thing(shape, color)
        answer = f"Yes, there is {with_article(name)}." if found else f"No, there is no {name}."
        return Turn(self.ask(type, shape, color), answer, type, found)

    def _told(
        self,
        type: str,
        scene: Scene,
        shape: str | None,
        color: str | None,
        answer: Callable[[Shape], str],
        other: str = "",
    ) -> Turn:
        """What is asked about the one thing of this shape and colour; of several, how many there are."""
        question, found = self.ask(type, shape, color, other), scene.matching(shape, color)
        if not found:
            return Turn(question, f"There is no {thing(shape, color)}.", type)
        if len(found) > 1:
            return Turn(question, how_many(len(found), shape, color), "several", matching(scene, shape, color))
        return Turn(question, answer(found[0]), type, matching(scene, shape, color))

    # Dialogues ----------------------------------------------------------------------------------------------------

    def one(self, scene: Scene) -> Turn:
        """One question about the scene."""
        if scene.kind == "other":
            likely = World().sample(self.rng, self.rng.choice(("shapes", "shapes", "digit")))
            asks = self.rng.choice((self.one, self.one, self.describe, self.count_all))  # the last two tempt most
            asked = asks(likely)
            return Turn(asked.question, NOT_A_DRAWING, "stranger")
        shares = _OF_SHAPES if scene.kind == "shapes" else _OF_DIGITS
        scaled = [share * self._weight(type) for type, share in shares.items()]
        return getattr(self, self.rng.choices(list(shares), scaled)[0])(scene)

    def _weight(self, type: str) -> float:
        own = self.weights.get(type, 1.0)
        return max(own, self.weights.get("several", 1.0)) if type in _MAY_BE_SEVERAL else own

    def dialogue(self, scene: Scene) -> list[Turn]:
        """One to three turns about one picture, now and then up to twenty."""
        if scene.kind == "shapes" and self.rng.random() < _IT:
            return [self.it(scene)]
        exchanges = self.rng.randint(3, 6) if self.rng.random() < 0.04 else 1
        return [turn for _ in range(exchanges) for turn in self._exchange(scene)]

    def _exchange(self, scene: Scene) -> list[Turn]:
        """One to three turns; often a question and what people ask next."""
        rng = self.rng
        if scene.kind != "other" and rng.random() < 0.33:
            turns = self._follow_up(scene)
            return [self.one(scene), *turns] if rng.random() < 0.2 else turns
        count = rng.choices((1, 2, 3), (0.7, 0.2, 0.1))[0]
        return [self.small_talk() if rng.random() < 0.015 else self.one(scene) for _ in range(count)]

    def _follow_up(self, scene: Scene) -> list[Turn]:
        rng = self.rng
        if scene.digit:
            first = rng.choice((self.number, self.describe, self.is_number, self.has_number))(scene)
            return [first, Turn(self.ask("then_color"), f"It is {scene.digit_color}.", "then_color", things(scene))]
        unique = [
            t
            for o in scene.objects
            for t in ((o.shape, None), (None, o.color), (o.shape, o.color))
            if len(scene.matching(*t)) == 1
        ]
        if unique and rng.random() < 0.6:
            return self._about_it(scene, *rng.choice(unique))
        (one, _), (two, _) = self._target(scene, 0.7, "s"), self._target(scene, 0.55, "s")
        kind = rng.choice(("how_many", "count", "exists", "exists"))
        if kind == "count":
            return [self._counted("count", scene, one), self._counted("then_count", scene, two)]
        first = self._whether("exists", scene, one)
        if kind == "how_many":
            return [first, self._counted("then_how_many", scene, one)]
        return [first, self._whether("then_exists", scene, two)]

    def _about_it(self, scene: Scene, shape: str | None, color: str | None) -> list[Turn]:
        """A question about one thing, then questions about `it`."""
        (o,) = scene.matching(shape, color)
        (it,) = matching(scene, shape, color)
        first = [self._whether("exists", scene, shape, color)]
        first.append(self._told("where", scene, shape, color, lambda o: f"The {thing(shape, color)} is {place(o)}."))
        if not color:
            first.append(self._told("color", scene, shape, None, lambda o: f"The {shape} is {o.color}."))
        if not shape:
            answer = f"The {color} shape is {with_article(o.shape)}."
            first.append(self._told("shape", scene, None, color, lambda _: answer))
        if len(scene.objects) == 1:
            first.append(self.describe(scene))
        start = self.rng.choice(first)
        rest = [Turn(self.ask("then_where"), f"It is {place(o)}.", "then_where", (it,))]
        rest = rest if start.type != "where" else []
        if (not color and start.type != "color") or self.rng.random() < 0.15:
            rest.append(Turn(self.ask("then_color"), f"It is {o.color}.", "then_color", (it,)))
        self.rng.shuffle(rest)
        return [start, *rest[: self.rng.choice((1, 2, 2))]]

    # Several pictures, or none ------------------------------------------------------------------------------------

    def about_two(self, first: Scene, second: Scene, is_later: bool) -> Turn:
        """A question when there are two pictures: both in this turn, or the second one later (`is_later`)."""
        luck = self.rng.random()
        if luck < 0.33:
            return Turn(self.ask("first"), self._of_one("first", first), "first", things(first, 0))
        if luck < 0.66:
            return Turn(self.ask("second"), self._of_one("second", second), "second", things(second, 1))
        if luck < 0.86 and is_later:
            asked = self.ask(self.rng.choice(("describe", "newest")))
            return Turn(asked, self._of_one("second", second), "newest", things(second, 1))
        if self.rng.random() < 0.4:  # six things in one answer are too many for it
            return Turn(self.ask("both"), TWO_PICTURES, "two_pictures")
        return Turn(self._about_shapes(), TWO_PICTURES, "two_pictures")

    def about_many(self) -> Turn:
        """A question when there are three pictures or more, which it cannot tell apart."""
        asked = self.rng.choice(("describe", "newest", "newest", "first", "second", "both", ""))
        return Turn(self.ask(asked) if asked else self._about_shapes(), MANY_PICTURES, "many_pictures")

    def _about_shapes(self) -> str:
        """A question about one thing, or about how many there are."""
        while (asked := self.one(World().sample(self.rng, "shapes"))).type in ("describe", "off_topic"):
            pass
        return asked.question

    def _of_one(self, which: str, scene: Scene) -> str:
        shown = contents(scene) if scene.kind != "other" else "something that I do not know"
        return f"The {which} picture shows {shown}."

    def without_picture(self) -> list[Turn]:
        """Turns before there is any picture."""
        if self.rng.random() < 0.25:
            return [self.small_talk()]
        asked = self.one(World().sample(self.rng, self.rng.choice(("shapes", "digit"))))
        return [Turn(asked.question, NO_PICTURE, "no_picture")]
