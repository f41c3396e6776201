"""DivPrune: the greedy choice by hand and by brute force."""

from itertools import combinations

import pytest
import torch
import unequal
from views import view

from dart.methods.divprune import DivPrune


def chosen(v, keep):
    return DivPrune(keep).select(v)[0].nonzero().flatten().tolist()


def on_circle(*degrees):
    angles = torch.tensor([degrees]).float().deg2rad()
    return view(torch.stack([angles.cos(), angles.sin()], -1), slice(None))


def test_by_hand_on_a_circle():
    """Tokens at 0, 10, 20 degrees are a bunch; 90 is the one farthest from its neighbour, then the one farthest from it."""
    v = on_circle(0, 10, 20, 90, 50)
    assert chosen(v, 1) == [3]
    assert chosen(v, 2) == [0, 3]
    assert chosen(v, 3) == [0, 3, 4]
    assert chosen(v, 4) == [0, 2, 3, 4]         # 10 and 20 are 10 degrees from 0 and 10; 20 is 20 from 0


def by_brute_force(states, keep):
    """Plain Python: lists, loops."""
    unit = [s / s.norm() for s in states]
    far = [[1 - float(a @ b) for b in unit] for a in unit]
    left, picked = list(range(len(unit))), []
    while left and len(picked) < keep:
        best = max(left, key=lambda i: min((far[i][j] for j in (picked or left) if j != i), default=0))
        left.remove(best)
        picked.append(best)
    return sorted(picked)


@pytest.mark.parametrize("seed", range(5))
def test_brute_force_on_eight_tokens(seed):
    hidden = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(seed))
    v = view(hidden, slice(2, 10))
    for keep in range(10):
        assert chosen(v, keep) == [2 + i for i in by_brute_force(hidden[0, 2:10], keep)]


@pytest.mark.parametrize("seed", range(5))
def test_the_least_distance_is_at_least_half_of_the_best(seed):
    """Greedy max-min is within a factor of two of the best choice there is, by distances that obey the triangle inequality."""
    hidden = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(seed))
    v = view(hidden, slice(None))
    unit = hidden[0] / hidden[0].norm(dim=1, keepdim=True)
    angles = (unit @ unit.T).clamp(-1, 1).acos()

    def least(tokens):
        return min(float(angles[i, j]) for i, j in combinations(tokens, 2))

    for keep in (2, 3, 4):
        assert least(chosen(v, keep)) >= max(map(least, combinations(range(8), keep))) / 2 - 1e-5


def test_the_length_of_a_token_and_its_twins_do_not_count():
    hidden = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(1))
    plain = chosen(view(hidden, slice(None)), 4)
    assert chosen(view(hidden * torch.arange(1, 9)[None, :, None], slice(None)), 4) == plain
    hidden[:, 5:] = hidden[:, 4:5]
    assert len(set(chosen(view(hidden, slice(None)), 5)) & {4, 5, 6, 7}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("side", ["left", "right"])
def test_budgets_and_batches(side, dtype):
    singles = unequal.alone(dtype=dtype)
    batch = unequal.together(singles, side)
    for keep in (0, 1, 4, 9, 17, 99):
        kept = DivPrune(keep).select(batch)
        assert kept.sum(1).tolist() == batch.image_mask.sum(1).clamp(max=keep).tolist()
        assert not (kept & ~batch.image_mask).any()
        for got, single in zip(unequal.real(kept, batch), singles):
            assert torch.equal(got, DivPrune(keep).select(single)[0])
    assert torch.equal(DivPrune(99).select(batch), batch.image_mask)


def test_scores_are_taken_in_float32():
    """Directions that half precision tells apart, but whose cosines it rounds to one number."""
    angles = torch.linspace(0, 1, 8) ** 2 / 20
    hidden = torch.stack([angles.cos(), angles.sin()], -1)[None].half()
    for keep in range(1, 8):
        assert chosen(view(hidden, slice(None)), keep) == chosen(view(hidden.float(), slice(None)), keep)


def test_plan_and_refusal():
    assert DivPrune(4).kept(9, 3) == [4, 4, 4]
    assert DivPrune(4, layer=1).kept(9, 3) == [9, 4, 4]
    with pytest.raises(ValueError, match="keep=2.5; give a whole number"):
        DivPrune(2.5)
