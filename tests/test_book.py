"""The pages of the book are complete and clean, and the strict build refuses broken ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

BOOK = Path(__file__).parent.parent / "book"
TOC = yaml.safe_load((BOOK / "_toc.yml").read_text())
NAMES = [TOC["root"]] + [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
NOTEBOOKS = sorted(path for path in BOOK.rglob("*.ipynb") if not {"_build", ".ipynb_checkpoints"} & set(path.parts))


def source(name):
    """The text of a page: the file itself, or the cells of a notebook."""
    page, notebook = BOOK / f"{name}.md", BOOK / f"{name}.ipynb"
    assert page.exists() != notebook.exists(), f"{name} must be one file, .md or .ipynb"
    if page.exists():
        return page.read_text()
    return "\n\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells)


@pytest.mark.parametrize("name", NAMES)
def test_page_has_a_title_and_says_something(name):
    lines = source(name).splitlines()
    titles = [line for line in lines if line.startswith("# ")]
    assert titles, f"{name} has no title"
    assert len(" ".join(lines).split()) > 100, f"{name} is all but empty"
    assert "_" not in name, "names of pages use hyphens"


def test_every_page_is_in_the_table_of_contents():
    pages = {path for path in BOOK.rglob("*.md") if "_build" not in path.parts} | set(NOTEBOOKS)
    assert {str(path.relative_to(BOOK).with_suffix("")) for path in pages} == set(NAMES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_stripped(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor >= 5) == (4, True), "cell ids need format 4.5"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3", "papermill and JupyterLab start the kernel by this name"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"cell {cell.id} still has outputs"


def build(folder, index, code="1 + 1"):
    """Build a book of two pages with the settings of the real one, as `make book` does."""
    shutil.copy(BOOK / "_config.yml", folder)
    shutil.copy(BOOK / "references.bib", folder)
    shutil.copytree(BOOK / "_static", folder / "_static")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters: [{file: page}]\n")
    (folder / "index.md").write_text(f"# A book\n\n{index}\n")
    cells = [nbformat.v4.new_markdown_cell("# A page"), nbformat.v4.new_code_cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "page.ipynb")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", folder, "-W", "-n", "--keep-going"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return run.returncode, run.stdout


def test_a_sound_book_builds(tmp_path):
    """Without this the tests below could pass for a reason of their own."""
    code, log = build(tmp_path, "Fine, says {cite:t}`wen2025dart` of [the page](page.ipynb).\n\n```{bibliography}\n```")
    assert code == 0, log


def test_a_raising_cell_fails_the_build(tmp_path):
    code, log = build(tmp_path, "Fine.", code="raise RuntimeError('planted')")
    assert code != 0 and "planted" in log


def test_a_warning_fails_the_build(tmp_path):
    broken = ["[a page](no-page.md)", "{ref}`no-label`", "{cite:p}`no-book`", "{eq}`no-formula`"]
    code, log = build(tmp_path, "\n\n".join(broken))
    assert code != 0
    warnings = "\n".join(line for line in log.splitlines() if "WARNING" in line)
    for name in ["no-page", "no-label", "no-book", "no-formula"]:
        assert name in warnings, f"{name} passed in silence"
