"""Tables and figures of the paper as experiments: which runs each needs, and how these stand beside the paper's numbers.

    experiment = begin("table-1", globals())     # in a notebook, right behind its parameter cell
    experiment.run()                             # reads stored runs, makes those that are missing
    experiment.join(keep=64)                     # paper, ours, difference, n, interval, verdict

An experiment has rows (a method under one budget) and tasks. At scale `bundled` the rows are the paper's, the model is
`data/model`, tasks are our own; at scale `paper` model and tasks are the paper's. Experiments share runs: `sweep` makes all that
several need, every task in one pass over its pictures.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import os
import queue as queues
import subprocess
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import dart
from dart import bundled, evaluation, paper, results, scenes, videos
from dart.evaluation import Interval, Record
from dart.results import Average, Comparison, Stored
from dart.tasks import TASKS as PUBLISHED
from dart.tasks import prompts

# ------------------------------------------------------------------------------------------------ what the paper's words are here

METHODS = {
    "ToMe": "tome",
    "FastV": "fastv",
    "HiRED": "hired",
    "FitPrune": "fitprune",
    "LLaVA-PruMerge": "prumerge",
    "SparseVLM": "sparsevlm",
    "PDrop": "pyramiddrop",
    "FiCoCo-V": "ficocov",
    "MustDrop": "mustdrop",
    "FasterVLM": "fastervlm",
    "GlobalCom2": "globalcom2",
    "Random": "random",
    "DART": "dart",
    "DART pivot=random": "dart:pivot_rule=random",
    "DART pivot=attention max": "dart:pivot_rule=attention-max",
    "DART pivot=attention min": "dart:pivot_rule=attention-min",
    "DART pivot=K-norm max (default)": "dart",
    "DART pivot=K-norm min": "dart:pivot_rule=key-norm-min",
    "DART pivot=V-norm max": "dart:pivot_rule=value-norm-max",
    "DART pivot=V-norm min": "dart:pivot_rule=value-norm-min",
}
TRAINED = {"DART_train": "model-trained-with-dart", "DART, trained on without": "model-trained-on"}     # folders in the data
TASKS = {
    "GQA": "gqa",
    "MMB": "mmbench",
    "MMB_CN": "mmbench-cn",
    "MME": "mme",
    "POPE": "pope",
    "SQA": "scienceqa",
    "VQAv2": "vqav2",
    "VQAText": "textvqa",
    "VizWiz": "vizwiz",
    "OCRBench": "ocrbench",
}
BUNDLED_TASKS = tuple(scenes.TASKS)                      # easy-VQA has one large shape a picture, which is no clutter to prune
BUNDLED_TOKENS = 576


@dataclass(frozen=True, eq=False)
class Row:
    """A method under one budget.

    Attributes
    ----------
    label : str
        As the paper prints it, or our own word for a row that we add.
    spec : str or None
        Our name of the method with its settings, as `evaluation.find_method` reads it; None cannot be run.
    keep : int or None
        Image tokens; None for the unpruned model.
    paper : paper.Row or None
        The paper's row; None if we add it.
    why : str
        Why it cannot be run.
    removed : float or None
        Fraction of image tokens that goes, for models whose pictures differ in their number; `keep` is then its name only.
    model : str or None
        Folder below the data with weights of the row's own; None is the model of the experiment.
    """

    label: str
    spec: str | None
    keep: int | None
    paper: paper.Row | None = None
    why: str = ""
    removed: float | None = None
    model: str | None = None


@dataclass(frozen=True)
class Target:
    """One table or figure: its rows, tasks at bundled scale, and what stands for it at paper scale.

    Budgets of the rows are of 576 image tokens; `tokens` says how many the paper's model has, None where every picture has another
    number.
    """

    title: str
    model: str
    rows: Callable[[], list[Row]]
    tasks: tuple[str, ...] = BUNDLED_TASKS
    paper_tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    tokens: int | None = BUNDLED_TOKENS


def _of_table(name: str, *added: str) -> Callable[[], list[Row]]:
    """Rows of a table of the paper; those in `added` are put under every budget too, models of their own also unpruned."""

    def row(label: str, keep: int, printed: paper.Row | None = None) -> Row:
        model = TRAINED.get(label)
        return Row(label, METHODS.get(label) if model is None else "dart", keep, printed, model=model)

    def rows() -> list[Row]:
        whole = paper.table(name).vanilla.tokens
        found = [Row("unpruned", "unpruned", None, paper.table(name).vanilla)]
        for printed in paper.table(name).rows:
            if printed.method == "Vanilla":
                continue
            share = printed.tokens / whole if printed.tokens is not None else 1 - printed.reduction
            keep = round(BUNDLED_TOKENS * share)
            found.append(row(printed.method, keep, printed))
        for keep in dict.fromkeys(each.keep for each in found if each.keep is not None):
            found += [row(label, keep) for label in added]
        models = {each.label: each.model for each in found if each.model}
        return found + [Row(label, "unpruned", None, model=model) for label, model in models.items()]

    return rows


def _videos() -> list[Row]:
    """Table 6: half of the tokens, judged by accuracy; its other rows are other models."""
    table = paper.table("table6")
    whole = table.row("Video-LLaVA-7B")
    found = [Row("unpruned", "unpruned", None, whole)]
    for label in ("FastV", "DART"):
        row = table.row(label)
        share = 100 * row.values["avg_acc"] / whole.values["avg_acc"]
        found.append(Row(label, METHODS[label], videos.FRAMES * BUNDLED_TOKENS * row.tokens // whole.tokens, replace(row, calc_avg=share)))
    return [*found, Row("Random", "random", found[-1].keep)]


def _elsewhere(name: str, why: str) -> Callable[[], list[Row]]:
    """Rows that nothing here can run."""
    return lambda: [Row(row.method, None, None, row, why) for row in paper.table(name).rows]


def _plain(*specs: tuple[str, str, int | None]) -> Callable[[], list[Row]]:
    return lambda: [Row("unpruned", "unpruned", None), *(Row(*spec) for spec in specs)]


def _every_method() -> list[Row]:
    names = {spec: label for label, spec in METHODS.items() if ":" not in spec and "pivot" not in label}
    rows = [(names.get(name, method.__name__), name, 64) for name, method in dart.METHODS.items()]
    late = [(f"{label}, layer 4", f"{METHODS[label]}:layer=4", 64) for label in ("DART", "FastV", "Random")]
    return _plain(*rows, *late)()


PIVOTS = ((1, 0), (1, 1), (2, 2), (4, 4), (16, 16), (32, 32))
LAYERS = (1, 2, 3, 4, 5, 6, 7)


def _columns(name: str, ocr: bool = False) -> tuple[str, ...]:
    """Tasks of a table; the words read in TextVQA's pictures stand in the prompts of LLaVA-1.5 only."""
    found = (TASKS[column] for column in paper.table(name).columns if column in TASKS)
    return tuple("textvqa-plain" if task == "textvqa" and not ocr else task for task in found)


