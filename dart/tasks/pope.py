"""POPE: is there a dog in the image? Three splits of negatives on COCO pictures (arXiv 2305.10355).

Read are the published `coco/coco_pope_{random,popular,adversarial}.json`, one JSON object a line, and COCO's val2014.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dart.tasks import base, files
from dart.tasks.base import Benchmark, Question
from dart.tasks.prompts import SHORT

SPLITS = ("random", "popular", "adversarial")
RATES = ("f1", "accuracy", "precision", "recall", "yes_rate")


def task() -> Benchmark:
    return Benchmark("pope", "POPE", "f1", questions, score, floors, submission)


def questions(folder: str | Path | None = None) -> tuple[Question, ...]:
    """All questions, split by split.

    Raises
    ------
    FileNotFoundError
        With the official source of what is missing.
    ValueError
        With file and line of what is not a question.
    """
    asked = []
    for split in SPLITS:
        path = files.need("pope", f"coco/coco_pope_{split}.json", folder)
        for place, entry in base.lines(path):
            with base.reading():
                number, image, text, label = (base.get(entry, key, place) for key in ("question_id", "image", "text", "label"))
                asked.append(Question(
                    id=number, text=f"{text}\n{SHORT}", answer=base.one_of(label, base.YES_NO, place, "label"), choices=base.YES_NO,
                    kind=split, picture_key=f"val2014/{image}", source=files.home("pope", folder) / "val2014" / image, entry=entry,
                ))
    return tuple(asked)


def yes(answer: str) -> bool:
    """Whether POPE's script takes an answer for a yes: unless its first sentence has the word No, no or not.

    Words are cut at single spaces after commas are dropped, so `NO` and `no!` count as yes.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def score(asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Per split F1, accuracy, precision, recall and share of yes, as `f1/random` and so on, and their means over splits.

    All run from 0 to 1; a rate without a single case is 0. Tables of the field show the mean F1 in percent.

    Parameters
    ----------
    asked, answers : sequences of length n
    weights : array, (..., n), optional
        How often each question counts; the scores then have shape (...).
    """
    weights = base.counts(asked, weights)
    truth = np.array([question.answer == "yes" for question in asked])
    said = np.array([yes(answer) for answer in base.said(asked, answers)], bool)
    scores = {}
    for split, rows in base.kinds(asked).items():
        total = lambda mark: weights @ (mark & rows).astype(weights.dtype)
        both, positive, claimed = total(truth & said), total(truth), total(said)
        values = (
            base.share(2 * both, positive + claimed), base.mean(truth == said, weights, rows),
            base.share(both, claimed), base.share(both, positive), base.mean(said, weights, rows),
        )
        scores |= {f"{name}/{split}": value for name, value in zip(RATES, values)}
    means = {name: np.mean([scores[each] for each in scores if each.startswith(f"{name}/")], axis=0) for name in RATES}
    return {**means, **scores}


def floors(folder: str | Path | None = None) -> dict[str, dict[str, float]]:
    """`blind`: the best of always yes and always no; `chance`: an even guess, of which half the positives are found."""
    asked = questions(folder)
    positive = np.mean([question.answer == "yes" for question in asked])
    return {"blind": base.blind(asked, score), "chance": {"accuracy": 0.5, "f1": float(2 * 0.5 * positive / (positive + 0.5))}}


def submission(asked: Sequence[Question], answers: Sequence[str], folder: str | Path) -> Path:
    """One file a split with a line `{"question", "answer"}` for each question, for POPE's `evaluate.py`; gives the folder."""
    lines = {split: [] for split in SPLITS}
    for question, answer in zip(asked, base.said(asked, answers)):
        lines[question.kind].append(json.dumps({"question": question.entry["text"], "answer": answer}) + "\n")
    for split, each in lines.items():
        base.write(Path(folder) / f"coco_pope_{split}.json", "".join(each))
    return Path(folder)
