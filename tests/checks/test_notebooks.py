"""The notebooks run outside the book as well."""

import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]


def test_papermill_runs_a_chapter_from_anywhere(tmp_path):
    """papermill runs in the caller's folder, so a chapter must find its data without knowing where it stands."""
    papermill = Path(sys.executable).with_name("papermill")
    chapter = ROOT / "book/why/what-duplication-is.ipynb"
    subprocess.run([papermill, chapter, "run.ipynb", "--execution-timeout", "300"], cwd=tmp_path, check=True)
    cells = nbformat.read(tmp_path / "run.ipynb", as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code" and cell.source.strip())
