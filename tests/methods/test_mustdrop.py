"""MustDrop: what merges, what is protected, what both attentions let go."""

from dataclasses import replace

import pytest
import torch
from unequal import alone, real, together
from views import Map, view, vision

from dart.methods.mustdrop import MustDrop

# Two rows of four patches, two windows; then a word. Row by row: 0 1 | 2 3 over 4 5 | 6 7.
GRID = torch.tensor([[[0, i // 4, i % 4] for i in range(8)] + [[-1, -1, -1]]])
LEFT = [0, 1, 4, 5]


def picture(*, left=0.0, right=3.0, salience=None):
    """Patches of the left window differ from each other by `left`, those of the right one by `right`."""
    features = torch.zeros(1, 9, 4)             # class token first
    features[..., 0] = 1
    for patch in range(8):
        features[0, 1 + patch, 1 + patch % 3] = left if patch in LEFT else right
    attention = torch.zeros(1, 1, 9, 9)
    attention[0, 0, 0, 1:] = torch.tensor(salience) if salience else 1 / 8
    image = torch.arange(9)[None] < 8
    states = torch.arange(9.0)[None, :, None].repeat(1, 1, 4)
    return view(states, slice(0, 8), vision=vision(image, hidden=features, attention=attention, layers=(-1,)), grid=GRID, layer=0)


def test_neighbours_that_look_alike_become_their_mean():
    seen = picture()
    kept, states = MustDrop(2).select(seen)
    assert kept[0].nonzero().flatten().tolist() == [0, 2, 3, 6, 7]
    assert torch.equal(states[0, 0], seen.hidden_states[0, LEFT].mean(0))
    assert torch.equal(states[0, 1:], seen.hidden_states[0, 1:])
    assert MustDrop(2, threshold=1.1).select(picture())[0].sum() == 8
    assert MustDrop(2, window=1).select(picture())[0].sum() == 8


def test_the_most_alike_windows_merge_first_and_never_below_the_budget():
    seen = picture(left=0.2, right=0.1)
    for keep, kept in [(2, [0, 2]), (4, [0, 1, 2, 4, 5]), (5, [0, 1, 2, 4, 5]), (6, list(range(8)))]:
        assert MustDrop(keep).select(seen)[0][0].nonzero().flatten().tolist() == kept


def test_the_class_token_says_which_tokens_are_key():
    # Merged, the left window has the mean 0.1; patches 3 and 6 have more, and half the budget of four is for them.
    seen = picture(salience=[0.4, 0.0, 0.05, 0.2, 0.0, 0.0, 0.3, 0.05])
    kept, _ = MustDrop(4, key_share=0.5).select(seen)
    assert kept[0].nonzero().flatten().tolist() == [0, 2, 3, 6, 7]
    assert seen.memory["keys"][0, :5].tolist() == [False, False, True, True, False]


def filtered(keep, keys):
    # Five image tokens and three words. Token 1 is what one word looks for, token 2 what all words mind a little.
    attention = torch.zeros(1, 2, 8, 8)
    attention[0, :, 5, :5] = torch.tensor([0.00, 0.50, 0.20, 0.05, 0.10])
    attention[0, :, 6, :5] = torch.tensor([0.01, 0.00, 0.20, 0.05, 0.10])
    attention[0, :, 7, :5] = torch.tensor([0.00, 0.00, 0.20, 0.05, 0.10])
    memory = {"keys": torch.tensor([[token in keys for token in range(9)]])}
    seen = view(torch.zeros(1, 8, 4), slice(0, 5), attention=attention, stage=1, memory=memory)
    return MustDrop(keep).select(seen)[0].nonzero().flatten().tolist()


def test_what_is_low_in_both_attentions_goes_unless_it_is_key():
    assert filtered(2, keys=[]) == [1, 2]       # by words together 2, 1, 4; by the one word 1, 2, 4
    assert filtered(3, keys=[]) == [1, 2, 4]
    assert filtered(3, keys=[0]) == [0, 1, 2]
    assert filtered(5, keys=[]) == [0, 1, 2, 3, 4]
    assert filtered(0, keys=[]) == []


def test_one_word_is_enough():
    # Sums rank 0, 1, 2, 3. Token 3 is the last of them, and yet the one that a word attends to most.
    attention = torch.zeros(1, 1, 9, 9)
    attention[0, 0, 4:, 0] = 0.20
    attention[0, 0, 4:, 1] = 0.15
    attention[0, 0, 4:, 2] = 0.12
    attention[0, 0, 6, 3] = 0.5
    no_keys = {"keys": torch.zeros(1, 9, dtype=torch.bool)}
    seen = view(torch.zeros(1, 9, 4), slice(0, 4), attention=attention, stage=1, memory=no_keys)
    assert MustDrop(2).select(seen)[0].nonzero().flatten().tolist() == [0, 3]


def after(one, kept, seed):
    """What the second place sees of a sample of which `kept` stayed."""
    stay = (kept | one.text_mask)[0].nonzero().flatten()
    length = len(stay)
    scores = 2 * torch.randn(1, 2, length, length, generator=torch.Generator().manual_seed(seed))
    attention = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    return replace(
        one, hidden_states=one.hidden_states[:, stay], keys=one.keys[:, :, stay], values=one.values[:, :, stay],
        image_mask=one.image_mask[:, stay], padding_mask=one.padding_mask[:, stay], noted=Map(attention.to(one.keys.dtype)),
        find_vision=lambda: replace(one.vision, patches=one.vision.patches[:, stay]), find_grid=lambda: one.grid[:, stay],
        layer=2, stage=1,
    )


@pytest.mark.parametrize("side, dtype", [("left", torch.float32), ("right", torch.float16), ("left", torch.bfloat16)])
def test_a_batch_is_answered_like_its_samples_and_meets_the_budget(side, dtype):
    for keep in (0, 4, 12, 100):
        method, views = MustDrop(keep, threshold=0.3), alone(dtype=dtype, layer=0)
        batch = together(views, side)
        kept, states = method.select(batch)
        assert states.dtype == dtype and (kept.sum(1) >= batch.image_count.clamp(max=keep)).all()
        later = []
        for i, (row, new, one) in enumerate(zip(real(kept, batch), real(states, batch), views)):
            # A prompt without a picture has no tower to look at and is never asked about alone.
            alone_kept, alone_states = method.select(one) if one.image_mask.any() else (one.image_mask, one.hidden_states)
            assert torch.equal(row, alone_kept[0]) and torch.equal(new, alone_states[0])
            later.append(after(one, alone_kept, i))
        if keep == 4:
            assert (kept.sum(1) < batch.image_count)[:3].any()
        if keep == 100:
            assert torch.equal(kept, batch.image_mask) and torch.equal(states, batch.hidden_states)
        shorter = replace(together(later, side), memory=batch.memory)
        kept = method.select(shorter)
        assert kept.sum(1).tolist() == batch.image_count.clamp(max=keep).tolist()
        for row, one in zip(real(kept, shorter), later):
            if one.image_mask.any():
                assert torch.equal(row, method.select(one)[0])


def test_refuses_what_cannot_be_meant():
    with pytest.raises(ValueError, match="layer=0 is the place of the merging"):
        MustDrop(4, layer=0)
    with pytest.raises(ValueError, match="window=0; give a whole number"):
        MustDrop(4, window=0)
    with pytest.raises(ValueError, match="key_share=2; it is a fraction"):
        MustDrop(4, key_share=2)
    with pytest.raises(ValueError, match="depends on the picture"):
        MustDrop(4).kept(576, 32)
