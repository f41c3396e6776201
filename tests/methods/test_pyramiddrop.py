"""PyramidDrop: its stages, and the top attended in each."""

from dataclasses import replace

import pytest
import torch
from unequal import alone, real, together
from views import Map, view

from dart.methods.pyramiddrop import PyramidDrop


def test_a_quarter_of_the_decoder_a_stage_and_half_the_tokens_each():
    method = PyramidDrop(72)                # the paper's lambda of 0.5 on LLaVA
    assert method.places(32) == (8, 16, 24)
    assert method.kept(576, 32) == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert method.places(28) == (7, 14, 21)
    assert PyramidDrop(64, stages=2).kept(576, 6) == [576] * 3 + [64] * 3
    assert PyramidDrop(4).places(3) == (1, 2)
    assert PyramidDrop(4).kept(9, 3) == [9, 6, 4]
    assert PyramidDrop(600).kept(576, 4) == [576] * 4


def test_ranks_anew_at_every_place():
    # Eight image tokens, then the word that asks. What is left of eight with two places: 4, then 2.
    method, first, second = PyramidDrop(2, stages=3), torch.zeros(1, 2, 9, 9), torch.zeros(1, 2, 5, 5)
    first[0, 0, 8] = torch.tensor([0.2, 0.1, 0.25, 0.0, 0.2, 0.1, 0.0, 0.15, 0.0])
    first[0, 1, 8] = torch.tensor([0.2, 0.2, 0.00, 0.1, 0.2, 0.2, 0.0, 0.10, 0.0])
    seen = view(torch.zeros(1, 9, 4), slice(0, 8), attention=first, layer=2, n_layers=6)
    kept = method.select(seen)
    assert kept[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    second[0, :, 4] = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.0])
    seen = view(torch.zeros(1, 5, 4), slice(0, 4), attention=second, layer=4, n_layers=6, stage=1, image_count=torch.tensor([8]))
    assert method.select(seen)[0].nonzero().flatten().tolist() == [1, 2]


@pytest.mark.parametrize("side, dtype", [("left", torch.float32), ("right", torch.float16), ("left", torch.bfloat16)])
def test_a_batch_is_answered_like_its_samples_and_meets_the_budget(side, dtype):
    for stage in range(3):
        views = alone(dtype=dtype, n_layers=8, layer=2 + 2 * stage, stage=stage)
        batch = together(views, side)
        for keep in (0, 1, 4, 9, 12, 100):
            method = PyramidDrop(keep)
            kept = method.select(batch)
            planned = [method.kept(count, 8)[batch.layer] for count in batch.image_count.tolist()]
            assert kept.sum(1).tolist() == planned
            if stage == 2:
                assert planned == batch.image_count.clamp(max=keep).tolist()
            for row, one in zip(real(kept, batch), views):
                assert torch.equal(row, method.select(one)[0])


def test_the_plan_follows_what_the_sample_had_before_any_reduction():
    one = alone(n_layers=8, layer=6, stage=1)[0]
    shorter = replace(one, image_count=torch.tensor([18]), noted=Map(one.noted.weights))
    assert int(PyramidDrop(2).select(one).sum()) == 3            # 9 * (2/9)^(2/3)
    assert int(PyramidDrop(2).select(shorter).sum()) == 4        # 18 * (2/18)^(2/3)


def test_refuses_what_cannot_be_meant():
    with pytest.raises(ValueError, match="stages=1; give a whole number, 2 or more"):
        PyramidDrop(4, stages=1)
    with pytest.raises(ValueError, match="keep=-1; give a whole number"):
        PyramidDrop(-1)
    with pytest.raises(TypeError, match="layer"):
        PyramidDrop(4, layer=3)
