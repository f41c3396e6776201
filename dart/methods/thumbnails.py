"""What the thumbnail of a picture says about the tiles that the picture was cut into. Pure tensors; knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dart.methods.base import View


class Tiled(NamedTuple):
    """One picture of a sample that was given as a thumbnail and as tiles."""

    sample: int
    thumbnail: Tensor   # bool (length,): tokens of the thumbnail
    tokens: Tensor      # int64 (n,): positions of the tokens of all its tiles
    tiles: Tensor       # bool (n, tiles): which tile each of these is of
    guide: Tensor       # float32 (n,): what the thumbnail's scores say where these lie, interpolated


def tiled(view: View, scores: Tensor) -> Iterator[Tiled]:
    """Go through the pictures that have tiles; `scores`, float32 (pictures, patches), are of all that the tower was given.

    The thumbnail is the picture before the first tile, as LLaVA-NeXT gives them to its tower.
    """
    side = isqrt(scores.shape[1])
    pictures = view.vision.views.masked_fill(~view.image_mask, -1)
    places = view.grid.masked_fill((pictures < 0)[..., None], -1)
    for sample in range(len(pictures)):
        for number in places[sample, :, 0].unique().tolist():
            tokens = (places[sample, :, 0] == number).nonzero().flatten()
            numbers, which = pictures[sample, tokens].unique(return_inverse=True)
            if number < 0 or len(numbers) == 1:
                continue
            rows, columns = places[sample, tokens, 1:].unbind(1)
            thumbnail = int(numbers[0]) - 1
            size = int(rows.max()) + 1, int(columns.max()) + 1
            guide = interpolate(scores[thumbnail].view(1, 1, side, side), size, mode="bilinear")[0, 0].to(rows.device)
            tiles = which[:, None] == torch.arange(len(numbers), device=which.device)
            yield Tiled(sample, pictures[sample] == thumbnail, tokens, tiles, guide[rows, columns])
