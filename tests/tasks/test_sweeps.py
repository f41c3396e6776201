"""Sweeps that meet something bad: nothing answered is lost, nothing is passed over in silence, and the parts of processes join."""

import json
import pickle
import threading
from types import SimpleNamespace

import published
import pytest
import torch

import dart
from dart import evaluation, tasks
from dart.tasks import base

METHODS = [None, dart.Random(keep=4, seed=0)]


class Model(torch.nn.Linear):
    """Just enough of a model for a run to know it."""

    name_or_path, dtype, device = "stand-in", torch.float32, torch.device("cpu")
    config = SimpleNamespace(_attn_implementation="none")


MODEL = Model(1, 1)


@pytest.fixture
def asked(monkeypatch):
    """The questions of every call, answered with their own texts and method; more than `asked.most` are too many."""
    calls = []

    def answer(model, processor, questions, methods, *, tokens):
        calls.append([question.text for question in questions])
        [question.picture() for question in questions]
        if len(questions) > answer.most:
            raise torch.OutOfMemoryError("a stand-in")
        return [[f"{question.text} {method}" for question in questions] for method in methods]

    answer.most, answer.calls = 100, calls
    monkeypatch.setattr(evaluation, "answer", answer)
    return answer


@pytest.fixture
def pope(tmp_path, monkeypatch):
    """Nine questions in three files, on two pictures."""
    monkeypatch.setenv("DART_BENCHMARKS", str(tmp_path / "benchmarks"))
    return published.pope(tmp_path / "benchmarks" / "pope")


def sweep(folder=None, **options):
    return evaluation.sweep(MODEL, METHODS, "pope", processor=None, folder=folder, progress=False, **options)


def indices(record):
    lines = (record.folder / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["index"] for line in lines]


def test_a_batch_too_large_is_halved_and_the_answers_are_the_same(asked, pope, tmp_path):
    whole = sweep(batch=8)
    asked.most = 3
    asked.calls.clear()
    with pytest.warns(UserWarning) as said:
        halved = sweep(tmp_path, batch=8)
    assert [str(each.message) for each in said] == [
        "out of memory with 8 questions at a time; going on with 4", "out of memory with 4 questions at a time; going on with 2",
    ]
    assert [len(texts) for texts in asked.calls] == [8, 4, 2, 2, 2, 2, 1]
    assert [each.answers for each in halved] == [each.answers for each in whole]
    assert indices(halved[0]) == list(range(9))


def test_one_question_too_large_stops_and_keeps_the_rest(asked, pope, tmp_path):
    def one_too_many(model, processor, questions, methods, *, tokens, real=evaluation.answer):
        asked.most = 0 if any("cup" in question.text for question in questions) else 100
        return real(model, processor, questions, methods, tokens=tokens)

    evaluation.answer = one_too_many                        # the fixture puts it back
    with pytest.warns(UserWarning), pytest.raises(evaluation.Stopped, match="pope, question 3: out of memory with one question at a time"):
        sweep(tmp_path, batch=4)
    evaluation.answer = asked
    asked.most = 100
    asked.calls.clear()
    assert indices(sweep(tmp_path, batch=4)[0]) == list(range(9))
    assert sum(map(len, asked.calls)) == 7, "two were kept"


@pytest.mark.parametrize("broken", [b"", b"<html>not found</html>", None])
def test_a_bad_picture_stops_the_run_and_is_skipped_only_if_asked(asked, pope, tmp_path, broken):
    path = pope / "val2014" / "COCO_val2014_000000000002.jpg"
    whole = path.read_bytes()
    path.write_bytes(broken) if broken is not None else path.unlink()
    with pytest.raises(evaluation.Stopped, match="pope, question 3: picture .*000002.jpg (does not decode|is missing).*--skip-bad"):
        sweep(tmp_path, batch=2)
    asked.calls.clear()
    with pytest.warns(UserWarning, match="left out: pope, question 3: picture"):
        records = sweep(tmp_path, batch=2, skip_bad=True)
    assert sum(map(len, asked.calls)) == 2 + 1 + 2 + 1 + 2 + 1, "two were kept; a batch with a bad picture is asked again without it"
    for record in records:
        assert len(record.answers) == len(record.questions) == 6 and record.settings["n"] == 9
        assert [question.entry["question_id"] for question in record.questions] == [1, 2] * 3
        assert [each.split(":")[0] for each in record.environment["skipped"]] == [f"pope, question {number}" for number in (3, 6, 9)]
        assert json.loads((record.folder / "environment.json").read_text())["skipped"] == record.environment["skipped"]
    alone = evaluation.intervals(tasks.TASKS["pope"](), records[0].questions, records[0].answers)
    assert str(records[0].metrics) == str(alone)
    path.write_bytes(whole)                                 # once it is there the same call asks what was left out, and only that
    asked.calls.clear()
    again = sweep(tmp_path, batch=2, skip_bad=True)
    assert sum(map(len, asked.calls)) == 3 and "skipped" not in again[0].environment and len(again[0].answers) == 9


