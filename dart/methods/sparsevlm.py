"""SparseVLM: words of the question rate the image tokens; the best of what is dropped is recycled into a few merged tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dart.methods.base import Method, Reduction, View, check_budget

# Image tokens that the published settings for 192, 128 and 64 tokens leave of 576 behind each place, merged ones included.
_PUBLISHED = np.array([[0, 0, 0], [82, 32, 18], [312, 117, 39], [309, 204, 113], [576, 576, 576]])


@dataclass(frozen=True)
class SparseVLM(Method):
    """SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417).

    Signal: attention that an image token receives from the raters, mean over heads and raters. Raters are words behind the
        image that resemble the image tokens more than the average word does.
    Place: progressively, before decoder layers 2, 6 and 15 of 32; the raters are chosen at layer 0.
    Attention: rows of the raters, layer before.
    Source: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", arXiv 2410.04417: raters,
        rank, recycling. From the authors' code: three tenths of the dropped tokens are recycled, ten to a merged token; the
        counts of the settings for 192, 128 and 64 tokens.
    Licence of the original: Apache-2.0; re-implemented from the paper.
    Differs: the published settings count the mean over layers; in tokens of 576 that stay behind the last place they are
        keep=113, 39 and 18, and these reproduce them. Counts in between and at other sizes are interpolated. Merged tokens are
        the mean of their members, as in the code, and stand where their centre stood; the original puts them behind the image.
        Kept tokens keep their positions in the prompt, the original renumbers. The code breaks ties of density by noise, here
        the earlier position wins. If the budget has no room for all merged tokens, fewer are made and nothing else stays.

    Parameters
    ----------
    keep : int or None
        This many image tokens of every sample, merged ones included, stay from the last place on; all if there are fewer.
        None is the paper's adaptive rule: at every place ``scale * (image tokens - rank of the raters' attention)`` tokens are
        dropped.
    scale : float
        Of the adaptive rule, the paper's lambda; 0 to 1, default 1.

    Raises
    ------
    ValueError
        A negative budget, a scale outside [0, 1].
    """

    keep: int | None
    scale: float = field(default=1.0, kw_only=True)
    layer: int = field(default=2, init=False, repr=False)      # there are several

    def __post_init__(self):
        if self.keep is not None:
            check_budget(keep=self.keep)
        if not 0 <= self.scale <= 1:
            raise ValueError(f"scale={self.scale}; it is the fraction dropped of what the rank leaves over, give 0 <= scale <= 1")

    def places(self, n_layers: int) -> tuple[int, ...]:
        places = [0]
        for fraction in (2 / 32, 6 / 32, 15 / 32):
            places.append(max(places[-1] + 1, round(fraction * n_layers)))
        return tuple(place for place in places if place < n_layers)

    def kept(self, image_tokens: int, n_layers: int) -> list[int]:
        if self.keep is None:
            return super().kept(image_tokens, n_layers)
        places = (*self.places(n_layers), n_layers)
        counts = [image_tokens, *(self._left(image_tokens, stage, n_layers) for stage in range(1, len(places) - 1))]
        return [count for count, first, end in zip(counts, places, places[1:]) for _ in range(first, end)]

    def _left(self, image_tokens: int, stage: int, n_layers: int) -> int:
        """Image tokens left behind the place of a stage, merged ones included."""
        if self.keep >= image_tokens or stage == len(self.places(n_layers)) - 1:
            return min(self.keep, image_tokens)
        whole, published = _PUBLISHED[-1, 0], _PUBLISHED[:, stage - 1]
        between = np.interp(self.keep * whole / image_tokens, _PUBLISHED[:, 2], published)
        return max(self.keep, round(between * image_tokens / whole))

    def select(self, view: View) -> Reduction:
        if view.stage == 0:
            view.memory["raters"] = _raters(view)
            return view.image_mask
        kept, states = view.image_mask.clone(), view.hidden_states.clone()
        for i, (attention, image_tokens) in enumerate(zip(_ratings(view), view.image_count.tolist())):
            image = view.image_mask[i].nonzero().flatten()
            if self.keep is None:
                rank = int(torch.linalg.matrix_rank(attention[:, image])) if len(image) else 0
                dropped = int(self.scale * (len(image) - rank))
                whole, merged = len(image) - dropped, _merged(dropped)
            else:
                whole, merged = _split(len(image), self._left(image_tokens, view.stage, view.n_layers))
            dropped = image[attention[:, image].mean(0).argsort(descending=True, stable=True)][whole:]
            kept[i, dropped] = False
            if merged:
                recycled = dropped[: max(_recycled(len(dropped)), merged)].sort().values
                centres, means = _cluster(view.hidden_states[i, recycled].float(), merged)
                kept[i, recycled[centres]] = True
                states[i, recycled[centres]] = means.to(states.dtype)
        return kept, states


def _raters(view: View) -> Tensor:
    """Which words behind the image rate it: bool (batch, length), counted among the text tokens of the sample."""
    length = view.image_mask.shape[1]
    positions = torch.arange(length, device=view.image_mask.device)
    last_image = positions.masked_fill(~view.image_mask, -1).amax(1, keepdim=True)
    behind = view.text_mask & (positions > last_image)
    raters = torch.zeros_like(behind)
    for i, image in enumerate(view.image_mask):
        words = behind[i].nonzero().flatten()
        if not len(words):
            continue
        states = view.hidden_states[i].float()
        likeness = (states[image] @ states[words].T).softmax(1).mean(0)
        raters[i, words] = (likeness >= likeness.mean()) | (likeness == likeness.max())
    order = view.text_mask.byte().argsort(dim=1, descending=True, stable=True)
    return raters.take_along_dim(order, 1)


def _ratings(view: View) -> list[Tensor]:
    """Attention that the raters of each sample pay, mean over heads: float32 (raters, length) each."""
    words = view.text_mask.byte().argsort(dim=1, descending=True, stable=True)
    # A prompt that ends with its image has no word behind it: its last token rates.
    rows = [found[raters[: len(found)]] if raters.any() else last
            for found, raters, last in zip(words, view.memory["raters"], view.last_token)]
    padded = view.last_token.repeat(1, max(map(len, rows)))
    for i, positions in enumerate(rows):
        padded[i, : len(positions)] = positions
    attention = view.attention(padded).float().mean(1)
    return [paid[: len(positions)] for paid, positions in zip(attention, rows)]


def _recycled(dropped: int) -> int:
    return min(3 * dropped // 10 + 1, dropped)


def _merged(dropped: int) -> int:
    return _recycled(dropped) // 10 + 1 if dropped else 0


def _split(present: int, left: int) -> tuple[int, int]:
    """How many tokens stay as they are and how many are merged ones, if `left` of `present` shall stay in all."""
    if left >= present:
        return present, 0
    whole = max((whole for whole in range(left) if whole + _merged(present - whole) <= left), default=0)
    return whole, left - whole


def _cluster(states: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Centres of `n` clusters by density peaks, and the mean of each cluster: int64 (n,), (n, width)."""
    distance = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[1] ** 0.5
    density = distance.topk(n, largest=False).values.square().mean(1).neg().exp()
    order = density.argsort(descending=True, stable=True)
    rank = order.argsort()
    denser = rank[None] < rank[:, None]
    isolation = distance.masked_fill(~denser, distance.max()).amin(1)
    centres = (density * isolation).argsort(descending=True, stable=True)[:n]
    nearest = distance[:, centres].argmin(1)
    nearest[centres] = torch.arange(n, device=states.device)
    members = one_hot(nearest, n).T.to(states.dtype)
    return centres, members @ states / members.sum(1, keepdim=True)
