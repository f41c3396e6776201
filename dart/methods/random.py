"""Random: the control that every reduction method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from dart.methods.base import Method, View, check_budget


@dataclass(frozen=True)
class Random(Method):
    """Keep image tokens drawn uniformly without looking at them (a control of ours).

    Signal: none.
    Place: before decoder layer 2.
    Attention: none.
    Source: no paper; the row "Random" of reduction papers, which say nothing of seeds.
    Licence of the original: none; written for this project.
    Differs: nothing to differ from.

    The draw depends on the seed and on a token's rank among its sample's image tokens, not on the batch around it, so that
    a sample keeps the same tokens alone, in a batch and on any device. One seed is one pattern: average over seeds.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, all if there are fewer.
    seed : int
        Of the draw, 0 or more.
    layer : int
        First decoder layer that sees the short sequence; default 2.

    Raises
    ------
    ValueError
        A negative budget or seed.
    """

    keep: int
    seed: int = 0

    def __post_init__(self):
        check_budget(keep=self.keep)
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r}; give a whole number, 0 or more")

    def select(self, view: View) -> Tensor:
        image = view.image_mask
        # One double is one step of the generator: the first n of a longer draw are the draw of n.
        scores = torch.from_numpy(np.random.default_rng(self.seed).random(image.shape[1])).to(image.device)
        rank = (image.cumsum(1) - 1).clamp(min=0)
        drawn = scores[rank].masked_fill(~image, torch.inf)
        lowest = drawn.argsort(dim=1, stable=True)[:, : self.keep]
        return torch.zeros_like(image).scatter(1, lowest, True) & image
