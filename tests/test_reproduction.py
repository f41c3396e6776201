"""Experiments: parameters are checked before any work, runs are made once and shared, averages and verdicts are what they say."""

import json
from dataclasses import replace

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import dart
from dart import cli, evaluation, paper, reproduction, results
from dart.evaluation import Interval, Record
from dart.reproduction import Experiment, Parameters, begin
from dart.results import Average
from test_evaluation import folder  # noqa: F401  a tiny model

TINY = dict(limit=4, tasks=["reading"], device="cpu")


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Runs of a test are no runs of the project."""
    monkeypatch.setattr(reproduction, "work", lambda: tmp_path / "build")
    monkeypatch.delenv("DART_COMPUTE", raising=False)
    return tmp_path / "build"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(limt=3), "did you mean limit"),
        (dict(wombat=3), "known are scale, model"),
        (dict(scale="papr"), "use 'bundled' or 'paper'"),
        (dict(tasks="existance"), "did you mean existence"),
        (dict(methods=["fastw"]), "did you mean fastv"),
        (dict(methods=["dart:pivots=3"]), "pivot"),
        (dict(budgets="many"), "give whole numbers"),
        (dict(budgets=[-1]), "0 or above"),
        (dict(seeds=[]), "one or more"),
        (dict(limit=0), "give 1 or more"),
        (dict(device="gpu"), "none that torch knows"),
        (dict(attn_implementation="flash"), "flash_attention_2"),
    ],
)
def test_a_wrong_parameter_stops_at_once(given, said):
    with pytest.raises(ValueError, match=said):
        begin("table-1", {"dart": dart, "In": [], "_": 1, **given})


def test_a_notebook_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="did you mean table-1"):
        begin("table1", {})


def test_parameters_may_come_as_text():
    experiment = Experiment("table-1", Parameters(tasks="reading, pairs", methods="dart fastv", budgets="64", seeds="1,2"))
    assert experiment.tasks == ("reading", "pairs") and experiment.budgets == [64] and experiment.seeds == (1, 2)
    assert [row.label for row in experiment.rows if row.keep and row.model is None] == ["FastV", "DART"]
    assert {row.spec for row in experiment.rows if row.keep} == {"fastv", "dart"}


@pytest.mark.parametrize("name", ["table-1", "table-2", "table-3", "table-4", "table-5", "table-7", "table-8", "table-9"])
def test_a_table_has_the_rows_of_the_paper(name):
    printed = paper.table(name.replace("-", ""))
    mine = [row for row in Experiment(name).rows if row.paper is not None]
    assert [row.paper for row in mine] == list(printed.rows)
    for row in mine[1:]:
        share = row.paper.tokens / printed.vanilla.tokens if row.paper.tokens else 1 - row.paper.reduction
        assert row.keep == round(576 * share)
        assert row.spec is not None or row.why, f"{row.label} is not run, and nothing says why"
        if row.spec:
            assert all(method.keep == row.keep for method in Experiment(name).methods(row))


def test_at_paper_scale_budgets_are_of_the_papers_models():
    def ours(name, label="DART"):
        experiment = Experiment(name, Parameters(scale="paper", device="cpu"))
        return [method for row in experiment.rows if row.label == label for method in experiment.methods(row)]

    assert ours("table-1") == ours("table-9") == [dart.DART(keep=keep) for keep in (192, 128, 64)]
    assert ours("table-2") == ours("table-3") == [dart.DART(keep=320)], "of 2880"
    assert ours("figure-4", "Random")[0].keep == 960
    for name in ("table-4", "table-7"):
        assert ours(name) == [dart.DART(reduction_ratio=removed) for removed in (0.667, 0.778, 0.889)]
        assert ours(name, "FastV") == [], "every picture has another number of tokens"


def test_the_words_in_textvqas_pictures_are_told_to_llava_1_5_only():
    asked = {name: [task for task in target.paper_tasks if task.startswith("textvqa")] for name, target in reproduction.targets().items()}
    assert {name for name, tasks in asked.items() if tasks == ["textvqa-plain"]} == {"table-3", "table-4", "table-5", "table-7", "figure-4"}
    assert all(tasks in (["textvqa"], ["textvqa-plain"], []) for tasks in asked.values())


def test_notes_stand_beside_a_run(tmp_path):
    (tmp_path / "environment.json").write_text('{"device": "none"}')
    record = Record(tmp_path, {}, {}, {"device": "none"}, [], [])
    reproduction.note(record, prompt="vicuna_v1", unlike=[])
    assert record.environment == json.loads((tmp_path / "environment.json").read_text()) == {"device": "none", "prompt": "vicuna_v1"}


def test_other_methods_and_budgets_make_rows_of_their_own():
    experiment = Experiment("table-8", Parameters(methods=["dart:pivot_rule=random", "holov"], budgets=[32]))
    assert [(row.label, row.keep) for row in experiment.rows] == [("unpruned", None), ("DART pivot=random", 32), ("holov", 32)]
    drawn = experiment.methods(experiment.rows[1])
    assert [method.seed for method in drawn] == [0, 1, 2, 3, 4] and all(method.pivot_rule == "random" for method in drawn)
    assert len(experiment.methods(experiment.rows[2])) == 1


def test_rows_with_weights_of_their_own(tmp_path, monkeypatch):
    """They belong to the bundled model at bundled scale, keep their weights at other budgets, and are unpruned at None."""
    for name in reproduction.TRAINED.values():
        (tmp_path / name).mkdir()
    monkeypatch.setattr(dart, "data_root", lambda: tmp_path)
    asked = dict(methods=["dart"], budgets=[64, 32])
    here = Experiment("table-1", Parameters(**asked))
    weights = {"DART": None, **reproduction.TRAINED}
    for keep in (64, 32):
        assert {row.label: row.model for row in here.at(keep)} == weights and all(row.paper is None for row in here.at(32))
    assert {row.label: row.model for row in here.at(None)} == {"unpruned": None, **reproduction.TRAINED}
    assert set(here.wanted()) == set(weights.values())
    fast = Experiment("table-1", Parameters(methods=["fastv"]))
    assert set(fast.wanted()) == {None} and len(fast.at(None)) == 1
    for other in (dict(scale="paper", device="cpu"), dict(model=str(tmp_path))):
        rows = [row for row in Experiment("table-1", Parameters(**other)).rows if row.label in reproduction.TRAINED]
        assert len(rows) == 8 and all(row.spec is row.model is None and "train/bundled.py --prune" in row.why for row in rows)


def test_runs_are_made_once_and_shared(folder, build, monkeypatch):  # noqa: F811
    tiny = Parameters(model=str(folder), **TINY)
    first = Experiment("figure-7", tiny).run(compute=False)
    assert set(first.runs.values()) == {None} and "not run" in first.table(128).to_string() and "not run" in first.provenance()
    assert [row.verdict for row in first.join(128)] == ["not run"] * 3
    asked = []
    answer = evaluation.answer
    monkeypatch.setattr(evaluation, "answer", lambda *args, **kwargs: asked.append(1) or answer(*args, **kwargs))
    made = Experiment("figure-7", tiny).run()
    assert asked and None not in made.runs.values() and not made.older
    asked.clear()
    again = Experiment("figure-7", tiny).run()
    assert not asked
    assert {key: run.answers for key, run in again.runs.items()} == {key: run.answers for key, run in made.runs.items()}
    # another experiment needs only what this one had not
    Experiment("table-8", replace(tiny, methods=["dart"])).run()
    assert not asked
    monkeypatch.setenv("DART_COMPUTE", "0")
    assert None in Experiment("table-8", tiny).run().runs.values() and not asked


def test_a_sweep_makes_what_several_need_and_a_failing_task_stops_no_other(folder, build, monkeypatch):  # noqa: F811
    tiny = Parameters(model=str(folder), limit=2, tasks=["reading", "attributes"], methods=["dart"], budgets=[64], device="cpu")
    experiments = [Experiment("table-1", tiny), Experiment("figure-2", tiny)]
    store = build / "store"
    (build / "eval").mkdir(parents=True)
    (build / "eval" / "attributes").write_text("a file where a folder has to be")
    failed = reproduction.sweep(experiments, jobs=1, store=store, progress=False)
    assert list(failed) == ["attributes"] and {path.parent.name for path in store.glob("*/*")} == {"reading"}
    assert len(list(store.glob("reading/*"))) == 2
    with pytest.raises(ValueError, match="sweep them apart"):
        reproduction.sweep([experiments[0], Experiment("figure-2", replace(tiny, limit=3))])


def records(answers: dict[str, list[str]]) -> dict[str, Record]:
    asked = evaluation.asked_of("reading", 40)
    return {name: Record(None, {"task": "reading", "label": name}, {}, {}, asked, said) for name, said in answers.items()}


def test_an_average_is_the_mean_of_ratios_and_its_interval_is_paired():
    asked = evaluation.asked_of("reading", 40)
    right = [question.answer for question in asked]
    found = records({"plain": right[:30] + ["-"] * 10, "worse": right[:20] + ["-"] * 20, "same": right[:30] + ["+"] * 10})
    average = results.average({"reading": [found["worse"]]}, {"reading": found["plain"]})
    assert average.value == pytest.approx(20 / 30)
    # by hand: the first resamples, drawn again
    weights = evaluation.resamples(asked)
    ours, theirs = (weights @ np.array([a == b for a, b in zip(found[name].answers, right)], float) for name in ("worse", "plain"))
    assert np.allclose(average.drawn, ours / theirs)
    same = results.average({"reading": [found["same"]]}, {"reading": found["plain"]})
    assert same.interval.low == same.interval.high == 1.0, "the same questions are right in every resample"
    seeds = results.average({"reading": [found["worse"], found["plain"]]}, {"reading": found["plain"]})
    assert seeds.value == pytest.approx((20 + 30) / 2 / 30)
    assert results.mean_difference([found["worse"]], found["plain"]).value == pytest.approx(-0.25)


def test_verdicts_go_both_ways():
    def about(value):
        return Average(value, value + np.linspace(-0.01, 0.01, 101))

    dart_row = (0.94, about(0.9))
    assert results.join("worse", 0.77, about(0.5), 9, reference=dart_row).verdict == "same order"
    assert results.join("worse", 0.77, about(0.99), 9, reference=dart_row).verdict == "reversed"
    level = Average(0.901, 0.901 + np.linspace(0.01, -0.01, 101))
    assert results.join("worse", 0.77, level, 9, reference=dart_row).verdict == "undecided"
    assert results.join("DART", *dart_row, 9, reference=dart_row).verdict == "reference"
    assert results.join("none", None, about(0.5), 9, reference=dart_row).verdict == "no value in the paper"
    assert results.join("none", 0.5, None, 9, reference=dart_row).verdict == "not run"
    # values are compared at paper scale only
    assert results.join("value", 0.905, about(0.9), 9).verdict == "agrees"
    differs = results.join("value", 0.95, about(0.9), 9)
    assert differs.verdict == "differs" and differs.difference == pytest.approx(-0.05)


def notebook(path, *sources):
    cells = [new_code_cell("limit = 1", metadata={"tags": ["parameters"]}), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), path)


def test_a_failed_notebook_stops_no_other_and_finished_ones_are_left_alone(tmp_path, build):
    source = tmp_path / "source"
    source.mkdir()
    notebook(source / "good.ipynb", "open('runs.txt', 'a').write(f'{limit}\\n')")
    notebook(source / "bad.ipynb", "raise ValueError(f'limit {limit} is a bad limit')")
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), source / "no-target.ipynb")
    found = reproduction.notebooks(source)
    assert list(found) == ["bad", "good"]
    for _ in range(2):
        failed = reproduction.execute(found, {"limit": 7}, tmp_path / "out", progress=False)
        assert list(failed) == ["bad"], failed
        assert "limit 7 is a bad limit" in failed["bad"]
    assert (source / "runs.txt").read_text() == "7\n"
    reproduction.execute({"good": found["good"]}, {"limit": 8}, tmp_path / "out", progress=False)
    assert (source / "runs.txt").read_text() == "7\n8\n"


def test_notebooks_side_by_side_share_the_cores(tmp_path, build, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(reproduction.os, "cpu_count", lambda: 6)
    for name in ("one", "two"):
        notebook(tmp_path / f"{name}.ipynb", f"import os; open('{name}.txt', 'w').write(os.environ['OMP_NUM_THREADS'])")
    found = reproduction.notebooks(tmp_path)
    assert reproduction.execute(found, {}, tmp_path / "out", jobs=3, progress=False) == {}
    assert [(tmp_path / f"{name}.txt").read_text() for name in found] == ["3", "3"], "two notebooks ran, so each has half"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert reproduction.execute({"one": found["one"]}, {"limit": 2}, tmp_path / "out", progress=False) == {}
    assert (tmp_path / "one.txt").read_text() == "5", "what the reader set stays"


def test_the_command_names_what_it_does_not_know(tmp_path, capsys):
    notebook(tmp_path / "table-1.ipynb")
    assert cli.main(["tables", "tabel-1", "--notebooks", str(tmp_path)]) == 2
    assert "did you mean table-1" in capsys.readouterr().err
    assert cli.main(["tables", "--notebooks", str(tmp_path / "nowhere")]) == 2
    assert "no notebook with a parameter cell" in capsys.readouterr().err


def test_every_target_has_a_notebook_that_asks_for_it():
    pages = reproduction.notebooks(dart.data_root().parent / "book" / "results")
    text = {name: path.read_text() for name, path in pages.items()}
    for target in reproduction.targets():
        assert any(f'\\"{target}\\"' in page for page in text.values()), f"no page begins {target}"
    for name, page in text.items():
        cells = [cell for cell in json.loads(page)["cells"] if cell["cell_type"] == "code"]
        place = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
        names = [line.split(" =")[0] for line in "".join(cells[place]["source"]).splitlines()]
        assert names == list(reproduction.NAMES), f"{name} has other parameters"
        assert "reproduction." in "".join(cells[place + 1]["source"]), f"{name} checks no parameter right behind their cell"


TASK = evaluation.find_task("attributes")
ASKED = list(TASK.questions())[:200]


def answered(right):
    """A run that is right on the questions for which `right(number)` is true."""
    answers = [question.answer if right(number) else "no answer" for number, question in enumerate(ASKED)]
    return Record(None, {"task": "attributes", "right": sum(map(right, range(200)))}, {}, {}, ASKED, answers)


@pytest.fixture
def experiment():
    found = Experiment("figure-7", Parameters(tasks="attributes"))
    both, image, text = found.at(128)
    runs = {
        found.unpruned: lambda n: n % 10 != 0,      # 180 of 200
        both: lambda n: n % 5 != 0,                 # 160 of these
        image: lambda n: n % 5 != 0 and n % 20 != 1,
    }
    for row, right in runs.items():
        found.runs[None, "attributes", found.methods(row)[0]] = answered(right)
    return found


def test_a_difference_is_paired(experiment):
    both, image, text = experiment.at(128)
    found = experiment.difference(image, both)
    assert found.value == pytest.approx(-10 / 180)
    alone = experiment.average(image).interval
    assert found.high < 0 and found.high - found.low < 0.7 * (alone.high - alone.low), "the same questions stand on both sides"
    assert experiment.difference(both, both) == Interval(0, 0, 0)
    assert experiment.difference(text, both) is None


def test_words_follow_the_interval(experiment):
    both, image, text = experiment.at(128)
    assert experiment.verdict(image, both).startswith("clearly below image and text (−5.6 points [−")
    assert experiment.verdict(both, image).startswith("clearly above image only (+5.6 points [")
    assert experiment.verdict(both, both) == "not clearly different from image and text (+0.0 points [0.0, 0.0])"
    assert experiment.verdict(text, both) == "not run"
    assert [reproduction.sign(each) for each in (None, Interval(1, 0.1, 2), Interval(-1, -2, -0.1), Interval(1, -0.1, 2))] == [0, 1, -1, 0]


def test_pictures_come_once_each():
    experiment = Experiment("figure-1", Parameters(limit=40))
    asked = experiment.pictures(30)
    assert len({question.picture_key for question in asked}) == len(asked) == 30
    assert asked[0] == evaluation.asked_of("existence")[0] and asked[-1] in evaluation.asked_of("relations")
    assert len(experiment.pictures(5)) == 5
