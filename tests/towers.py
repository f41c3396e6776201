"""Prompts with pictures that a tower saw, made by hand, and what every method that looks at the tower is asked."""

import torch
from views import Map

from dart.methods.base import View, Vision


def prompt(rows, *, samples=None, features=None, early=None, embeddings=None, padding="right", newlines=(), grid=None,
           dtype=torch.float32):
    """A view on samples of two tokens of text, their pictures, and one token of text.

    `rows` (pictures, 1 + patches) is what each class token pays to itself and to its patches in the tower's last layer, `early`
    in its first; `samples` says how many pictures each sample has, by default all in one. `features` (pictures, 1 + patches,
    width) are the tower's states, and its keys; `embeddings` (pictures * patches, width) what the decoder is given of them.
    `newlines` are ranks, among the image tokens of each sample, before which a token stands that is no patch.
    """
    generator = torch.Generator().manual_seed(0)
    pictures, tokens = rows.shape
    samples = [pictures] if samples is None else samples
    if features is None:
        features = torch.randn(pictures, tokens, 6, generator=generator)
    if embeddings is None:
        embeddings = torch.randn(pictures * (tokens - 1), 8, generator=generator)
    lines, next_patch = [], 0
    for n in samples:
        line = []
        for i in range(n * (tokens - 1)):
            line += [-1] * (i in newlines) + [next_patch + i]
        next_patch += n * (tokens - 1)
        lines.append(line)
    length = max(map(len, lines)) + 3
    patches = torch.full((len(lines), length), -1)
    image, pad = torch.zeros_like(patches, dtype=torch.bool), torch.ones_like(patches, dtype=torch.bool)
    for row, line in enumerate(lines):
        start = length - len(line) - 3 if padding == "left" else 0
        patches[row, start + 2 : start + 2 + len(line)] = torch.tensor(line)
        image[row, start + 2 : start + 2 + len(line)] = True
        pad[row, start : start + 3 + len(line)] = False
    hidden = embeddings[patches.clamp(min=0)].masked_fill((patches < 0)[..., None], 0.5).to(dtype)
    noted = {number: _noted(rows if number or early is None else early, features.to(dtype)) for number in (-1, 0)}
    vision = Vision(features.to(dtype), 1, patches, noted)
    return _view(hidden, image, pad, vision, grid)


def tiles(rows, *, early=None, cut=0, dtype=torch.float32):
    """A view on one picture as LLaVA-NeXT gives it: a thumbnail of 2 x 2 patches, then two such tiles side by side.

    The tiles' tokens stand in rows over both, a newline behind each; of the padding on both sides `cut` columns are cut off.
    Ranks among the image tokens, with nothing cut:

        thumbnail  0 1    tiles  4 5 | 6  7  and newline  8
                   2 3           9 10 | 11 12            13
    """
    places, patches = [], []
    for row in range(2):
        for column in range(2):
            places.append([0, row, column])
            patches.append(2 * row + column)
    for row in range(2):
        for column in range(cut, 4 - cut):
            places.append([1, row, column - cut])
            patches.append(4 * (1 + column // 2) + 2 * row + column % 2)
        places.append([-1, -1, -1])
        patches.append(-1)
    nowhere = [-1, -1, -1]
    grid = torch.tensor([[nowhere, nowhere, *places, nowhere]])
    vision = prompt(rows, early=early, dtype=dtype).vision
    vision.patches = torch.tensor([[-1, -1, *patches, -1]])
    hidden = torch.randn(1, len(places) + 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    image = torch.tensor([[False, False, *[True] * len(places), False]])
    return _view(hidden, image, torch.zeros_like(image), vision, grid)


def _view(hidden, image, pad, vision, grid):
    return View(
        hidden, hidden[:, None], hidden[:, None], image, pad, layer=0, find_vision=lambda: vision,
        find_grid=None if grid is None else lambda: grid,
    )


def _noted(rows, features):
    pictures, tokens = rows.shape
    attention = torch.full((pictures, 2, tokens, tokens), 1 / tokens)
    attention[:, :, 0] = rows[:, None]
    keys = features.unflatten(2, (2, -1)).transpose(1, 2)
    return Map(attention, keys, keys, keys)


def kept(method, view):
    """Ranks, among the image tokens of the first sample, of those that stay."""
    answer = method.select(view)
    mask = answer[0] if isinstance(answer, tuple) else answer
    return mask[0, view.image_mask[0]].nonzero().flatten().tolist()


def check(method, padding="left", **more):
    """What every method is asked; `method` makes one of a budget, `more` goes to the prompt of two unequal samples."""
    counts, patches, width = (1, 2), 12, 6
    generator = torch.Generator().manual_seed(1)
    rows = torch.rand(3, 1 + patches, generator=generator).pow(3)
    rows /= rows.sum(1, keepdim=True)
    features = torch.randn(3, 1 + patches, width, generator=generator)
    embeddings = torch.randn(3 * patches, 8, generator=generator)
    given = dict(rows=rows, samples=counts, features=features, embeddings=embeddings, padding=padding, **more)
    view = prompt(**given)
    for keep in (0, 1, 5, 12, 17, 40):
        mask, states = _both(method(keep), view)
        assert not (mask & ~view.image_mask).any()
        assert mask.sum(1).tolist() == view.image_mask.sum(1).clamp(max=keep).tolist(), keep
        assert torch.isfinite(states).all()
        full = view.image_mask.sum(1) <= keep
        assert torch.equal(states[full], view.hidden_states[full])
        assert torch.equal(states[~view.image_mask], view.hidden_states[~view.image_mask])
        half, half_states = _both(method(keep), prompt(**given, dtype=torch.float16))
        assert torch.equal(half.sum(1), mask.sum(1)) and half_states.dtype == torch.float16 and half_states.isfinite().all()
        first = 0
        for row, n in enumerate(counts):
            own = slice(first, first + n)
            first += n
            its = embeddings.unflatten(0, (-1, patches))[own].flatten(0, 1)
            alone = prompt(rows[own], features=features[own], embeddings=its, **more)
            one, one_states = _both(method(keep), alone)
            real = ~view.padding_mask[row]
            assert torch.equal(one[0], mask[row, real]), (keep, row)
            torch.testing.assert_close(one_states[0], states[row, real])


def _both(method, view):
    answer = method.select(view)
    return answer if isinstance(answer, tuple) else (answer, view.hidden_states)