def targets() -> dict[str, Target]:
    """Every table and figure that has accuracy in it, by the name of its notebook."""
    llava, following = "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-v1.6-vicuna-7b-hf"
    return {
        "table-1": Target("Table 1", llava, _of_table("table1", "Random", "DART, trained on without"), paper_tasks=_columns("table1", ocr=True)),
        "table-2": Target("Table 2", following, _of_table("table2"), ("existence",), ("pope",), tokens=2880),
        "table-3": Target("Table 3", following, _of_table("table3", "Random"), paper_tasks=_columns("table3"), tokens=2880),
        "table-4": Target(
            "Table 4", "Qwen/Qwen2-VL-7B-Instruct", _of_table("table4", "Random"), paper_tasks=_columns("table4"), tokens=None
        ),
        "table-5": Target(
            "Table 5", "openbmb/MiniCPM-V-2_6", _of_table("table5", "Random"), paper_tasks=_columns("table5"), tokens=None
        ),
        "table-6": Target("Table 6", "LanguageBind/Video-LLaVA-7B-hf", _videos, ("videos",), seeds=(0,)),
        "table-7": Target(
            "Table 7", "Qwen/Qwen2-VL-72B-Instruct", _of_table("table7", "Random"), paper_tasks=_columns("table7"), tokens=None
        ),
        "table-8": Target("Table 8", llava, _of_table("table8"), paper_tasks=_columns("table8", ocr=True), seeds=(0, 1, 2, 3, 4)),
        "table-9": Target(
            "Table 9", "llava-hf/llava-1.5-13b-hf", _of_table("table9", "Random"), paper_tasks=_columns("table9", ocr=True)
        ),
        "figure-1": Target(
            "Figure 1", llava,
            _plain(("FastV", "fastv", 64), ("FastV, layer 4", "fastv:layer=4", 64), ("DART", "dart", 64), ("Random", "random", 64)),
            ("existence", "relations"), ("pope",),
        ),
        "table-10": Target("Table 10", "microsoft/Phi-4-multimodal-instruct", _elsewhere("table10", "no audio benchmark runs here"), ()),
        "table-11": Target("Table 11", "CogACT", _elsewhere("table11", "CogACT is no model of transformers"), ()),
        "figure-2": Target(
            "Figure 2", llava, _plain(*((label, METHODS[label], 64) for label in ("Random", "FastV", "SparseVLM", "DART")),
                                    *((f"{label}, layer 4", f"{METHODS[label]}:layer=4", 64) for label in ("Random", "FastV"))),
            paper_tasks=_columns("table1", ocr=True),
        ),
        "figure-4": Target(
            "Figure 4", following,
            _plain(*((label, METHODS[label], keep) for keep in (192, 128, 64) for label in ("DART", "Random", "FastV", "SparseVLM", "PDrop"))),
            paper_tasks=("pope", "mme", "textvqa-plain", "gqa"), tokens=2880,
        ),
        "figures-5-and-8": Target(
            "Figures 5 and 8", llava,
            _plain(*((f"{a} + {b}", f"dart:image_pivots={a},text_pivots={b}", 128) for a, b in PIVOTS), ("Random", "random", 128)),
            ("pairs", "reading", "existence", "choice"), ("mme", "textvqa", "pope", "scienceqa"),
        ),
        "figure-6": Target(
            "Figure 6", llava,
            _plain(*((f"layer {layer}", f"dart:layer={layer}", 64) for layer in LAYERS),
                   *((f"none from layer {layer}", f"random:layer={layer}", 0) for layer in LAYERS)),
            ("existence", "relations", "reading"), ("pope", "mme", "textvqa"), seeds=(0,),
        ),
        "figure-7": Target(
            "Figure 7", llava,
            _plain(("image and text", "dart", 128), ("image only", "dart:image_pivots=8,text_pivots=0", 128),
                   ("text only", "dart:image_pivots=0,text_pivots=8", 128)),
            ("pairs", "reading", "existence", "choice"), ("mme", "textvqa", "pope", "scienceqa"),
        ),
        "figure-9": Target(
            "Figure 9", llava, lambda: [row for row in _of_table("table8")() if row.keep is None or "pivot" in row.label],
            paper_tasks=_columns("table8", ocr=True), seeds=(0, 1, 2, 3, 4),
        ),
        "every-method-on-the-small-model": Target("Every method", llava, _every_method, paper_tasks=("pope", "mme", "textvqa", "gqa")),
    }


