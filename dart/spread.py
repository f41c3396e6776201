"""Where kept tokens lie: which ones a method keeps in many scenes, and how to say in numbers where that is.

    stays = kept(model, processor, questions, {"DART": dart.DART(keep=64), "random": dart.Random(keep=64)})
    mean(nearest(stays["DART"]))       # distance to the nearest kept neighbour, in patches, with its interval over scenes

Masks are bool (scenes, rows, columns) throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import dart
from dart.evaluation import Interval
from dart.methods import Method
from dart.methods.base import View, answer


@dataclass(frozen=True)
class _Watch(Method):
    """Keeps everything, which changes nothing to the last bit, and asks other methods what they would keep."""

    methods: tuple[Method, ...] = ()
    noted: tuple[list[Tensor], ...] = ()

    def places(self, n_layers):
        return tuple(sorted({method.layer for method in self.methods}))

    def select(self, view: View) -> Tensor:
        for method, noted in zip(self.methods, self.noted):
            if method.layer == view.layer:
                stays, _ = answer(method, method.select, view)
                noted += [row[image].cpu() for row, image in zip(stays, view.image_mask)]
        return view.image_mask


def kept(model, processor, questions: Sequence, methods: Mapping[str, Method], *, batch: int = 10) -> dict[str, np.ndarray]:
    """Which image tokens each method keeps of each question's picture, all methods in one reading.

    Parameters
    ----------
    model, processor
        As `from_pretrained` gives them, of a family whose image tokens are one square grid, as LLaVA-1.5.
    questions : sequence
        With `text` and `picture()`, one picture each.
    methods : mapping of str to Method
        Those that choose once, in the decoder.
    batch : int
        Questions read at once.

    Returns
    -------
    dict of str to ndarray
        bool (questions, rows, columns).

    Raises
    ------
    ValueError
        For a method with several places or one in the tower, or if the image tokens are no square.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    for name, method in methods.items():
        if method.reads_tower or method.places(n_layers) != (method.layer,):
            raise ValueError(f"{name} does not choose once and in the decoder alone; prune with it and read dart.Report.samples")
    noted = tuple([] for _ in methods)
    watch = _Watch(tuple(methods.values()), noted)
    for start in range(0, len(questions), batch):
        some = questions[start : start + batch]
        turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": each.text}]}] for each in some]
        texts = processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = processor(text=texts, images=[each.picture() for each in some], padding=True, padding_side="left", return_tensors="pt")
        inputs = inputs.to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode(), dart.prune(model, watch):
            model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1)
    tokens = {len(row) for rows in noted for row in rows}
    side = int(max(tokens) ** 0.5)
    if tokens != {side * side}:
        raise ValueError(f"a picture has {' or '.join(map(str, sorted(tokens)))} image tokens, which is no square grid; use a model that has one")
    return {name: torch.stack(rows).reshape(-1, side, side).numpy() for name, rows in zip(methods, noted)}


def height(kept: np.ndarray) -> np.ndarray:
    """Mean row of what is kept in each scene, 0 at the upper edge and 1 at the lower one: float (scenes,)."""
    rows = kept.shape[1]
    return (kept.sum(2) * (np.arange(rows) + 0.5)).sum(1) / kept.sum((1, 2)) / rows


def across(kept: np.ndarray) -> np.ndarray:
    """Mean column likewise, 0 at the left edge and 1 at the right one: float (scenes,)."""
    return height(kept.swapaxes(1, 2))


def lower_right(kept: np.ndarray) -> np.ndarray:
    """Share of what is kept that lies in the lower right quarter: float (scenes,); a quarter if places do not matter."""
    _, rows, columns = kept.shape
    return kept[:, rows // 2 :, columns // 2 :].sum((1, 2)) / kept.sum((1, 2))


def nearest(kept: np.ndarray) -> np.ndarray:
    """Mean distance from a kept token to the nearest other one, in patches: float (scenes,); nan where fewer than two stay."""
    found = np.full(len(kept), np.nan)
    for number, scene in enumerate(kept):
        places = np.argwhere(scene).astype(float)
        if len(places) > 1:
            apart = np.linalg.norm(places[:, None] - places[None], axis=2)
            np.fill_diagonal(apart, np.inf)
            found[number] = apart.min(1).mean()
    return found


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Jaccard index of two choices in each scene, kept by both / kept by either: float (scenes,)."""
    return (one & other).sum((1, 2)) / (one | other).sum((1, 2))


def mean(values: np.ndarray, times: int = 1000, seed: int = 0) -> Interval:
    """The mean over scenes with its 95 % interval, from a bootstrap over scenes. Values of the same scenes may be subtracted first."""
    drawn = np.random.default_rng(seed).choice(values, (times, len(values))).mean(1)
    return Interval(float(values.mean()), *map(float, np.percentile(drawn, (2.5, 97.5))))
