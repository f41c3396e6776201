"""The store of results: one folder for each finished run, never overwritten, with what is needed to trust it or to doubt it.

    data/results/existence/dart-64-1a2b3c4d/settings.json         what was asked for; the name ends in a hash of it
                                            metrics.json          every metric with its 95 % interval
                                            environment.json      device, versions, commit, fingerprint of the code
                                            predictions.json.gz   the answers, in the order of the questions
                                            renewals.json         if there were any: when newer code gave the same answers

A run's settings hold the checkpoint's fingerprint and a hash of the questions. Beside them stands the *code fingerprint*: if
the code that a run used has changed since, `Stored.current` is False and pages say "older code", until `verify` has seen that
today's code answers alike.

`average` is the mean over tasks of the ratio to the unpruned score, as the paper averages, and `join` puts it beside the paper's.
"""

from __future__ import annotations

import ast
import datetime
import gzip
import hashlib
import importlib
import inspect
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import dart
from dart import evaluation
from dart.evaluation import Interval, Record
from dart.tasks import TASKS as PUBLISHED

# What every run uses, beside the file of its method and of its task.
COMMON = ("attention", "evaluation", "families", "pruning", "select", "tower", "methods.base", "methods.shares", "methods.thumbnails")


@dataclass(frozen=True)
class Stored(Record):
    """A run out of the store, with the questions it answered.

    Attributes
    ----------
    current : bool
        Whether the code that it used is the code of today, or was seen to answer as that does.
    """

    current: bool = True


def root(folder: str | Path | None = None) -> Path:
    """The folder of the store, `data/results` unless told."""
    return Path(folder) if folder is not None else dart.data_root() / "results"


def code_fingerprint(settings: dict[str, Any]) -> str:
    """Twelve hex digits of the code that a run with these settings uses: its syntax trees without docstrings.

    Comments, docstrings and layout do not count.
    """
    method = settings["method"]
    names = [*COMMON, *_task_files(settings["task"])]
    names += [f"methods.{method['name'].lower()}"] if method else []
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\n{_syntax(inspect.getsource(importlib.import_module(f'dart.{name}')))}\n".encode())
    return digest.hexdigest()[:12]


def _task_files(task: str) -> list[str]:
    if task in PUBLISHED:                                   # pope, mmbench-cn: the file has the first word
        shared = ["tasks.vqa"] if "vqa" in task or task.startswith("vizwiz") else []
        return ["tasks.base", "tasks.prompts", f"tasks.{task.split('-')[0]}", *shared]
    return {"easy-vqa": ["easy_vqa"], "videos": ["scenes", "videos"]}.get(task, ["scenes"])


