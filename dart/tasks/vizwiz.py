"""VizWiz: questions that blind people asked about their own photographs, many without an answer (arXiv 1802.08218).

Read are the published `val.json` (`vizwiz`, answers public) and `test.json` (`vizwiz-test`, the set of LLaVA's tables, which
only the evaluation server can score: it gives a submission and no number).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dart.tasks import base, files, textvqa, vqa
from dart.tasks.base import Benchmark, Question
from dart.tasks.prompts import SHORT, UNANSWERABLE


def task(name: str = "vizwiz") -> Benchmark:
    title = "VizWiz val" if name == "vizwiz" else "VizWiz test (answers not public: hand in the submission)"
    return Benchmark(name, title, "accuracy", partial(questions, name), score, partial(floors, name), submission)


def questions(name: str = "vizwiz", folder: str | Path | None = None) -> tuple[Question, ...]:
    """All questions in file order; `kind` is the answer type (yes/no, number, other, unanswerable), "all" on the test set.

    Raises
    ------
    FileNotFoundError
        With the official source of what is missing.
    ValueError
        With the file and the question that is not as it should be.
    """
    split = "val" if name == "vizwiz" else "test"
    path = files.need(name, f"{split}.json", folder)
    asked = []
    for row, entry in enumerate(base.document(path, list), 1):
        with base.reading():
            place = f"{path}, question {row}"
            image, text = (base.get(entry, key, place) for key in ("image", "question"))
            annotators = base.get(entry, "answers", place) if split == "val" else ()
            answers = tuple(base.get(answer, "answer", place) for answer in annotators)
            asked.append(Question(
                id=image, text=f"{text.capitalize()}\n{UNANSWERABLE}\n{SHORT}", answer=vqa.commonest(answers), choices=(),
                kind=entry.get("answer_type", "all"), picture_key=f"{split}/{image}",
                source=files.home(name, folder) / split / image, answers=answers,
            ))
    return tuple(asked)


# as TextVQA's; VizWiz gives its accuracy as VQA's, averaged over all nine of ten annotators
score = textvqa.score


def floors(name: str = "vizwiz", folder: str | Path | None = None) -> dict[str, dict[str, float]]:
    """`blind`: the commonest answer, in all or to each answer type; chance is not defined for open questions."""
    return {"blind": base.blind(questions(name, folder), score), "chance": {}}


def submission(asked: Sequence[Question], answers: Sequence[str], folder: str | Path) -> Path:
    """`vizwiz.json`, a list of `{"image", "answer"}` with answers normalised as LLaVA's script does."""
    rows = [{"image": q.id, "answer": vqa.evalai(answer)} for q, answer in zip(asked, base.said(asked, answers))]
    return base.write(Path(folder) / "vizwiz.json", json.dumps(rows))