def test_nothing_left_is_no_result(asked, pope):
    for path in (pope / "val2014").iterdir():
        path.unlink()
    with pytest.warns(UserWarning), pytest.raises(evaluation.Stopped, match="no question is left; pope, question 1: picture"):
        sweep(skip_bad=True)


def test_other_errors_are_not_taken_for_bad_pictures(asked, pope, monkeypatch):
    def fail(*args, **options):
        raise ValueError("keep=-1")

    monkeypatch.setattr(evaluation, "answer", fail)
    with pytest.raises(ValueError, match="keep=-1"):
        sweep(skip_bad=True)


def test_a_bad_line_stops_the_run_and_is_skipped_only_if_asked(asked, pope):
    path = pope / "coco" / "coco_pope_popular.json"
    first, second, third = path.read_text().splitlines()
    path.write_text("\n".join([first[:30], second.replace('"no"', '"perhaps"'), third]))
    with pytest.raises(ValueError, match="coco_pope_popular.json, line 1: not JSON"):
        sweep()
    records = sweep(skip_bad=True)
    assert len(records[0].answers) == 7 == records[0].settings["n"]
    one, other = records[0].environment["skipped"]
    assert "coco_pope_popular.json, line 1: not JSON" in one and "line 2: label 'perhaps' is not one of yes, no" in other


SPOILED = {
    "pope": ("coco/coco_pope_random.json", '"yes"', '"perhaps"'),
    "mme": ("MME_Benchmark_release_version/count/0001.txt", "\t", " "),
    "gqa": ("data/testdev_balanced_questions.json", '"answer": "no"', '"other": "no"'),
    "mmbench": ("mmbench_dev_20230712.tsv", "\tB\tobject", "\tD\tobject"),
    "scienceqa": ("problems.json", '"answer": 1', '"answer": 9'),
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", '"question_id": 42001', '"question_id": 42002'),
    "textvqa": ("TextVQA_0.5.1_val.json", '"question_id": 2', '"id": 2'),
    "vizwiz": ("val.json", '"question"', '"quest"'),
    "ocrbench": ("OCRBench/OCRBench.json", '"question"', '"quest"'),
}


@pytest.mark.parametrize("name", SPOILED)
def test_every_benchmark_passes_over_bad_entries_only_inside_the_block(name, tmp_path):
    folder, (file, right, wrong) = published.WRITERS[name](tmp_path), SPOILED[name]
    whole = tasks.TASKS[name]().questions(folder)
    text = (folder / file).read_text()
    assert right in text
    (folder / file).write_text(text.replace(right, wrong, 1))
    with pytest.raises(ValueError) as error:
        tasks.TASKS[name]().questions(folder)
    with base.passing_over() as noted:
        rest = tasks.TASKS[name]().questions(folder)
        assert tasks.TASKS[name]().questions(folder) == rest
    assert list(noted) == [str(error.value)]
    assert len(rest) == len(whole) - (2 if name == "mme" else 1) and set(rest) < set(whole)
    with base.passing_over(False), pytest.raises(ValueError):
        tasks.TASKS[name]().questions(folder)


