"""VQAv2: open questions on COCO pictures, ten annotators each (arXiv 1612.00837).

Read are the published question and annotation documents: `vqav2` is val2014, whose answers are public; `vqav2-testdev` is
the set of the paper's tables, which only the evaluation server can score: it gives a submission and no number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dart.tasks import base, files, vqa
from dart.tasks.base import Benchmark, Question
from dart.tasks.prompts import SHORT

TESTDEV = "vqav2-testdev"
TEST = "v2_OpenEnded_mscoco_test2015_questions.json"


def task(name: str = "vqav2") -> Benchmark:
    title = "VQAv2 val" if name != TESTDEV else "VQAv2 test-dev (answers not public: hand in the submission)"
    return Benchmark(name, title, "accuracy", partial(questions, name), score, partial(floors, name), submission)


def questions(name: str = "vqav2", folder: str | Path | None = None) -> tuple[Question, ...]:
    """All questions in file order; `kind` is the answer type (yes/no, number, other), "all" on test-dev.

    Raises
    ------
    FileNotFoundError
        With the official source of what is missing.
    ValueError
        With the file and the question that is not as it should be.
    """
    path = files.need(name, files.FILES[name][0].path, folder)
    split, found = ("test2015", {}) if name == TESTDEV else ("val2014", _annotations(folder))
    pictures = files.home(name, folder) / split
    asked = []
    for row, entry in enumerate(base.get(base.document(path), "questions", str(path)), 1):
        with base.reading():
            place = f"{path}, question {row}"
            number, image, text = (base.get(entry, key, place) for key in ("question_id", "image_id", "question"))
            if split == "val2014" and number not in found:
                raise ValueError(f"{place}: {number} has no annotation; get questions and annotations of the same split")
            kind, answers = found.get(number, ("all", ()))
            file = f"COCO_{split}_{image:012}.jpg"
            asked.append(Question(
                id=number, text=f"{text}\n{SHORT}", answer=vqa.commonest(answers), choices=base.YES_NO if kind == "yes/no" else (),
                kind=kind, picture_key=f"{split}/{file}", source=pictures / file, answers=answers,
            ))
    return tuple(asked)


def _annotations(folder: str | Path | None) -> dict[int, tuple[str, tuple[str, ...]]]:
    """Answer type and annotators' answers by question id."""
    path = files.need("vqav2", files.FILES["vqav2"][1].path, folder)
    found = {}
    for row, entry in enumerate(base.get(base.document(path), "annotations", str(path)), 1):
        with base.reading():
            place = f"{path}, annotation {row}"
            number, kind, answers = (base.get(entry, key, place) for key in ("question_id", "answer_type", "answers"))
            found[number] = kind, tuple(base.get(answer, "answer", place) for answer in answers)
    return found


def score(asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Soft accuracy in all and by answer type, 0 to 1, nan for test-dev.

    This is VQA's script on the answers that `submission` writes. The script normalises nothing where all annotators agree,
    and LLaVA's normaliser parts `woman's` in two, which then matches no annotator; both are kept.

    Parameters
    ----------
    asked, answers : sequences of length n
    weights : array, (..., n), optional
        How often each question counts; the scores then have shape (...).
    """
    soft = [_soft(question.answers, vqa.evalai(said)) for question, said in zip(asked, base.said(asked, answers))]
    return vqa.score(asked, soft, weights)


def _soft(answers: Sequence[str], said: str) -> float:
    answers = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    if len(set(answers)) > 1:
        said, answers = vqa.official(said), [vqa.official(answer) for answer in answers]
    return vqa.soft_accuracy(said, answers)


def floors(name: str = "vqav2", folder: str | Path | None = None) -> dict[str, dict[str, float]]:
    """`blind`: the commonest answer, in all or to each answer type; chance is not defined for open questions."""
    return {"blind": base.blind(questions(name, folder), score), "chance": {}}


def submission(asked: Sequence[Question], answers: Sequence[str], folder: str | Path) -> Path:
    """`vqav2.json`, a list of `{"question_id", "answer"}` with answers normalised as LLaVA's script does.

    The server of test-dev wants a row for each question of the whole test set: those that were not asked get an empty answer.

    Raises
    ------
    FileNotFoundError
        If the questions of the whole test set are missing, which come in the archive of test-dev.
    """
    rows = [{"question_id": q.id, "answer": vqa.evalai(answer)} for q, answer in zip(asked, base.said(asked, answers))]
    if asked and asked[0].picture_key.startswith("test2015/"):
        given = {row["question_id"]: row["answer"] for row in rows}
        everything = base.document(files.need(TESTDEV, TEST, asked[0].source.parent.parent))["questions"]
        rows = [{"question_id": each["question_id"], "answer": given.get(each["question_id"], "")} for each in everything]
    return base.write(Path(folder) / "vqav2.json", json.dumps(rows))
