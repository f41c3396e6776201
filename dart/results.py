"""The store of results: one folder for each finished run, never overwritten, with what is needed to trust it or to doubt it.

    data/results/existence/dart-64-1a2b3c4d/settings.json         what was asked for; the name ends in a hash of it
                                            metrics.json          every metric with its 95 % interval
                                            environment.json      device, versions, commit, fingerprint of the code
                                            predictions.json.gz   the answers, in the order of the questions

A run's settings hold the checkpoint's fingerprint and a hash of the questions. Beside them stands the *code fingerprint*: if
the code that a run used has changed since, `Stored.current` is False and pages say "older code".
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib
import inspect
import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import dart
from dart import evaluation
from dart.evaluation import Interval, Record

# What every run uses, beside the file of its method and of its task.
COMMON = ("attention", "evaluation", "families", "pruning", "select", "tower", "methods.base", "methods.shares", "methods.thumbnails")


@dataclass(frozen=True)
class Stored(Record):
    """A run out of the store, with the questions it answered.

    Attributes
    ----------
    current : bool
        Whether the code that it used is the code of today.
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
    names = [*COMMON, "easy_vqa" if settings["task"] == "easy-vqa" else "scenes"]
    names += [f"methods.{method['name'].lower()}"] if method else []
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\n{_syntax(inspect.getsource(importlib.import_module(f'dart.{name}')))}\n".encode())
    return digest.hexdigest()[:12]


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
    text = json.dumps(record.settings, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:8]
    place = root(folder) / record.settings["task"] / f"{record.settings['label']}-{key}"
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
        answers = _answers(place)
    except (OSError, EOFError, gzip.BadGzipFile, json.JSONDecodeError) as reason:
        raise ValueError(f"the run in {place} cannot be read: {reason}; fetch it again or make it anew") from reason
    questions = _questions(settings["task"])[: settings["n"]]
    if evaluation.questions_hash(questions) != settings["questions"] or len(answers) != settings["n"]:
        raise ValueError(f"the run in {place} answered other questions than {settings['task']} asks now; make it anew")
    intervals = {name: Interval(**metric) for name, metric in metrics.items()}
    current = environment["code"] == code_fingerprint(settings)
    return Stored(place, settings, intervals, environment, questions, answers, current)


def find(task: str | None = None, label: str | None = None, *, folder: str | Path | None = None) -> list[Stored]:
    """All runs of a task, of a method's label (`unpruned`, `dart-64`), or of both, by name."""
    return [load(place) for place in _places(task, label, root(folder))]


def _places(task: str | None, label: str | None, folder: Path) -> Iterator[Path]:
    for settings in sorted(folder.glob(f"{task or '*'}/*/settings.json")):
        if label is None or json.loads(settings.read_text())["label"] == label:
            yield settings.parent


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
