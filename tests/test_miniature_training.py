"""A training run of the miniature: killed, gone on with, exported."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from examples.miniature.__main__ import main
from examples.miniature.architecture import build
from examples.miniature.evaluation import loaded
from examples.miniature.processor import saved_processor
from examples.miniature.training import export


@pytest.fixture
def denormals():
    """Training flushes them; other tests shall not."""
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("denormals")
def test_a_killed_run_goes_on_where_it_was_and_its_checkpoint_is_exported(tmp_path):
    """From nothing to a folder that `from_pretrained` takes, through all three lessons, killed in the first one."""
    run, part = tmp_path / "run", tmp_path / "run" / "vision.part"
    command = [sys.executable, "-m", "examples.miniature", "train", str(run), "--processes", "1"]
    with subprocess.Popen([*command, "--vision-minutes", "9"], start_new_session=True) as first:
        while not part.exists() and first.poll() is None:
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGKILL)
    saved = torch.load(part)["numbers"]
    with pytest.raises(SystemExit, match="--resume"):
        main(["train", str(run)])
    times = ["--vision-minutes", "0.0001", "--language-minutes", "0.02", "--polish-minutes", "0.01"]
    main(["train", str(run), "--processes", "1", *times, "--resume"])
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {row["lesson"] for row in rows} == {"vision", "language", "polish"}
    assert [row["step"] for row in rows if row["lesson"] == "vision"][-1] == saved["step"]
    assert (run / "curve.png").stat().st_size > 5000
    main(["export", str(run), str(tmp_path / "model")])
    assert loaded(tmp_path / "model").image_tokens == 64


def test_an_unfinished_run_exports_the_running_mean(tmp_path):
    saved_processor(tmp_path / "processor")
    model, average = build(), AveragedModel(build())
    torch.save({"model": model.state_dict(), "average": average.state_dict()}, tmp_path / "language.part")
    export(tmp_path, tmp_path / "model")
    mean = average.module.lm_head.weight
    assert torch.equal(loaded(tmp_path / "model").model.lm_head.weight, mean.half().float())
