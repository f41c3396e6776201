"""The claims of the paper, one by one: what tests each here, and what the test says.

    for entry in ledger():
        print(entry.claim.text, entry.verdict.verdict, entry.verdict.sentence)

The claims stand in `data/paper/claims.yaml`. Each names its test, a function of this file that is handed what it needs:
experiments with their stored runs, or a short measurement on the bundled model. A test makes *checks*, each an interval against
the range that the paper claims, and one rule judges them all unless the test says otherwise:

    replicates    every interval lies wholly inside its range
    does not      some lie wholly outside, none inside
    partly        everything else; an interval that is neither is called undecided

Intervals are 95 % intervals from a bootstrap, of paired differences where two methods are compared; nothing corrects for how many
there are, so a reader of the whole ledger expects one in forty to miss its range on the wrong side by luck.
"""

from __future__ import annotations

import inspect
import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import dart
from dart import bundled, cost, duplication, evaluation, paper, results, spread, timing
from dart.evaluation import Interval
from dart.methods.dart import PIVOT_RULES
from dart.reproduction import Experiment, Parameters, Row, targets
from dart.results import Average
from dart.select import dart_keep

VERDICTS = ("replicates", "partly", "does not", "not run", "cannot be tested here")

# ------------------------------------------------------------------------------------------------ claims


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes
    ----------
    id : str
    text : str
        The claim in our own words.
    where : str
        Section, table or figure of the paper.
    page : str
        The page of the book that shows it, seen from `book/results` and without suffix.
    test : str, optional
        A name from `TESTS`.
    reason : str, optional
        Why there is no test; given exactly where there is none.
    note : str
        What the test here can and cannot say.
    """

    id: str
    text: str
    where: str
    page: str
    test: str | None = None
    reason: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a test says: one of `VERDICTS`, a sentence with the numbers, and these by what they are of."""

    verdict: str
    sentence: str
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Test:
    """A test and what it has to be handed: names of experiments, or functions that measure."""

    __test__ = False  # pytest collects what is called so
    judge: Callable[..., Verdict]
    sources: tuple[str | Callable[[], Any], ...]

    @property
    def rule(self) -> str:
        """What the test does and how it judges: its docstring on one line."""
        return " ".join(inspect.cleandoc(self.judge.__doc__).split())

    @property
    def live(self) -> bool:
        """Whether it measures on this machine; the others give the same numbers everywhere."""
        return any(callable(source) for source in self.sources)


@dataclass(frozen=True)
class Entry:
    """A claim with its verdict."""

    claim: Claim
    verdict: Verdict

    @property
    def test(self) -> Test | None:
        return TESTS.get(self.claim.test)


TESTS: dict[str, Test] = {}


class NotRun(Exception):
    """A run that a test needs is missing; says which."""


def needs(*sources: str | Callable[[], Any]) -> Callable:
    """Make a function a test under its own name; it is called with what the sources give, in order."""

    def register(judge: Callable[..., Verdict]) -> Callable[..., Verdict]:
        TESTS[judge.__name__] = Test(judge, sources)
        return judge

    return register


# ------------------------------------------------------------------------------------------------ checks

UNITS: dict[str, Callable[[float], str]] = {
    "": lambda value: f"{value:+.3f}",
    "points": lambda value: f"{100 * value:+.1f}",
    "%": lambda value: f"{100 * value:.1f}",
    "times": lambda value: f"{value:.2f}",
    "s": lambda value: f"{value:.3f}",
}


@dataclass(frozen=True)
class Check:
    """An interval against what the paper claims: that it lies above one number, below one, or between two.

    Attributes
    ----------
    what : str
        What was measured.
    found : Interval
    above, below : float
        Ends of the claimed range, themselves outside of it.
    unit : str
        A name from `UNITS`: how numbers are shown. "points" are of differences of shares, "%" of shares.
    """

    what: str
    found: Interval
    above: float = -math.inf
    below: float = math.inf
    unit: str = "points"

    @property
    def outcome(self) -> str:
        """ "holds" if the interval lies wholly inside the range, "fails" if wholly outside, else "undecided"."""
        if self.above < self.found.low and self.found.high < self.below:
            return "holds"
        return "fails" if self.found.high < self.above or self.below < self.found.low else "undecided"

    def __str__(self) -> str:
        show, scale = UNITS[self.unit], 100 if self.unit in ("points", "%") else 1
        text = f"{self.what} {show(self.found.value)} {self.unit}".rstrip()
        if self.found.low < self.found.high:
            text += f" [{show(self.found.low)}, {show(self.found.high)}]"
        ends = [f"{scale * end:.4g}" for end in (self.above, self.below)]
        if math.isfinite(self.above) and math.isfinite(self.below):
            return f"{text}, claimed between {ends[0]} and {ends[1]}: {self.outcome}"
        return f"{text}, claimed {f'above {ends[0]}' if math.isfinite(self.above) else f'below {ends[1]}'}: {self.outcome}"

    def numbers(self) -> dict[str, Any]:
        ends = {name: end for name, end in (("above", self.above), ("below", self.below)) if math.isfinite(end)}
        found = {"value": self.found.value, "low": self.found.low, "high": self.found.high}
        return {**found, **ends, "unit": self.unit, "outcome": self.outcome}


