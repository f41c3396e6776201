"""Evaluation: shared work gives the plain answers, kills lose nothing, intervals mean what they say."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dart
from dart import bundled, cli, evaluation, scenes

ROOT = Path(__file__).parents[1]
METHODS = [None, dart.DART(keep=64), dart.Random(keep=64, seed=0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with weights so large that its answers differ from question to question."""
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "train" / "bundled.py")
    recipe = sys.modules["recipe"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    sizes = recipe.Recipe(width=32, layers=4, heads=2, ffn=64, vision_width=64, vision_layers=3)
    model, path = recipe.make_model(sizes, recipe.make_tokenizer()), tmp_path_factory.mktemp("tiny")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(8)
    model.save_pretrained(path)
    recipe.make_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return bundled.load(folder)


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_batches_with_shared_features_give_the_plain_answers(loaded):
    model, processor = loaded
    asked = [*scenes.questions("existence")[:10], *scenes.questions("relations")[:10]]
    together = evaluation.answer(model, processor, asked, METHODS, tokens=4)
    assert len(set(together[0])) > 5, "answers that are all alike would prove nothing"
    for method, answers in zip(METHODS, together):
        for question, said in zip(asked, answers):
            inputs = processor(text=bundled.prompt(question.text), images=question.picture(), return_tensors="pt")
            with dart.prune(model, method) if method else evaluation.nullcontext():
                plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            assert said == processor.decode(plain[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_tower_sees_each_picture_once_for_all_methods(loaded):
    model, processor = loaded
    seen = []
    hook = model.model.vision_tower.register_forward_hook(lambda module, args, kwargs, out: seen.append(len(out[0])), with_kwargs=True)
    evaluation.sweep(model, METHODS, "existence", processor=processor, limit=36, batch=18, progress=False)
    hook.remove()
    assert seen == [1, 1], "36 questions on two pictures, 18 a batch, three methods"


def test_pruning_reaches_the_model(loaded):
    model, processor = loaded
    asked = scenes.questions("existence")[:18]
    plain, kept, blind = evaluation.answer(
        model, processor, asked, [None, dart.DART(keep=576), dart.Random(keep=0, seed=0)], tokens=4
    )
    assert plain == kept
    assert plain != blind


def test_a_killed_run_loses_nothing_and_counts_nothing_twice(folder, tmp_path):
    arguments = ["eval", "--model", str(folder), "--tasks", "existence", "--methods", "unpruned", "random"]
    arguments += ["--keep", "16", "--limit", "90", "--batch", "5", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "dart", *arguments, str(killed)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while len(list(killed.glob("*/*/predictions.jsonl"))) < 2 or not any(len(lines(run)) >= 10 for run in killed.glob("*/*")):
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = killed.glob("*/unpruned-*")
    before = lines(run)
    assert 10 <= len(before) < 90
    with (run / "predictions.jsonl").open("a") as file:
        file.write('{"index": 89, "ans')  # as a kill in the middle of a write leaves it

    for out in (killed, whole):
        assert cli.main([*arguments, str(out)]) == 0
    assert lines(run)[: len(before)] == before, "what was answered is not asked again"
    for name in ("unpruned-*", "random-16-*"):
        (one,), (other,) = killed.glob(f"*/{name}"), whole.glob(f"*/{name}")
        assert sorted(entry["index"] for entry in lines(one)) == list(range(90))
        answers = [{entry["index"]: entry["answer"] for entry in lines(each)} for each in (one, other)]
        assert answers[0] == answers[1]
        assert (one / "metrics.json").read_text() == (other / "metrics.json").read_text()


def test_methods_that_got_differently_far_are_completed(loaded, tmp_path):
    model, processor = loaded
    options = {"processor": processor, "folder": tmp_path, "limit": 18, "progress": False, "tokens": 1}
    first = evaluation.sweep(model, METHODS, "existence", batch=6, **options)
    for record, kept in zip(first, (12, 7, 0)):
        whole = lines(record.folder)
        (record.folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in whole[:kept]))
    again = evaluation.sweep(model, METHODS, "existence", batch=5, **options)
    for one, other in zip(first, again):
        assert sorted(line["index"] for line in lines(other.folder)) == list(range(18))
        assert one.answers == other.answers


def test_a_finished_run_is_read_and_not_repeated(loaded, tmp_path):
    model, processor = loaded
    options = {"processor": processor, "folder": tmp_path, "limit": 18, "progress": False}
    first = evaluation.run(model, None, "existence", **options)
    model.generate, real = None, model.generate  # a call would fail
    try:
        again = evaluation.run(model, None, "existence", **options)
    finally:
        del model.generate
    assert model.generate.__func__ is real.__func__
    assert again.answers == first.answers and again.metrics == first.metrics
    assert json.loads((first.folder / "environment.json").read_text())["answered"] == 18


def test_other_weights_or_questions_make_another_run(loaded, tmp_path):
    model, processor = loaded
    options = {"processor": processor, "folder": tmp_path, "progress": False}
    first = evaluation.run(model, None, "existence", limit=6, **options)
    assert evaluation.run(model, None, "existence", limit=7, **options).folder != first.folder
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    try:
        assert evaluation.run(model, None, "existence", limit=6, **options).folder != first.folder
    finally:
        with torch.no_grad():
            model.lm_head.weight[0, 0] -= 1


def test_groups_stay_whole_under_a_limit(loaded):
    model, processor = loaded
    options = {"processor": processor, "progress": False, "tokens": 1}
    assert evaluation.run(model, None, "choice", limit=5, **options).settings["n"] == 8
    assert evaluation.run(model, None, "pairs", limit=4, **options).settings["n"] == 4
    with pytest.raises(ValueError, match="limit=0"):
        evaluation.run(model, None, "pairs", limit=0, **options)


@pytest.mark.parametrize("name", scenes.TASKS)
def test_weights_count_like_repeated_questions(name):
    task = evaluation.find_task(name)
    asked = list(task.questions())
    dice = np.random.default_rng(0)
    answers = [q.answer if dice.random() < 0.7 else str(dice.choice(q.choices)) for q in asked]
    weights = evaluation.resamples(asked, times=3)
    drawn = task.score(asked, answers, weights)
    for row in range(3):
        repeated, said = [], []
        for question, answer, times in zip(asked, answers, weights[row].astype(int)):
            for copy in range(times):  # a repeated picture brings groups of its own
                group = None if question.group is None else (question.group, copy)
                repeated.append(replace(question, group=group))
                said.append(answer)
        expected = task.score(repeated, said)
        for metric, value in expected.items():
            assert drawn[metric][row] == pytest.approx(value, abs=1e-6), metric


def test_intervals_cover_the_truth_and_widen_for_shared_pictures():
    task = evaluation.find_task("reading")
    asked = list(task.questions())
    dice, covered = np.random.default_rng(1), 0
    for _ in range(40):
        answers = [q.answer if dice.random() < 0.8 else "" for q in asked]
        interval = evaluation.intervals(task, asked, answers)["accuracy"]
        assert interval.low < interval.value < interval.high and 0.05 < interval.high - interval.low < 0.09
        covered += interval.low <= 0.8 <= interval.high
    assert covered >= 34  # of 40; 38 are expected
    # ten copies of each question are no more evidence than one
    answers = [q.answer if dice.random() < 0.8 else "" for q in asked]
    once, copied = (evaluation.intervals(task, asked * n, answers * n)["accuracy"] for n in (1, 10))
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.1)


def test_strata_are_scored_apart():
    task = evaluation.find_task("choice")
    asked = list(task.questions())
    answers = [q.answer if q.scene.background == "photo" else "" for q in asked]
    metrics = evaluation.intervals(task, asked, answers)
    assert [metrics[f"circular@{ground}"].value for ground in scenes.BACKGROUNDS] == [0, 0, 1]
    share = np.mean([q.scene.background == "photo" for q in asked])
    assert metrics["circular"].value == pytest.approx(share) and 0.2 < share < 0.5


def test_paired_differences_are_tighter_than_two_intervals():
    task = evaluation.find_task("reading")
    asked = list(task.questions())
    dice = np.random.default_rng(2)
    reference = [q.answer if dice.random() < 0.8 else "" for q in asked]
    worse = [answer if dice.random() < 0.97 else "" for answer in reference]
    assert evaluation.paired_differences(task, asked, reference, reference)["accuracy"] == evaluation.Interval(0, 0, 0)
    difference = evaluation.paired_differences(task, asked, worse, reference)["accuracy"]
    assert difference.value == pytest.approx(np.mean([a != b for a, b in zip(worse, reference)]) * -1)
    assert difference.high < 0, "a loss on three questions of a hundred is seen"
    one, other = (evaluation.intervals(task, asked, answers)["accuracy"] for answers in (worse, reference))
    assert one.high > other.low, "and two separate intervals would hide it"


def test_the_tower_sees_a_picture_once_for_methods_that_only_look(loaded):
    """They look at its last layer, which runs again; what is before it does not, and answers are the plain ones."""
    model, processor = loaded
    asked = [*scenes.questions("existence")[:4], *scenes.questions("reading")[:2]]
    methods = [None, dart.HiRED(keep=20), dart.PruMerge(keep=20), dart.ToMe(keep=20), dart.Downscale(keep=36), dart.DART(keep=20)]
    ran = []
    tower = model.model.vision_tower
    before = [dict(vars(layer)) for layer in tower.encoder.layers]
    hooks = [tower.embeddings.register_forward_hook(lambda module, args, out: ran.append(len(args[0])))]
    together = evaluation.answer(model, processor, asked, methods, tokens=4)
    [hook.remove() for hook in hooks]
    different = len({question.picture_key for question in asked})
    assert different < len(asked) and ran == [different, *[len(asked)] * 4]
    assert [vars(layer) for layer in tower.encoder.layers] == before
    for method, answers in zip(methods, together):
        inputs, _ = evaluation.prompts(model, processor, asked)
        with dart.prune(model, method) if method else evaluation.nullcontext():
            plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert answers == processor.batch_decode(plain[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_wrong_names_get_the_nearest(folder, capsys):
    with pytest.raises(ValueError, match="'existance' is not known; did you mean existence"):
        evaluation.find_task("existance")
    with pytest.raises(ValueError, match="'qqq' is not known; known are existence, relations"):
        evaluation.find_task("qqq")
    with pytest.raises(ValueError, match="'randon' is not known; did you mean random"):
        evaluation.find_method("randon", 64)
    assert cli.main(["eval", "--model", str(folder), "--tasks", "readin"]) == 2
    assert "did you mean reading" in capsys.readouterr().err
    assert cli.main(["eval", "--model", str(folder / "absent"), "--tasks", "reading"]) == 2
    assert "no model in" in capsys.readouterr().err


def test_the_table_of_the_command_line(folder, tmp_path, capsys):
    arguments = ["eval", "--model", str(folder), "--tasks", "existence", "choice", "--methods", "unpruned", "dart", "random", "--keep", "128", "64",
                 "--limit", "12"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["existence", "(f1)", "choice", "(circular)"]
    assert [line.split("  ")[0] for line in table[1:-1]] == [
        "unpruned", "dart-128", "random-128", "dart-64", "random-64", "blind floor", "questions",
    ]
    assert table.pop() == "budgets: so many image tokens are left behind a method's last place"
    assert "[" in table[1] and table[-1].split()[1:] == ["12", "12"]
    settings = json.loads(next(tmp_path.glob("choice/dart-64-*/settings.json")).read_text())
    assert settings["method"]["keep"] == 64 and settings["n"] == 12


def test_settings_behind_a_colon():
    assert evaluation.find_method("dart:image_pivots=8,pivot_order=norm", 64) == dart.DART(64, image_pivots=8, pivot_order="norm")
    assert evaluation.find_method("random:seed=3", 16, layer=4) == dart.Random(16, seed=3, layer=4)
    assert evaluation.label(dart.DART(64, image_pivots=8, layer=3)) == "dart-64-layer-3-image-pivots-8"
    with pytest.raises(ValueError, match="setting of dart 'image_pivot' is not known; did you mean image_pivots"):
        evaluation.find_method("dart:image_pivot=8", 64)
    assert evaluation.label(dart.Random(64, seed=1)) == "random-64-seed-1"
    with pytest.raises(ValueError, match="setting of dart 'keep' is not known"):
        evaluation.find_method("dart:keep=5", 64)
    with pytest.raises(ValueError, match="dart:layer=1 and layer=6 do not agree"):
        evaluation.find_method("dart:layer=1", 64, 6)
    with pytest.raises(ValueError, match="tome has places of its own; leave the layer out"):
        evaluation.find_method("tome", 64, 6)
    with pytest.raises(ValueError, match="hired:thumbnail_share=x"):
        evaluation.find_method("hired:thumbnail_share=x", 64)
    with pytest.raises(ValueError, match="'seed' in random:seed is no setting; write random:name=value"):
        evaluation.find_method("random:seed", 64)
