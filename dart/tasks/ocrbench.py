"""OCRBench: 1,000 questions about text in pictures, right if a true answer occurs in what is said (arXiv 2305.07895).

Read are the published `OCRBench/OCRBench.json` and the folder `OCRBench_Images`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dart.tasks import base, files
from dart.tasks.base import Benchmark, Question
from dart.tasks.prompts import SHORT

RECOGNITION = tuple(f"{each} Recognition" for each in (
    "Regular Text", "Irregular Text", "Artistic Text", "Handwriting", "Digit String", "Non-Semantic Text"
))
TYPES = (
    *RECOGNITION, "Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)
FORMULAS = "HME100k"


def task() -> Benchmark:
    return Benchmark("ocrbench", "OCRBench", "score", questions, score, floors, submission)


def questions(folder: str | Path | None = None) -> tuple[Question, ...]:
    """All questions in file order; `kind` is the type, `stratum` the same with the six kinds of text recognition as one.

    Raises
    ------
    FileNotFoundError
        With the official source of what is missing.
    ValueError
        With the file and the question that is not as it should be.
    """
    path = files.need("ocrbench", "OCRBench/OCRBench.json", folder)
    asked = []
    for row, entry in enumerate(base.document(path, list), 1):
        with base.reading():
            place = f"{path}, question {row}"
            image, text, answers, kind = (base.get(entry, key, place) for key in ("image_path", "question", "answers", "type"))
            base.get(entry, "dataset_name", place)  # which decides how answers are compared
            answers = (answers,) if isinstance(answers, str) else tuple(answers)
            asked.append(Question(
                id=row, text=f"{text}\n{SHORT}", answer=answers[0], choices=(), kind=base.one_of(kind, TYPES, place, "type"),
                picture_key=f"OCRBench/{image}", source=files.home("ocrbench", folder) / "OCRBench_Images" / image, answers=answers,
                stratum="Text Recognition" if kind in RECOGNITION else kind, entry=entry,
            ))
    return tuple(asked)


def right(question: Question, answer: str) -> bool:
    """Whether a true answer occurs in what was said: without regard to case, line ends as spaces; for formulas (HME100k)
    with regard to case and without any space."""
    if question.entry["dataset_name"] == FORMULAS:
        clean = lambda text: text.strip().replace("\n", " ").replace(" ", "")
    else:
        clean = lambda text: text.lower().strip().replace("\n", " ")
    return any(clean(each) in clean(answer) for each in question.answers)


def score(asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Points, one for each right answer: `score` out of 1,000, `recognition` out of 300, `score/TYPE` out of 50 to 200.

    With weights they are the number of questions times the weighted share that is right, so that resamples of different
    size stay comparable; a subset of questions gives points out of their number. `accuracy` is the share, 0 to 1.

    Parameters
    ----------
    asked, answers : sequences of length n
    weights : array, (..., n), optional
        How often each question counts; the scores then have shape (...).
    """
    weights = base.counts(asked, weights)
    values = np.array([right(question, answer) for question, answer in zip(asked, base.said(asked, answers))], bool)
    groups = {"score": np.ones(len(asked), bool), "recognition": np.array([q.kind in RECOGNITION for q in asked], bool)}
    groups |= {f"score/{kind}": rows for kind, rows in base.kinds(asked).items()}
    points = {name: rows.sum() * base.mean(values, weights, rows) for name, rows in groups.items() if rows.any()}
    return {**points, "accuracy": base.mean(values, weights)}


def floors(folder: str | Path | None = None) -> dict[str, dict[str, float]]:
    """`blind`: the commonest answer, in all or to each type; chance is not defined for open questions."""
    return {"blind": base.blind(questions(folder), score), "chance": {}}


def submission(asked: Sequence[Question], answers: Sequence[str], folder: str | Path) -> Path:
    """`ocrbench.json`, the published entries with `predict` and `result`, as OCRBench's scripts leave them."""
    rows = [{**q.entry, "predict": said, "result": int(right(q, said))} for q, said in zip(asked, base.said(asked, answers))]
    return base.write(Path(folder) / "ocrbench.json", json.dumps(rows, indent=4, ensure_ascii=False))
