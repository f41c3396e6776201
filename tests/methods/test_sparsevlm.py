"""SparseVLM: who rates, what stays, what is recycled."""

import pytest
import torch
from unequal import alone, real, together
from views import view

from dart.methods.sparsevlm import SparseVLM, _cluster, _split


@pytest.mark.parametrize(
    "keep, counts, mean", [(113, [576, 309, 204, 113], 192), (39, [576, 312, 117, 39], 128), (18, [576, 82, 32, 18], 64)])
def test_reproduces_the_published_settings(keep, counts, mean):
    plan = SparseVLM(keep).kept(576, 32)
    assert plan == [counts[0]] * 2 + [counts[1]] * 4 + [counts[2]] * 9 + [counts[3]] * 17
    assert int(sum(plan) / 32) == mean


def test_one_merged_token_for_ten_recycled_of_three_tenths_dropped():
    assert [_split(576, 309), _split(309, 204), _split(204, 113)] == [(300, 9), (200, 4), (110, 3)]
    assert [_split(9, 3), _split(9, 9), _split(9, 0), _split(100, 2)] == [(2, 1), (9, 0), (0, 0), (0, 2)]


def test_places_scale_with_the_depth():
    assert SparseVLM(4).places(32) == (0, 2, 6, 15)
    assert SparseVLM(4).places(64) == (0, 4, 12, 30)
    assert SparseVLM(4).places(3) == (0, 1, 2)
    for keep in range(0, 101, 7):
        plan = SparseVLM(keep).kept(100, 8)
        assert plan == sorted(plan, reverse=True) and plan[-1] == keep


def scene(*, stage, attention=None, memory=None):
    # 0 is a greeting; 1 to 9 the image; "cat" at 10 and "sits" at 12 look like it, "the" at 11 does not.
    states = torch.zeros(1, 13, 4)
    states[0, 0, 0] = 9
    states[0, 1:10, 0] = 1
    states[0, 1:10, 1] = torch.arange(9.0)
    states[0, [10, 12], 0] = 3
    states[0, 11, 2] = 5
    return view(states, slice(1, 10), attention=attention, stage=stage, layer=stage, n_layers=2, memory=memory if memory else {})


def test_words_that_resemble_the_image_rate_and_the_best_of_the_dropped_are_merged():
    memory = {}
    first = scene(stage=0)
    first.memory = memory
    assert torch.equal(SparseVLM(3).select(first), first.image_mask)
    attention = torch.zeros(1, 2, 13, 13)
    attention[0, 0, 10, 1:10] = torch.tensor([0.5, 0.0, 0.1, 0.1, 0.0, 0.0, 0.1, 0.0, 0.0])
    attention[0, 1, 12, 1:10] = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.0, 0.1, 0.6, 0.0, 0.0])
    attention[0, :, 11, 2] = 1          # the word that does not rate
    seen = scene(stage=1, attention=attention, memory=memory)
    kept, states = SparseVLM(3).select(seen)
    # 7 and 1 stay. Seven are dropped and the best three of them, 4, 3 and 6, become one.
    assert kept[0].nonzero().flatten().tolist()[::2] == [1, 7]
    (merged,) = set(kept[0].nonzero().flatten().tolist()) - {1, 7}
    assert merged in (3, 4, 6)
    assert torch.allclose(states[0, merged], seen.hidden_states[0, [3, 4, 6]].mean(0))
    untouched = torch.arange(13) != merged
    assert torch.equal(states[0, untouched], seen.hidden_states[0, untouched])


def test_the_rank_says_how_many_go_without_a_budget():
    memory = {}
    first = scene(stage=0)
    first.memory = memory
    SparseVLM(None).select(first)
    attention = torch.zeros(1, 1, 13, 13)
    attention[0, 0, [10, 12]] = torch.rand(13, generator=torch.Generator().manual_seed(0))     # both raters agree: rank 1
    seen = scene(stage=1, attention=attention, memory=memory)
    kept, _ = SparseVLM(None).select(seen)
    assert int(kept.sum()) == 2             # one for the rank, one merged of the three best of eight dropped
    assert int(SparseVLM(None, scale=0.5).select(seen)[0].sum()) == 5 + 1
    assert int(SparseVLM(None, scale=0).select(seen)[0].sum()) == 9
    with pytest.raises(ValueError, match="depends on the picture"):
        SparseVLM(None).kept(576, 32)


def test_clusters_are_density_peaks():
    points = torch.tensor([[0.0], [10.0], [0.1], [0.25], [10.2], [0.3]])
    centres, means = _cluster(points, 2)
    left, right = [0, 2, 3, 5], [1, 4]
    assert sorted(c in left for c in centres.tolist()) == [False, True]
    for centre, mean in zip(centres.tolist(), means):
        assert torch.allclose(mean, points[left if centre in left else right].mean(0))
    # By hand: the distance to the nearest other point makes the density, that to the nearest denser one the isolation.
    assert centres.tolist() == [3, 1]


@pytest.mark.parametrize("side, dtype", [("left", torch.float32), ("right", torch.float16), ("left", torch.bfloat16)])
def test_a_batch_is_answered_like_its_samples_and_meets_the_budget(side, dtype):
    views = alone(dtype=dtype, n_layers=32, layer=0)
    batch = together(views, side)
    for one in [*views, batch]:
        assert torch.equal(SparseVLM(4).select(one), one.image_mask)
    for stage in (1, 3):
        for one in [*views, batch]:
            one.stage, one.layer = stage, SparseVLM(4).places(32)[stage]
        for keep in (0, 1, 4, 12, 100, None):
            method = SparseVLM(keep)
            kept, states = method.select(batch)
            assert states.dtype == dtype and states.shape == batch.hidden_states.shape and states.isfinite().all()
            if keep is not None:
                assert kept.sum(1).tolist() == [method.kept(count, 32)[batch.layer] for count in batch.image_count.tolist()]
            for row, new, one in zip(real(kept, batch), real(states, batch), views):
                alone_kept, alone_states = method.select(one)
                assert torch.equal(row, alone_kept[0]) and torch.equal(new, alone_states[0])
            if keep == 100:
                assert torch.equal(kept, batch.image_mask) and torch.equal(states, batch.hidden_states)


def test_refuses_what_cannot_be_meant():
    with pytest.raises(ValueError, match="scale=2; it is the fraction dropped"):
        SparseVLM(None, scale=2)
    with pytest.raises(ValueError, match="keep=-1; give a whole number"):
        SparseVLM(-1)
