"""PyramidDrop: keep what the last text token attends to, fewer at the end of every stage of layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import Tensor

from dart.methods.base import Method, View, check_budget, keep_top


@dataclass(frozen=True)
class PyramidDrop(Method):
    """PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247).

    Signal: attention that an image token receives, mean over heads, ranked anew at every place.
    Place: progressively, between stages of equally many decoder layers: before layers 8, 16 and 24 of 32.
    Attention: row of the last text token, layer before.
    Source: "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction", arXiv
        2410.17247; four stages, each with the same fraction of the stage before.
    Licence of the original: MIT; re-implemented from the paper.
    Differs: the fraction (the paper's lambda) follows from `keep` instead of being given: 72 of 576 tokens is its lambda of
        0.5. Counts are rounded, the authors' code cuts them. Their code takes queries and keys of the layer behind the place,
        here the attention of the layer before it is read. Kept tokens keep their positions in the prompt, the original
        renumbers. Of a decoder with fewer layers than stages, every layer but the first is a place.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay in the last stage, all if there are fewer.
    stages : int
        Into how many stages the decoder is cut, 2 or more; default 4.

    Raises
    ------
    ValueError
        A negative budget, fewer than two stages.
    """

    keep: int
    stages: int = field(default=4, kw_only=True)
    layer: int = field(default=8, init=False, repr=False)      # there are several

    def __post_init__(self):
        check_budget(keep=self.keep)
        if not isinstance(self.stages, Integral) or self.stages < 2:
            raise ValueError(f"stages={self.stages!r}; give a whole number, 2 or more: tokens are dropped between two stages")

    def places(self, n_layers: int) -> tuple[int, ...]:
        stages = min(self.stages, n_layers)
        return tuple(stage * n_layers // stages for stage in range(1, stages))

    def kept(self, image_tokens: int, n_layers: int) -> list[int]:
        places, counts = (0, *self.places(n_layers), n_layers), [image_tokens]
        for stage in range(len(places) - 2):
            counts.append(int(self._left(torch.tensor(image_tokens), stage, n_layers)))
        return [count for count, first, end in zip(counts, places, places[1:]) for _ in range(first, end)]

    def select(self, view: View) -> Tensor:
        received = view.attention(view.last_token)[:, :, 0].float().mean(1)
        return keep_top(received, view.image_mask, self._left(view.image_count, view.stage, view.n_layers))

    def _left(self, image_count: Tensor, stage: int, n_layers: int) -> Tensor:
        """Image tokens left behind the place of a stage: a geometric fall from all of them to `keep`."""
        fall = (self.keep / image_count.double().clamp(min=1)).clamp(max=1)
        return (image_count * fall ** ((stage + 1) / len(self.places(n_layers)))).round().long()
