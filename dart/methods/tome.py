"""ToMe: merge the patches whose keys are most alike, layer by layer of the vision tower."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from dart.methods.base import Method, Reduction, View, check_budget


@dataclass(frozen=True)
class ToMe(Method):
    """Token Merging (Bolya et al., ICLR 2023, arXiv 2210.09461).

    Signal: cosine between the keys of patches, mean over heads; bipartite soft matching.
    Place: in the vision tower, before every layer but the first.
    Attention: none.
    Source: "Token Merging: Your ViT But Faster", arXiv 2210.09461, section 3.
    Licence of the original: non-commercial; re-implemented from the paper.
    Differs: patches are merged between two layers, the original merges between attention and MLP of one. Attention is not
        made proportional to the mass of a patch, as the paper does for models trained with supervision; it is the tower's
        own. The budget gives the number that is merged, spread evenly over the layers; the paper fixes a number r for each.
        Where more than half of the patches have to go at one place (short towers, small budgets) matching is repeated
        there. Merged patches stay in the order of the picture, where the original puts one half behind the other. A tower
        of one layer merges before it, by its input.

    Parameters
    ----------
    keep : int
        This many patches of every picture come out of the tower, all if there are fewer. It counts per picture.

    Raises
    ------
    ValueError
        A negative budget.
    """

    keep: int
    layer: int = field(default=0, init=False, repr=False)  # what the tower lost is gone from there on

    reads_tower = True

    def __post_init__(self):
        check_budget(keep=self.keep)

    def places(self, n_layers: int) -> tuple[int, ...]:
        return ()

    def kept(self, image_tokens: int, n_layers: int) -> list[int]:
        """Image tokens that each decoder layer sees of a single picture."""
        return [min(self.keep, image_tokens)] * n_layers

    def tower_places(self, n_layers: int) -> tuple[int, ...]:
        return tuple(range(1, n_layers)) or (0,)

    def select_patches(self, view: View) -> Reduction:
        batch, patches = len(view.image_mask), int(view.image_mask[0].sum())
        wanted = self._wanted(int(view.image_count[0]), view.stage, len(self.tower_places(view.n_layers)))
        if wanted == 0:
            return torch.zeros_like(view.image_mask)
        if wanted >= patches:
            return view.image_mask
        where = view.image_mask.nonzero()[:, 1].view(batch, patches)
        size = view.memory.get("size", torch.ones(batch, patches, device=where.device))[..., None]
        states = view.hidden_states.take_along_dim(where[..., None], 1).float()
        keys = view.keys.float().mean(1).take_along_dim(where[..., None], 1)
        # Sums instead of means, with the number of patches as one more column: merging is then a plain sum.
        sums = torch.cat([states * size, keys * size, size], -1)
        left = torch.arange(patches, device=where.device).expand(batch, -1)
        while left.shape[1] > wanted:
            sums, left = _merge(sums, left, left.shape[1] - wanted, states.shape[-1])
        merged = sums[..., : states.shape[-1]] / sums[..., -1:]
        view.memory["size"] = sums[..., -1].gather(1, left)
        index = where[..., None].expand_as(merged)
        stays = torch.zeros_like(view.image_mask).scatter(1, where.gather(1, left), True)
        return stays, view.hidden_states.scatter(1, index, merged.to(view.hidden_states.dtype))

    def _wanted(self, patches: int, stage: int, stages: int) -> int:
        return patches - max(patches - self.keep, 0) * (stage + 1) // stages


def _merge(sums: Tensor, left: Tensor, most: int, width: int) -> tuple[Tensor, Tensor]:
    """Merge every second of the `left` patches into the most alike of the others, at most `most` of them.

    left       0  1  2  3  4  5
    sources       1     3     5     each finds its most alike target; the best pairs merge
    targets    0     2     4
    """
    keys = normalize(sums[..., width:-1], dim=-1)       # a sum points where the mean does
    sources, targets = left[:, 1::2], left[:, 0::2]
    alike = keys.take_along_dim(sources[..., None], 1) @ keys.take_along_dim(targets[..., None], 1).mT
    best, partner = alike.max(-1)
    chosen = best.argsort(dim=1, descending=True, stable=True)[:, :most]
    going, into = sources.gather(1, chosen), targets.gather(1, partner.gather(1, chosen))
    # A product with zeros and ones: scatter_add on CUDA sums in any order.
    route = one_hot(into, sums.shape[1]).mT.to(sums.dtype)
    sums = sums + route @ sums.take_along_dim(going[..., None], 1)
    stays = torch.ones_like(left, dtype=torch.bool).scatter(1, torch.searchsorted(left.contiguous(), going), False)
    return sums, left[stays].view(len(left), -1)