# ------------------------------------------------------------------------------------------------ parameters


@dataclass(frozen=True)
class Parameters:
    """What the parameter cell of a results notebook may set; None is the target's own value.

    Attributes
    ----------
    scale : {"bundled", "paper"}
    model : str
        A folder that `from_pretrained` reads, or a name on the Hub.
    tasks, methods : sequence of str
        Names, or one text with commas; methods as `dart eval` takes them, with settings behind a colon.
    budgets : sequence of int
        Image tokens that are kept.
    seeds : sequence of int
        Of methods that draw.
    limit : int
        Only the first questions of each task; None asks all.
    device : str
        As torch names it; CUDA if there is one.
    attn_implementation : str
        "sdpa", "eager" or "flash_attention_2".
    """

    scale: str = "bundled"
    model: str | None = None
    tasks: Sequence[str] | str | None = None
    methods: Sequence[str] | str | None = None
    budgets: Sequence[int] | int | None = None
    seeds: Sequence[int] | int | None = None
    limit: int | None = 300
    device: str | None = None
    attn_implementation: str | None = None


NAMES = tuple(each.name for each in fields(Parameters))
KERNELS = ("sdpa", "eager", "flash_attention_2")


def begin(target: str, given: Mapping[str, Any]) -> Experiment:
    """The experiment of a notebook, from its global names.

    papermill only warns of a misspelt parameter: it becomes a new name that nothing reads. So every name that is neither a
    parameter nor a module, a function or a class is refused here.

    Raises
    ------
    ValueError
        For a name or a value that is not known, with the nearest valid ones.
    """
    shell = {"In", "Out", "exit", "quit", "open", "get_ipython"}
    for name, value in given.items():
        if name in NAMES or name.startswith("_") or name in shell or isinstance(value, types.ModuleType) or callable(value):
            continue
        near = difflib.get_close_matches(name, NAMES, n=2, cutoff=0.4)
        raise ValueError(f"parameter {name!r} is not known; " + (f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(NAMES)}"))
    return Experiment(target, Parameters(**{name: given[name] for name in NAMES if name in given}))


def of_model(names: Sequence[str], scale: str, model: str | None) -> list[str]:
    """Those of several targets on one page that a model is meant for: all at bundled scale, or for a model that none names.

    Raises
    ------
    ValueError
        At paper scale without a model: each of the targets has its own.
    """
    known = {name: targets()[name].model for name in names}
    if scale != "paper":
        return list(names)
    if model is None:
        raise ValueError(f"this page has several models at paper scale; give model= one of {', '.join(known.values())}")
    return [name for name in names if known[name] == model] or list(names)


def _several(value: Any, kind: type, name: str) -> tuple | None:
    """A tuple of `kind` from what papermill may hand over: a list, one value, or a text with commas."""
    if value is None:
        return None
    if isinstance(value, str):
        value = [each for each in value.replace(",", " ").split()] if kind is int or ":" not in value else value.split()
    elif not isinstance(value, Iterable):
        value = [value]
    try:
        found = tuple(kind(each) for each in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r}; give {'whole numbers' if kind is int else 'names'}, as in {name}=[{'64, 128' if kind is int else 'a, b'}]") from None
    if not found or (kind is int and min(found) < 0):
        raise ValueError(f"{name}={value!r}; give one or more{' numbers of 0 or above' if kind is int else ''}, or None for the page's own")
    return found


# ------------------------------------------------------------------------------------------------ experiments


class Experiment:
    """The rows and tasks of a target under checked parameters, and their runs once `run` was called.

    Parameters
    ----------
    target : str
        A name from `targets`.
    parameters : Parameters

    Raises
    ------
    ValueError
        For anything that is not known or does not fit, before any work is done.
    """

    def __init__(self, target: str, parameters: Parameters = Parameters()):
        known = targets()
        self.name, self.parameters = target, parameters
        self.target = known[evaluation.find_name("target", target, known)]
        if parameters.scale not in ("bundled", "paper"):
            raise ValueError(f"scale={parameters.scale!r} is not known; use 'bundled' or 'paper'")
        bundled_scale = parameters.scale == "bundled"
        self.tasks = _several(parameters.tasks, str, "tasks") or (self.target.tasks if bundled_scale else self.target.paper_tasks)
        for task in self.tasks:
            evaluation.find_name("task", task, evaluation.TASKS)
        self.seeds = _several(parameters.seeds, int, "seeds") or self.target.seeds
        rows = self.target.rows() if bundled_scale else [self._of_model(row) for row in self.target.rows()]
        self.rows = self._chosen([self._with_weights(row) for row in rows])
        if parameters.limit is not None and (not isinstance(parameters.limit, int) or parameters.limit < 1):
            raise ValueError(f"limit={parameters.limit!r}; give 1 or more questions a task, or None for all")
        self.device = parameters.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            kind = torch.device(self.device).type
        except RuntimeError as reason:
            raise ValueError(f"device={self.device!r} is none that torch knows: {str(reason).splitlines()[0]}") from None
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}, but torch sees no CUDA device here; use device='cpu'")
        if parameters.attn_implementation is not None:
            evaluation.find_name("attn_implementation", parameters.attn_implementation, KERNELS)
        self.runs: dict[tuple[str | None, str, dart.Method | None], Stored | None] = {}     # by model of the row, task and method
        self._loaded: dict[str | None, tuple] = {}

    def _with_weights(self, row: Row) -> Row:
        """A row that can be run, or says why not: weights of its own belong to the bundled model, and have to be there."""
        if row.model is None or self.parameters.scale == "bundled" and self.parameters.model is None and (dart.data_root() / row.model).is_dir():
            return row
        keep = BUNDLED_TOKENS if row.model == TRAINED["DART, trained on without"] else 64
        why = f"trained from the bundled model; `python train/bundled.py --prune {keep} --out data/{row.model}` makes it"
        return replace(row, spec=None, model=None, why=why)

    def _of_model(self, row: Row) -> Row:
        """A row with its budget in image tokens of the paper's model."""
        if row.keep is None or row.spec is None:
            return row
        if self.target.tokens is not None:
            return replace(row, keep=round(row.keep * self.target.tokens / BUNDLED_TOKENS))
        if row.spec.partition(":")[0] != "dart":
            return replace(row, spec=None, why="pictures differ in their number of tokens, the method takes one for all")
        return replace(row, removed=row.paper.reduction)

    def _chosen(self, rows: list[Row]) -> list[Row]:
        wanted = _several(self.parameters.methods, str, "methods")
        budgets = _several(self.parameters.budgets, int, "budgets")
        if wanted is not None:
            mine = {row.spec for row in rows}
            for spec in wanted:
                evaluation.find_method(spec, keep=64)       # says what is wrong with it
            models = {None, *(row.model for row in rows if row.spec in wanted)}
            kept = [row for row in rows if (row.model in models if row.keep is None else row.spec in wanted)]
            own = list(dict.fromkeys(row.keep for row in rows if row.keep is not None))
            rows = kept + [Row(spec, spec, keep) for spec in wanted if spec not in mine for keep in own]
        if budgets is not None:
            mine = {row.keep for row in rows}
            pruned = {(row.spec, row.model): row for row in rows if row.keep is not None}
            rows = [row for row in rows if row.keep is None or row.keep in budgets] + [
                replace(row, keep=keep, paper=None) for keep in budgets if keep not in mine for row in pruned.values()
            ]
        return rows

    # ---- runs

    def methods(self, row: Row) -> list[dart.Method | None]:
        """The methods behind a row: one, or one for each seed if it draws."""
        if row.spec is None:
            return []
        if row.removed is not None:
            return [evaluation.find_method(f"{row.spec}{',' if ':' in row.spec else ':'}reduction_ratio={row.removed}", None)]
        method = evaluation.find_method(row.spec, row.keep)
        draws = row.spec.split(":")[0] == "random" and row.keep or getattr(method, "pivot_rule", None) == "random"
        if not draws:
            return [method]
        joint = "," if ":" in row.spec else ":"
        return [evaluation.find_method(f"{row.spec}{joint}seed={seed}", row.keep) for seed in self.seeds]

    def wanted(self) -> dict[str | None, list[dart.Method | None]]:
        """The methods of all rows, by the model of the row."""
        found: dict[str | None, dict] = {}
        for row in self.rows:
            found.setdefault(row.model, {}).update(dict.fromkeys(self.methods(row)))
        return {model: list(methods) for model, methods in found.items() if methods}

    @property
    def model(self):
        """Model and processor, loaded when first asked for."""
        return self.model_of(None)

    def model_of(self, name: str | None):
        """Model and processor of rows with weights of their own."""
        if name not in self._loaded:
            source = self.parameters.model or (None if self.parameters.scale == "bundled" else self.target.model)
            dtype = torch.float32 if torch.device(self.device).type == "cpu" else torch.bfloat16
            self._loaded[name] = bundled.load(
                source if name is None else dart.data_root() / name, dtype=dtype, device=self.device,
                attn_implementation=self.parameters.attn_implementation,
            )
        return self._loaded[name]

    def run(self, *, compute: bool | None = None) -> Experiment:
        """Read the runs of all rows and tasks, and make those that no store has.

        Parameters
        ----------
        compute : bool, optional
            Whether to make what is missing; if left out, yes, unless the environment says ``DART_COMPUTE=0``, as a build of the
            book does: what is missing is then "not run".
        """
        if compute is None:
            compute = os.environ.get("DART_COMPUTE") != "0"
        for name, methods in self.wanted().items():
            model = self.model_of(name)
            for task in self.tasks:
                stored = _read(model[0], methods, task, self.parameters.limit)
                missing = [method for method in methods if stored[method] is None]
                if missing and compute:
                    stored |= _make(*model, missing, task, self.parameters.limit)
                self.runs |= {(name, task, method): run for method, run in stored.items()}
        return self

    def of(self, row: Row, task: str) -> list[Stored] | None:
        """The runs of a row on a task, one for each seed, or None if any is missing."""
        found = [self.runs.get((row.model, task, method)) for method in self.methods(row)]
        return None if not found or None in found else found

    @property
    def older(self) -> list[Stored]:
        """Runs made by code that has changed since."""
        return [run for run in self.runs.values() if run is not None and not run.current]

    # ---- numbers

    @property
    def unpruned(self) -> Row:
        return next(row for row in self.rows if row.keep is None)

    @property
    def budgets(self) -> list[int]:
        return list(dict.fromkeys(row.keep for row in self.rows if row.keep is not None))

    def at(self, keep: int | None) -> list[Row]:
        """Rows of one budget; at None every model of the rows, unpruned."""
        return [row for row in self.rows if row.keep == keep]

    def row(self, label: str, keep: int) -> Row:
        """The row of that label and budget; where the parameters left it out, one that is "not run"."""
        return next((row for row in self.at(keep) if row.label == label), Row(label, None, keep))

    def score(self, row: Row, task: str) -> Interval | None:
        """A row's score by the task's own metric, mean over seeds, with its 95 % interval; None if it was not run."""
        found = self.of(row, task)
        return found and results.mean_score(found)

    def average(self, row: Row, tasks: Sequence[str] | None = None) -> Average | None:
        """Mean over tasks of the ratio to the unpruned score; None if a run is missing."""
        tasks = tasks or self.tasks
        found = {task: self.of(row, task) for task in tasks}
        plain = {task: self.of(self.unpruned, task) for task in tasks}
        if None in found.values() or None in plain.values():
            return None
        return results.average(found, {task: runs[0] for task, runs in plain.items()})

    def difference(self, row: Row, reference: Row, tasks: Sequence[str] | None = None) -> Interval | None:
        """`average` of a row minus that of another, on the same resampled questions; None if a run is missing."""
        ours, theirs = self.average(row, tasks), self.average(reference, tasks)
        return None if ours is None or theirs is None else ours - theirs

    def verdict(self, row: Row, reference: Row, tasks: Sequence[str] | None = None) -> str:
        """That difference in words: "clearly above Random (+3.1 points [1.0, 5.2])"; clear is what leaves 0 out."""
        found = self.difference(row, reference, tasks)
        if found is None:
            return "not run"
        word = {1: "clearly above", -1: "clearly below", 0: "not clearly different from"}[sign(found)]
        return f"{word} {reference.label} ({points(found)})"

    def pictures(self, most: int) -> list:
        """The first questions of the experiment's tasks that are each about a picture of its own, `most` at the most."""
        first: dict[Any, Any] = {}
        for task in self.tasks:
            for question in evaluation.asked_of(task, self.parameters.limit):
                first.setdefault(question.picture_key, question)
        return list(first.values())[:most]

    def table(self, keep: int | None):
        """Scores of a budget as a data frame, in percent, sums as they are; the unpruned model first, all others with the
        interval of their paired difference to it. At None they are every model of the rows, unpruned."""
        from pandas import DataFrame

        def cell(row: Row, task: str) -> str:
            found, plain = self.of(row, task), self.of(self.unpruned, task)
            if found is None or plain is None:
                return "not run"
            score = results.mean_score(found)
            scale, digits = (1, 0) if scores_sum(task) else (100, 1)
            spread, sign = (score, "") if row == self.unpruned else (results.mean_difference(found, plain[0]), "+")
            low, high = (f"{round(scale * each, digits) + 0.0:{sign}.{digits}f}" for each in (spread.low, spread.high))
            return f"{scale * score.value:.{digits}f} [{low},\u00a0{high}]".replace("-", "−")

        def whole(row: Row) -> str:
            average = self.average(row)
            return "not run" if average is None else percent(average.interval).replace(", ", ",\u00a0")

        def scores_sum(task: str) -> bool:
            """Whether a metric is a sum, as MME's, and not a share."""
            return any(run.metrics[metric[task]].high > 1 for run in self.of(self.unpruned, task))

        metric = {task: evaluation.find_task(task).metric for task in self.tasks}
        rows = [self.unpruned, *self.at(keep)]
        cells = {row.label: {"average": whole(row)} | {f"{task} ({metric[task]})": cell(row, task) for task in self.tasks} for row in rows}
        return DataFrame(cells).T

    def beside(self, keep: int, *, reference: str = "DART"):
        """`join` as a data frame in words."""
        from pandas import DataFrame

        return DataFrame(
            {
                row.label: {
                    "paper": "" if row.paper is None else f"{row.paper:.1%}",
                    "ours": "not run" if row.ours is None else f"{row.ours.value:.1%}",
                    "difference": "" if row.difference is None else f"{100 * row.difference:+.1f} points".replace("-", "−"),
                    "n": row.n,
                    "95 % interval": "" if row.ours is None else f"{row.ours.low:.1%} to {row.ours.high:.1%}",
                    "verdict": row.verdict,
                }
                for row in self.join(keep, reference=reference)
            }
        ).T

    def provenance(self) -> str:
        """Where the shown numbers come from, in a sentence: scale, model, weights, device, versions, questions, older code."""
        found = [run for run in self.runs.values() if run is not None]
        if not found:
            return f"Scale {self.parameters.scale}: not run."
        several = {name: " and ".join(sorted({str(run.environment.get(name)) for run in found})) for name in ("device", "torch", "transformers")}
        asked = {task: run.settings["n"] for (_, task, _), run in self.runs.items() if run is not None}
        missing = sum(run is None for run in self.runs.values())
        models = dict.fromkeys(f"{run.settings['model']} ({run.settings['weights']})" for run in found)
        return (
            f"Scale {self.parameters.scale}; weights of {' and '.join(models)}, {found[0].settings['dtype']}; "
            f"device {several['device']}, torch {several['torch']}, transformers {several['transformers']}; "
            f"{', '.join(f'{task} {n}' for task, n in asked.items())} questions; seeds of methods that draw {', '.join(map(str, self.seeds))}; {len(found)} runs"
            + (f", {len(self.older)} of them by older code" if self.older else "")
            + (f"; {missing} not run" if missing else "")
            + "."
        )

    def join(self, keep: int, *, reference: str = "DART") -> list[Comparison]:
        """Every row of a budget beside the paper's: average, ours, difference, n, interval, verdict."""
        rows = self.at(keep)
        averages = {row: self.average(row) for row in rows}
        base = next((row for row in rows if row.label == reference), None)
        beside = None
        if self.parameters.scale == "bundled":
            beside = (base and _printed(base), base and averages[base])
        n = sum(runs[0].settings["n"] for runs in (self.of(self.unpruned, task) for task in self.tasks) if runs)
        return [results.join(row.label, _printed(row), averages[row], n, reference=beside) for row in rows]


