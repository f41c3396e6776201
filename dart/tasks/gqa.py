"""GQA: questions made from scene graphs, the balanced test-dev set with public answers (arXiv 1902.09506).

Read are `data/testdev_balanced_questions.json` of the questions 1.2 release, one document by question id, and its pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dart.tasks import base, files
from dart.tasks.base import Benchmark, Question
from dart.tasks.prompts import SHORT


def task() -> Benchmark:
    return Benchmark("gqa", "GQA", "accuracy", questions, score, floors, submission)


def questions(folder: str | Path | None = None) -> tuple[Question, ...]:
    """All balanced questions in file order; `kind` is the structural type, `stratum` the semantic one.

    Raises
    ------
    FileNotFoundError
        With the official source of what is missing.
    ValueError
        With the file and the question that is not as it should be.
    """
    path = files.need("gqa", "data/testdev_balanced_questions.json", folder)
    asked = []
    for number, entry in base.document(path).items():
        with base.reading():
            place = f"{path}, question {number}"
            text, answer, image, types = (base.get(entry, key, place) for key in ("question", "answer", "imageId", "types"))
            kind, stratum = (base.get(types, key, place) for key in ("structural", "semantic"))
            if entry.get("isBalanced", True):
                asked.append(Question(
                    id=number, text=f"{text}\n{SHORT}", answer=answer, choices=base.YES_NO if answer in base.YES_NO else (),
                    kind=kind, stratum=stratum, picture_key=f"gqa/{image}.jpg",
                    source=files.home("gqa", folder) / "data" / "images" / f"{image}.jpg",
                ))
    return tuple(asked)


def prediction(answer: str) -> str:
    """What LLaVA's script hands to GQA's: lower case, without full stops at the end."""
    return answer.rstrip(".").lower()


def score(asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Accuracy by GQA's exact match, 0 to 1: `accuracy`, `accuracy/TYPE` by structural type, and `open` and `binary`, which
    GQA calls questions of type query and all others.

    Parameters
    ----------
    asked, answers : sequences of length n
    weights : array, (..., n), optional
        How often each question counts; the scores then have shape (...).
    """
    weights = base.counts(asked, weights)
    right = np.array([prediction(answer) == question.answer for question, answer in zip(asked, base.said(asked, answers))], bool)
    open_ = np.array([question.kind == "query" for question in asked], bool)
    return {
        **base.by_kind("accuracy", right, asked, weights),
        "binary": base.mean(right, weights, ~open_), "open": base.mean(right, weights, open_),
    }


def floors(folder: str | Path | None = None) -> dict[str, dict[str, float]]:
    """`blind`: the commonest answer, in all or to each structural type; chance is not defined for open questions."""
    return {"blind": base.blind(questions(folder), score), "chance": {}}


def submission(asked: Sequence[Question], answers: Sequence[str], folder: str | Path) -> Path:
    """`testdev_balanced_predictions.json`, a list of `{"questionId", "prediction"}`, for GQA's `eval.py`."""
    rows = [{"questionId": q.id, "prediction": prediction(answer)} for q, answer in zip(asked, base.said(asked, answers))]
    return base.write(Path(folder) / "testdev_balanced_predictions.json", json.dumps(rows))
