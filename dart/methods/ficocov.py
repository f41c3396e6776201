"""FiCoCo-V: drop redundant patches in the vision tower and hand on what they held."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dart.methods.base import Method, Reduction, View, check_budget, keep_top


@dataclass(frozen=True)
class FiCoCoV(Method):
    """FiCoCo-V, filter-correlate-compress (Han et al., AAAI 2026, arXiv 2411.17686).

    Signal: redundancy, that is attention received from the other patches less attention of the class token; without a class
        token (SigLIP) the latter is minus the cosine between a patch's key and the mean key.
    Place: in the vision tower, before every layer from the middle on (the paper: from layer 12 of 24).
    Attention: all rows in the tower, layer before.
    Source: "Filter, Correlate, Compress: Training-Free Token Reduction for MLLM Acceleration", arXiv 2411.17686, section 3,
        Algorithm 1, appendix 9 (settings) and 10.2 (without class token).
    Licence of the original: none stated; re-implemented from the paper.
    Differs: patches go between two layers, the original takes them out between attention and MLP of one. The budget gives the
        number that goes, spread evenly over the layers; the authors' code removes 42 in each. Attention is the softmax,
        mean over heads; the authors' code takes the scores before it and scales both terms of the redundancy to unit
        length, of which the paper says nothing. Windows hold the patches that are left of a square picture.

    Parameters
    ----------
    keep : int
        This many patches of every picture come out of the tower, all if there are fewer. It counts per picture.
    balance : float
        Weight of the attention received (the paper's lambda, 0.35); attention of the class token weighs 1 - balance.
    penalty : float
        Factor by which the most redundant patch of a 2 x 2 window is moved up, 2 in the paper; 1 is no penalty.
    quantile : float
        A dropped patch is recycled into the kept ones whose attention reaches this quantile of its row (the paper's
        epsilon, 0.998).

    Raises
    ------
    ValueError
        A negative budget; a setting out of its range; a tower of a single layer, which has no attention before its last.
    """

    keep: int
    balance: float = field(default=0.35, kw_only=True)
    penalty: float = field(default=2.0, kw_only=True)
    quantile: float = field(default=0.998, kw_only=True)
    layer: int = field(default=0, init=False, repr=False)  # what the tower lost is gone from there on

    reads_tower = True

    def __post_init__(self):
        check_budget(keep=self.keep)
        for name in ("balance", "quantile"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; give 0 <= {name} <= 1")
        if self.penalty < 1:
            raise ValueError(f"penalty={self.penalty}; give a factor of 1 or more")

    def places(self, n_layers: int) -> tuple[int, ...]:
        return ()

    def kept(self, image_tokens: int, n_layers: int) -> list[int]:
        """Image tokens that each decoder layer sees of a single picture."""
        return [min(self.keep, image_tokens)] * n_layers

    def tower_places(self, n_layers: int) -> tuple[int, ...]:
        return tuple(range(min((n_layers + 1) // 2, n_layers - 1), n_layers))

    def select_patches(self, view: View) -> Reduction:
        image, total = view.image_mask, int(view.image_count[0])
        batch, patches = len(image), int(image[0].sum())
        stages = len(self.tower_places(view.n_layers))
        wanted = total - max(total - self.keep, 0) * (view.stage + 1) // stages
        if wanted == 0:
            return torch.zeros_like(image)
        if wanted >= patches:
            return image

        where = image.nonzero()[:, 1].view(batch, patches)
        everything = torch.arange(image.shape[1], device=where.device).expand(batch, -1)
        attention = view.attention(everything).mean(1)
        to_patches = attention.take_along_dim(where[:, None], 2)
        between = to_patches.take_along_dim(where[..., None], 1)
        if image.all():
            keys = view.keys.float().mean(1)
            semantic = -cosine_similarity(keys, keys.mean(1, keepdim=True), dim=-1)
        else:
            semantic = to_patches.take_along_dim((~image).byte().argmax(1)[:, None, None], 1)[:, 0]
        redundancy = self.balance * between.mean(1) - (1 - self.balance) * semantic
        spot = view.memory.get("spot", torch.arange(patches, device=where.device).expand(batch, -1))
        redundancy = self._penalised(redundancy, spot, isqrt(total))
        dropped = keep_top(redundancy, torch.ones_like(redundancy, dtype=torch.bool), patches - wanted)
        source, target = dropped.nonzero()[:, 1].view(batch, -1), (~dropped).nonzero()[:, 1].view(batch, -1)

        correlation = between.take_along_dim(source[..., None], 1).take_along_dim(target[:, None], 2)
        threshold = correlation.quantile(self.quantile, dim=-1, keepdim=True)
        share = correlation.masked_fill(correlation < threshold, 0)
        share = (share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)).mT
        states = view.hidden_states.take_along_dim(where[..., None], 1).float()
        given, own = states.take_along_dim(source[..., None], 1), states.take_along_dim(target[..., None], 1)
        recycled = (own + share @ given) / (1 + share.sum(-1, keepdim=True))

        view.memory["spot"] = spot.gather(1, target)
        index = where.gather(1, target)
        new = view.hidden_states.scatter(1, index[..., None].expand_as(recycled), recycled.to(view.hidden_states.dtype))
        return torch.zeros_like(image).scatter(1, index, True), new

    def _penalised(self, redundancy: Tensor, spot: Tensor, side: int) -> Tensor:
        """Raise the most redundant patch of each 2 x 2 window of the picture, so that what goes is spread over it."""
        window = spot // side // 2 * side + spot % side // 2
        together = window[:, :, None] == window[:, None, :]
        highest = redundancy[:, None].expand_as(together).masked_fill(~together, -torch.inf).amax(-1)
        raised = torch.where(redundancy > 0, redundancy * self.penalty, redundancy / self.penalty)
        return torch.where(redundancy == highest, raised, redundancy)
