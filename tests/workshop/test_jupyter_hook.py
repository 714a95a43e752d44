"""What JupyterLab's server is told to keep of a notebook that it saves."""

import json

import nbformat
import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager
from nbformat.v4 import new_code_cell, new_notebook

from embspace_helpers.workshop.notebooks import LANGUAGE, normalise, to_text

HOOK = "embspace_helpers.workshop.jupyter_hook.keep_metadata"


@pytest.fixture
def manager(tmp_path):
    (tmp_path / "a.ipynb").write_text(to_text(normalise(new_notebook(cells=[new_code_cell("1")]))))
    return FileContentsManager(root_dir=str(tmp_path), pre_save_hook=HOOK)


def test_another_python_leaves_the_file_as_it_was(manager, tmp_path):
    before = (tmp_path / "a.ipynb").read_text()
    model = manager.get("a.ipynb")
    model["content"]["metadata"]["language_info"] = {**LANGUAGE, "version": "3.12.1"}
    manager.save(model, "a.ipynb")
    assert json.loads((tmp_path / "a.ipynb").read_text()) == json.loads(before)


def test_what_a_learner_changes_is_saved(manager, tmp_path):
    model = manager.get("a.ipynb")
    model["content"]["cells"][0]["source"] = "2"
    manager.save(model, "a.ipynb")
    assert nbformat.read(tmp_path / "a.ipynb", as_version=4).cells[0].source == "2"


def test_new_notebooks_and_other_files_are_saved_as_they_are(manager, tmp_path):
    new = {"type": "notebook", "format": "json", "content": new_notebook()}
    manager.save(new, "b.ipynb")
    manager.save({"type": "file", "format": "text", "content": "hi"}, "c.txt")
    assert (tmp_path / "b.ipynb").exists() and (tmp_path / "c.txt").read_text() == "hi"