def percent(interval: Interval) -> str:
    """A share with its interval: 93.7 % [92.1, 95.0]."""
    return f"{interval.value:.1%} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(difference: Interval) -> str:
    """A difference of shares with its interval: +3.1 points [1.0, 5.2]."""
    low, high = (f"{100 * each:.1f}" for each in (difference.low, difference.high))
    return f"{100 * difference.value:+.1f} points [{low}, {high}]".replace("-", "−")


def sign(difference: Interval | None) -> int:
    """1 or -1 if the interval lies above or below 0, else 0; also for what was not run."""
    return 0 if difference is None else int(difference.low > 0) - int(difference.high < 0)


def _printed(row: Row) -> float | None:
    """The paper's average of a row as a share; our recomputation from its cells where the print is damaged."""
    if row.paper is None:
        return None
    average = row.paper.avg if row.paper.avg is not None else row.paper.calc_avg
    return None if average is None else average / 100


# ------------------------------------------------------------------------------------------------ making runs


def work() -> Path:
    """Where runs are made and kept that are not part of the project's own store."""
    return dart.data_root().parent / "build"


def _read(model, methods: Sequence[dart.Method | None], task: str, limit: int | None) -> dict[dart.Method | None, Stored | None]:
    stores = (None, work() / "results")
    known = evaluation.settings_of(model, methods, task, limit, _tokens(task))
    return {method: results.lookup(settings, stores) for method, settings in zip(methods, known)}