def judge(checks: Sequence[Check], *, lead: str = "", verdict: str | None = None) -> Verdict:
    """The verdict on some checks by the rule at the top of this file, or the given one, with a sentence that tells them.

    Up to four checks are told one by one. Of more, how many hold, and which fail.
    """
    outcomes = [check.outcome for check in checks]
    holds, fails = outcomes.count("holds"), outcomes.count("fails")
    if verdict is None:
        verdict = "replicates" if holds == len(checks) else "does not" if fails and not holds else "partly"
    if len(checks) <= 4:
        told = "; ".join(map(str, checks)) + "."
    else:
        show = UNITS[checks[0].unit]
        ends = [f(check.found.value for check in checks) for f in (min, max)]
        failing = [check.what for check in checks if check.outcome == "fails"]
        more = f" and {len(failing) - 6} more" if len(failing) > 6 else ""
        told = f"{holds} of {len(checks)} hold, {outcomes.count('undecided')} undecided, {fails} failing"
        told += f" ({'; '.join(failing[:6])}{more})" * bool(failing)
        told += f"; from {show(ends[0])} to {show(ends[1])} {checks[0].unit}."
    if not holds and not fails:
        told = f"Undecided: {told}"
    sentence = f"{lead} {told}".strip()
    return Verdict(verdict, sentence[0].upper() + sentence[1:], {check.what: check.numbers() for check in checks})


def exactly(value: float) -> Interval:
    """A number that is calculated, not sampled."""
    return Interval(float(value), float(value), float(value))


def average(runs: Experiment, row: Row, tasks: Sequence[str] | None = None) -> Average:
    """`Experiment.average`, which must be there.

    Raises
    ------
    NotRun
    """
    found = runs.average(row, tasks)
    if found is None:
        budget = "" if row.keep is None else f" at {row.keep} tokens"
        raise NotRun(f"{row.label}{budget} ({runs.target.title})" + f": {row.why}" * bool(row.why))
    return found


def at(runs: Experiment, label: str, keep: int | None, tasks: Sequence[str] | None = None) -> Average:
    """The average of the row of that label and budget."""
    rows = {row.label: row for row in runs.at(keep)}
    return average(runs, rows[evaluation.find_name(f"row at {keep} tokens of {runs.name}", label, rows)], tasks)


def gap(ours: Average, theirs: Average, what: str, **claimed: float) -> Check:
    """The paired difference of two averages, claimed above 0 unless told otherwise."""
    return Check(what, ours - theirs, **(claimed or {"above": 0}))


# ------------------------------------------------------------------------------------------------ accuracy

BUDGETS = (192, 128, 64)


@needs("figure-2")
def random_beats_importance(runs: Experiment) -> Verdict:
    """Random minus FastV, minus SparseVLM, and at layer 4, where FastV finds something to read in this model, minus FastV again;
    64 tokens, task by task, in shares of the unpruned score. Replicates if random is clearly above each of the three on at least
    a third of the tasks."""

    def check(random: str, label: str, task: str) -> Check:
        return gap(at(runs, random, 64, [task]), at(runs, label, 64, [task]), f"random minus {label}, {task}")

    pairs = {"FastV": "Random", "SparseVLM": "Random", "FastV, layer 4": "Random, layer 4"}
    checks = {label: [check(random, label, task) for task in runs.tasks] for label, random in pairs.items()}
    lost = {label: sum(each.outcome == "holds" for each in several) for label, several in checks.items()}
    told = ", ".join(f"{label} on {number}" for label, number in lost.items())
    lead = f"Of {len(runs.tasks)} tasks, random is clearly above {told}."
    verdict = "replicates" if min(lost.values()) >= len(runs.tasks) / 3 else None
    return judge(sum(checks.values(), []), lead=lead, verdict=verdict)


def _rivals(runs: Experiment, keep: int) -> dict[str, Average]:
    """Averages of the paper's other methods at a budget, without those that are trained and those that we added."""
    rows = [row for row in runs.at(keep) if row.paper is not None and not row.label.startswith("DART")]
    return {row.label: average(runs, row) for row in rows}


@needs("table-1")
def best_average(runs: Experiment) -> Verdict:
    """DART's average minus that of each other method of Table 1 at the same budget."""
    return judge([gap(at(runs, "DART", keep), theirs, f"DART minus {label} at {keep}")
                  for keep in BUDGETS for label, theirs in _rivals(runs, keep).items()])


@needs("table-1")
def retention(runs: Experiment) -> Verdict:
    """DART's average at 192 and at 64 tokens against the paper's. More is no objection."""
    claimed = {keep: paper.headline()[f"llava15_7b_{keep}tok_avg_percent"]["DART"] / 100 for keep in (192, 64)}
    found = {keep: at(runs, "DART", keep).interval for keep in claimed}
    return judge([Check(f"DART at {keep}", found[keep], above=share, unit="%") for keep, share in claimed.items()])


