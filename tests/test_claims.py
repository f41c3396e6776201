"""The ledger: every claim has a test or a reason, and a planted reversal turns the verdict."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dart import claims, cli, evaluation, reproduction
from dart.claims import Check, Evidence, Kernels, NotRun, Scenes
from dart.evaluation import Interval
from dart.methods.dart import PIVOT_RULES
from dart.reproduction import Experiment, Parameters, targets
from dart.results import Stored

ROOT = Path(__file__).parents[1]
FILE = ROOT / "data" / "paper" / "claims.yaml"
QUESTIONS = 60

# ------------------------------------------------------------------------------------------------ the file


def test_every_claim_has_a_test_or_a_reason_and_every_test_a_claim_and_a_rule():
    found = claims.read()
    assert all((claim.test in claims.TESTS) != bool(claim.reason) for claim in found)
    assert {claim.test for claim in found if claim.test} == set(claims.TESTS)
    assert all(len(test.rule) > 40 for test in claims.TESTS.values())
    assert all(claim.text.endswith(".") and claim.where and claim.page for claim in found)


def test_only_what_needs_an_a100_audio_or_a_robot_has_no_test():
    assert [claim.id for claim in claims.read() if claim.reason] == ["a100-seconds", "audio", "robot"]


DAMAGE = {
    "no YAML": ("- id: retention", "- id: [retention", "cannot be read"),
    "a field missing": ("  where: Section 5.4, Figure 7\n", "", "claim pivot-modality lacks where"),
    "a field unknown": ("  test: retention", "  tets: retention", "'tets' is not known; did you mean .*test"),
    "a test unknown": ("  test: retention", "  test: retnetion", "test of claim retention 'retnetion' is not known; did you"),
    "no test and no reason": ("  test: retention\n", "", "claim retention needs a test, or a reason"),
    "a test and a reason": ("  test: retention\n", "  test: retention\n  reason: no\n", "reason=False; give text"),
    "both": ("  test: retention\n", "  test: retention\n  reason: none\n", "claim retention needs a test, or a reason"),
    "a claim twice": ("- id: margin", "- id: retention", "retention stands there twice"),
    "a test twice": ("  test: margin", "  test: retention", "retention stands there twice"),
    "a number for text": ("  where: Figure 4", "  where: 4", "claim front has where=4; give text"),
    "a word for a claim": ("- id: robot", "- robot\n- id: robot", "is str, not a mapping"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_in_words(tmp_path, name):
    before, after, message = DAMAGE[name]
    assert FILE.read_text().count(before) == 1
    (tmp_path / "claims.yaml").write_text(FILE.read_text().replace(before, after))
    with pytest.raises(ValueError, match=message):
        claims.read(tmp_path / "claims.yaml")


# ------------------------------------------------------------------------------------------------ the rule

IN, OUT, ASTRIDE = (Check(name, Interval(*numbers), above=0) for name, numbers in (
    ("in", (0.02, 0.01, 0.03)), ("out", (-0.02, -0.03, -0.01)), ("astride", (0, -0.01, 0.01))))


@pytest.mark.parametrize("checks, verdict", [
    ([IN], "replicates"), ([IN, IN], "replicates"), ([OUT], "does not"), ([OUT, ASTRIDE], "does not"), ([ASTRIDE], "partly"),
    ([IN, ASTRIDE], "partly"), ([IN, OUT], "partly"),
])
def test_one_rule_judges(checks, verdict):
    assert claims.judge(checks).verdict == verdict


def test_a_range_with_two_ends_and_numbers_that_are_calculated():
    within = {"above": -0.01, "below": 0.01}
    found = [Interval(0, -0.005, 0.005), Interval(0, -0.02, 0.005), Interval(0.03, 0.02, 0.04)]
    assert [Check("", each, **within).outcome for each in found] == ["holds", "undecided", "fails"]
    assert Check("", claims.exactly(0.5), above=0.4).outcome == "holds"
    assert Check("", claims.exactly(0), above=0).outcome == "undecided"


def test_the_sentence_tells_each_of_a_few_and_counts_many():
    assert claims.judge([IN]).sentence == "In +2.0 points [+1.0, +3.0], claimed above 0: holds."
    many = claims.judge([IN] * 4 + [OUT, ASTRIDE])
    assert many.sentence == "4 of 6 hold, 1 undecided, 1 failing (out); from -2.0 to +2.0 points."
    numbers = {"value": -0.02, "low": -0.03, "high": -0.01, "above": 0, "unit": "points", "outcome": "fails"}
    assert claims.judge([OUT]).numbers["out"] == numbers


# ------------------------------------------------------------------------------------------------ planted runs


def planted(target, shares, rest, task="attributes"):
    """An experiment on one task in which rows of some labels answer such shares of the questions right, all others `rest`."""
    experiment = Experiment(target, Parameters(tasks=[task], limit=QUESTIONS))
    asked = evaluation.asked_of(task, QUESTIONS)
    rank = np.random.default_rng(0).permutation(len(asked))
    for row in experiment.rows:
        share = shares.get(row.label, 1.0 if row.keep is None else rest)
        wrong = ["no" if question.answer == "yes" else "yes" for question in asked]
        answers = [question.answer if place < share * len(asked) else other for question, place, other in zip(asked, rank, wrong)]
        for method in experiment.methods(row):
            settings = {"task": task, "label": evaluation.label(method), "n": len(asked)}
            experiment.runs[row.model, task, method] = Stored(Path(target, settings["label"]), settings, {}, {}, asked, answers)
    return experiment


RIVALS = {"FastV": 0.5, "SparseVLM": 0.5}
# the experiments with shares as the paper has it, and in reverse; the last word is the verdict on the latter, if not "does not"
WORLDS = {
    "random_beats_importance": ([("figure-2", {"Random": 0.9, "Random, layer 4": 0.9}, 0.5)],
                                [("figure-2", {"Random": 0.5, "Random, layer 4": 0.5}, 0.9)]),
    "best_average": ([("table-1", {"DART": 0.9}, 0.5)], [("table-1", {"DART": 0.5}, 0.9)]),
    "retention": ([("table-1", {"DART": 1.0}, 0.5)], [("table-1", {"DART": 0.5}, 0.5)]),
    "margin": ([("table-1", {"DART": 0.9}, 0.5)], [("table-1", {"DART": 0.5}, 0.9)]),
    "training": ([("table-1", {"DART_train": 0.9}, 0.5)], [("table-1", {"DART_train": 0.5}, 0.9)]),
    "every_budget": ([("table-4", {"DART": 0.9}, 0.5), ("every-method-on-the-small-model", {"DART, layer 4": 0.9}, 0.5)],
                     [("table-4", {"DART": 0.5}, 0.9), ("every-method-on-the-small-model", {"DART, layer 4": 0.5}, 0.9)]),
    "video": ([("table-6", {"DART": 0.9}, 0.5)], [("table-6", {"DART": 0.5}, 0.9)]),  # on pictures here: scores are scores
    "front": ([("figure-4", {"DART": 0.9}, 0.5)], [("figure-4", {"DART": 0.5}, 0.9)]),
    "hallucination": ([("figure-1", {"FastV": 0.3, "FastV, layer 4": 0.3}, 0.9, "existence")],
                      [("figure-1", {"FastV": 0.9, "FastV, layer 4": 0.9, "unpruned": 0.4}, 0.4, "existence")]),
    "pope_drop": ([("table-2", {}, 1.0, "existence")], [("table-2", {}, 0.5, "existence")]),
    "pivot_rules": ([("table-8", {}, 0.9)], [("table-8", {"DART pivot=random": 0.3}, 0.9)]),
    "random_pivots": ([("table-8", RIVALS, 0.9)], [("table-8", {"DART pivot=random": 0.3}, 0.9)]),
    "worst_rule": ([("table-8", RIVALS, 0.9)], [("table-8", {"DART pivot=V-norm max": 0.3}, 0.9)]),
    "attention_pivots": ([("table-8", {}, 0.9)], [("table-8", {"DART pivot=attention min": 0.3}, 0.9)]),
    "pivot_number": ([("figures-5-and-8", {"4 + 4": 0.9}, 0.5)], [("figures-5-and-8", {"4 + 4": 0.5}, 0.9)]),
    "worst_number": ([("figures-5-and-8", {}, 0.9), ("table-8", {}, 0.5)],
                     [("figures-5-and-8", {"1 + 0": 0.3}, 0.9), ("table-8", {}, 0.5)]),
    "pivot_modality": ([("figure-7", {"image and text": 0.9}, 0.5)], [("figure-7", {"image and text": 0.5}, 0.9)]),
    "deep_layers": ([("figure-6", {}, 1.0)], [("figure-6", {}, 0.5)]),
    "later_layer": ([("figure-6", {"layer 7": 0.9}, 0.5)], [("figure-6", {"layer 7": 0.5}, 0.9)], "partly"),  # and slower
    "above_unpruned": ([("figure-6", {"unpruned": 0.6}, 0.9, "existence")], [("figure-6", {}, 0.5, "existence")]),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_planted_reversal_turns_the_verdict(name):
    as_claimed, reverse, *verdict = WORLDS[name]
    judge = claims.TESTS[name].judge
    assert judge(*(planted(*world) for world in as_claimed)).verdict == "replicates"
    assert judge(*(planted(*world) for world in reverse)).verdict == (verdict or ["does not"])[0]


def test_what_cannot_be_told_apart_is_called_undecided():
    told = claims.pivot_modality(planted("figure-7", {}, 0.9))
    assert told.verdict == "partly" and told.sentence.startswith("Undecided: both") and told.sentence.count("undecided") == 2


def test_every_test_of_stored_runs_is_planted():
    stored = {name for name, test in claims.TESTS.items() if test.sources and not test.live}
    assert stored == WORLDS.keys()


# ------------------------------------------------------------------------------------------------ planted measurements


def scenes(kept, objects=None, twin=None, radius=1.0, promised=2.0):
    kept = {name: np.asarray(mask) for name, mask in kept.items()}
    n = len(next(iter(kept.values()))) if kept else 10
    blank = np.zeros((n, 576), bool)
    return Scenes(kept, blank if objects is None else objects, {name: np.full(n, value) for name, value in (twin or {}).items()},
                  np.full(n, radius), np.full(n, promised))


def marked(*spans, n=10):
    mask = np.zeros((n, 576), bool)
    for start, stop in spans:
        mask[:, start:stop] = True
    return mask


def test_overlap():
    alike, apart = planted("table-8", {}, 0.9), planted("table-8", {"DART pivot=K-norm min": 0.3}, 0.9)
    half = {"key-norm-max": marked((0, 128)), "key-norm-min": marked((60, 188))}
    same = {"key-norm-max": marked((0, 128)), "key-norm-min": marked((10, 138))}
    assert claims.overlap(scenes(half), alike).verdict == "replicates"
    assert claims.overlap(scenes(same), apart).verdict == "does not"
    assert claims.overlap(scenes(half), apart).verdict == "partly"


def test_scattered():
    drawn = np.random.default_rng(0).random((10, 576)).argsort(1) < 128
    heap = marked((0, 128))
    assert claims.scattered(scenes({**dict.fromkeys(PIVOT_RULES, drawn), "FastV, 128": heap})).verdict == "replicates"
    assert claims.scattered(scenes({**dict.fromkeys(PIVOT_RULES, heap), "FastV, 128": drawn})).verdict == "does not"


def test_position_bias():
    late = scenes({"FastV": marked((500, 564))}, objects=marked((100, 200)))
    assert claims.position_bias(late).verdict == "replicates"
    moving = marked((40, 104))
    moving[5:] = marked((0, 64))[5:] & ~moving[5:] | marked((0, 40))[5:]
    assert claims.position_bias(scenes({"FastV": moving}, objects=marked((40, 104), (400, 500)))).verdict == "does not"


def test_static_importance():
    assert claims.static_importance(scenes({}, twin={"FastV": 0.9, "DART": 0.5, "blind": 0.6})).verdict == "replicates"
    assert claims.static_importance(scenes({}, twin={"FastV": 0.4, "DART": 0.5, "blind": 0.6})).verdict == "does not"


def test_the_bound_fails_by_hand_whatever_the_scenes_say():
    assert claims.bound(scenes({})).verdict == "partly"
    assert claims.bound(scenes({}, radius=3.0)).verdict == "does not"


def test_kernels():
    words, others = ["red", "two"], ["red", "six"]
    alike = Kernels({"DART": words, "FastV": words}, {"DART": words, "FastV": words}, True)
    differ = Kernels({"DART": words, "FastV": words}, {"DART": others, "FastV": others}, False)
    assert [claims.efficient_attention(each).verdict for each in (alike, differ)] == ["replicates", "does not"]
    assert [claims.importance_needs_map(each).verdict for each in (alike, differ)] == ["does not", "replicates"]


def test_times():
    def times(whole, reading, choosing):
        found = {"whole": whole, "whole, pruned": 1, "reading": reading, "reading, pruned": 1, "choosing": choosing}
        return {name: np.full(3, seconds) for name, seconds in found.items()}

    fast, some, slow = times(2.5, 3.5, 0.01), times(1.5, 1.5, 0.01), times(0.8, 0.8, 0.2)
    for judge in (claims.total_speed, claims.prefill_speed):
        assert [judge(each).verdict for each in (fast, some, slow)] == ["replicates", "partly", "does not"]
        assert "CPU" in judge(fast).sentence
    assert [claims.selection_time(each).verdict for each in (fast, slow)] == ["replicates", "does not"]


def test_flops_and_kv_by_hand():
    found = claims.flops_and_kv()
    assert found.verdict == "does not"
    assert found.numbers["FLOPs"]["value"] == pytest.approx(0.155, abs=0.0005)
    assert found.numbers["KV cache"]["value"] == pytest.approx(480 / 2880)


def test_the_measurements_measure():
    found = claims.look(3)
    assert {name: set(mask.sum(1)) for name, mask in found.kept.items()} == {
        **dict.fromkeys((*PIVOT_RULES, "FastV, 128"), {128}), **dict.fromkeys(("FastV", "DART", "blind"), {64})}
    assert found.objects.shape == (3, 576) and 0 < found.objects.mean() < 0.5
    assert all((np.abs(each) <= 1).all() and each.shape == (3,) for each in found.twin.values())
    assert (found.radius > 0).all() and found.promised.shape == (3,)
    kernels = claims.ask_two_kernels(2)
    assert all(len(kernels.sdpa[name]) == len(kernels.eager[name]) == 2 for name in ("DART", "FastV")) and kernels.without
    times = claims.clock(1)
    assert all(len(each) == 1 and each[0] > 0 for each in times.values())


# ------------------------------------------------------------------------------------------------ the ledger


@pytest.fixture
def evidence():
    """Every source planted: one experiment has its runs, the others have none."""
    made = Evidence(Parameters(limit=QUESTIONS))
    for source in {source for test in claims.TESTS.values() for source in test.sources}:
        if isinstance(source, str) and source in targets():
            made.found[source] = Experiment(source, Parameters(limit=QUESTIONS))
    made.found["figure-7"] = planted("figure-7", {"image and text": 0.9}, 0.5)
    mask = np.random.default_rng(0).random((10, 576)).argsort(1) < 64
    names = (*PIVOT_RULES, "FastV", "DART", "blind", "FastV, 128")
    made.found[claims.look] = scenes(dict.fromkeys(names, mask), mask, dict.fromkeys(("FastV", "DART", "blind"), 0.5))
    said = {"DART": ["red"], "FastV": ["red"]}
    made.found[claims.ask_two_kernels] = Kernels(said, said, True)
    made.found[claims.clock] = {name: np.ones(3) for name in ("whole", "whole, pruned", "reading", "reading, pruned", "choosing")}
    return made


def test_a_missing_run_is_not_run_and_named(evidence):
    entries = {entry.claim.id: entry.verdict for entry in claims.ledger(evidence)}
    assert entries["pivot-modality"].verdict == "replicates"
    assert entries["best-average"].verdict == entries["front"].verdict == entries["overlap"].verdict == "not run"
    assert entries["retention"].sentence == "Not run: DART at 192 tokens (Table 1)." and not entries["retention"].numbers
    assert entries["robot"].verdict == "cannot be tested here" and "simulator" in entries["robot"].sentence
    row = next(row for row in evidence.of("figure-7").rows if row.label == "text only")
    evidence.of("figure-7").runs[None, "attributes", evidence.of("figure-7").methods(row)[0]] = None
    claim = next(claim for claim in claims.read() if claim.id == "pivot-modality")
    assert evidence.verdict(claim).sentence == "Not run: text only at 128 tokens (Figure 7)."


def test_an_experiment_that_is_not_there_is_not_run():
    with pytest.raises(NotRun, match="no experiment table-99"):
        Evidence().of("table-99")


def test_a_model_that_was_not_trained_is_named(monkeypatch):
    monkeypatch.setitem(reproduction.TRAINED, "DART_train", "model-of-nobody")
    with pytest.raises(NotRun, match=r"DART_train at 192 tokens \(Table 1\): .*--prune 64 --out data/model-of-nobody` makes it"):
        claims.training(planted("table-1", {}, 0.9))


def test_more_training_alone_does_not_count_for_training_with_dart():
    half = claims.training(planted("table-1", {"DART_train": 0.9, "DART, trained on without": 0.9}, 0.5))
    assert half.verdict == "partly" and "3 undecided" in half.sentence


def test_what_is_written_is_what_is_computed(evidence, tmp_path):
    path = tmp_path / "claims.json"
    entries = claims.write(path, evidence)
    written = json.loads(path.read_text())
    assert [claim["id"] for claim in written["claims"]] == [claim.id for claim in claims.read()]
    assert re.fullmatch("[0-9a-f]{12}", written["weights"]) and written["runs"] == 4 and written["runs by older code"] == 0
    assert all(claim["verdict"] in claims.VERDICTS for claim in written["claims"])
    assert claims.differences(entries, path, live=False) == claims.differences(entries, path, live=True) == []


def test_differences_are_told_in_words(evidence, tmp_path):
    path = tmp_path / "claims.json"
    entries = claims.write(path, evidence)
    content = json.loads(path.read_text())
    by_id = {claim["id"]: claim for claim in content["claims"]}
    by_id["pivot-modality"]["numbers"]["both minus image only"]["value"] += 0.1
    by_id["flops-and-kv"]["verdict"] = "replicates"
    by_id["selection-time"]["verdict"] = "partly"
    by_id["total-speed"]["numbers"]["speed-up"]["value"] += 0.1
    content["claims"].remove(by_id["bound"])
    path.write_text(json.dumps(content))
    stored = claims.differences(entries, path, live=False)
    assert len(stored) == 2 and stored[0].startswith("pivot-modality: both minus image only was")
    assert stored[1] == 'flops-and-kv: "replicates" in the file, "does not" now'
    live = claims.differences(entries, path, live=True)  # of what is measured anew, numbers may move
    assert live == ['selection-time: "partly" in the file, "does not" now', "bound is not in the file"]
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="cannot be read: .*dart claims --write"):
        claims.differences(entries, path, live=False)


def test_the_command_prints_the_ledger(evidence, monkeypatch, capsys):
    monkeypatch.setattr(claims, "Evidence", lambda: evidence)
    assert cli.main(["claims"]) == 0
    said = capsys.readouterr().out
    assert "pivot-modality: replicates\n" in said and said.count("\n") == 3 * len(claims.read())
