"""TextVQA 0.5.1 val: questions about text in pictures, ten annotators each (arXiv 1904.08920).

Read is the published `TextVQA_0.5.1_val.json`. The paper's LLaVA-1.5 runs show the words that an OCR system read in the
picture, its LLaVA-1.6 runs do not: `textvqa` and `textvqa-plain`, which are not to be compared with each other. The words
come from LLaVA's question file `llava_textvqa_val_v051_ocr.jsonl` if it is there, else from the published Rosetta tokens.
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

LLAVA = "llava_textvqa_val_v051_ocr.jsonl"
ROSETTA = "TextVQA_Rosetta_OCR_v0.2_val.json"
WORDS = "Reference OCR token: "


def task(name: str = "textvqa") -> Benchmark:
    title = "TextVQA" if name == "textvqa" else "TextVQA without OCR tokens"
    return Benchmark(name, title, "accuracy", partial(questions, name), score, partial(floors, name), submission)


def questions(name: str = "textvqa", folder: str | Path | None = None) -> tuple[Question, ...]:
    """All questions in file order, their first letter a capital and the rest small, as in LLaVA's question file.

    Raises
    ------
    FileNotFoundError
        With the official source of what is missing.
    ValueError
        With the file and the question that is not as it should be.
    """
    path = files.need(name, "TextVQA_0.5.1_val.json", folder)
    words = _words(folder) if name == "textvqa" else None
    asked = []
    for row, entry in enumerate(base.get(base.document(path), "data", str(path)), 1):
        with base.reading():
            place = f"{path}, question {row}"
            number, image, text = (base.get(entry, key, place) for key in ("question_id", "image_id", "question"))
            answers = tuple(entry.get("answers", ()))
            lines = [text.capitalize(), SHORT]
            if words is not None:
                if image not in words:
                    raise ValueError(f"{place}: no OCR tokens for picture {image}; get {LLAVA} or {ROSETTA} again")
                lines.insert(1, WORDS + words[image])
            asked.append(Question(
                id=number, text="\n".join(lines), answer=vqa.commonest(answers), choices=(), kind="text",
                picture_key=f"train_images/{image}.jpg", source=files.home(name, folder) / "train_images" / f"{image}.jpg",
                answers=answers,
            ))
    return tuple(asked)


def _words(folder: str | Path | None) -> dict[str, str]:
    """The words read in each picture, between commas, by image id."""
    place = files.home("textvqa", folder)
    if not (place / LLAVA).exists():
        path = place / ROSETTA
        if not path.exists():
            files.need("textvqa", LLAVA, folder)
        rows = base.get(base.document(path), "data", str(path))
        return {base.get(row, "image_id", str(path)): ", ".join(base.get(row, "ocr_tokens", str(path))) for row in rows}
    found = {}
    for where, entry in base.lines(place / LLAVA):
        with base.reading():
            lines = base.get(entry, "text", where).split("\n")
            if len(lines) != 3 or not lines[1].startswith(WORDS):
                raise ValueError(f"{where}: no line {WORDS!r} between question and instruction")
            found[base.get(entry, "question_id", where)] = lines[1].removeprefix(WORDS)
    return found


def score(asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Soft accuracy as MMF's evaluator, which LLaVA uses, computes it, 0 to 1: `evalai` on the answer and on the annotators'.

    Parameters
    ----------
    asked, answers : sequences of length n
    weights : array, (..., n), optional
        How often each question counts; the scores then have shape (...).
    """
    soft = [
        vqa.soft_accuracy(vqa.evalai(said), [vqa.evalai(each) for each in question.answers])
        for question, said in zip(asked, base.said(asked, answers))
    ]
    return vqa.score(asked, soft, weights)


def floors(name: str = "textvqa", folder: str | Path | None = None) -> dict[str, dict[str, float]]:
    """`blind`: the commonest answer; chance is not defined for open questions."""
    return {"blind": base.blind(questions(name, folder), score), "chance": {}}


def submission(asked: Sequence[Question], answers: Sequence[str], folder: str | Path) -> Path:
    """`textvqa.json`, a list of `{"question_id", "answer"}`, the format of the challenge's server."""
    rows = [{"question_id": q.id, "answer": vqa.evalai(answer)} for q, answer in zip(asked, base.said(asked, answers))]
    return base.write(Path(folder) / "textvqa.json", json.dumps(rows))