@needs("table-1")
def margin(runs: Experiment) -> Verdict:
    """DART's average minus that of the best other method here, against the paper's lead over its second best."""
    checks = []
    for keep in (192, 64):
        rivals = _rivals(runs, keep)
        second = max(rivals, key=lambda label: rivals[label].value)
        lead = paper.headline()[f"llava15_7b_{keep}tok_avg_percent"]["margin"] / 100
        checks.append(gap(at(runs, "DART", keep), rivals[second], f"DART minus {second} at {keep}", above=lead))
    return judge(checks)


@needs("table-4", "every-method-on-the-small-model")
def every_budget(runs: Experiment, late: Experiment) -> Verdict:
    """DART's average minus FastV's at each reduction; and at 64 tokens with both at layer 4, where FastV finds something to
    read in this model."""
    checks = [gap(at(runs, "DART", keep), at(runs, "FastV", keep), f"DART minus FastV at {keep}") for keep in BUDGETS]
    return judge([*checks, gap(at(late, "DART, layer 4", 64), at(late, "FastV, layer 4", 64), "DART minus FastV at 64, layer 4")])


@needs("table-6")
def video(runs: Experiment) -> Verdict:
    """DART's average minus FastV's on questions about several frames."""
    keep = runs.budgets[0]
    return judge([gap(at(runs, "DART", keep), at(runs, "FastV", keep), f"DART minus FastV at {keep}")])


@needs("figure-4")
def front(runs: Experiment) -> Verdict:
    """DART's average minus that of each other method of the figure at the same budget. Methods that prune at one layer cost the
    same there, and PDrop, which prunes step by step, more: who is above DART breaks the front."""
    return judge([gap(at(runs, "DART", keep), average(runs, row), f"DART minus {row.label} at {keep}")
                  for keep in runs.budgets for row in runs.at(keep) if row.label != "DART"])


@needs("figure-1")
def hallucination(runs: Experiment) -> Verdict:
    """How often "yes" is said to objects that are not there (scene existence, 64 tokens): FastV minus unpruned and minus DART;
    and at layer 4, where FastV finds something to read in this model, minus unpruned again."""

    def false_yes(label: str, keep: int | None) -> Average:
        at(runs, label, keep, ["existence"])
        run = runs.of(next(row for row in runs.at(keep) if row.label == label), "existence")[0]
        absent = np.array([question.answer == "no" for question in run.questions])
        said = np.array([dart.scenes.normal(answer) == "yes" for answer in run.answers])[absent]
        weights = evaluation.resamples(run.questions)[:, absent]
        return Average(float(said.mean()), weights @ said / weights.sum(1))

    found = {label: false_yes(label, 64) for label in ("DART", "FastV", "FastV, layer 4")}
    found["unpruned"] = false_yes("unpruned", None)
    pairs = (("FastV", "unpruned"), ("FastV", "DART"), ("FastV, layer 4", "unpruned"))
    lead = f"To what is not there yes is said by {', '.join(f'{label} in {share.value:.1%}' for label, share in found.items())}."
    return judge([gap(found[one], found[other], f"{one} minus {other}") for one, other in pairs], lead=lead.replace("%", " %"))


@needs("table-2")
def pope_drop(runs: Experiment) -> Verdict:
    """DART's share of the unpruned score in scene existence, with one token in nine as in the paper's 320 of 2880."""
    least = 1 - paper.headline()["pope_drop_llava_next_less_than_percent"] / 100
    return judge([Check("DART, scene existence", at(runs, "DART", 64).interval, above=least, unit="%")])


@needs("table-1")
def training(runs: Experiment) -> Verdict:
    """Under DART, the average of the model trained on with DART minus that of the model before, and minus that of one trained on
    without DART on the same lessons."""
    others = {"DART": "the model before", "DART, trained on without": "trained on without"}
    return judge([gap(at(runs, "DART_train", keep), at(runs, label, keep), f"trained with DART minus {words}, at {keep}")
                  for keep in BUDGETS for label, words in others.items()])


# ------------------------------------------------------------------------------------------------ pivots



def _rules(runs: Experiment) -> dict[str, Average]:
    """Averages of the pivot rules of Table 8, the worst first."""
    rows = [row for row in runs.at(128) if row.label.startswith("DART pivot=")]
    found = {row.label.removeprefix("DART pivot="): average(runs, row) for row in rows}
    return dict(sorted(found.items(), key=lambda item: item[1].value))


@needs("table-8")
def pivot_rules(runs: Experiment) -> Verdict:
    """The average of the best rule here minus that of the worst, against the same in Table 8. The two are picked by their scores,
    so the difference looks larger than it is."""
    printed = [row.avg for row in paper.table("table8").rows if row.method.startswith("DART pivot=")]
    (worst, low), *_, (best, high) = _rules(runs).items()
    return judge([gap(high, low, f"{best} minus {worst}", below=(max(printed) - min(printed)) / 100)])


