"""What holds for every benchmark: fields, groups, pictures, resampling, floors, evaluation, prompts."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import published
import pytest

import dart
from dart import evaluation, tasks
from dart.tasks import files, prompts

UNKNOWN = ("vqav2-testdev", "vizwiz-test")


@pytest.fixture(params=list(tasks.TASKS))
def benchmark(request, tmp_path):
    return tasks.TASKS[request.param](), published.WRITERS[request.param](tmp_path / "somewhere")


def truths(asked):
    return [question.answer for question in asked]


def test_questions_have_what_evaluation_wants(benchmark):
    found, folder = benchmark
    asked = found.questions(folder)
    assert asked
    for question in asked:
        assert question.text.strip() == question.text and "<image>" not in question.text
        assert question.picture().mode == "RGB" and question.picture().size == (8, 6)
        assert str(folder) not in question.picture_key, "keys are the same on every machine"
        assert not question.choices or question.answer in question.choices
        assert isinstance(question.stratum, str) and isinstance(question.kind, str)
    hash(asked[0])
    with pytest.raises(FrozenInstanceError):
        asked[0].text = "another"
    assert asked == found.questions(folder), "a fixed order"


def test_groups_stand_together(benchmark):
    found, folder = benchmark
    groups = [question.group for question in found.questions(folder) if question.group is not None]
    changes = sum(one != other for one, other in zip(groups, groups[1:]))
    assert changes + 1 == len(set(groups)) or not groups


def test_true_answers_score_best_and_nonsense_worst(benchmark):
    found, folder = benchmark
    asked = found.questions(folder)
    best = found.score(asked, truths(asked))[found.metric]
    worst = found.score(asked, ["no such answer"] * len(asked))[found.metric]
    if found.name in UNKNOWN:
        assert np.isnan(best)
        return
    assert best > worst
    assert best == {"mme": 2800, "ocrbench": 4}.get(found.name, pytest.approx(1, abs=0.21))  # annotators disagree


def test_weights_count_as_repeated_questions(benchmark):
    found, folder = benchmark
    asked = list(found.questions(folder))
    dice = np.random.default_rng(0)
    answers = [answer if dice.random() < 0.6 else "no" for answer in truths(asked)]
    pictures = sorted({question.picture_key for question in asked})
    for drawn in dice.integers(1, 4, (3, len(pictures))):
        weights = np.array([drawn[pictures.index(question.picture_key)] for question in asked], np.float32)
        again = [index for index, times in enumerate(weights) for _ in range(int(times))]
        copies = [again[:place].count(index) for place, index in enumerate(again)]
        # another copy of a picture is another group
        chosen = [asked[index] for index in again]
        repeated = [replace(q, group=q.group and f"{q.group}#{copy}") for q, copy in zip(chosen, copies)]
        weighted, plain = found.score(asked, answers, weights), found.score(repeated, [answers[index] for index in again])
        for name in {"accuracy"} if found.name == "ocrbench" else plain:  # its points are out of the number of questions
            np.testing.assert_allclose(weighted[name], plain[name], rtol=1e-6, err_msg=name)


def test_many_weights_at_once(benchmark):
    found, folder = benchmark
    asked = found.questions(folder)
    weights = evaluation.resamples(asked, 7)
    together = found.score(asked, truths(asked), weights)
    for row in range(7):
        alone = found.score(asked, truths(asked), weights[row])
        for name in together:
            np.testing.assert_allclose(together[name][row], alone[name], rtol=1e-5)
    with pytest.raises(ValueError, match="last axis"):
        found.score(asked, truths(asked), np.ones(len(asked) + 1))


def test_intervals_and_strata(benchmark):
    found, folder = benchmark
    asked = found.questions(folder)
    metrics = evaluation.intervals(found, asked, truths(asked))
    assert {f"{found.metric}@{question.stratum}" for question in asked} < set(metrics)


def test_floors(benchmark):
    found, folder = benchmark
    asked, floors = found.questions(folder), found.floors(folder)
    assert found.metric in floors["blind"] and not any(name.startswith("yes_rate") for name in floors["blind"])
    if found.name not in UNKNOWN:
        assert 0 <= floors["blind"][found.metric] <= found.score(asked, truths(asked))[found.metric]


def test_as_many_answers_as_questions(benchmark):
    found, folder = benchmark
    with pytest.raises(ValueError, match="give one answer to each question"):
        found.score(found.questions(folder), [])


def test_white_space_around_answers_is_dropped(benchmark):
    found, folder = benchmark
    asked = found.questions(folder)
    spaced = found.score(asked, [f" {answer}\n" for answer in truths(asked)])
    for name, value in found.score(asked, truths(asked)).items():
        np.testing.assert_array_equal(spaced[name], value)


def test_missing_files_are_named_with_their_source(benchmark, tmp_path):
    found, _ = benchmark
    with pytest.raises(FileNotFoundError) as error:
        found.questions(tmp_path / "nothing")
    first = files.FILES[found.name][0]
    assert str(tmp_path / "nothing" / first.path) in str(error.value) and first.source in str(error.value)


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    published.pope(tmp_path / "all" / "pope")
    published.mme(tmp_path / "all" / "MME")
    monkeypatch.setenv("DART_BENCHMARKS", str(tmp_path / "all"))
    assert len(tasks.TASKS["pope"]().questions()) == 9 and len(tasks.TASKS["mme"]().questions()) == 56
    monkeypatch.delenv("DART_BENCHMARKS")
    monkeypatch.setenv("DART_DATA", str(tmp_path))
    published.pope(tmp_path / "benchmarks" / "pope")
    assert len(tasks.TASKS["pope"]().questions()) == 9


def test_a_picture_that_does_not_decode_is_named(tmp_path):
    asked = tasks.TASKS["pope"]().questions(published.pope(tmp_path))
    file = tmp_path / "val2014" / "COCO_val2014_000000000001.jpg"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="COCO_val2014_000000000001.jpg does not decode"):
            asked[0].picture()
    file.unlink()
    with pytest.raises(FileNotFoundError, match="COCO_val2014_000000000001.jpg is missing"):
        asked[0].picture()


def test_the_vicuna_prompt():
    text = prompts.vicuna_v1("Is it red?\n" + prompts.SHORT)
    assert text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        "polite answers to the user's questions. USER: <image>\nIs it red?\nAnswer the question using a single word or phrase. "
        "ASSISTANT:"
    )
    assert tasks.vicuna_v1 is prompts.vicuna_v1 and dart.tasks is tasks
