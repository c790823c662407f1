"""`python -m examples.miniature train | evaluate`."""

import argparse
import dataclasses
import sys
from pathlib import Path

from llava_demo.model import MINIATURE


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.miniature", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a miniature from nothing; two processes of one core each")
    train.add_argument("run", type=Path, help="folder of the run; lessons that are finished there are not repeated")
    train.add_argument(
        "--export", type=Path, metavar="MINIATURE", help=f"save the checkpoint there (ours: {MINIATURE.name}/)"
    )
    train.add_argument("--vision-minutes", type=float, default=14, help="time to learn to see (default 14)")
    train.add_argument("--language-minutes", type=float, default=45, help="time to learn to answer (default 45)")
    train.add_argument("--polish-minutes", type=float, default=19, help="time to become exact (default 19)")
    train.add_argument("--after", type=Path, metavar="RUN", help="go on from what an earlier run has learned")
    train.add_argument("--processes", type=int, default=2, help="one core each (default 2)")
    evaluate = commands.add_parser(
        "evaluate", help="measure truth per type of question, through processor and generate"
    )
    evaluate.add_argument(
        "folder", type=Path, nargs="?", default=MINIATURE, help="a checkpoint (default: the shipped one)"
    )
    evaluate.add_argument("--pictures", type=int, default=300, help="pictures of each set (default 300)")
    evaluate.add_argument("--wrong", type=int, default=0, help="show this many wrong answers of each set")
    evaluate.add_argument("--quantize", choices=("auto", "4bit", "none"), default="auto", help="as for the demo")
    evaluate.add_argument("--card", action="store_true", help="write the table into the model card beside the weights")
    options = parser.parse_args()
    if options.command == "train":
        _train(options)
    else:
        _evaluate(options)


def _train(options: argparse.Namespace) -> None:
    from examples.miniature.curve import plot
    from examples.miniature.training import Run, export, train

    run = Run(options.run, options.vision_minutes, options.language_minutes, options.polish_minutes, options.processes)
    run = dataclasses.replace(run, after=options.after)
    train(run)
    plot(run.log, run.folder / "curve.png")
    if options.export:
        export(run, options.export)
        plot(run.log, options.export / "curve.png")


def _evaluate(options: argparse.Namespace) -> None:
    from examples.miniature.evaluation import evaluate, loaded, table, write_card

    results = evaluate(loaded(options.folder, options.quantize), options.pictures)
    sys.stdout.write(table(results) + "\n")
    for name, marks in results.items():
        for mark in [mark for mark in marks if not mark.is_right][: options.wrong]:
            asked = f"{name} | {mark.turn.type} | {mark.turn.question}"
            sys.stdout.write(f"{asked} | true: {mark.turn.answer} | said: {mark.answer}\n")
    if options.card:
        write_card(options.folder, table(results))


if __name__ == "__main__":
    main()