@needs("table-8")
def random_pivots(runs: Experiment) -> Verdict:
    """The average of the best rule here minus that of random pivots, against the paper's difference; and random pivots minus
    SparseVLM and minus FastV."""
    ours, (*_, (best, high)) = at(runs, "DART pivot=random", 128), _rules(runs).items()
    most = paper.headline()["random_pivot_drop_vs_best_strategy_percent"] / 100
    rivals = [gap(ours, at(runs, label, 128), f"random pivots minus {label}") for label in ("SparseVLM", "FastV")]
    return judge([gap(high, ours, f"{best} minus random pivots", below=most), *rivals])


@needs("table-8")
def worst_rule(runs: Experiment) -> Verdict:
    """The average of the worst rule here minus SparseVLM's and minus FastV's."""
    (worst, low), *_ = _rules(runs).items()
    return judge([gap(low, at(runs, label, 128), f"{worst} minus {label}") for label in ("SparseVLM", "FastV")])


@needs("table-8")
def attention_pivots(runs: Experiment) -> Verdict:
    """The average with pivots of most attention minus that with pivots of least, against one point either way."""
    most, least = (at(runs, f"DART pivot=attention {end}", 128) for end in ("max", "min"))
    return judge([gap(most, least, "most minus least", above=-0.01, below=0.01)])


@needs("figures-5-and-8")
def pivot_number(runs: Experiment) -> Verdict:
    """The average with 4 + 4 pivots minus those with 1, 2, 32 and 64 pivots (image + text)."""
    ours = at(runs, "4 + 4", 128)
    extreme = ("1 + 0", "1 + 1", "16 + 16", "32 + 32")
    return judge([gap(ours, at(runs, pivots, 128), f"4 + 4 minus {pivots}") for pivots in extreme])


@needs("figures-5-and-8", "table-8")
def worst_number(runs: Experiment, rivals: Experiment) -> Verdict:
    """The average of the worst number of pivots here minus SparseVLM's and minus FastV's on the same tasks."""
    found = {row.label: average(runs, row) for row in runs.at(128) if "+" in row.label}
    worst = min(found, key=lambda label: found[label].value)
    theirs = {label: at(rivals, label, 128, runs.tasks) for label in ("SparseVLM", "FastV")}
    return judge([gap(found[worst], each, f"{worst} pivots minus {label}") for label, each in theirs.items()])


@needs("figure-7")
def pivot_modality(runs: Experiment) -> Verdict:
    """The average with 4 image and 4 text pivots minus those with 8 of one kind."""
    both = at(runs, "image and text", 128)
    return judge([gap(both, at(runs, kind, 128), f"both minus {kind}") for kind in ("image only", "text only")])


# ------------------------------------------------------------------------------------------------ the pruned layer

# Layers of the bundled model's 8 at the depth of the paper's layers of 32.
LAYER = {10: 3, 15: 4, 20: 5}


@needs("figure-6")
def deep_layers(runs: Experiment) -> Verdict:
    """What is lost of the unpruned average if all image tokens go at the depth of layers 15 and 20 of 32."""
    whole, most = average(runs, runs.unpruned), max(paper.headline()["deep_layer_all_vision_removed_drop_percent"]) / 100
    left = {layer: at(runs, f"none from layer {layer}", 0) for layer in (LAYER[15], LAYER[20])}
    return judge([gap(whole, each, f"lost from layer {layer} on", below=most) for layer, each in left.items()])


@needs("figure-6")
def later_layer(runs: Experiment) -> Verdict:
    """DART's average at the last layer minus that at layer 2, the paper's; and its FLOPs of reading a prompt of LLaVA-1.5-7B at
    layer 28 of 32 minus those at layer 2, in shares of the unpruned ones."""
    shape = cost.shape("llava-1.5-7b")
    early, late, whole = (sum(cost.layer_flops(shape, cost.layer_lengths(shape, 636, 576, keep, layer)))
                          for keep, layer in ((64, 2), (64, 28), (None, 0)))
    slower = Check("FLOPs at layer 28 minus layer 2", exactly((late - early) / whole), above=0)
    return judge([gap(at(runs, "layer 7", 64), at(runs, "layer 2", 64), "average at layer 7 minus layer 2"), slower])


@needs("figure-6")
def above_unpruned(runs: Experiment) -> Verdict:
    """DART's share of the unpruned score in scene existence minus 1, at the depth of layers 10, 15 and 20 of 32."""
    whole = average(runs, runs.unpruned, ["existence"])
    pruned = {layer: at(runs, f"layer {layer}", 64, ["existence"]) for layer in LAYER.values()}
    return judge([gap(each, whole, f"layer {layer} minus unpruned") for layer, each in pruned.items()])


# ------------------------------------------------------------------------------------------------ measured on the bundled model


