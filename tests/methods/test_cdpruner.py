"""CDPruner: every pick makes the determinant of the conditional kernel as large as can be."""

import pytest
import torch
import unequal
from views import view

from dart.methods.cdpruner import CDPruner


def chosen(v, keep):
    return CDPruner(keep).select(v)[0].nonzero().flatten().tolist()


def by_brute_force(states, question, keep):
    """Every determinant anew, in double precision."""
    unit = torch.nn.functional.normalize(states.double(), dim=-1)
    cosines = unit @ torch.nn.functional.normalize(question.double().mean(0), dim=-1)
    relevance = (cosines - cosines.min() + 1e-6) / (cosines.max() - cosines.min() + 1e-6)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    picked = []
    for _ in range(keep):
        left = [i for i in range(len(unit)) if i not in picked]
        picked.append(max(left, key=lambda i: float(kernel[[*picked, i]][:, [*picked, i]].det())))
    return sorted(picked)


@pytest.mark.parametrize("seed", range(6))
def test_brute_force_on_eight_tokens(seed):
    hidden = torch.randn(1, 13, 9, generator=torch.Generator().manual_seed(seed))
    v = view(hidden, slice(2, 10))
    for keep in range(8):
        assert chosen(v, keep) == [2 + i for i in by_brute_force(hidden[0, 2:10], hidden[0, 10:], keep)]


def test_the_question_steers():
    """Eight directions at right angles: nothing but relevance tells them apart."""
    hidden = torch.cat([torch.eye(8), torch.tensor([[1, 9, 2, 8, 3, 7, 4, 6.0]])])[None]
    assert chosen(view(hidden, slice(0, 8)), 3) == [1, 3, 5]


def test_twins_are_not_kept_together():
    """However relevant: a twin adds nothing to the determinant."""
    hidden = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [5, 3, 1]]])
    assert chosen(view(hidden, slice(0, 4)), 2) == [0, 2]


def test_text_before_the_picture_is_no_question_unless_there_is_no_other():
    hidden = torch.randn(1, 14, 9, generator=torch.Generator().manual_seed(3))
    other = hidden.clone()
    other[:, :4] = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(4))
    assert chosen(view(hidden, slice(4, 12)), 4) == chosen(view(other, slice(4, 12)), 4)
    answers = [chosen(view(h[:, :12], slice(4, 12)), 4) for h in (hidden, other)]
    assert answers[0] == [4 + i for i in by_brute_force(hidden[0, 4:12], hidden[0, :4], 4)]
    assert answers[0] != answers[1]


def test_without_any_text_only_diversity_counts():
    hidden = torch.randn(1, 8, 9, generator=torch.Generator().manual_seed(5))
    assert len(chosen(view(hidden, slice(None)), 5)) == 5
    assert chosen(view(torch.eye(4)[None], slice(None)), 2) == [0, 1]


def test_more_tokens_than_directions():
    """In three dimensions the fourth pick has nothing new; the earlier come first, and the budget is met."""
    hidden = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(6))
    v = view(hidden, slice(0, 10))
    three = chosen(v, 3)
    left = [i for i in range(10) if i not in three]
    assert chosen(v, 6) == sorted(three + left[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("side", ["left", "right"])
def test_budgets_and_batches(side, dtype):
    singles = unequal.alone(dtype=dtype)
    batch = unequal.together(singles, side)
    for keep in (0, 1, 4, 9, 17, 99):
        kept = CDPruner(keep).select(batch)
        assert kept.sum(1).tolist() == batch.image_mask.sum(1).clamp(max=keep).tolist()
        assert not (kept & ~batch.image_mask).any()
        for got, single in zip(unequal.real(kept, batch), singles):
            assert torch.equal(got, CDPruner(keep).select(single)[0])
    assert torch.equal(CDPruner(99).select(batch), batch.image_mask)


def test_plan_and_refusal():
    assert CDPruner(4).kept(9, 3) == [4, 4, 4]
    with pytest.raises(ValueError, match="keep=-1; give a whole number"):
        CDPruner(-1)
