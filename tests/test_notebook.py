"""The notebook for Colab, run headless from its first cell to its last, with the miniature."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from servers import free_port

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "llava_demo.ipynb"
LIMIT_S = 400  # for one cell


# pyzmq warns of event loops that only Windows has, nbclient of a coroutine that it drops when the kernel has ended
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LLAVA_MODEL": "miniature", "LLAVA_PORT": str(free_port()), "LLAVA_SHARE": "false"}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    client = NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    *_, page, ask, end = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "Ask a picture" in text_of(page)
    assert text_of(ask).strip() == "The image shows a red circle and a blue square."
    assert end.outputs[0].data["text/plain"] in ("-15", "0")


def text_of(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_is_kept_without_what_somebody_ran() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