def _tokens(task: str) -> int:
    """Longest answer: as the published scripts have it, and eight for tasks of our own, whose answers are words."""
    return getattr(evaluation.find_task(task), "tokens", 8)


def asking(task: str, model, processor) -> tuple[Any, str]:
    """The processor that a task is asked with, and words on it: published ones as LLaVA's evaluation asks, if the model fits."""
    return prompts.official(model, processor) if task in PUBLISHED else (processor, "")


def note(record: Record, **facts: Any) -> None:
    """Write facts that are not empty into the environment of a run."""
    facts = {name: value for name, value in facts.items() if value}
    record.environment.update(facts)
    if facts and record.folder:
        path = record.folder / "environment.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}, indent=1) + "\n")


def _make(model, processor, methods, task, limit, *, folder=None, store=None, progress=True) -> dict[dart.Method | None, Stored]:
    folder = folder or work() / "eval"
    store = store or work() / "results"
    processor, words = asking(task, model, processor)
    options = {"processor": processor, "folder": folder, "limit": limit, "batch": 32, "progress": progress, "tokens": _tokens(task)}
    records = evaluation.sweep(model, methods, task, **options)
    for record in records:
        note(record, prompt=words)
    return {method: results.load(results.keep(record, store)) for method, record in zip(methods, records)}