@dataclass
class Scenes:
    """What methods keep of some scenes, and what is there.

    Attributes
    ----------
    kept : dict of str to array, bool (scenes, 576)
        By method: the pivot rules at 128 tokens and layer 2; "FastV", "DART" and "blind" (random) at 64 tokens and layer 4, where
        the layer before reads the image, and "FastV, 128" there.
    objects : array, bool (scenes, 576)
        Tokens on objects and signs.
    twin : dict of str to array, (scenes,)
        For the three at 64 tokens, mean over kept tokens of the cosine with the most similar other kept token.
    radius, promised : array, (scenes,)
        Distance of the worst served image token from what DART keeps (64, layer 2), and what Lemma 2 promises.
    """

    kept: dict[str, np.ndarray]
    objects: np.ndarray
    twin: dict[str, np.ndarray]
    radius: np.ndarray
    promised: np.ndarray


@dataclass(frozen=True)
class _Look(dart.Method):
    """Keeps everything, and hands each view to `note`."""

    note: Callable[[dart.View], None]

    def places(self, n_layers: int) -> tuple[int, ...]:
        return (2, 4)

    def select(self, view: dart.View) -> torch.Tensor:
        self.note(view)
        return view.image_mask


def _pictures(n: int) -> list:
    """Questions of the existence task about `n` different scenes."""
    return list({question.picture_key: question for question in evaluation.asked_of("existence")}.values())[:n]


def look(n: int = 36) -> Scenes:
    """Look at `n` scenes of the existence task through the bundled model."""
    asked = _pictures(n)
    rules = {rule: dart.DART(128, pivot_rule=rule) for rule in PIVOT_RULES}
    late = {"FastV": dart.FastV(64, layer=4), "DART": dart.DART(64, layer=4), "blind": dart.Random(64, layer=4)}
    twin = {name: [] for name in late}
    late["FastV, 128"] = dart.FastV(128, layer=4)
    kept = {name: [] for name in (*rules, *late)}
    radius, promised = [], []

    def note(view: dart.View) -> None:
        image, rows = view.image_mask, len(view.image_mask)
        states = view.normed_hidden_states[image].view(rows, 576, -1)
        methods = rules if view.layer == 2 else late
        stays = {name: method.select(view)[image].view(rows, 576) for name, method in methods.items()}
        for name, mask in stays.items():
            kept[name].append(mask)
        if view.layer == 2:
            norms = view.keys.abs().sum((1, 3))[image].view(rows, 576)
            pivots = states.take_along_dim(norms.topk(4).indices[..., None], 1)
            mask = dart.DART(64).select(view)[image].view(rows, 576)
            epsilon = duplication.epsilon_per_pivot(states, pivots, mask).amax(1)
            radius.append(duplication.coverage_radius(states, mask))
            promised.append(duplication.paper_bound(epsilon, states.norm(dim=-1).amax(1)))
        else:
            for name in twin:
                chosen = states[stays[name]].view(rows, 64, -1)
                twin[name].append((duplication.cosine(chosen, chosen) - 2 * torch.eye(64)).amax(2).mean(1))

    model, processor = bundled.load()
    for start in range(0, n, 12):
        evaluation.answer(model, processor, asked[start : start + 12], [_Look(note)], tokens=1)
    things = [(question.scene, (*question.scene.things, *question.scene.signs)) for question in asked]
    objects = np.array([np.any([scene.patches(item) for item in items], axis=0).ravel() for scene, items in things])
    kept, twin = ({name: torch.cat(each).numpy() for name, each in found.items()} for found in (kept, twin))
    return Scenes(kept, objects, twin, torch.cat(radius).numpy(), torch.cat(promised).numpy())


@needs(look, "table-8")
def overlap(scenes: Scenes, runs: Experiment) -> Verdict:
    """Kept by both over kept by either, of the 128 tokens with pivots of the largest and of the smallest key norm, mean over 36
    scenes, against one half; and the difference of their averages, against one point either way."""
    shared = spread.overlap(scenes.kept["key-norm-max"][:, None], scenes.kept["key-norm-min"][:, None])
    averages = [at(runs, f"DART pivot=K-norm {end}", 128) for end in ("max (default)", "min")]
    return judge([Check("overlap", spread.mean(shared), below=0.5, unit="%"),
                  gap(*averages, "largest minus smallest", above=-0.01, below=0.01)])


@needs(look)
def scattered(scenes: Scenes) -> Verdict:
    """The picture cut into 36 blocks of 4 x 4 tokens: the share that is touched by the 128 tokens that each rule keeps, minus the
    share that those of FastV touch (layer 4), which the paper calls clustered; 36 scenes."""
    blind = 1 - math.comb(560, 128) / math.comb(576, 128)
    names = (*PIVOT_RULES, "FastV, 128")
    touched = {name: scenes.kept[name].reshape(-1, 6, 4, 6, 4).any((2, 4)).mean((1, 2)) for name in names}
    checks = [Check(f"{rule} minus FastV", spread.mean(touched[rule] - touched["FastV, 128"]), above=0) for rule in PIVOT_RULES]
    shares = [touched[name].mean() for name in names]
    ours = f"{min(shares[:-1]):.0%} to {max(shares[:-1]):.0%}"
    lead = f"Touched by DART {ours}, by FastV {shares[-1]:.0%}, by a blind draw {blind:.0%}."
    return judge(checks, lead=lead.replace("%", " %"))