@lru_cache
def _syntax(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@lru_cache
def _questions(task: str) -> list:
    return list(evaluation.find_task(task).questions())


def place_of(settings: dict[str, Any], folder: str | Path | None = None) -> Path:
    """Where a run of these settings lies in the store, whether it is there or not."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return root(folder) / settings["task"] / f"{settings['label']}-{key}"


def keep(record: Record, folder: str | Path | None = None) -> Path:
    """Put a finished run into the store.

    Parameters
    ----------
    record : Record
        As `evaluation.run` and `evaluation.sweep` give it.
    folder : path, optional
        Of the store.

    Returns
    -------
    Path
        Of the run. A run that is there already stays as it is.

    Raises
    ------
    ValueError
        If a run of these settings is there with other answers: nothing is overwritten.
    """
    place = place_of(record.settings, folder)
    if (place / "environment.json").exists():
        if _answers(place) != list(record.answers):
            raise ValueError(f"{place} holds other answers to the same settings; move it away if the new ones are to be kept")
        return place
    place.mkdir(parents=True, exist_ok=True)
    environment = {**record.environment, "commit": _commit(), "code": code_fingerprint(record.settings)}
    written = json.dumps(list(record.answers)).encode()
    (place / "predictions.json.gz").write_bytes(gzip.compress(written, mtime=0))
    metrics = {name: asdict(metric) for name, metric in record.metrics.items()}
    # the environment comes last: a run without it was not finished
    for name, content in (("settings", record.settings), ("metrics", metrics), ("environment", environment)):
        (place / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return place


def load(place: str | Path) -> Stored:
    """One run out of the store.

    Raises
    ------
    ValueError
        If a file is missing or damaged, or the questions of the task are not those that were answered.
    """
    place = Path(place)
    try:
        settings, metrics, environment = (json.loads((place / f"{name}.json").read_text()) for name in ("settings", "metrics", "environment"))
        answers, renewals = _answers(place), _renewals(place)
    except (OSError, EOFError, gzip.BadGzipFile, json.JSONDecodeError) as reason:
        raise ValueError(f"the run in {place} cannot be read: {reason}; fetch it again or make it anew") from reason
    questions = _questions(settings["task"])[: settings["n"]]
    if evaluation.questions_hash(questions) != settings["questions"] or len(answers) != settings["n"]:
        raise ValueError(f"the run in {place} answered other questions than {settings['task']} asks now; make it anew")
    intervals = {name: Interval(**metric) for name, metric in metrics.items()}
    current = code_fingerprint(settings) in {environment["code"], *(renewal["code"] for renewal in renewals)}
    return Stored(place, settings, intervals, environment, questions, answers, current)


def find(
    task: str | None = None, label: str | None = None, *, model: str | None = None, folder: str | Path | None = None
) -> list[Stored]:
    """All runs of a task, of a method's label (`unpruned`, `dart-64`), of a model's folder (`model`), or of several of these, by name."""
    return [run for run in map(load, _places(task, label, root(folder))) if model in (None, run.settings["model"])]


def lookup(settings: dict[str, Any], folders: Sequence[str | Path | None] = (None,)) -> Stored | None:
    """The run of these settings from the first store that has it, or None."""
    places = (place_of(settings, folder) for folder in folders)
    return next((load(place) for place in places if (place / "environment.json").exists()), None)


def recheck(runs: Sequence[Stored], model, processor, *, n: int = 100, batch: int = 16) -> list[float]:
    """Answer some questions of several runs on a task anew with today's code; the vision tower sees each picture once for all.

    Parameters
    ----------
    runs : sequence of Stored
        That asked the same questions, for answers of the same length.
    model, processor
        The model that the runs were made with.
    n : int
        Questions to answer, drawn by their hash.
    batch : int
        Questions a call.

    Returns
    -------
    list of float
        The share of answers that agree, for each run.

    Raises
    ------
    ValueError
        If the model is not the one of the runs, or the runs did not ask the same.
    """
    given = evaluation.fingerprint(model)
    for run in runs:
        if run.settings["weights"] != given:
            raise ValueError(f"the run in {run.folder} is of weights {run.settings['weights']}, the model has {given}; load the model of the run")
        if asked_alike(run) != asked_alike(runs[0]):
            raise ValueError(f"the runs in {run.folder} and {runs[0].folder} did not ask the same; recheck them one by one")
    questions = runs[0].questions
    seed = int(runs[0].settings["questions"][:8], 16)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(questions))[:n])
    methods = [_method(run.settings["method"]) for run in runs]
    agree = np.zeros(len(runs))
    for part in np.array_split(drawn, max(1, -(-len(drawn) // batch))):
        said = evaluation.answer(model, processor, [questions[i] for i in part], methods, tokens=runs[0].settings["tokens"])
        agree += [sum(answer == run.answers[i] for answer, i in zip(answers, part)) for answers, run in zip(said, runs)]
    return (agree / len(drawn)).tolist()


def asked_alike(run: Record) -> tuple:
    """What runs have in common that can be answered anew together: task, questions, their number, length of answers."""
    return tuple(run.settings[name] for name in ("task", "questions", "n", "tokens"))


def verify(runs: Sequence[Stored], model, processor, *, n: int = 100, least: float = 0.99) -> list[float]:
    """`recheck` runs, and note in the store which of them answer as they did.

    Parameters
    ----------
    runs, model, processor, n
        As those of `recheck`.
    least : float
        Share that has to agree; torch of another version may move a last bit and so a word.

    Returns
    -------
    list of float
        The share of answers that agree, for each run. From `least` on a renewal is appended to the run.
    """
    shares = recheck(runs, model, processor, n=n)
    for run, agree in zip(runs, shares):
        if agree >= least:
            renewal = {"date": datetime.date.today().isoformat(), "questions": min(n, len(run.questions)), "agree": agree,
                       "commit": _commit(), "code": code_fingerprint(run.settings)}
            (run.folder / "renewals.json").write_text(json.dumps([*_renewals(run.folder), renewal], indent=1) + "\n")
    return shares


def _method(settings: dict[str, Any] | None) -> dart.Method | None:
    """The method that these settings describe."""
    if settings is None:
        return None
    made = {each.__name__: each for each in dart.METHODS.values()}[settings["name"]]
    given = {each.name: settings[each.name] for each in fields(made) if each.init and each.name in settings}
    return made(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


# ------------------------------------------------------------------------------------------------ beside the paper


@dataclass(frozen=True)
class Average:
    """Mean over tasks of the ratio to the unpruned score, 1 for no loss, and its value in each bootstrap resample, (times,)."""

    value: float
    drawn: np.ndarray

    @property
    def interval(self) -> Interval:
        return Interval(self.value, *map(float, np.nanpercentile(self.drawn, (2.5, 97.5))))

    def __sub__(self, other: Average) -> Interval:
        """The difference with its interval; both answered the same resampled questions."""
        return Average(self.value - other.value, self.drawn - other.drawn).interval


def average(runs: Mapping[str, Sequence[Record]], unpruned: Mapping[str, Record]) -> Average:
    """How much of the unpruned scores is left, as the paper averages: the mean over tasks of score / unpruned score.

    Parameters
    ----------
    runs : mapping of str to sequence of Record
        By task; of several runs (seeds) the mean score counts.
    unpruned : mapping of str to Record
        By task, on the same questions.
    """
    values, drawn = [], []
    for task, several in runs.items():
        scores = [_drawn(run) for run in several]
        whole, resampled = _drawn(unpruned[task])
        values.append(np.mean([value for value, _ in scores]) / whole)
        with np.errstate(divide="ignore", invalid="ignore"):   # a resample of few questions may have no right answer
            drawn.append(np.mean([each for _, each in scores], axis=0) / resampled)
    return Average(float(np.mean(values)), np.mean(drawn, axis=0))


def mean_score(runs: Sequence[Record]) -> Interval:
    """The mean of a task's own metric over several runs (seeds) on the same questions, with its interval."""
    scores = [_drawn(run) for run in runs]
    return Average(float(np.mean([value for value, _ in scores])), np.mean([each for _, each in scores], axis=0)).interval


def mean_difference(runs: Sequence[Record], reference: Record) -> Interval:
    """That mean minus the score of `reference`, both answering the same resampled questions."""
    whole, resampled = _drawn(reference)
    scores = [_drawn(run) for run in runs]
    return Average(float(np.mean([value for value, _ in scores])) - whole, np.mean([each for _, each in scores], axis=0) - resampled).interval


def _drawn(run: Record) -> tuple[float, np.ndarray]:
    """A run's score by its task's own metric, and that of each resample."""
    key = json.dumps(run.settings, sort_keys=True), hash(tuple(run.answers))
    if key not in _SCORES:
        task = evaluation.find_task(run.settings["task"])
        value = float(task.score(run.questions, run.answers)[task.metric])
        _SCORES[key] = value, task.score(run.questions, run.answers, evaluation.resamples(run.questions))[task.metric]
    return _SCORES[key]


_SCORES: dict[tuple, tuple[float, np.ndarray]] = {}


@dataclass(frozen=True)
class Comparison:
    """One row of a table beside the paper's.

    Attributes
    ----------
    label : str
        The method, as the paper names it.
    paper, ours : float or None, Interval or None
        Share of the unpruned scores that is left, mean over tasks; None where the paper prints none, or for what was not run.
    difference : float or None
        Ours minus the paper's.
    n : int
        Questions over all tasks.
    verdict : str
        "not run", or "reference" for the rows that others are compared with. At paper scale "agrees" if the paper's value lies
        in our interval, else "differs". At bundled scale values of another model and other tasks are not compared, but order:
        "same order" if our difference to the reference has the paper's sign and its interval excludes 0, "reversed" if it has
        the other sign and excludes 0, else "undecided".
    """

    label: str
    paper: float | None
    ours: Interval | None
    difference: float | None
    n: int
    verdict: str


def join(
    label: str,
    paper: float | None,
    ours: Average | None,
    n: int,
    *,
    reference: tuple[float | None, Average | None] | None = None,
) -> Comparison:
    """Put the paper's average, ours, the difference, n, the interval and a verdict side by side.

    Parameters
    ----------
    label : str
    paper : float or None
        As a share, 0.937.
    ours : Average or None
    n : int
        Questions over all tasks.
    reference : tuple, optional
        Paper's and our average of the row that order is judged against (bundled scale); None compares values (paper scale).
    """
    interval = ours and ours.interval
    difference = None if paper is None or ours is None else ours.value - paper
    if ours is None:
        verdict = "not run"
    elif paper is None:
        verdict = "no value in the paper"
    elif reference is None:
        verdict = "agrees" if interval.low <= paper <= interval.high else "differs"
    elif reference[0] is None or reference[1] is None:
        verdict = "no reference"
    elif reference[1] is ours:
        verdict = "reference"
    else:
        gap, wanted = ours - reference[1], np.sign(paper - reference[0])
        sign = 1 if gap.low > 0 else -1 if gap.high < 0 else 0
        verdict = "undecided" if sign == 0 else "same order" if sign == wanted else "reversed"
    return Comparison(label, paper, interval, difference, n, verdict)


# ------------------------------------------------------------------------------------------------ files


def _places(task: str | None, label: str | None, folder: Path) -> Iterator[Path]:
    for settings in sorted(folder.glob(f"{task or '*'}/*/settings.json")):
        if label is None or json.loads(settings.read_text())["label"] == label:
            yield settings.parent


def _renewals(place: Path) -> list[dict[str, Any]]:
    file = place / "renewals.json"
    return json.loads(file.read_text()) if file.exists() else []


def _answers(place: Path) -> list[str]:
    return json.loads(gzip.decompress((place / "predictions.json.gz").read_bytes()))


def _commit() -> str | None:
    """The commit of the checkout, with "+" if files of it were changed; None where there is none."""
    here = Path(dart.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain", "--", str(here)))
    except (OSError, subprocess.CalledProcessError):
        return None