def sweep(experiments: Sequence[Experiment], *, jobs: int = 2, store: str | Path | None = None, progress: bool = True) -> dict[str, str]:
    """Make all runs that any of the experiments lacks, each task in one pass, `jobs` tasks at a time.

    All experiments must be of one model, device and limit. Calling again goes on where it stopped.

    Parameters
    ----------
    experiments : sequence of Experiment
    jobs : int
        Processes, each with its share of the cores; on CUDA one.
    store : path, optional
        Where finished runs are kept; ``build/results`` beside the data if left out.
    progress : bool
        Whether to show one bar over all answers.

    Returns
    -------
    dict of str to str
        What went wrong, by task; a task that fails does not stop the others.
    """
    first = experiments[0]
    same = ("scale", "model", "limit", "device", "attn_implementation")
    for each in experiments:
        if any(getattr(each.parameters, name) != getattr(first.parameters, name) for name in same):
            raise ValueError(f"{each.name} and {first.name} differ in one of {', '.join(same)}; sweep them apart")
    wanted: dict[tuple[str, str | None], dict[dart.Method | None, None]] = {}
    for each in experiments:
        for task in each.tasks:
            for model, methods in each.wanted().items():
                wanted.setdefault((task, model), {}).update(dict.fromkeys(methods))
    limit, todo, failed = first.parameters.limit, {}, {}
    for (task, model), methods in wanted.items():
        try:
            missing = [m for m, run in _read(first.model_of(model)[0], list(methods), task, limit).items() if run is None]
            if missing:
                todo[task, model] = missing
        except (ValueError, OSError) as reason:
            failed[task] = str(reason)
    asked = {each: len(evaluation.asked_of(each[0], limit)) * len(methods) for each, methods in todo.items()}
    order = sorted(todo, key=asked.get, reverse=True)
    jobs = max(1, min(jobs if torch.device(first.device).type == "cpu" else 1, len(order)))
    threads = _threads(jobs)
    context = get_context("spawn")
    with tqdm(total=sum(asked.values()), unit="q", disable=not progress, dynamic_ncols=True) as bar, context.Manager() as manager:
        queue = manager.Queue()
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            places = {"folder": work() / "eval", "store": store or work() / "results"}
            given = {each: pool.submit(_work, first.name, first.parameters, *each, todo[each], threads, places, queue) for each in order}
            waiting = set(order)
            while waiting:
                for each in [each for each in waiting if given[each].done()]:
                    waiting.remove(each)
                    if given[each].exception() is not None:
                        failed[each[0]] = f"{type(given[each].exception()).__name__}: {given[each].exception()}"
                try:
                    task, number = queue.get(timeout=0.5)
                    bar.update(number)
                    bar.set_description(task)
                except queues.Empty:
                    continue
    return failed


