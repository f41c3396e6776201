"""FiCoCo-V: filter, correlate and compress by brute force; windows; the budget at the end of the tower."""

import pytest
import torch
import in_tower

from dart.methods.ficocov import FiCoCoV


def by_brute_force(v, row, keep, balance=0.35, penalty=2.0, quantile=0.998, spots=None, side=3):
    """One picture at one place, plain Python; returns {position in the view: new state}."""
    attention = v.noted.weights[row].mean(0)
    image = v.image_mask[row].nonzero().flatten().tolist()
    spots = spots or list(range(len(image)))
    if len(image) < len(attention):
        semantic = {i: float(attention[0, i]) for i in image}
    else:
        keys = v.keys[row].mean(0)
        semantic = {i: -float(torch.cosine_similarity(keys[i], keys.mean(0), dim=0)) for i in image}
    score = {i: balance * sum(float(attention[j, i]) for j in image) / len(image) - (1 - balance) * semantic[i] for i in image}
    windows = {}
    for i, spot in zip(image, spots):
        windows.setdefault((spot // side // 2, spot % side // 2), []).append(i)
    for members in windows.values():
        top = max(members, key=lambda i: score[i])
        score[top] *= penalty if score[top] > 0 else 1 / penalty
    dropped = sorted(image, key=lambda i: -score[i])[: len(image) - keep]
    kept = [i for i in image if i not in dropped]
    state, weight = {j: v.hidden_states[row, j].clone() for j in kept}, dict.fromkeys(kept, 1.0)
    for i in dropped:
        threshold = attention[i, kept].quantile(quantile)
        into = [j for j in kept if attention[i, j] >= threshold]
        for j in into:
            share = float(attention[i, j]) / sum(float(attention[i, k]) for k in into)
            state[j] += share * v.hidden_states[row, i]
            weight[j] += share
    return {j: state[j] / weight[j] for j in kept}


@pytest.mark.parametrize("settings", [
    {}, dict(balance=0.8), dict(balance=1.0, penalty=3.0), dict(quantile=0.3), dict(penalty=1.0),
])
@pytest.mark.parametrize("class_token", [True, False])
def test_brute_force_on_nine_patches(class_token, settings):
    for seed in range(2):
        v = in_tower.first(patches=9, class_token=class_token, seed=seed)
        for keep in (1, 4, 6, 8):
            v.memory.clear()
            stays, states = FiCoCoV(keep, **settings).select_patches(v)
            for row in range(2):
                expected = by_brute_force(v, row, keep, **settings)
                assert stays[row].nonzero().flatten().tolist() == list(expected)
                for i, state in expected.items():
                    assert torch.allclose(states[row, i], state, atol=1e-5)


def test_windows_stay_where_they_were_in_the_picture():
    """At a second place patches are fewer, but those left of a window still are its members."""
    spots = [0, 2, 3, 5, 7, 8]
    differs = 0
    for seed in range(6):
        v = in_tower.first(pictures=1, patches=6, seed=seed, memory={"spot": torch.tensor([spots])},
                        image_count=torch.tensor([9]), layer=3, n_layers=4, stage=1)
        stays, _ = FiCoCoV(4, penalty=50.0).select_patches(v)
        expected = list(by_brute_force(v, 0, 4, penalty=50.0, spots=spots))
        assert stays[0].nonzero().flatten().tolist() == expected
        assert v.memory["spot"][0].tolist() == [spots[i - 1] for i in expected]
        differs += expected != list(by_brute_force(v, 0, 4, penalty=50.0))
    assert differs


def test_what_the_class_token_looks_at_stays():
    v = in_tower.first(pictures=1, patches=16)
    v.noted.weights[:, :, 0] = 0
    v.noted.weights[:, :, 0, [3, 8, 14]] = 1 / 3
    stays, _ = FiCoCoV(3).select_patches(v)
    assert stays[0].nonzero().flatten().tolist() == [3, 8, 14]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("keep, n_layers", [(5, 6), (15, 3), (1, 2), (3, 23), (0, 4)])
def test_the_budget_is_met_at_the_end_of_the_tower(keep, n_layers, class_token):
    counts = [16]
    for at, stays, states in in_tower.walk(FiCoCoV(keep), in_tower.first(patches=16, class_token=class_token), n_layers):
        counts.append(int(stays[0].sum()))
        assert stays.sum(1).tolist() == [counts[-1]] * 2 and not (stays & ~at.image_mask).any()
        assert states.isfinite().all()
        assert torch.equal(states[~at.image_mask], at.hidden_states[~at.image_mask])
    assert counts[-1] == keep
    steps = [before - after for before, after in zip(counts, counts[1:])]
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_batches_and_types(dtype):
    v = in_tower.first(pictures=3, dtype=dtype)
    for keep in (0, 1, 3, 8, 15):
        v.memory.clear()
        answer = FiCoCoV(keep).select_patches(v)
        stays, states = answer if keep else (answer, v.hidden_states)
        assert stays.sum(1).tolist() == [keep] * 3 and not stays[:, 0].any()
        assert states.dtype == dtype and states.shape == v.hidden_states.shape and states.isfinite().all()
        for picture in range(3):
            alone = FiCoCoV(keep).select_patches(in_tower.one(v, picture))
            mask, new = alone if keep else (alone, v.hidden_states[picture : picture + 1])
            assert torch.equal(mask[0], stays[picture])
            assert torch.allclose(new[0].float(), states[picture].float(), atol=1e-5)


def test_keeping_all_touches_nothing():
    v = in_tower.first()
    for keep in (16, 99):
        assert torch.equal(FiCoCoV(keep).select_patches(v), v.image_mask)
    assert not v.memory


def test_places_and_plan():
    assert FiCoCoV(4).tower_places(24) == tuple(range(12, 24)) and FiCoCoV(4).tower_places(23) == tuple(range(12, 23))
    assert FiCoCoV(4).tower_places(2) == (1,)
    assert FiCoCoV(4).places(5) == () and FiCoCoV(4).kept(16, 3) == [4, 4, 4] and FiCoCoV(40).kept(16, 2) == [16, 16]


@pytest.mark.parametrize("given, words", [
    (dict(keep=-1), "keep=-1; give a whole number"),
    (dict(keep=1, balance=1.5), "balance=1.5; give 0 <= balance <= 1"),
    (dict(keep=1, quantile=-0.1), "quantile=-0.1; give 0 <= quantile <= 1"),
    (dict(keep=1, penalty=0.5), "penalty=0.5; give a factor of 1 or more"),
])
def test_what_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        FiCoCoV(**given)
