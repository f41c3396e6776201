"""Figures are read back as pixels and shapes: what is kept has colour, what is dropped has none."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from dart import plots

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RED = np.full((40, 60, 3), (200, 30, 30), dtype=np.uint8)
KEPT = np.array([[True, False, False], [False, False, True]])


@pytest.fixture(autouse=True)
def leave_no_trace():
    with matplotlib.rc_context():
        yield
    plt.close("all")


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(color)]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("image", [RED, RED / 255, Image.fromarray(RED), Image.fromarray(RED).convert("RGBA")])
def test_kept_patches_keep_their_colour_and_dropped_ones_lose_it(image):
    drawn = plots.draw_patches(image, KEPT).images[0].get_array()
    assert drawn.shape == RED.shape
    for row in range(2):
        for col in range(3):
            patch = drawn[20 * row : 20 * row + 20, 20 * col : 20 * col + 20]
            if KEPT[row, col]:
                assert np.allclose(patch, RED[0, 0] / 255)
            else:
                assert np.allclose(patch, patch[0, 0, 0]) and patch[0, 0, 0] > 0.7


def test_patches_need_not_divide_the_image():
    drawn = plots.draw_patches(RED[:, :50], np.eye(7, dtype=bool)).images[0].get_array()
    coloured = (drawn[..., 0] != drawn[..., 1]).mean()
    assert coloured == pytest.approx(1 / 7, abs=0.01)


def test_without_kept_the_image_is_untouched():
    assert np.allclose(plots.draw_patches(RED).images[0].get_array(), RED / 255)


def test_heat_map_lies_over_the_whole_image_and_comes_last():
    values = np.arange(6.0).reshape(2, 3)
    ax = plots.draw_patches(RED, values=values, title="cosine")
    picture, heat = ax.images
    assert np.array_equal(heat.get_array(), values) and heat.get_extent() == picture.get_extent()
    assert ax.get_title() == "cosine" or ax.get_title(loc="left") == "cosine"


def test_pivots_are_framed_where_they_are():
    ax = plots.draw_patches(RED, KEPT, pivots=[[False, False, True], [False, False, False]])
    assert {(*frame.get_xy(), frame.get_width(), frame.get_height()) for frame in ax.patches} == {(40, 0, 20, 20)}


def test_it_draws_where_it_is_told():
    _, (left, right) = plt.subplots(1, 2)
    assert plots.draw_patches(RED, KEPT, right) is right
    assert right.images and not left.images


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(image=RED, kept=KEPT.ravel()), r"'kept': \(6,\)"),
        (dict(image=RED, kept=KEPT, values=np.ones((3, 2))), r"'values': \(3, 2\)"),
        (dict(image=RED[..., 0], kept=KEPT), r"got shape \(40, 60\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.draw_patches(**arguments)


def test_palette_survives_grey_and_text_stays_readable():
    steps = np.diff([luminance(color) for color in plots.PALETTE.values()])
    assert (steps > 0.1).all()
    plots.use_style()
    page, ink = (luminance(plt.rcParams[key]) for key in ("figure.facecolor", "text.color"))
    assert (page + 0.05) / (ink + 0.05) > 7


def test_importing_changes_nothing_and_a_missing_library_is_named():
    code = """
import sys
from dart import plots
assert "matplotlib" not in sys.modules and "seaborn" not in sys.modules
sys.modules["seaborn"] = None
try:
    plots.use_style()
except ImportError as error:
    assert "pip install matplotlib seaborn" in str(error)
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
