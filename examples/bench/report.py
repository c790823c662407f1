"""A run in words: the table for the terminal and for Markdown, the files of a run, and two runs compared."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from examples.bench.figures import NEW_PICTURE, Figure, gain
from examples.bench.run import OURS, PLAIN, Result

JSON_NAME, TABLE_NAME, PLOT_NAME = "bench.json", "bench.md", "bench.png"
_DIGITS = {"tokens/s": 1, "s": 3, "steps": 1, "GB": 2}


class BadReport(ValueError):
    """A file is not a run that `bench --out` wrote; one sentence."""


def heading(result: Result) -> str:
    """What was run, where and when, and whether both sides said the same."""
    about, ours = result.about, result.sides[OURS]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    is_cpu = ours.info.device == "CPU"
    where = f"{about['processor']}, {about['cores']} cores, {ours.limits.threads} used" if is_cpu else ours.info.device
    equal, total = result.equal_answers
    return (
        f"{ours.info.model}, {ours.info.precision}, on {where}; answers of {about['max_tokens']} tokens, rounds: "
        f"{about['rounds']}; {equal} of {total} answers the same on both sides. {about['date'][:10]}, {versions}."
    )


def table(figures: Sequence[Figure], engine: str, has_cpu: bool) -> str:
    """All figures, a row each, in Markdown that is aligned for the terminal as well."""
    rows = [["", "chats", "model card's way", f"{engine} engine", "gain", *(["gain in CPU time"] if has_cpu else [])]]
    for f in figures:
        row = [f.name, str(f.chats or ""), _number(f.plain, f.unit), _number(f.ours, f.unit), _times(f.gain)]
        rows.append([*row, *([_times(f.cpu_gain)] if has_cpu else [])])
    return aligned(rows)


def report(result: Result) -> str:
    """Heading, command and table of a run."""
    info = result.sides[OURS].info
    rows = table(result.figures, info.engine, has_cpu=info.device == "CPU")
    return f"{heading(result)}\n\n`{result.about['command']}`\n\n{rows}\n{ceiling(result)}\n"


def ceiling(result: Result) -> str:
    """How much batching could win at most: each prompt has to be computed once on either side."""
    chats = max(result.measured[PLAIN].crowds)
    crowds = result.measured[PLAIN].crowds[chats]
    answer_s = sum(crowd.seconds for crowd in crowds) / (chats * len(crowds))
    prompt_s = next(figure.plain for figure in result.figures if figure.name == NEW_PICTURE)
    return (
        f"With {chats} at once the model card's way takes {answer_s:.2f} s an answer, {prompt_s:.2f} s of it for the "
        f"prompt. Were all but prompts free, the gain in throughput would be {answer_s / prompt_s:.2f} x."
    )


def write(result: Result, folder: Path) -> list[Path]:
    """Write the run into `folder` as JSON, Markdown and a plot; returns the three paths."""
    from examples.bench.plot import plot  # and matplotlib, which a machine that only measures need not have

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in (JSON_NAME, TABLE_NAME, PLOT_NAME)]
    paths[0].write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(report(result), encoding="utf-8")
    plot(result.figures, result.sides[OURS].info.engine, heading(result)).savefig(paths[2], dpi=150)
    return paths


def comparison(before: Path, after: Path) -> str:
    """Our side of two runs, row by row, and how many times better the second is; files or folders of `--out`.

    Raises:
        BadReport: one of them is not there, or no report.
    """
    old, new = _figures_in(before), _figures_in(after)
    rows = [["", "chats", before.name, after.name, "gain", "gain over the model card's way"]]
    for key in [key for key in new if key in old]:
        was, now = old[key], new[key]
        better = gain(was.ours, now.ours, now.is_more_better)
        beside = f"{_times(was.gain)} → {_times(now.gain)}"
        numbers = (_number(was.ours, was.unit), _number(now.ours, now.unit))
        rows.append([now.name, str(now.chats or ""), *numbers, _times(better), beside])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Rows, the first of them the head, as a Markdown table; the first `words` columns stand left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(cells: Iterable[str]) -> str:
        padded = [
            cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |\n"

    rule = ["-" * w if i < words else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def _figures_in(path: Path) -> dict[tuple[str, int | None], Figure]:
    file = path / JSON_NAME if path.is_dir() else path
    names = [field.name for field in fields(Figure)]
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["figures"]
        figures = [Figure(**{name: row[name] for name in names}) for row in rows]
    except OSError as error:
        raise BadReport(f"{path}: there is no {JSON_NAME} to be read.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadReport(f"{path}: this is no report that bench --out wrote.") from error
    return {figure.key: figure for figure in figures}


def _number(value: float, unit: str) -> str:
    return f"{value:,.{_DIGITS[unit]}f} {unit}"


def _times(value: float | None) -> str:
    return f"{value:.2f} x" if value else ""
