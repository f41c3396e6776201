"""MME: a yes and a no question on each of 1,187 pictures, fourteen subtasks (arXiv 2306.13394).

Read is the published folder `MME_Benchmark_release_version` (or `MME_Benchmark` in it): a folder for each subtask with
pictures and text files of the same name, in five of them under `images` and `questions_answers_YN`. A text file has two
lines, question, tab, Yes or No.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dart.tasks import base, files
from dart.tasks.base import Benchmark, Question
from dart.tasks.prompts import SHORT

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
STRATA = {**dict.fromkeys(PERCEPTION, "perception"), **dict.fromkeys(COGNITION, "cognition")}
INSTRUCTION = "Please answer yes or no."


def task() -> Benchmark:
    return Benchmark("mme", "MME", "score", questions, score, floors, submission)


def questions(folder: str | Path | None = None) -> tuple[Question, ...]:
    """All questions, subtask by subtask, the two on a picture together; `stratum` is perception or cognition.

    As in LLaVA's question file, the benchmark's own "Please answer yes or no." gives way to the short-answer instruction.

    Raises
    ------
    FileNotFoundError
        With the official source, for a missing subtask or picture.
    ValueError
        With file and line, for a line that is no question, and for a file that has not two.
    """
    release = files.need("mme", "MME_Benchmark_release_version/", folder)
    if (release / "MME_Benchmark").is_dir():
        release /= "MME_Benchmark"
    asked, source = [], files.FILES["mme"][0].get
    for subtask in STRATA:
        texts = pictures = release / subtask
        if not texts.is_dir():
            raise FileNotFoundError(f"MME's subtask {subtask} is missing at {texts}; {source}")
        if (texts / "images").is_dir():
            texts, pictures = texts / "questions_answers_YN", texts / "images"
        found = {picture.stem: picture for picture in sorted(pictures.iterdir()) if picture.suffix in (".jpg", ".png")}
        for path in sorted(texts.glob("*.txt")):
            if path.stem not in found:
                raise FileNotFoundError(f"{path} has no picture {path.stem}.jpg or .png in {pictures}; {source}")
            with base.reading():
                asked += _pair(subtask, path, found[path.stem])
    return tuple(asked)


def _pair(subtask: str, path: Path, picture: Path) -> list[Question]:
    """The two questions of one file, on one picture."""
    numbered = enumerate(base.text(path).splitlines(), 1)
    rows = [(f"{path}, line {number}", line) for number, line in numbered if line.strip()]
    if len(rows) != 2:
        raise ValueError(f"{path} has {len(rows)} questions; MME has two on each picture")
    asked = []
    for place, line in rows:
        text, tab, answer = line.strip().partition("\t")
        if not tab:
            raise ValueError(f"{place}: no tab between question and answer: {line[:60]!r}")
        asked.append(Question(
            id=f"{subtask}/{path.stem}", text=f"{text.replace(INSTRUCTION, '').strip()}\n{SHORT}",
            answer=base.one_of(answer.strip().lower(), base.YES_NO, place, "answer"), choices=base.YES_NO, kind=subtask,
            picture_key=f"{subtask}/{picture.name}", source=picture, group=f"{subtask}/{path.stem}",
            stratum=STRATA[subtask], entry={"file": path.name, "question": text, "answer": answer.strip()},
        ))
    return asked


def label(answer: str) -> str:
    """"yes", "no" or "other", from the first four characters as MME's script reads them."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """MME's points, and accuracy and accuracy+ (both questions on a picture right) of each subtask.

    `accuracy...` and `accuracy_plus...` run from 0 to 1. `score/SUBTASK` is 100 times their sum, to 200; `perception` adds
    ten of them, to 2,000; `cognition` four, to 800; `score` is the sum of both, to 2,800, the total that the paper shows.
    Of questions from some subtasks only, these sums are over the subtasks that are there.

    Parameters
    ----------
    asked, answers : sequences of length n
    weights : array, (..., n), optional
        How often each question counts; a picture counts as often as its first question. The scores have shape (...).
    """
    weights = base.counts(asked, weights)
    right = np.array([label(answer) == question.answer for question, answer in zip(asked, base.said(asked, answers))], bool)
    first, whole = base.whole_groups(right, asked)
    parts = {}
    for subtask, rows in base.kinds(asked).items():
        parts[f"accuracy/{subtask}"] = base.mean(right, weights, rows)
        parts[f"accuracy_plus/{subtask}"] = base.mean(whole, weights, rows & first)
        parts[f"score/{subtask}"] = 100 * (parts[f"accuracy/{subtask}"] + parts[f"accuracy_plus/{subtask}"])
    totals = {}
    for name, subtasks in (("score", STRATA), ("perception", PERCEPTION), ("cognition", COGNITION)):
        points = [parts[f"score/{subtask}"] for subtask in subtasks if f"score/{subtask}" in parts]
        if points:
            totals[name] = np.sum(points, axis=0)
    return {**totals, **parts}


def floors(folder: str | Path | None = None) -> dict[str, dict[str, float]]:
    """`blind`: always yes, 50 a subtask; `chance`: half right, both right in a quarter, 75 a subtask."""
    asked = questions(folder)
    chance = {"score": 75.0 * len(STRATA), "perception": 75.0 * len(PERCEPTION), "cognition": 75.0 * len(COGNITION)}
    return {"blind": base.blind(asked, score), "chance": chance}


def submission(asked: Sequence[Question], answers: Sequence[str], folder: str | Path) -> Path:
    """One text file a subtask with lines file, question, truth, answer between tabs, for MME's `calculation.py`.

    The folder is given back. White space inside an answer becomes a space: the script knows no answers of several lines.
    """
    lines = {question.kind: [] for question in asked}
    for question, answer in zip(asked, base.said(asked, answers)):
        given = [question.entry[key] for key in ("file", "question", "answer")]
        lines[question.kind].append("\t".join([*given, " ".join(answer.split())]) + "\n")
    for subtask, each in lines.items():
        base.write(Path(folder) / f"{subtask}.txt", "".join(each))
    return Path(folder)
