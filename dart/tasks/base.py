"""What all benchmarks share: questions, reading with places in errors, weighted means, floors."""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """A published question about one picture.

    Parameters
    ----------
    id : str or int
        As published; submissions go by it.
    text : str
        What the user says, with the instruction that LLaVA's scripts put behind the question.
    answer : str
        The true answer, the commonest where there are several, empty where it is not public.
    choices : tuple of str
        Every answer that the question allows; empty if any words do.
    kind : str
        What scores are split by.
    picture_key : str
        The same for questions on one picture, and on every machine: split and file.
    source : Path or str
        The picture's file, or the file's bytes in base64.
    group : str, optional
        Joins questions that are only right together.
    stratum : str
        What the task's own metric is also reported for.
    answers : tuple of str
        All true answers, where there are several.
    entry : mapping
        The published entry, for submissions.
    """

    id: str | int
    text: str
    answer: str
    choices: tuple[str, ...]
    kind: str
    picture_key: str
    source: Path | str = field(repr=False)
    group: str | None = None
    stratum: str = "all"
    answers: tuple[str, ...] = ()
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def picture(self) -> Image.Image:
        """The picture, RGB.

        Raises
        ------
        FileNotFoundError
            If its file is missing.
        ValueError
            If it does not decode, with the file's name.
        """
        name = self.source if isinstance(self.source, Path) else self.picture_key
        try:
            encoded = self.source if isinstance(self.source, Path) else BytesIO(base64.b64decode(self.source, validate=True))
            with Image.open(encoded) as picture:
                return picture.convert("RGB")
        except FileNotFoundError:
            raise FileNotFoundError(f"picture {name} is missing; `dart data check` says where it comes from") from None
        except (OSError, ValueError, SyntaxError) as reason:  # what PIL raises for broken files
            raise ValueError(f"picture {name} does not decode ({reason}); get its file again") from reason


@dataclass(frozen=True)
class Benchmark:
    """A benchmark in its published format: what `dart.evaluation.Task` holds, and a submission.

    `questions(folder=None)` and `floors(folder=None)` read the benchmark's own folder, by default its place under
    `dart.tasks.files.root()`. `score(questions, answers, weights=None)` scores as the official script does; `weights` of
    shape (..., n) says how often each question counts, and the scores then have shape (...).
    `submission(questions, answers, folder)` writes the official answer file and gives its path. `tokens` is the longest
    answer that LLaVA's scripts let a model give.
    """

    name: str
    title: str
    metric: str
    questions: Callable[..., tuple[Question, ...]] = field(repr=False)
    score: Callable[..., dict[str, np.ndarray]] = field(repr=False)
    floors: Callable[..., dict[str, dict[str, float]]] = field(repr=False)
    submission: Callable[..., Path] = field(repr=False)
    tokens: int = 128


# ------------------------------------------------------------------------------------------------ reading


_passed: ContextVar[dict[str, None] | None] = ContextVar("passed", default=None)


@contextmanager
def passing_over(wanted: bool = True) -> Iterator[dict[str, None]]:
    """Inside the block entries of question files that are no questions are passed over, if that is wanted, and noted.

    A file that is missing or cannot be read at all is an error all the same.

    Yields
    ------
    dict
        Whose keys say what was passed over, each once however often its file is read.
    """
    noted: dict[str, None] = {}
    before = _passed.set(noted if wanted else _passed.get())
    try:
        yield noted
    finally:
        _passed.reset(before)


@contextmanager
def reading() -> Iterator[None]:
    """Around the reading of one entry: inside `passing_over` a ValueError drops the entry and nothing else."""
    try:
        yield
    except ValueError as reason:
        if _passed.get() is None:
            raise
        _passed.get()[str(reason)] = None


