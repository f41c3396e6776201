"""Where kept tokens lie: what is noted is what pruning keeps, and each number says what it is called."""

import numpy as np
import pytest
import torch

import dart
from dart import bundled, scenes, spread


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    return bundled.load()


def masks(*pictures):
    return np.array([[[cell == "x" for cell in row] for row in picture.split()] for picture in pictures])


def test_what_is_noted_is_what_pruning_keeps(small):
    """Long and short questions in one batch, two layers at once: as each method keeps it alone."""
    model, processor = small
    asked = scenes.questions("relations", size=3)
    methods = {"dart": dart.DART(keep=40), "fastv": dart.FastV(keep=17, layer=4), "random": dart.Random(keep=9, seed=3)}
    found = spread.kept(model, processor, asked, methods, batch=2)
    for name, method in methods.items():
        assert found[name].shape == (3, 24, 24) and (found[name].sum((1, 2)) == method.keep).all()
        for number, question in enumerate(asked):
            inputs = processor(text=bundled.prompt(question.text), images=question.picture(), return_tensors="pt")
            with torch.inference_mode(), dart.prune(model, method) as report:
                model(**inputs)
            sample = report.samples[0]
            alone = torch.isin(sample.image, sample.kept).reshape(24, 24).numpy()
            assert (alone == found[name][number]).mean() > 0.995, "batching may move a last bit, and so a tie"


def test_a_method_that_chooses_elsewhere_is_refused(small):
    for name, method in {"steps": dart.PyramidDrop(keep=64), "tower": dart.FasterVLM(keep=64)}.items():
        with pytest.raises(ValueError, match=f"{name} does not choose once"):
            spread.kept(*small, [], {name: method})


def test_places():
    corner, row = masks("x... .... .... ....", ".... .... .... xxxx")
    both = np.stack([corner, row])
    np.testing.assert_allclose(spread.height(both), [0.5 / 4, 3.5 / 4])
    np.testing.assert_allclose(spread.across(both), [0.5 / 4, 0.5])
    np.testing.assert_allclose(spread.lower_right(both), [0, 0.5])
    assert spread.lower_right(np.ones((1, 24, 24), bool)) == [0.25]


def test_nearest_neighbours():
    pair, three, alone = masks("x..x .... .... ....", "xx.. .... .... ...x", "x... .... .... ....")
    found = spread.nearest(np.stack([pair, three, alone]))
    np.testing.assert_allclose(found[:2], [3, (1 + 1 + np.hypot(3, 2)) / 3])
    assert np.isnan(found[2])


def test_overlap_counts_what_both_keep():
    one, other = masks("xx.. ....", "x..x ....")
    np.testing.assert_allclose(spread.overlap(np.stack([one, one]), np.stack([other, one])), [1 / 3, 1])


def test_the_mean_has_an_interval_that_shrinks_with_scenes():
    values = np.random.default_rng(1).normal(2, 1, 400)
    few, many = spread.mean(values[:25]), spread.mean(values)
    assert many.low < 2 < many.high and few.high - few.low > 2 * (many.high - many.low)
    assert spread.mean(np.full(9, 0.5)) == dart.evaluation.Interval(0.5, 0.5, 0.5)