@needs(look)
def position_bias(scenes: Scenes) -> Verdict:
    """FastV's 64 tokens at layer 4 in 36 scenes. Late: their mean place in the sequence (0 first, 1 last) minus that of tokens on
    objects. Whatever they show: the share of the budget in the tenth of places that FastV favours in the first half of the
    scenes, minus the share of the objects there, both in the other half."""
    place, half = np.arange(576) / 575, len(scenes.objects) // 2
    kept, objects = (mask / mask.sum(1, keepdims=True) for mask in (scenes.kept["FastV"], scenes.objects))
    favoured = kept[:half].mean(0).argsort()[-58:]
    habit = (kept - objects)[half:, favoured].sum(1)
    return judge([Check("late: place minus place of objects", spread.mean((kept - objects) @ place), above=0, unit=""),
                  Check("habit: budget in favoured places minus objects there", spread.mean(habit), above=0)])


@needs(look)
def static_importance(scenes: Scenes) -> Verdict:
    """Cosine of a kept token with its most similar kept token, mean over 64 tokens at layer 4 and 36 scenes: FastV's minus
    DART's, and minus that of a blind draw, which does not look for duplicates either way."""
    more = {name: spread.mean(scenes.twin["FastV"] - scenes.twin[name]) for name in ("DART", "blind")}
    return judge([Check(f"FastV minus {name}", found, above=0, unit="") for name, found in more.items()])


@needs(look)
def bound(scenes: Scenes) -> Verdict:
    """The share of 36 scenes in which the worst served token lies within what the lemmas promise (DART, 64 tokens, layer 2); and
    two tokens of one direction, one ten times as long: their distance minus what is promised for them."""
    tokens, kept = torch.tensor([[1.0, 0.0], [0.1, 0.0]]), torch.tensor([True, False])
    promised = duplication.paper_bound(duplication.epsilon_per_pivot(tokens, tokens[:1], kept), 1.0)
    beyond = float(duplication.coverage_radius(tokens, kept) - promised)
    inside = exactly(np.mean(scenes.radius <= scenes.promised * (1 + 1e-4)))
    return judge([Check("scenes within the bound", inside, above=0.999, unit="%"),
                  Check("two tokens by hand, distance beyond the bound", exactly(beyond), below=0, unit="")])


@dataclass
class Kernels:
    """Answers under two attention kernels, by method; and whether DART chooses alike when it is given no attention to read."""

    sdpa: dict[str, list[str]]
    eager: dict[str, list[str]]
    without: bool


def ask_two_kernels(n: int = 8) -> Kernels:
    """Ask `n` questions of the attributes task under both kernels, with 64 tokens."""
    methods = {"DART": dart.DART(64), "FastV": dart.FastV(64, layer=4)}
    asked, said, alike = evaluation.asked_of("attributes", n), {}, []

    def note(view: dart.View) -> None:
        alike.append(torch.equal(dart.DART(64).select(view), dart.DART(64).select(replace(view, noted=None))))

    for kernel in ("sdpa", "eager"):
        model, processor = bundled.load(attn_implementation=kernel)
        said[kernel] = dict(zip(methods, evaluation.answer(model, processor, asked, list(methods.values()), tokens=2)))
        evaluation.answer(model, processor, asked[:2], [_Look(note)], tokens=1)
    return Kernels(said["sdpa"], said["eager"], all(alike))


def _same(kernels: Kernels, method: str) -> Interval:
    return exactly(np.mean([a == b for a, b in zip(kernels.sdpa[method], kernels.eager[method])]))


@needs(ask_two_kernels)
def efficient_attention(kernels: Kernels) -> Verdict:
    """The share of 8 answers that are the same under sdpa and under eager attention, and whether DART chooses alike when there
    is no attention to read."""
    return judge([Check("same answers", _same(kernels, "DART"), above=0.99, unit="%"),
                  Check("same choice without attention", exactly(kernels.without), above=0.99, unit="%")])


@needs(ask_two_kernels)
def importance_needs_map(kernels: Kernels) -> Verdict:
    """The share of 8 answers that are the same under sdpa and under eager attention with FastV, whose row of attention is
    recomputed here from queries and keys. The claim holds if efficient attention changes FastV's answers."""
    return judge([Check("FastV, same answers", _same(kernels, "FastV"), below=0.99, unit="%")])


# ------------------------------------------------------------------------------------------------ cost


DEVICE = f"{platform.machine()} CPU"


