"""`python -m llava_demo`: the command line, or one line that says why this Python cannot run it."""

import atexit
import os
import sys
import warnings

PROGRAM = "python -m llava_demo"
OLDEST_PYTHON = (3, 11)


def main(arguments=None, program=PROGRAM):  # type: ignore[no-untyped-def]  # an old Python must be able to read this file
    """Run one command and return its exit code; `program` is what messages call it. See `llava_demo.cli`."""
    if sys.version_info < OLDEST_PYTHON:
        sys.stderr.write("%s needs Python 3.11 or newer; this is %d.%d.\n" % (program, *sys.version_info[:2]))  # noqa: UP031
        return 1
    if sys.flags.optimize > 1:  # transformers 5.23 reads its own docstrings when it is imported
        sys.stderr.write(f"{program} needs docstrings, which PYTHONOPTIMIZE=2 and -OO drop; use 1 or -O.\n")
        return 1
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("ignore")  # PYTHONWARNINGS of a developer: a library's warning would end the start
    try:
        from llava_demo import cli

        return cli.main(arguments, program)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "llava_demo"):  # our own defect
            raise
        sys.stderr.write(f"{program}: the package {package} is missing: pip install -r requirements.txt\n")
        return 1


def leave(code):  # type: ignore[no-untyped-def]
    """End the process now. Python's own end frees torch and Gradio object by object: 2.5 s, and 10 s on a busy machine.

    `docker stop` kills after 10 s. Threads that still run, as one that loads a model, end with the process.
    """
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError:  # as for a full disk
        code = code or 1
    os._exit(code)


def entry():  # type: ignore[no-untyped-def]
    """The installed command `llava-demo`."""
    leave(main(program="llava-demo"))


if __name__ == "__main__":
    leave(main())
