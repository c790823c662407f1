"""A run: both sides are asked the same, by turns, so that whatever else the machine does hits both."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from examples.bench import measures
from examples.bench.figures import Figure, Measured, equal_answers, figures_of
from examples.bench.machine import about_here
from examples.bench.side import Loaded, Maker, Side, our_engine, plain_way
from llava_demo.settings import Settings

PLAIN, OURS = "plain", "ours"  # the model card's way, and the engine that was asked for


@dataclass(frozen=True)
class Measuring:
    """How much is asked. A round asks everything once, about pictures that no round before has used."""

    chats: tuple[int, ...] = (1, 4, 8, 16)
    max_tokens: int = 48
    rounds: int = 2


@dataclass(frozen=True)
class Result:
    """A run, ready to be written down."""

    figures: list[Figure]
    about: dict[str, Any]  # date, machine, versions, model, what was asked
    sides: dict[str, Loaded]
    measured: dict[str, Measured]

    @property
    def equal_answers(self) -> tuple[int, int]:
        """How many answers of the crowds were the same on both sides, and how many there were."""
        return equal_answers(self.measured[PLAIN], self.measured[OURS])

    def as_json(self) -> dict[str, Any]:
        return {
            "about": self.about | {"equal_answers": self.equal_answers},
            "sides": {name: asdict(loaded) for name, loaded in self.sides.items()},
            "figures": [asdict(figure) | {"gain": figure.gain, "cpu_gain": figure.cpu_gain} for figure in self.figures],
            "measured": {name: asdict(measured) for name, measured in self.measured.items()},
        }


@dataclass(frozen=True)
class Step:
    """One thing that a side is asked to do: `job` is a function of `measures`."""

    words: str  # for the progress bar
    job: Callable[..., Awaitable[Any]]
    arguments: tuple[Any, ...] = ()
    is_kept: bool = True


def measure(settings: Settings, asked: Measuring) -> Result:
    """Load both sides and put them through the same steps.

    Raises:
        SideFailed: one of them cannot be loaded, or failed.
    """
    steps = steps_of(asked)
    with ExitStack() as stack, tqdm(total=2 * (1 + len(steps)), unit="step", leave=False) as bar:
        sides = []
        for name, make in ((PLAIN, plain_way), (OURS, our_engine)):
            sides.append(stack.enter_context(loaded_side(name, make, settings, bar)))
        measured = put_through(sides, steps, bar)
        loaded = {side.name: side.loaded for side in sides}
    about = about_here() | {"model": loaded[OURS].info.model, "device": loaded[OURS].info.device} | asdict(asked)
    return Result(figures_of(measured[PLAIN], measured[OURS]), about, loaded, measured)


def steps_of(asked: Measuring) -> list[Step]:
    """The warm-up, the rounds, and at last the memory that they took."""
    steps = [Step("warming up", measures.crowd, ("warm-up", min(2, *asked.chats), measures.SHORT), is_kept=False)]
    for number in range(asked.rounds):
        label = f"round {number + 1}"
        for chats in asked.chats:
            arguments = (f"{label}, {chats} chats", chats, asked.max_tokens)
            steps.append(Step(f"{label}, {chats} at once", measures.crowd, arguments))
        steps.append(Step(f"{label}, a second look", measures.visits, (f"{label}, visits", asked.max_tokens)))
        steps.append(Step(f"{label}, a newcomer", measures.newcomer, (f"{label}, newcomer", 2 * asked.max_tokens)))
    return [*steps, Step("memory", measures.memory)]


def loaded_side(name: str, make: Maker, settings: Settings, bar: "tqdm[Any]") -> Side:
    """A side, ready to be asked; a step of the bar."""
    bar.set_description(f"{name}: loading")
    side = Side(name, make, settings)
    bar.update()
    return side


def put_through(sides: Sequence[Side], steps: Iterable[Step], bar: "tqdm[Any]") -> dict[str, Measured]:
    """All steps, each by one side after the other; who is first changes from step to step."""
    measured = {side.name: Measured() for side in sides}
    for number, step in enumerate(steps):
        for side in sides if number % 2 else reversed(sides):
            bar.set_description(f"{side.name}: {step.words}")
            result = side.run(step.job, *step.arguments)
            if step.is_kept:
                measured[side.name].add(result)
            bar.update()
    return measured
