"""FastV keeps the top attended."""

import pytest
import torch
from unequal import alone, real, together
from views import view

from dart.methods.fastv import FastV


def test_keeps_what_the_last_token_attends_to_most():
    # Tokens 1 to 5 are the image, 6 and 7 ask; two heads disagree, and their mean decides.
    attention = torch.zeros(1, 2, 8, 8)
    attention[0, 0, 7] = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.1, 0.1, 0.0, 0.0])
    attention[0, 1, 7] = torch.tensor([0.1, 0.0, 0.1, 0.3, 0.2, 0.0, 0.2, 0.1])
    attention[0, :, 6, 5] = 1           # an earlier row has no say
    seen = view(torch.zeros(1, 8, 4), slice(1, 6), attention=attention)
    for keep, kept in [(0, []), (1, [3]), (2, [1, 3]), (3, [1, 3, 4]), (9, [1, 2, 3, 4, 5])]:
        assert FastV(keep).select(seen)[0].nonzero().flatten().tolist() == kept


def test_ties_go_to_the_earlier_token():
    seen = view(torch.zeros(1, 8, 4), slice(1, 6), attention=torch.full((1, 2, 8, 8), 1 / 8))
    assert FastV(2).select(seen)[0].nonzero().flatten().tolist() == [1, 2]


@pytest.mark.parametrize("side, dtype", [("left", torch.float32), ("right", torch.float16), ("left", torch.bfloat16)])
def test_a_batch_is_answered_like_its_samples_and_meets_the_budget(side, dtype):
    views = alone(dtype=dtype)
    batch = together(views, side)
    for keep in (0, 1, 4, 9, 12, 100):
        kept = FastV(keep).select(batch)
        assert kept.sum(1).tolist() == batch.image_count.clamp(max=keep).tolist()
        for row, one in zip(real(kept, batch), views):
            assert torch.equal(row, FastV(keep).select(one)[0])


def test_refuses_what_cannot_be_meant():
    with pytest.raises(ValueError, match="layer=0 has no layer before it"):
        FastV(4, layer=0)
    with pytest.raises(ValueError, match="keep=-1; give a whole number"):
        FastV(-1)
