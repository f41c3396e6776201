"""easy-VQA, a third-party set of 64 x 64 pictures with one shape each and questions about it.

Victor Zhou's package `easy-vqa` (MIT) holds pictures, questions and answers; this file only reads them:
38,575 questions to learn from and 9,673 to be tested on.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from dart.scenes import correct

TITLE = "easy-VQA"
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
KINDS = {**dict.fromkeys(COLORS, "color"), **dict.fromkeys(SHAPES, "shape"), "yes": "yes or no", "no": "yes or no"}


@dataclass(frozen=True)
class Question:
    """A question about one picture file; the fields mean what they mean in `dart.scenes.Question`."""

    file: Path
    text: str
    answer: str
    choices: tuple[str, ...]
    kind: str
    group: int | None = None
    stratum: str = "plain"

    @property
    def picture_key(self) -> str:
        """The same on every machine: the split and the name of the file."""
        return f"{self.file.parent.parent.name}/{self.file.name}"

    def picture(self) -> Image.Image:
        with Image.open(self.file) as picture:
            return picture.convert("RGB")


@lru_cache(maxsize=2)
def questions(split: str = "test") -> tuple[Question, ...]:
    """All questions of a split, "train" or "test", in the order of the package.

    Raises
    ------
    ModuleNotFoundError
        If the package is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} is not known; use train or test")
    package = importlib.util.find_spec("easy_vqa")
    if package is None:
        raise ModuleNotFoundError("easy-VQA comes from the package easy-vqa; install it with: pip install easy-vqa")
    folder = Path(package.origin).parent / "data" / split
    by_kind = {kind: tuple(answer for answer in KINDS if KINDS[answer] == kind) for kind in KINDS.values()}
    return tuple(
        Question(folder / "images" / f"{image}.png", text, answer, by_kind[KINDS[answer]], KINDS[answer])
        for text, answer, image in json.loads((folder / "questions.json").read_text())
    )


def score(
    asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Accuracy in all and of each kind, 0 to 1; `weights` as in `dart.scenes.score`."""
    right = correct(asked, answers)
    weights = np.ones(len(asked)) if weights is None else np.asarray(weights, float)
    kinds = np.array([question.kind for question in asked])
    rows = {"accuracy": kinds != "", **{f"accuracy/{kind}": kinds == kind for kind in dict.fromkeys(kinds.tolist())}}
    with np.errstate(invalid="ignore"):  # a resample may miss a kind: nan
        return {name: weights[..., row] @ right[row] / weights[..., row].sum(-1) for name, row in rows.items()}


def floors() -> dict[str, dict[str, float]]:
    """As `dart.scenes.floors`: `blind` gives to each test question the commonest answer that its words had in training."""
    asked, seen = questions(), defaultdict(Counter)
    for question in questions("train"):
        seen[question.text][question.answer] += 1
    learned = [seen[question.text].most_common(1)[0][0] for question in asked]
    guess = float(np.mean([1 / len(question.choices) for question in asked]))
    return {"blind": score(asked, learned), "chance": {"accuracy": guess}}
