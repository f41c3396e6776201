"""What a method in the vision tower is shown place by place: pictures as one batch, a class token before the patches."""

import torch
from views import view


def first(pictures=2, patches=16, *, class_token=True, dtype=torch.float32, seed=0, **more):
    """A view on random pictures, before any reduction."""
    length = patches + class_token
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(pictures, length, 6, generator=rng).to(dtype)
    keys = torch.randn(pictures, 2, length, 4, generator=rng).to(dtype)
    attention = (2 * torch.randn(pictures, 2, length, length, generator=rng)).softmax(-1)
    return view(hidden, slice(int(class_token), None), keys=keys, attention=attention, **{"layer": 1, "n_layers": 2} | more)


def one(v, picture):
    """One picture of a view."""
    p = slice(picture, picture + 1)
    patches = slice(int(~v.image_mask[0, 0]), None)
    return view(v.hidden_states[p], patches, keys=v.keys[p], attention=v.noted.weights[p], layer=v.layer, n_layers=v.n_layers)


def walk(method, v, n_layers):
    """Go through all places of the tower, with random keys and attention in each; yields the view and the answer."""
    memory, count = {}, v.image_mask.sum(1)
    hidden, mask = v.hidden_states, v.image_mask
    for stage, layer in enumerate(method.tower_places(n_layers)):
        at = first(len(hidden), int(mask[0].sum()), class_token=not mask[0, 0], seed=layer, dtype=hidden.dtype, layer=layer,
                   n_layers=n_layers, stage=stage, image_count=count, memory=memory)
        at.hidden_states = hidden
        answer = method.select_patches(at)
        stays, states = answer if isinstance(answer, tuple) else (answer, hidden)
        yield at, stays, states
        going_on = stays | ~mask
        hidden, mask = states[going_on].view(len(hidden), -1, hidden.shape[-1]), mask[going_on].view(len(hidden), -1)