def _threads(jobs: int) -> int:
    """The share of each of several processes: with more threads than cores they wait for each other."""
    return max(1, (os.cpu_count() or 1) // jobs)


def _work(
    name: str, parameters: Parameters, task: str, model: str | None, methods: Sequence, threads: int, places: dict, queue
) -> None:
    torch.set_num_threads(threads)
    experiment = Experiment(name, parameters)
    _make(*experiment.model_of(model), methods, task, parameters.limit, **places, progress=lambda number: queue.put((task, number)))


# ------------------------------------------------------------------------------------------------ notebooks


def notebooks(folder: Path) -> dict[str, Path]:
    """Notebooks with a parameter cell, by name."""
    found = {}
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        if any("parameters" in cell["metadata"].get("tags", []) for cell in cells):
            found[path.stem] = path
    return found


def execute(
    sources: Mapping[str, Path], parameters: Mapping[str, Any], out: Path, *, jobs: int = 2, progress: bool = True
) -> dict[str, str]:
    """Run notebooks through papermill, `jobs` at a time; what ran before with the same inputs is left as it is.

    Parameters
    ----------
    sources : mapping of str to path
        Notebooks by name.
    parameters : mapping
        Of all of them.
    out : path
        Folder of the executed notebooks.
    jobs : int
        Notebooks at a time.
    progress : bool
        Whether to show one bar.

    Returns
    -------
    dict of str to str
        The error of each notebook that failed; it does not stop the others.
    """
    out.mkdir(parents=True, exist_ok=True)
    failed = {}
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(dart.__file__).parent.rglob("*.py"))))
    # not what notebooks store in `work()` themselves: the second call would find it and run them all again
    stored = sorted(str(path) for path in results.root().glob("*/*/settings.json"))
    jobs = max(1, min(jobs, len(sources)))
    environment = {"OMP_NUM_THREADS": str(_threads(jobs)), **os.environ}

    def one(name: str) -> str | None:
        source, target, mark = sources[name], out / f"{name}.ipynb", out / f"{name}.key"
        inputs = [source.read_text(), parameters, code.hexdigest(), stored]
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        if target.exists() and mark.exists() and mark.read_text() == key:
            return None
        command = [sys.executable, "-m", "papermill", source, target, "--no-progress-bar", "--log-level", "ERROR", "--cwd", source.parent]
        command += ["--parameters_base64", base64.b64encode(json.dumps(dict(parameters)).encode()).decode()]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"papermill ended with {done.returncode}"
        mark.write_text(key)
        return None

    with tqdm(total=len(sources), unit="notebook", disable=not progress, dynamic_ncols=True) as bar, ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(one, name): name for name in sources}
        for done in as_completed(running):
            if done.result() is not None:
                failed[running[done]] = done.result()
            bar.set_description(running[done])
            bar.update()
    return failed