def text(path: Path) -> str:
    """What stands in a text file, or a ValueError that names it."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as reason:
        raise ValueError(f"{path}: not UTF-8 text at byte {reason.start:,}; get the file again") from reason


def document(path: Path, kind: type = dict) -> Any:
    """A JSON document that holds a dict, or what `kind` says.

    Raises
    ------
    ValueError
        With file and line if it is broken or cut short, with the file if it holds something else.
    """
    try:
        content = json.loads(text(path))
    except json.JSONDecodeError as reason:
        raise ValueError(f"{path}, line {reason.lineno}: not JSON ({reason.msg}); get the file again") from reason
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__} where a {kind.__name__} is published; get the file again")
    return content


def lines(path: Path) -> Iterator[tuple[str, dict]]:
    """The objects of a file with one JSON object a line, each with its place in words; blank lines are passed over.

    Raises
    ------
    ValueError
        With file and line.
    """
    for number, line in enumerate(text(path).split("\n"), 1):
        if line.strip():
            with reading():
                try:
                    content = json.loads(line)
                except json.JSONDecodeError as reason:
                    raise ValueError(f"{path}, line {number}: not JSON ({reason.msg}): {line.strip()[:60]!r}") from reason
                yield f"{path}, line {number}", content


def get(entry: Any, key: str, place: str) -> Any:
    """`entry[key]`, or a ValueError that names the place."""
    if not isinstance(entry, Mapping) or key not in entry:
        has = f"it has {', '.join(map(repr, entry))}" if isinstance(entry, Mapping) else f"it is {str(entry)[:60]!r}"
        raise ValueError(f"{place}: no {key!r}; {has}")
    return entry[key]


def one_of(value: str, valid: Sequence[str], place: str, what: str) -> str:
    """`value` if it is one of the valid ones, or a ValueError that names the place."""
    if value not in valid:
        raise ValueError(f"{place}: {what} {value!r} is not one of {', '.join(valid)}")
    return value


def write(path: Path, text: str) -> Path:
    """Write a submission and give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ scoring


def said(asked: Sequence[Question], answers: Sequence[str]) -> list[str]:
    """The answers without white space around them, which is how LLaVA's scripts hand them to the official ones.

    Raises
    ------
    ValueError
        If there is not one answer to each question.
    """
    if len(asked) != len(answers):
        raise ValueError(f"{len(asked)} questions but {len(answers)} answers; give one answer to each question")
    return [answer.strip() for answer in answers]


def counts(asked: Sequence[Question], weights: np.ndarray | None) -> np.ndarray:
    """Weights as floats (..., n), ones if there are none."""
    if weights is None:
        return np.ones(len(asked))
    weights = np.asarray(weights)
    if weights.shape[-1:] != (len(asked),):
        raise ValueError(f"weights have shape {weights.shape}, but the last axis goes over {len(asked)} questions")
    return weights if np.issubdtype(weights.dtype, np.floating) else weights.astype(float)


def mean(values: np.ndarray, weights: np.ndarray, rows: np.ndarray | bool = True) -> np.ndarray:
    """Weighted mean of values (n,) over the marked rows, with weights (..., n); nan where no such row was drawn, and where
    a value is nan because its true answer is not public."""
    mark = np.broadcast_to(rows, np.shape(values))
    with np.errstate(invalid="ignore"):
        return weights @ np.where(mark, values, 0).astype(weights.dtype) / (weights @ mark.astype(weights.dtype))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(np.asarray(part, float)), where=np.asarray(whole) > 0)


def kinds(asked: Sequence[Question]) -> dict[str, np.ndarray]:
    """Which questions are of each kind: bool (n,), kinds in the order in which they come."""
    of = np.array([question.kind for question in asked])
    return {kind: of == kind for kind in dict.fromkeys(of.tolist())}


def by_kind(name: str, values: np.ndarray, asked: Sequence[Question], weights: np.ndarray) -> dict[str, np.ndarray]:
    """The mean of values (n,) as `name`, and of each kind as `name/kind` where there are several."""
    rows = kinds(asked)
    each = {f"{name}/{kind}": mean(values, weights, row) for kind, row in rows.items()} if len(rows) > 1 else {}
    return {name: mean(values, weights), **each}


def whole_groups(right: np.ndarray, asked: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """For groups that are only right together: where each begins, and at that row whether all of it is right.

    Returns
    -------
    first, whole : bool (n,)
        A group then counts as often as its first question.
    """
    members = defaultdict(list)
    for index, question in enumerate(asked):
        members[question.group].append(index)
    first, whole = np.zeros(len(asked), bool), np.zeros(len(asked), bool)
    for rows in members.values():
        first[rows[0]], whole[rows[0]] = True, bool(right[rows].all())
    return first, whole


def blind(asked: Sequence[Question], score: Callable[..., dict[str, np.ndarray]]) -> dict[str, float]:
    """For each metric the best that one gets without looking: tried are the commonest answer to each kind of question, and
    each of the ten commonest answers to everything. Shares of yes are left out."""
    overall, of_kind = Counter(), defaultdict(Counter)
    for question in asked:
        overall[question.answer] += 1
        of_kind[question.kind][question.answer] += 1
    tries = [[of_kind[question.kind].most_common(1)[0][0] for question in asked]]
    tries += [[answer] * len(asked) for answer, _ in overall.most_common(10)]
    scored = [score(asked, answers) for answers in tries]
    return {name: float(max(each[name] for each in scored)) for name in scored[0] if not name.startswith("yes_rate")}


def guess(asked: Sequence[Question]) -> float:
    """Expected accuracy of an even guess among the choices."""
    return float(np.mean([1 / len(question.choices) for question in asked]))
