"""A batch of unequal samples, and each of them alone: what a method answers must be the same."""

from dataclasses import replace
from functools import partial

import torch
from views import vision, view

SIDE = 3                                            # a picture is 3 x 3 patches
SAMPLES = [(2, 1, 3), (1, 2, 4), (3, 1, 1), (2, 0, 2)]    # text before, pictures, text after


def alone(seed=0, dtype=torch.float32, **more):
    """One view a sample: random states and causal attention, CLS attention and layout of its pictures."""
    return [_sample(seed + i, *sizes, dtype, **more) for i, sizes in enumerate(SAMPLES)]


def together(views, side="right"):
    """The same samples as one batch, padded on the given side."""
    longest = max(one.image_mask.shape[1] for one in views)

    def pad(tensor, axes, value=0):
        short = longest - tensor.shape[axes[0]]
        widths = [0, 0] * tensor.ndim
        for axis in axes:
            widths[2 * (tensor.ndim - 1 - axis % tensor.ndim) + (side == "right")] = short
        return torch.nn.functional.pad(tensor, widths, value=value)

    def join(get, axes=(1,), value=0):
        return torch.cat([pad(get(one), axes, value) for one in views])

    first, patches = 0, []
    for one in views:
        found = one.vision.patches
        patches.append(pad(torch.where(found < 0, found, found + first), (1,), -1))
        first += int(one.image_mask.sum())
    image = join(lambda one: one.image_mask, value=False)
    tower = vision(
        image,
        hidden=torch.cat([one.vision.hidden_states for one in views]),
        attention=torch.cat([one.vision.layer(-1).weights for one in views]),
    )
    return _view(
        join(lambda one: one.hidden_states), image,
        keys=join(lambda one: one.keys, (2,)), values=join(lambda one: one.values, (2,)),
        padding=join(lambda one: one.padding_mask, value=True),
        attention=join(lambda one: one.noted.weights, (2, 3)),
        vision=replace(tower, patches=torch.cat(patches)), grid=join(lambda one: one.grid, value=-1),
        layer=views[0].layer, n_layers=views[0].n_layers, stage=views[0].stage,
        image_count=torch.cat([one.image_count for one in views]),
    )


def real(answer, batch):
    """What the batch says of each sample, without padding, as the sample alone would be answered."""
    return [row[~padding] for row, padding in zip(answer, batch.padding_mask)]


def _view(hidden, image, *, image_count=None, **more):
    return replace(view(hidden, slice(0), **more), image_mask=image, image_count=image_count)


def _sample(seed, before, pictures, after, dtype, **more):
    random = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    patches = pictures * SIDE * SIDE
    length = before + patches + after
    image = torch.zeros(1, length, dtype=torch.bool)
    image[:, before : before + patches] = True
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    grid = torch.full((1, length, 3), -1)
    numbers = torch.arange(patches)
    grid[image] = torch.stack([numbers // SIDE**2, numbers % SIDE**2 // SIDE, numbers % SIDE], -1)
    tokens = SIDE * SIDE + 1
    tower = vision(
        image, hidden=random(pictures, tokens, 6).to(dtype), attention=(2 * random(pictures, 2, tokens, tokens)).softmax(-1).to(dtype))
    return _view(
        random(1, length, 8).to(dtype), image,
        keys=random(1, 2, length, 4).to(dtype), values=random(1, 2, length, 4).to(dtype),
        attention=(2 * random(1, 2, length, length)).masked_fill(~causal, -torch.inf).softmax(-1).to(dtype),
        vision=tower, grid=grid, **more,
    )
