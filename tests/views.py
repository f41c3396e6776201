"""Views small enough to read: what a method is shown, made by hand instead of by a model."""

from dataclasses import dataclass

import torch

from dart.methods.base import View, Vision


@dataclass
class Map:
    """Stands in for what a layer noted: a whole attention map (batch, heads, length, length), given."""

    weights: torch.Tensor
    queries: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None

    def attention(self, rows):
        return self.weights.take_along_dim(rows[:, None, :, None], dim=2)


def view(hidden, image, *, keys=None, values=None, padding=None, attention=None, vision=None, grid=None, **more):
    """A view on `hidden` (batch, length, width), `image` saying where its image tokens are: bool (batch, length) or a slice.

    `attention` is a map (batch, heads, length, length) of the layer before, `vision` a `Vision`, `grid` as `View.grid`.
    """
    mask = image
    if not isinstance(image, torch.Tensor):
        mask = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        mask[:, image] = True
    return View(
        hidden_states=hidden,
        keys=hidden[:, None] if keys is None else keys,
        values=hidden[:, None] if values is None else values,
        image_mask=mask,
        padding_mask=torch.zeros_like(mask) if padding is None else padding,
        noted=None if attention is None else Map(attention),
        find_vision=None if vision is None else lambda: vision,
        find_grid=None if grid is None else lambda: grid,
        **more,
    )


def vision(image, *, hidden=None, attention=None, keys=None, class_tokens=1, layers=(-1, 0)):
    """What a tower saw: `attention` (pictures, heads, tokens, tokens) for all `layers`, patches in the order of `image` (batch, length)."""
    size = (hidden if hidden is not None else attention if attention is not None else keys).shape
    pictures, tokens = size[0], size[-2]
    if hidden is None:
        hidden = torch.randn(pictures, tokens, 4, generator=torch.Generator().manual_seed(0))
    if attention is None:
        attention = torch.full((pictures, 1, tokens, tokens), 1 / tokens)
    keys = hidden[:, None] if keys is None else keys
    patches = torch.full(image.shape, -1)
    patches[image] = torch.arange(int(image.sum()))
    return Vision(hidden, class_tokens, patches, {layer: Map(attention, keys, keys, keys) for layer in layers})
