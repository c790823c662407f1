"""`python -m tests.load`: run the scenarios, write a report; exit code 1 if a figure is not what is allowed."""

import argparse
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.load import faults
from tests.load.report import Row, plot_crowd, report
from tests.load.site import Site, crowd, started
from tests.load.watch import Watch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Scenario = Callable[[Site, bool], list[Row]]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.load", description=__doc__)
    parser.add_argument("--short", action="store_true", help="few requests, and no figure that depends on the machine")
    parser.add_argument("--minutes", type=float, default=5, help="how long the crowd asks (default: %(default)g)")
    parser.add_argument("--only", nargs="+", choices=[*SCENARIOS, "crowd", "signals"], help="these scenarios")
    parser.add_argument("--out", type=Path, default=Path("load"), help="folder of the report (default: %(default)s)")
    options = parser.parse_args(arguments)
    chosen = options.only or [*SCENARIOS, "crowd", "signals"]
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = _run(Path(folder), options, chosen)
    text = report(rows, shlex.join(["python", "-m", "tests.load", *arguments]))
    (options.out / "report.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return int(any(row.is_met is False for row in rows))


def _run(folder: Path, options: argparse.Namespace, chosen: Sequence[str]) -> list[Row]:
    rows: list[Row] = []

    def add(more: list[Row]) -> None:
        rows.extend(more)
        sys.stderr.write("\n".join(f"{r.scenario}: {r.what}: {r.measured} {r.allowed}" for r in more) + "\n")

    signals = SIGNALS[: 1 if options.short else 3] if "signals" in chosen else ()
    questions = 4 if options.short else 24
    with started(folder, questions) as site:
        if "crowd" in chosen:
            add(the_crowd(site, options))
        for name, scenario in SCENARIOS.items():
            if name in chosen:
                add(scenario(site, options.short))
        for number in signals[:1]:
            add(faults.ended(site, number))
    for number in signals[1:]:
        with started(folder, questions) as another:
            add(faults.ended(another, number))
    return rows


def the_crowd(site: Site, options: argparse.Namespace) -> list[Row]:
    """Clients of four interfaces at once, each a caller of its own."""
    users, seconds = (16, 5) if options.short else (64, round(options.minutes * 60))
    with Watch(site.url, site.pid) as watch:
        measured = crowd(site, users, ["--run-time", f"{seconds}s"])
    plot_crowd(watch, options.out / "crowd.png")
    counts = faults.total(measured)
    rows = [Row("crowd", f"answers to {users} clients in {seconds} s", f"{counts.get('right', 0):,}")]
    rows += [Row("crowd", f"of them {name}", str(each.get("right", 0))) for name, each in measured["outcomes"].items()]
    for outcome in ("wrong", "mixed up"):
        rows.append(Row.of("crowd", f"answers {outcome}", counts.pop(outcome, 0), most=0))
    refused = counts.pop("Refused", 0)
    rows.append(Row("crowd", "refused with 429 or 503 and Retry-After", f"{refused}"))
    others = {outcome: count for outcome, count in counts.items() if outcome != "right"}
    words = "; ".join(f"{count} x {outcome}" for outcome, count in others.items())
    rows.append(Row("crowd", "anything else", words or "0", "0").judged(not others))
    first = sorted(measured["first_text_s"])
    rows.append(Row("crowd", "first text, median", f"{first[len(first) // 2]:.2f} s"))
    growth = Row("crowd", f"memory after the warm-up, of {watch.rss_mb[-1]:.0f} MB", f"{watch.growth():+.1%}", "<= 5 %")
    health_ms = watch.percentile_ms(0.99)
    health = Row("crowd", "health, 99th percentile", f"{health_ms:.0f} ms", "<= 50 ms")
    if options.short:
        return [*rows, growth, health]
    return [*rows, growth.judged(watch.growth() <= 0.05), health.judged(health_ms <= 50)]


SCENARIOS: dict[str, Scenario] = {
    "hang-ups": faults.hang_ups,
    "greedy": faults.greedy,
    "silent": faults.silent,
    "disk": faults.full_disk,
    "visits": faults.visits,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
