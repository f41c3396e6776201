"""Downscale: the pair of rows and columns by exhaustion, and its plan."""

from math import log

import pytest

from dart.methods.downscale import Downscale


@pytest.mark.parametrize("keep, size, pair", [
    (64, (24, 24), (8, 8)),
    (128, (24, 24), (8, 16)),
    (192, (24, 24), (12, 16)),
    (127, (24, 24), (9, 14)),
    (2, (24, 24), (1, 2)),
    (5, (24, 24), (2, 2)),
    (1, (24, 24), (1, 1)),
    (64, (8, 32), (4, 16)),
    (64, (32, 8), (16, 4)),
    (575, (24, 24), (23, 24)),
    (3, (1, 30), (1, 3)),
    (3, (30, 1), (3, 1)),
])
def test_pairs_by_hand(keep, size, pair):
    assert Downscale(keep).resize(*size) == pair


@pytest.mark.parametrize("size", [(6, 6), (4, 7), (7, 4), (5, 8)])
def test_the_largest_picture_of_a_likely_shape(size):
    rows, columns = size
    for keep in range(1, rows * columns):
        for count in range(keep, 0, -1):
            likely = [(r, count // r) for r in range(1, rows + 1) if count % r == 0 and count // r <= columns
                      and 1 / 2 <= (r / rows) / (count // r / columns) <= 2]
            if likely:
                break
        nearest = min(likely, key=lambda pair: (round(abs(log((pair[0] / rows) / (pair[1] / columns))), 9), pair))
        assert Downscale(keep).resize(rows, columns) == nearest, keep


def test_small_pictures_are_left_alone():
    assert Downscale(36).resize(6, 6) is None
    assert Downscale(99).resize(6, 6) is None


def test_plan_and_place():
    assert Downscale(128).kept(576, 3) == [128, 128, 128]
    assert Downscale(127).kept(576, 2) == [126, 126]
    assert Downscale(999).kept(576, 2) == [576, 576]
    assert Downscale(128).places(5) == () == Downscale(128).tower_places(5)
    with pytest.raises(ValueError, match="how many of 500 tokens Downscale keeps depends on the shape"):
        Downscale(128).kept(500, 2)


@pytest.mark.parametrize("keep, words", [(0, "keep=0; a picture cannot be scaled to nothing"), (-3, "keep=-3; give a whole")])
def test_what_is_refused(keep, words):
    with pytest.raises(ValueError, match=words):
        Downscale(keep)
