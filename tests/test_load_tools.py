"""The short form of `python -m tests.load`: every scenario against a real server, with few requests."""

import subprocess
import sys
from pathlib import Path

from processes import ROOT

SCENARIOS = ("crowd", "hang-ups", "greedy", "silent", "full disk", "visits", "SIGTERM")


def test_the_short_form_finds_nothing_wrong_and_writes_a_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.load", "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert done.returncode == 0, report + done.stderr
    assert [name for name in SCENARIOS if f"| {name} |" in report] == list(SCENARIOS)
    assert "**no**" not in report
    assert (tmp_path / "crowd.png").stat().st_size > 10_000
