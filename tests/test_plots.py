"""Figures are read back as pixels and shapes: what is kept has colour, what is dropped has none."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from dart import plots, reproduction, results
from dart.evaluation import Interval

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
from dart import plots, reproduction, results
from dart.evaluation import Interval
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


class FakeExperiment:
    """Rows are names; what is left of each on each task, in points; drawn values lie 2 points around."""

    tasks = ("reading", "pairs")

    def __init__(self, left):
        self.left = left

    def average(self, row, tasks=None):
        found = [self.left.get((row, task)) for task in tasks or self.tasks]
        return None if None in found else results.Average(np.mean(found), np.mean(found) + np.linspace(-0.02, 0.02, 41))

    def difference(self, row, reference, tasks=None):
        ours, theirs = self.average(row.label, tasks), self.average(reference.label, tasks)
        if ours is None or theirs is None:
            return None
        value = ours.value - theirs.value
        return Interval(value, value - 0.02, value + 0.02)


def test_curves_stand_at_their_numbers_and_the_average_comes_first():
    plots.use_style()
    left = {("a", "reading"): 0.5, ("a", "pairs"): 0.7, ("b", "reading"): 0.9, ("b", "pairs"): 1.0, ("level", "reading"): 0.8}
    figure = plots.draw_curves(FakeExperiment(left), {"DART": {2: "a", 16: "b"}, "other": {4: "lost"}}, xlabel="pivots",
                               levels={"Random": "level"}, log=True)
    average, reading, pairs, *_ = figure.axes
    assert [ax.get_title(loc="left") for ax in (average, reading, pairs)] == ["average", "reading", "pairs"]
    for ax, wanted in ((average, [60, 95]), (reading, [50, 90]), (pairs, [70, 100])):
        line = next(line for line in ax.lines if line.get_label() == "DART")
        np.testing.assert_allclose(line.get_xdata(), [2, 16])
        np.testing.assert_allclose(line.get_ydata(), wanted)
        assert not any(line.get_label() == "other" for line in ax.lines), "what was not run is no point"
    assert [line.get_ydata()[0] for line in reading.lines if line.get_label() == "Random"] == [80]
    assert not any(line.get_label() == "Random" for line in average.lines)
    low, high = next(iter(reading.collections)).get_segments()[0][:, 1]
    assert 48 <= low < 48.5 and 51.5 < high <= 52, "the 95 % interval of what was drawn"
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"DART", "Random"}


def test_a_panel_without_runs_says_so():
    figure = plots.draw_curves(FakeExperiment({("a", "pairs"): 0.7}), {"DART": {2: "a"}}, xlabel="pivots")
    assert [[text.get_text() for text in ax.texts] for ax in figure.axes[:3]] == [["not run"], ["not run"], []]


def test_differences_are_filled_where_they_are_clear():
    left = {(name, task): value for name, values in {"a": (0.5, 0.79), "base": (0.8, 0.8)}.items() for task, value in zip(("reading", "pairs"), values)}
    rows = [reproduction.Row(name, None, 64) for name in ("a", "lost", "base")]
    figure = plots.draw_differences(FakeExperiment(left), rows[:2], rows[2])
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["average", "reading", "pairs"]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in points], [-15.5, -30, -1], atol=1e-6)
    white = matplotlib.colors.to_hex("white")
    assert [matplotlib.colors.to_hex(line.get_markerfacecolor()) == white for line in points] == [False, False, True]
    assert [text.get_text() for text in ax.texts] == ["not run"] * 3
    assert "base" in ax.get_xlabel()


def test_more_than_can_be_told_apart_is_refused():
    assert len(set(plots.MARKS)) == 10
    with pytest.raises(ValueError, match="11 curves in one figure"):
        plots.draw_curves(FakeExperiment({}), {str(n): {} for n in range(11)}, xlabel="")
    with pytest.raises(ValueError, match="12 rows in one figure"):
        plots.draw_differences(FakeExperiment({}), ["row"] * 12, None)