def clock(rounds: int = 3) -> dict[str, np.ndarray]:
    """Seconds on the CPU, float64 (rounds,), taking turns: the bundled model with three pictures (1728 image tokens), "whole"
    with vision tower and answer and "reading" of the prompt alone, each plain and with one token in nine kept by DART, as in the
    paper; and "choosing", DART's choice on random states of the paper's shape.
    """
    model, processor = bundled.load()
    asked = _pictures(3)
    text = "<image>" * 2 + bundled.prompt(asked[0].text)
    inputs = processor(text=[text], images=[question.picture() for question in asked], return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    hidden, keys = torch.randn(1, 2940, 4096, generator=generator), torch.randn(1, 32, 2940, 128, generator=generator)
    image = torch.zeros(1, 2940, dtype=torch.bool)
    image[:, 35:2915] = True
    with torch.inference_mode():
        features = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output

    def answer() -> None:
        model.generate(**inputs, max_new_tokens=8, do_sample=False)

    def read_prompt() -> None:
        with evaluation.given_features(model, features), torch.inference_mode():
            model(**inputs, logits_to_keep=1)

    def pruned(call: Callable[[], None]) -> None:
        with dart.prune(model, dart.DART(192)):
            call()

    calls = {"whole": answer, "reading": read_prompt}
    calls |= {f"{what}, pruned": partial(pruned, call) for what, call in calls.items()}
    return timing.interleaved({**calls, "choosing": partial(dart_keep, hidden, keys, image, keep=320)}, rounds)


def _range(values: np.ndarray) -> Interval:
    return Interval(float(np.median(values)), float(values.min()), float(values.max()))


def _speed(times: dict[str, np.ndarray], what: str, claimed: float) -> Verdict:
    found = _range(times[what] / times[f"{what}, pruned"])
    checks = [Check("speed-up", found, above=1, unit="times"), Check("as in the paper", found, above=claimed, unit="times")]
    return judge(checks, lead=f"On {DEVICE}, the bundled model, median and range of {len(times[what])} turns:")


@needs(clock)
def total_speed(times: dict[str, np.ndarray]) -> Verdict:
    """Seconds of reading and answering a prompt of 1728 image tokens unpruned, over those with 192 of them: whether faster at
    all, and whether as much as in the paper."""
    return _speed(times, "whole", paper.headline()["total_speedup"])


@needs(clock)
def prefill_speed(times: dict[str, np.ndarray]) -> Verdict:
    """Seconds of reading the same prompt, image features given, unpruned over pruned: whether faster at all, and whether as much
    as in the paper."""
    return _speed(times, "reading", paper.headline()["prefill_speedup"])


@needs(clock)
def selection_time(times: dict[str, np.ndarray]) -> Verdict:
    """Seconds of choosing 320 of 2880 tokens from states of 4096 and keys of 32 heads, float32."""
    checks = [Check("choosing", _range(times["choosing"]), below=paper.headline()["pruning_overhead_seconds_max"], unit="s")]
    return judge(checks, lead=f"On {DEVICE}, median and range of {len(times['choosing'])} turns:")


@needs()
def flops_and_kv() -> Verdict:
    """Two full layers of 32 and 30 short ones: FLOPs by the paper's formula and bytes of keys and values, in shares of the
    unpruned ones, against the printed shares and 0.05 points either way."""
    shape = cost.shape("llava-next-7b")
    lengths, whole = (cost.layer_lengths(shape, 2880, 2880, keep) for keep in (320, None))
    flops = [sum(cost.printed_layer_flops(shape, each)) for each in (lengths, whole)]
    cached = [sum(cost.kv_bytes(shape, each)) for each in (lengths, whole)]
    vanilla, row = (paper.table("table2").row(method).values for method in ("Vanilla", "DART"))
    printed = {"FLOPs": row["FLOPs_percent"] / 100, "KV cache": row["KV_MB"] / vanilla["KV_MB"]}
    found = {"FLOPs": exactly(flops[0] / flops[1]), "KV cache": exactly(cached[0] / cached[1])}
    near = {what: {"above": share - 0.0005, "below": share + 0.0005} for what, share in printed.items()}
    return judge([Check(what, found[what], **near[what], unit="%") for what in printed])


# ------------------------------------------------------------------------------------------------ the ledger


def read(path: str | Path | None = None) -> list[Claim]:
    """The claims in a file, `data/paper/claims.yaml` unless told, in its order.

    Raises
    ------
    ValueError
        If it is no YAML, a field is missing or unknown, an id or a test stands twice, a test is unknown, or a claim has not
        exactly one of test and reason.
    """
    path = Path(path or dart.data_root() / "paper" / "claims.yaml")
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as reason:
        raise ValueError(f"{path} cannot be read: {reason}") from reason
    known = {each.name for each in fields(Claim)}
    try:
        if not isinstance(content, list) or not content:
            raise ValueError("it is no list of claims")
        found = []
        for number, entry in enumerate(content, 1):
            if not isinstance(entry, dict):
                raise ValueError(f"claim {number} is {type(entry).__name__}, not a mapping")
            what = f"claim {entry.get('id', number)}"
            for name, value in entry.items():
                evaluation.find_name(f"field of {what}", str(name), known)
                if not isinstance(value, str) or not value.strip():
                    raise ValueError(f"{what} has {name}={value!r}; give text")
            if missing := {"id", "text", "where", "page"} - set(entry):
                raise ValueError(f"{what} lacks {', '.join(sorted(missing))}")
            if ("test" in entry) == ("reason" in entry):
                raise ValueError(f"{what} needs a test, or a reason why there is none, and not both")
            if "test" in entry:
                evaluation.find_name(f"test of {what}", entry["test"], TESTS)
            found.append(Claim(**entry))
        for names in ([claim.id for claim in found], [claim.test for claim in found if claim.test]):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{', '.join(sorted(twice))} stands there twice")
    except ValueError as reason:
        raise ValueError(f"{path} is damaged: {reason}; restore it from the project") from reason
    return found


class Evidence:
    """What tests are handed, each made once: experiments with the runs that are stored, and measurements.

    Parameters
    ----------
    parameters : Parameters
        Of the experiments; 300 questions a task unless told.
    """

    def __init__(self, parameters: Parameters = Parameters()):
        self.parameters = parameters
        self.found: dict[str | Callable[[], Any], Any] = {}

    def of(self, source: str | Callable[[], Any]) -> Any:
        """What a source gives.

        Raises
        ------
        NotRun
            If there is no such experiment.
        """
        if source not in self.found:
            if callable(source):
                self.found[source] = source()
            elif source not in targets():
                raise NotRun(f"there is no experiment {source}")
            else:
                self.found[source] = Experiment(source, self.parameters).run(compute=False)
        return self.found[source]

    @property
    def experiments(self) -> list[Experiment]:
        return [each for each in self.found.values() if isinstance(each, Experiment)]

    def verdict(self, claim: Claim) -> Verdict:
        """What the test of a claim says; "not run" if it lacks a run."""
        if claim.test is None:
            return Verdict("cannot be tested here", f"{claim.reason[0].upper()}{claim.reason[1:]}.")
        test = TESTS[claim.test]
        try:
            return test.judge(*map(self.of, test.sources))
        except NotRun as missing:
            return Verdict("not run", f"Not run: {missing}.")


def ledger(evidence: Evidence | None = None) -> list[Entry]:
    """Every claim with its verdict, in the order of the file; from stored runs and measurements of this moment."""
    evidence = evidence or Evidence()
    return [Entry(claim, evidence.verdict(claim)) for claim in read()]


def place() -> Path:
    """Where the written ledger lies."""
    return results.root() / "claims.json"


def write(path: str | Path | None = None, evidence: Evidence | None = None) -> list[Entry]:
    """Write the ledger to a file that machines read, `data/results/claims.json` unless told, and give it back.

    The file holds the fingerprint of the bundled model, the commit, how many runs were read and how many of them are by older
    code, and of each claim the fields of the yaml file with verdict, sentence and numbers.
    """
    evidence = evidence or Evidence()
    entries = ledger(evidence)
    runs = {run.folder: run for each in evidence.experiments for run in each.runs.values() if run is not None}
    content = {
        "weights": evaluation.fingerprint(bundled.load()[0]),
        "commit": results._commit(),
        "device": DEVICE,
        "runs": len(runs),
        "runs by older code": sum(not run.current for run in runs.values()),
        "claims": [_plain(entry) for entry in entries],
    }
    (Path(path) if path else place()).write_text(json.dumps(content, indent=1) + "\n")
    return entries


def _plain(entry: Entry) -> dict[str, Any]:
    claim = {each.name: getattr(entry.claim, each.name) for each in fields(Claim) if getattr(entry.claim, each.name)}
    sources = [source if isinstance(source, str) else source.__name__ for source in entry.test.sources] if entry.test else []
    verdict = entry.verdict
    judged = {"verdict": verdict.verdict, "sentence": verdict.sentence, "numbers": verdict.numbers}
    return {**claim, "sources": sources, "live": bool(entry.test and entry.test.live), **judged}


def differences(entries: Sequence[Entry], path: str | Path | None = None, *, live: bool) -> list[str]:
    """In which verdicts and numbers entries differ from a written ledger, in words.

    Parameters
    ----------
    entries : sequence of Entry
    path : path, optional
        ``data/results/claims.json`` unless told.
    live : bool
        Whether to compare the claims that are measured on this machine, of these only verdicts; or the others.

    Raises
    ------
    ValueError
        If the file cannot be read.
    """
    path = Path(path) if path else place()
    try:
        written = {claim["id"]: claim for claim in json.loads(path.read_text())["claims"]}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as reason:
        raise ValueError(f"{path} cannot be read: {reason}; write it anew with `dart claims --write`") from reason
    found = []
    for entry in entries:
        name, now, then = entry.claim.id, _plain(entry), written.get(entry.claim.id)
        if now["live"] != live:
            continue
        if then is None:
            found.append(f"{name} is not in the file")
        elif then["verdict"] != now["verdict"]:
            found.append(f"{name}: \"{then['verdict']}\" in the file, \"{now['verdict']}\" now")
        elif not live and then["numbers"].keys() != now["numbers"].keys():
            found.append(f"{name}: other things are measured now")
        elif not live:
            found += [f"{name}: {what} was {then['numbers'][what]['value']:.4f}, is {number['value']:.4f}"
                      for what, number in now["numbers"].items()
                      if any(abs(number[end] - then["numbers"][what][end]) > 1e-6 for end in ("value", "low", "high"))]
    return found
