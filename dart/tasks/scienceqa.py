"""ScienceQA: school questions with up to five options; those with a picture (arXiv 2209.09513).

Read are the published `problems.json`, `pid_splits.json` and `images/test/ID/image.png`. LLaVA-1.5's table and the paper
score the test questions that have a picture, called IMG; only those are asked here, for there is nothing to prune in the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dart.tasks import base, files
from dart.tasks.base import Benchmark, Question
from dart.tasks.prompts import LETTER

LETTERS = "ABCDE"


def task() -> Benchmark:
    return Benchmark("scienceqa", "ScienceQA (image)", "accuracy", questions, score, floors, submission, tokens=1024)


def questions(folder: str | Path | None = None) -> tuple[Question, ...]:
    """The test questions with a picture, in the order of the split; `kind` is the subject, `stratum` the same.

    Raises
    ------
    FileNotFoundError
        With the official source of what is missing.
    ValueError
        With the file and the problem that is not as it should be.
    """
    path = files.need("scienceqa", "problems.json", folder)
    splits = files.need("scienceqa", "pid_splits.json", folder)
    problems, test = base.document(path), base.get(base.document(splits), "test", str(splits))
    asked = []
    for number in test:
        with base.reading():
            place = f"{path}, problem {number}"
            if number not in problems:
                raise ValueError(f"{path} lacks problem {number}, which the test split of {splits.name} names; get both files again")
            entry = problems[number]
            text, choices, hint = (base.get(entry, key, place) for key in ("question", "choices", "hint"))
            image, truth = (base.get(entry, key, place) for key in ("image", "answer"))
            if not image:
                continue
            if not 0 <= truth < len(choices) <= len(LETTERS):
                raise ValueError(f"{place}: answer {truth} of {len(choices)} choices; there are 1 to {len(LETTERS)}, counted from 0")
            options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices)]
            context = [f"Context: {hint}"] if hint else []
            asked.append(Question(
                id=number, text="\n".join([*context, text, *options, LETTER]), answer=LETTERS[truth],
                choices=tuple(LETTERS[: len(choices)]), kind=entry.get("subject", "none"), stratum=entry.get("subject", "none"),
                picture_key=f"test/{number}/{image}", source=files.home("scienceqa", folder) / "images" / "test" / number / image,
            ))
    return tuple(asked)


def letter(answer: str) -> str | None:
    """The option that LLaVA's script reads in an answer: the letter alone, "B. ...", or "The answer is B."; else None."""
    if len(answer) == 1 and answer in LETTERS:
        return answer
    if len(answer) >= 3 and answer[0] in LETTERS and answer[1:3] == ". ":
        return answer[0]
    found = re.findall(r"The answer is ([A-Z]).", answer)
    return found[0] if len(found) == 1 else None


def score(asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Accuracy in all and by subject, 0 to 1. An answer without a letter, or with one that is no option, is wrong.

    Parameters
    ----------
    asked, answers : sequences of length n
    weights : array, (..., n), optional
        How often each question counts; the scores then have shape (...).
    """
    weights = base.counts(asked, weights)
    right = np.array([letter(answer) == question.answer for question, answer in zip(asked, base.said(asked, answers))], bool)
    return base.by_kind("accuracy", right, asked, weights)


def floors(folder: str | Path | None = None) -> dict[str, dict[str, float]]:
    """`blind`: the commonest letter; `chance`: one over the number of options, on average."""
    asked = questions(folder)
    return {"blind": base.blind(asked, score), "chance": {"accuracy": base.guess(asked)}}


def submission(asked: Sequence[Question], answers: Sequence[str], folder: str | Path) -> Path:
    """`scienceqa.json` with accuracy in percent, `results` (index of the option by problem, -1 for none) and `outputs`, as
    ScienceQA's and LLaVA's scripts write it."""
    texts = base.said(asked, answers)
    chosen = [letter(text) for text in texts]
    results = {q.id: LETTERS.index(each) if each in q.choices else -1 for q, each in zip(asked, chosen)}
    correct = sum(each == q.answer for q, each in zip(asked, chosen))
    record = {
        "acc": 100 * correct / len(asked), "correct": correct, "count": len(asked), "results": results,
        "outputs": {q.id: text for q, text in zip(asked, texts)},
    }
    return base.write(Path(folder) / "scienceqa.json", json.dumps(record, indent=2))
