"""The notebooks of the lecture: committed without outputs, and every cell of theirs runs."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

import sightline as sl

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The quickest one is run by a kernel in every run of the tests.
QUICKEST = "1_weights"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def read_code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def read_source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_there_are_six() -> None:
    assert [path.stem[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5", "6"]


@every_notebook
def test_holds_no_outputs(path: Path) -> None:
    for cell in read_code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@every_notebook
def test_methods_and_parameters_exist(path: Path) -> None:
    """Each call of a method names parameters that it has."""
    methods = sl.load_methods()
    for cell in read_code_cells(path):
        for node in ast.walk(ast.parse(read_source(cell))):
            is_ours = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_ours and node.func.attr in methods:
                names = [keyword.arg for keyword in node.keywords if keyword.arg]
                methods[node.func.attr].check_parameter_names(dict.fromkeys(names))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem == QUICKEST else pytest.mark.slow)
        for path in NOTEBOOKS
    ],
)
def test_a_kernel_runs_it(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few steps; each cell that ends with a result shows a picture."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("SIGHTLINE_QUICK", "1")
    # A debugger's warning about frozen modules would be an error here.
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("<img" in output.get("data", {}).get("text/html", "") for output in outputs)


def test_bars_are_drawn_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bar a run, changed in place until it is full; nothing on the error stream."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    code = (
        "from types import SimpleNamespace\n"
        "from sightline.registry.progress_bar import ProgressBar\n"
        "bar = ProgressBar('a < b')\n"
        "for step in range(1, 8):\n"
        "    bar(SimpleNamespace(index=step, total=7))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (output,) = notebook.cells[0].outputs
    assert output["data"]["text/html"] == '<progress value="7" max="7"></progress> a &lt; b 7/7'
