"""The figures of a run: from what was measured to rows that can be read, compared and drawn. Knows no engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from examples.bench.measures import RUNNING, Crowd, First, Memory, Newcomer, Visits

PERCENTILE = 0.95
THROUGHPUT, STEP = "throughput", "from one token to the next, median"
NEW_PICTURE = "first token, new picture"
FOLLOW_UP, PAUSE = "first token, next question on it", f"longest pause of {RUNNING} chats as one more comes"


@dataclass(frozen=True)
class Figure:
    """One row: what was measured, on both sides. `cpu` is the same figure in CPU seconds, where it is a time."""

    name: str
    unit: str  # "tokens/s", "s", "steps", "GB"
    plain: float
    ours: float
    chats: int | None = None
    plain_cpu: float | None = None
    ours_cpu: float | None = None

    @property
    def key(self) -> tuple[str, int | None]:
        return self.name, self.chats

    @property
    def words(self) -> str:
        return self.name if self.chats is None else f"{self.name}, {self.chats} at once"

    @property
    def is_more_better(self) -> bool:
        return self.unit == "tokens/s"

    @property
    def gain(self) -> float:
        """How many times better ours is: more tokens a second, or less of what a user waits or pays for."""
        return gain(self.plain, self.ours, self.is_more_better)

    @property
    def cpu_gain(self) -> float | None:
        if self.plain_cpu is None or self.ours_cpu is None:
            return None
        return gain(self.plain_cpu, self.ours_cpu, self.is_more_better)


@dataclass
class Measured:
    """All that one side was measured by, in the order of the rounds."""

    crowds: dict[int, list[Crowd]] = field(default_factory=dict)
    visits: list[Visits] = field(default_factory=list)
    newcomers: list[Newcomer] = field(default_factory=list)
    memory: Memory | None = None

    def add(self, result: Crowd | Visits | Newcomer | Memory) -> None:
        """Keep what a job of `measures` returned."""
        if isinstance(result, Crowd):
            self.crowds.setdefault(len(result.firsts), []).append(result)
        elif isinstance(result, Visits):
            self.visits.append(result)
        elif isinstance(result, Newcomer):
            self.newcomers.append(result)
        else:
            self.memory = result


def gain(before: float, now: float, is_more_better: bool) -> float:
    """How many times better `now` is than `before`; 0 where it cannot be said."""
    good, bad = (now, before) if is_more_better else (before, now)
    return good / bad if bad else 0.0


def figures_of(plain: Measured, ours: Measured) -> list[Figure]:
    """The rows of the table. Rounds are pooled: totals are added, of single times the median is taken."""
    rows = []
    for chats in ours.crowds:
        rows += _crowd_figures(chats, plain.crowds[chats], ours.crowds[chats])
    for name, pick in _VISITS.items():
        rows.append(_first_figure(name, [pick(v) for v in plain.visits], [pick(v) for v in ours.visits], median))
    theirs, mine = (median(n.steps for n in side.newcomers) for side in (plain, ours))
    rows.append(Figure(PAUSE, "steps", theirs, mine))
    firsts = [n.first for n in plain.newcomers], [n.first for n in ours.newcomers]
    rows.append(_first_figure("first token of the one that comes", firsts[0], firsts[1], median))
    if plain.memory and ours.memory:
        rows.append(Figure("most memory", "GB", plain.memory.most_bytes / 2**30, ours.memory.most_bytes / 2**30))
    return rows


def equal_answers(plain: Measured, ours: Measured) -> tuple[int, int]:
    """How many answers of the crowds were the same on both sides, and how many there were."""
    pairs = [
        pair
        for chats, crowds in ours.crowds.items()
        for theirs, mine in zip(plain.crowds[chats], crowds, strict=True)
        for pair in zip(theirs.texts, mine.texts, strict=True)
    ]
    return sum(one == other for one, other in pairs), len(pairs)


_VISITS: dict[str, Callable[[Visits], First]] = {
    NEW_PICTURE: lambda visits: visits.new,
    FOLLOW_UP: lambda visits: visits.follow_up,
    "first token, another user's question on it": lambda visits: visits.another_user,
}
_SPREAD: dict[str, Callable[[Sequence[float]], float]] = {
    "median": median,
    "95th percentile": lambda times: sorted(times)[min(len(times) - 1, int(PERCENTILE * len(times)))],
    "longest": max,
}


def _crowd_figures(chats: int, plain: list[Crowd], ours: list[Crowd]) -> list[Figure]:
    rows = [
        Figure(
            THROUGHPUT,
            "tokens/s",
            _rate(plain, lambda crowd: crowd.seconds),
            _rate(ours, lambda crowd: crowd.seconds),
            chats,
            _rate(plain, lambda crowd: crowd.cpu_s),
            _rate(ours, lambda crowd: crowd.cpu_s),
        )
    ]
    theirs, mine = ([first for crowd in side for first in crowd.firsts] for side in (plain, ours))
    for name, pick in list(_SPREAD.items())[: None if chats > 1 else 1]:  # one chat has no spread
        rows.append(_first_figure(f"first token, {name}", theirs, mine, pick, chats))
    before, now = (median(crowd.step_s for crowd in side) for side in (plain, ours))
    return [*rows, Figure(STEP, "s", before, now, chats)]


def _rate(side: list[Crowd], seconds: Callable[[Crowd], float]) -> float:
    return sum(crowd.tokens for crowd in side) / sum(map(seconds, side))


def _first_figure(
    name: str, plain: list[First], ours: list[First], pick: Callable[[Sequence[float]], float], chats: int | None = None
) -> Figure:
    return Figure(
        name,
        "s",
        pick([first.seconds for first in plain]),
        pick([first.seconds for first in ours]),
        chats,
        pick([first.cpu_s for first in plain]),
        pick([first.cpu_s for first in ours]),
    )
