"""The store is what the code of today answers, and the tables run from their commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import dart
from dart import bundled, results
from dart.tasks import files

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "tasks")]

import published  # noqa: E402
from test_evaluation import folder  # noqa: E402, F401  a tiny model


def test_a_slice_of_the_sweep_made_from_nothing_agrees_with_the_store():
    """Other runs at every commit would hide a change: the slice is every method of every model once, on tasks in turn."""
    runs: dict[tuple, list] = {}
    for run in results.find():
        runs.setdefault((run.settings["model"], run.settings["method"] and run.settings["method"]["name"]), []).append(run)
    assert len([name for model, name in runs if model == "model"]) == 1 + len(dart.METHODS)
    models = {name: bundled.load(dart.data_root() / name) for name in {name for name, _ in runs}}
    wrong = {}
    for number, ((name, _), several) in enumerate(runs.items()):
        run = several[number * 7 % len(several)]
        [agree] = results.recheck([run], *models[name], n=16)
        if agree < 15 / 16:
            wrong[run.folder.name] = agree
    assert not wrong, f"these runs are answered otherwise now: {wrong}"


def test_no_stored_run_is_of_older_code():
    older = [run.folder.name for run in results.find() if not run.current]
    assert not older, f"{len(older)} runs were made by older code, {older[0]} is one; run: dart results verify"


def test_two_tables_run_from_one_command(tmp_path):
    """A small limit makes the runs anew; the second call leaves everything as it is."""
    command = [sys.executable, "-m", "dart", "tables", "figure-7", "tables-4-5-7-and-9", "--limit", "4", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "DART_COMPUTE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = [nbformat.read(path, 4).cells for path in tmp_path.glob("*.ipynb")]
    shown = [json.dumps(cell.outputs) for cells in pages for cell in cells if cell.cell_type == "code"]
    assert len(pages) == 2 and not any("not run" in output for output in shown)
    before = {path: path.stat().st_mtime for path in tmp_path.glob("*.ipynb")}
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
    assert before == {path: path.stat().st_mtime for path in tmp_path.glob("*.ipynb")}


def test_table_1_runs_at_paper_scale_on_published_files(folder, tmp_path):  # noqa: F811
    """The paper's own run, with a tiny random model in the place of LLaVA-1.5-7B and a few questions of each benchmark."""
    benchmarks = tmp_path / "benchmarks"
    for name in ("pope", "mme", "gqa", "textvqa", "scienceqa"):
        getattr(published, name)(benchmarks / files.HOMES.get(name, name))
    tasks = "pope, mme, gqa, textvqa, scienceqa"
    command = [Path(sys.executable).with_name("papermill"), ROOT / "book" / "results" / "table-1.ipynb", tmp_path / "out.ipynb"]
    command += ["-p", "scale", "paper", "-p", "model", folder, "-p", "tasks", tasks, "-p", "methods", "dart fastv random", "-p", "budgets", "64"]
    environment = {name: value for name, value in os.environ.items() if name != "DART_COMPUTE"} | {"DART_BENCHMARKS": str(benchmarks)}
    done = subprocess.run(list(map(str, command)), cwd=ROOT / "book" / "results", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = {cell.id: cell for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells}
    shown = json.dumps(cells["ours"].outputs)
    assert "pope (f1)" in shown and "not run" not in shown
    assert "Scale paper" in json.dumps(cells["experiment"].outputs)


@pytest.mark.parametrize(("name", "value", "said"), [("bugdets", "64", "did you mean budgets"), ("scale", "papr", "use 'bundled' or 'paper'")])
def test_a_wrong_parameter_stops_a_notebook_at_once(name, value, said, tmp_path):
    command = [Path(sys.executable).with_name("papermill"), "table-1.ipynb", tmp_path / "out.ipynb", "-p", name, value]
    done = subprocess.run(list(map(str, command)), cwd=ROOT / "book" / "results", capture_output=True, text=True)
    assert done.returncode != 0 and said in done.stderr
    executed = [cell.id for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells if cell.get("execution_count") is not None]
    assert executed[-1] == "experiment", "nothing runs after the parameters were refused"
