"""docs/three_tasks.ipynb, executed in a fresh process, as a reader does it."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY


@pytest.fixture
def notebook():
    return nbformat.read(REPOSITORY / "docs" / "three_tasks.ipynb", as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.docs
def test_the_notebook_runs_and_shows_its_pictures(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("DIGITDOODLE_EPOCHS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert list(tmp_path.iterdir()) == []
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == 5


def test_what_the_notebook_shows_is_of_no_machine_in_particular(notebook):
    shown = outputs(notebook)
    assert sum("image/png" in output.get("data", {}) for output in shown) == 5
    assert [output.text for output in shown if output.get("name") == "stderr"] == []
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in shown]
    assert not re.search(r"(^|\s)/\w", "\n".join(texts))
    assert len(nbformat.writes(notebook)) < 400_000