def test_parts_of_processes_join_whatever_their_number(asked, pope, tmp_path):
    """Files as two killed processes leave them: each line counts once, half a line not at all."""
    (record, _) = sweep(tmp_path, batch=2)
    lines = (record.folder / "predictions.jsonl").read_text().splitlines(keepends=True)
    (record.folder / "predictions.jsonl").write_text("".join(lines[:4]))
    (record.folder / "predictions-1.jsonl").write_text("".join(lines[3:6]) + lines[6][:9])
    asked.calls.clear()
    (again, _) = sweep(tmp_path, batch=2)
    assert sum(map(len, asked.calls)) == 3
    assert indices(again) == list(range(9)) and again.answers == record.answers
    assert [path.name for path in record.folder.glob("predictions*")] == ["predictions.jsonl"]


class Together:
    """Two processes played by two threads: what one gathers waits for the other."""

    def __init__(self, index, barrier, things):
        self.index, self.count, self.main, self.barrier, self.things = index, 2, index == 0, barrier, things

    def gather(self, thing):
        self.things[self.index] = pickle.dumps(thing)       # what goes to another process is a copy
        self.barrier.wait(10)
        gathered = [pickle.loads(each) for each in self.things]
        self.barrier.wait(10)
        return gathered


def in_two(monkeypatch, work):
    """What `work()` gives in each of two processes."""
    barrier, things, found = threading.Barrier(2), [None, None], {}
    mine = threading.local()

    def one(index):
        mine.processes = Together(index, barrier, things)
        try:
            found[index] = work()
        except Exception as reason:
            found[index] = reason
            barrier.abort()                                 # as the launcher ends all when one fails

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "Processes", lambda: mine.processes)
        threads = [threading.Thread(target=one, args=(index,)) for index in (0, 1)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    return found[0], found[1]


@pytest.mark.parametrize("batch", [2, 4, 9])
def test_two_processes_share_the_batches_of_one(asked, pope, tmp_path, monkeypatch, batch):
    alone = sweep(tmp_path / "alone", batch=batch)
    batches = sorted(asked.calls)
    asked.calls.clear()
    first, second = in_two(monkeypatch, lambda: sweep(tmp_path / "two", batch=batch))
    assert sorted(asked.calls) == batches, "each batch once, and as one process has it"
    for one, other, record in zip(first, second, alone):
        assert one.answers == other.answers == record.answers and str(one.metrics) == str(other.metrics) == str(record.metrics)
        assert indices(one) == list(range(9))
        for name in ("predictions.jsonl", "metrics.json", "settings.json"):
            assert (one.folder / name).read_text() == (record.folder / name).read_text()
        assert one.environment["answered"] == 18 and not list(one.folder.glob("predictions-*"))


def test_two_processes_need_no_folder(asked, pope, monkeypatch):
    first, second = in_two(monkeypatch, lambda: sweep(batch=2))
    assert first[0].answers == second[0].answers == sweep(batch=2)[0].answers


def test_what_two_processes_answered_before_one_failed_is_kept(asked, pope, tmp_path, monkeypatch):
    picture = pope / "val2014" / "COCO_val2014_000000000002.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(b"")
    stopped = in_two(monkeypatch, lambda: sweep(tmp_path, batch=1))
    assert any(isinstance(each, evaluation.Stopped) for each in stopped)
    kept = [json.loads(line)["index"] for path in tmp_path.glob("pope/unpruned-*/predictions*.jsonl") for line in path.open()]
    assert len(kept) >= 1 and len(set(kept)) == len(kept)
    picture.write_bytes(whole)
    asked.calls.clear()
    first, _ = in_two(monkeypatch, lambda: sweep(tmp_path, batch=1))
    assert len(asked.calls) == 9 - len(kept) and indices(first[0]) == list(range(9))


def test_two_processes_leave_out_the_same_questions(asked, pope, tmp_path, monkeypatch):
    (pope / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    with pytest.warns(UserWarning, match="left out"):
        first, second = in_two(monkeypatch, lambda: sweep(tmp_path, batch=1, skip_bad=True))
    assert [each.split(":")[0] for each in first[0].environment["skipped"]] == [f"pope, question {number}" for number in (3, 6, 9)]
    assert first[0].environment["skipped"] == second[0].environment["skipped"]
    assert len(first[0].answers) == len(second[0].answers) == 6
