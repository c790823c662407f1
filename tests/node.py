"""Node with the JavaScript clients, for the tests that run JavaScript.

Where there is no Node, no npm or no registry those tests are skipped, unless LLAVA_REQUIRE_NODE=1 forbids it.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CLIENTS = ("@gradio/client@2.7.0", "ollama@0.6.4")
OLDEST_NODE = 20


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a script finds the client; Node looks for packages beside the script only."""
    folder = tmp_path_factory.mktemp("node")
    for command in (
        ["node", "--version"],
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", ".", *CLIENTS],
    ):
        if shutil.which(command[0]) is None:
            _cannot(f"there is no {command[0]} on the PATH")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            _cannot(f"{' '.join(command)} failed: {done.stderr[-300:]}")
        if command[0] == "node" and int(done.stdout.removeprefix("v").split(".")[0]) < OLDEST_NODE:
            _cannot(f"Node is {done.stdout.strip()}; the client needs {OLDEST_NODE}")
    return folder


def _cannot(words: str) -> None:
    if os.environ.get("LLAVA_REQUIRE_NODE") == "1":
        pytest.fail(words)
    pytest.skip(words)
