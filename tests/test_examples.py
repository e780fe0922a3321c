"""The notebooks in examples/ run from first cell to last, and are kept without output."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def test_there_are_notebooks_and_they_are_small_and_without_output():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert path.stat().st_size < 20_000
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert cell["cell_type"] == "markdown" or (
                cell["outputs"],
                cell["execution_count"],
            ) == (
                [],
                None,
            )


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws(path, tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = [cell for cell in notebook.cells if "inward.show(" in cell.source]
    assert len(shown) == 4
    for cell in shown:
        (output,) = cell.outputs
        picture = output["data"]["text/html"]
        assert picture.startswith("<iframe") and "Content-Security-Policy" in picture
