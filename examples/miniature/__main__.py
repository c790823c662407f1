"""`python -m examples.miniature train | export | evaluate`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_demo.model import MINIATURE


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.miniature", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a miniature on CPU cores, or on a CUDA GPU")
    train.add_argument("run", type=Path, help="folder of the run")
    train.add_argument("--resume", action="store_true", help="go on with a run that has begun, wherever it was killed")
    train.add_argument("--vision-minutes", type=float, default=14, help="CPU time to learn to see (default 14)")
    train.add_argument("--language-minutes", type=float, default=45, help="CPU time to learn to answer (default 45)")
    train.add_argument("--polish-minutes", type=float, default=19, help="CPU time to become exact (default 19)")
    train.add_argument("--after", type=Path, metavar="CHECKPOINT", help="begin with what this one knows")
    train.add_argument("--processes", type=int, default=2, help="one core each (default 2)")
    export = commands.add_parser("export", help="save what a run has learned so far as a checkpoint")
    export.add_argument("run", type=Path, help="folder of the run")
    export.add_argument("folder", type=Path, help=f"where to save it (ours: {MINIATURE.name}/)")
    export.add_argument(
        "--caution", type=float, default=0.0, help="raise the logit of declining by this much (default 0)"
    )
    export.add_argument(
        "--before",
        type=Path,
        nargs="+",
        default=(),
        metavar="RUN",
        help="earlier runs; the weights are the mean of all, and one that is named twice counts twice",
    )
    evaluate = commands.add_parser(
        "evaluate", help="measure truth per type of question, through processor and generate"
    )
    evaluate.add_argument(
        "folder", type=Path, nargs="?", default=MINIATURE, help="a checkpoint (default: the shipped one)"
    )
    evaluate.add_argument("--pictures", type=int, default=300, help="pictures of each set (default 300)")
    evaluate.add_argument("--near-misses", type=int, default=100, help="pictures of each family (default 100)")
    evaluate.add_argument("--validation", action="store_true", help="other pictures: to choose on, not to report")
    evaluate.add_argument("--photos", type=Path, metavar="FOLDER", help="how many of these are declined, no more")
    evaluate.add_argument("--wrong", type=int, default=0, help="show this many wrong answers of each set")
    evaluate.add_argument("--quantize", choices=("auto", "4bit", "none"), default="auto", help="as for the demo")
    evaluate.add_argument("--card", action="store_true", help="write the tables into the model card beside the weights")
    options = parser.parse_args(arguments)
    {"train": _train, "export": _export, "evaluate": _evaluate}[options.command](options)


def _train(options: argparse.Namespace) -> None:
    from examples.miniature.curve import plot
    from examples.miniature.training import Run, train

    minutes = options.vision_minutes, options.language_minutes, options.polish_minutes
    run = Run(options.run, *minutes, options.processes, options.after)
    if run.has_begun and not options.resume:
        sys.exit(f"{run.folder} holds a run that has begun. Go on with it by --resume, or name another folder.")
    train(run)
    plot(run.log, run.folder / "curve.png")


def _export(options: argparse.Namespace) -> None:
    from examples.miniature.curve import plot
    from examples.miniature.training import export

    export(options.run, options.folder, options.caution, options.before)
    if (log := options.run / "log.jsonl").exists():
        plot(log, options.folder / "curve.png")


def _evaluate(options: argparse.Namespace) -> None:
    from examples.miniature import evaluation as truth

    llava = truth.loaded(options.folder, options.quantize)
    if options.photos:
        sys.stdout.write("{} of {} answers decline.\n".format(*truth.declined_of(llava, options.photos)))
        return
    purpose: truth.Purpose = "validation" if options.validation else "test"
    results = truth.evaluate(llava, options.pictures, purpose)
    near_misses = truth.near_misses_of(llava, options.near_misses, purpose)
    tables = {"table": truth.table(results), "near misses": truth.near_miss_table(near_misses)}
    sys.stdout.write("\n\n".join(tables.values()) + "\n")
    for name, marks in results.items():
        for mark in [mark for mark in marks if not mark.is_right][: options.wrong]:
            asked = f"{name} | {mark.turn.type} | {mark.turn.question}"
            sys.stdout.write(f"{asked} | true: {mark.turn.answer} | said: {mark.answer}\n")
    if options.card:
        truth.write_card(options.folder, tables)


if __name__ == "__main__":
    main()
