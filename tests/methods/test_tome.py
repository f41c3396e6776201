"""ToMe: bipartite matching by brute force, mass that is never lost, the budget at the end of the tower."""

import pytest
import torch
import in_tower

from dart.methods.tome import ToMe


def by_brute_force(hidden, keys, sizes, count):
    """One picture, one round, plain Python; returns {position: (mean, mass)}."""
    unit = [k / k.norm() for k in keys]
    pairs = []
    for a in range(1, len(hidden), 2):
        best = max(range(0, len(hidden), 2), key=lambda b: float(unit[a] @ unit[b]))
        pairs.append((float(unit[a] @ unit[best]), a, best))
    pairs.sort(key=lambda pair: -pair[0])
    groups = {i: [i] for i in range(len(hidden))}
    for _, a, b in pairs[:count]:
        groups[b] += groups.pop(a)
    mass = {i: sum(sizes[j] for j in group) for i, group in groups.items()}
    return {i: (sum(hidden[j] * sizes[j] for j in group) / mass[i], mass[i]) for i, group in groups.items()}


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_brute_force_on_eight_patches(class_token, weighted):
    for seed in range(2):
        for keep in range(4, 8):
            sizes = torch.randint(1, 5, (2, 8), generator=torch.Generator().manual_seed(seed)).float()
            memory = {"size": sizes} if weighted else {}
            v = in_tower.first(patches=8, class_token=class_token, seed=seed, memory=memory)
            stays, states = ToMe(keep).select_patches(v)
            for row in range(2):
                start = int(class_token)
                expected = by_brute_force(v.hidden_states[row, start:], v.keys[row].mean(0)[start:],
                                          sizes[row].tolist() if weighted else [1] * 8, 8 - keep)
                assert stays[row].nonzero().flatten().tolist() == [start + i for i in expected]
                for i, (mean, _) in expected.items():
                    assert torch.allclose(states[row, start + i], mean, atol=1e-6)
                assert memory["size"][row].tolist() == [mass for _, mass in expected.values()]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("keep, n_layers", [(5, 6), (15, 3), (1, 2), (1, 9), (3, 1), (2, 24)])
def test_mass_is_conserved_and_the_budget_met(keep, n_layers, class_token):
    """Each state times its mass, summed, is what the picture summed to before; layer after layer."""
    start = in_tower.first(patches=16, class_token=class_token)
    total = start.hidden_states[start.image_mask].view(2, 16, -1).sum(1)
    counts = [16]
    for at, stays, states in in_tower.walk(ToMe(keep), start, n_layers):
        counts.append(int(stays[0].sum()))
        left = states[stays].view(2, counts[-1], -1)
        size = at.memory.get("size", torch.ones(2, 16))[..., None]
        assert size.sum(1).flatten().tolist() == [16, 16]
        assert torch.allclose((left * size).sum(1), total, atol=1e-4)
        assert torch.equal(states[~at.image_mask], at.hidden_states[~at.image_mask])
    assert counts[-1] == keep
    steps = [before - after for before, after in zip(counts, counts[1:])]
    assert max(steps) - min(steps) <= 1


def test_twins_merge_into_one_and_stay_what_they_are():
    v = in_tower.first(pictures=1, patches=8, class_token=False)
    v.keys[0, :, 5], v.hidden_states[0, 5] = v.keys[0, :, 2], v.hidden_states[0, 2]
    stays, states = ToMe(7).select_patches(v)
    assert stays[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert torch.equal(states[stays], v.hidden_states[stays])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_batches_and_types(dtype):
    v = in_tower.first(pictures=3, dtype=dtype)
    for keep in (0, 1, 3, 8, 15):
        v.memory.clear()
        answer = ToMe(keep).select_patches(v)
        stays, states = answer if keep else (answer, v.hidden_states)
        assert stays.sum(1).tolist() == [keep] * 3 and not stays[:, 0].any()
        assert states.dtype == dtype and states.shape == v.hidden_states.shape and states.isfinite().all()
        for picture in range(3):
            alone = ToMe(keep).select_patches(in_tower.one(v, picture))
            mask, new = alone if keep else (alone, v.hidden_states[picture : picture + 1])
            assert torch.equal(mask[0], stays[picture])
            assert torch.allclose(new[0].float(), states[picture].float(), atol=1e-5)


def test_keeping_all_touches_nothing():
    v = in_tower.first()
    for keep in (16, 99):
        assert torch.equal(ToMe(keep).select_patches(v), v.image_mask)
    assert not v.memory


def test_places_plan_and_refusal():
    assert ToMe(4).tower_places(5) == (1, 2, 3, 4) and ToMe(4).tower_places(1) == (0,)
    assert ToMe(4).places(5) == () and ToMe(4).kept(16, 3) == [4, 4, 4] and ToMe(40).kept(16, 2) == [16, 16]
    with pytest.raises(ValueError, match="keep=-1; give a whole number"):
        ToMe(-1)
