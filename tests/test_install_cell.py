"""The first cell of every notebook installs the book on Colab, and does nothing anywhere else."""

import subprocess
import sys

import nbformat
import pytest
import yaml
from test_book import BOOK, NOTEBOOKS

INSTALL = {path: next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code") for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_first_cell_installs_on_colab_and_is_the_same_everywhere(path):
    cell, model = INSTALL[path], INSTALL[NOTEBOOKS[0]]
    assert cell.id == "install", f"{path.name} does not begin with the cell `install`: copy it from {NOTEBOOKS[0].name}"
    assert (cell.source, cell.metadata) == (model.source, model.metadata)
    assert "remove-cell" in cell.metadata.tags, "the site has no use for it"


def test_install_cell_names_the_repository_of_the_site():
    config = yaml.safe_load((BOOK / "_config.yml").read_text())
    home = config.get("repository", {}).get("url", "https://github.com/NAME/dart-mllm")
    assert f'home = "{home}"' in INSTALL[NOTEBOOKS[0]].source, f"put {home} into the cells: sed -i 's#https://github.com/NAME/dart-mllm#{home}#'"


def test_install_cell_does_nothing_where_dart_imports(monkeypatch):
    calls, path, seen = [], list(sys.path), {}
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    exec(INSTALL[NOTEBOOKS[0]].source, seen)
    assert not calls and sys.path == path and "home" not in seen

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", list(path))
    exec(INSTALL[NOTEBOOKS[0]].source, {})
    assert [command[:4] for command in calls] == [["git", "clone", "-q", "--depth"], [sys.executable, "-m", "pip", "install"]]
    assert sys.path == ["dart-mllm", *path], "the module is found without a restart"
