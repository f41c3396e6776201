"""Figures of the book and of reports, in one style that survives colour blindness and grey print.

Matplotlib and seaborn are imported when a figure is drawn, so that pruning a model needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Ordered from dark to light with a clear step of luminance between neighbours: grey print keeps them apart.
PALETTE = {"blue": "#1f3b63", "vermilion": "#c8501b", "sky": "#7fb2d6", "sand": "#f2cf7c"}
INK = "#222222"
HEAT = "cividis"


def use_style() -> None:
    """Set seaborn and matplotlib to the style of the book, for the figures drawn from now on."""
    _, seaborn = _libraries()
    seaborn.set_theme(
        style="ticks",
        palette=list(PALETTE.values()),
        rc={
            # An opaque page of its own: text keeps its contrast when the site around it turns dark.
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 150,
            "figure.constrained_layout.use": True,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        },
    )


def draw_patches(image, kept=None, ax: Axes | None = None, *, values=None, pivots=None, title: str | None = None) -> Axes:
    """Draw an image cut into patches: kept ones in colour, dropped ones faded to grey, pivots framed.

    Parameters
    ----------
    image : PIL image or array (height, width, 3)
        8-bit or float from 0 to 1. It is shown in its own proportions, whatever the grid.
    kept : array, bool, (rows, cols), optional
        The patches that stay. Without it nothing is faded.
    ax : Axes, optional
        Where to draw; a new figure otherwise.
    values : array, float, (rows, cols), optional
        A heat map laid over the image. It is the last of ``ax.images``, which is what a colour bar needs.
    pivots : array, bool, (rows, cols), optional
        Patches to frame.
    title : str, optional

    Raises
    ------
    ValueError
        If the grids are not two-dimensional or differ in shape.
    """
    plt, _ = _libraries()
    picture = _as_rgb(image)
    height, width = picture.shape[:2]
    grids = {name: np.asarray(grid) for name, grid in dict(kept=kept, values=values, pivots=pivots).items() if grid is not None}
    shapes = {name: grid.shape for name, grid in grids.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise ValueError(f"grids must all be (rows, cols) of one shape, got {shapes}")

    if "kept" in grids:
        rows, cols = grids["kept"].shape
        stays = grids["kept"].astype(bool)[np.arange(height) * rows // height][:, np.arange(width) * cols // width]
        picture = np.where(stays[..., None], picture, _faded(picture))

    if ax is None:
        _, ax = plt.subplots()
    whole = (0, width, height, 0)
    ax.imshow(picture, extent=whole)
    if "values" in grids:
        ax.imshow(grids["values"].astype(float), extent=whole, cmap=HEAT, alpha=0.75, interpolation="nearest")
    if "pivots" in grids:
        rows, cols = grids["pivots"].shape
        for row, col in np.argwhere(grids["pivots"]):
            corner, size = (col * width / cols, row * height / rows), (width / cols, height / rows)
            # light around dark: one of the two stands out on any photograph
            for color, line in (("white", 4), (PALETTE["vermilion"], 2)):
                ax.add_patch(plt.Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=line))
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)
    return ax


def draw_averages(experiment, budgets=None):
    """Draw what each row of an experiment keeps of the unpruned scores, with its interval, beside what the paper prints.

    Parameters
    ----------
    experiment : dart.reproduction.Experiment
        After its `run`.
    budgets : sequence of int, optional
        One panel each; all by default.

    Returns
    -------
    matplotlib Figure
    """
    plt, _ = _libraries()
    budgets = list(budgets or experiment.budgets)
    joined = {keep: experiment.join(keep) for keep in budgets}
    most = max(len(rows) for rows in joined.values())
    figure, axes = plt.subplots(1, len(budgets), figsize=(1.6 + 2.7 * len(budgets), 1.2 + 0.27 * most), sharex=True, sharey=True, squeeze=False)
    order = sorted({row.label for rows in joined.values() for row in rows}, key=lambda label: max(
        (row.ours.value for rows in joined.values() for row in rows if row.label == label and row.ours), default=0))
    for ax, keep in zip(axes[0], budgets):
        for row in joined[keep]:
            y = order.index(row.label)
            if row.ours is not None:
                value, low, high = (100 * each for each in (row.ours.value, row.ours.low, row.ours.high))
                ax.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=PALETTE["blue"], markersize=5, capsize=2)
            if row.paper is not None:
                ax.plot(100 * row.paper, y, "D", markerfacecolor="white", markeredgecolor=PALETTE["vermilion"], markersize=5)
        ax.axvline(100, color=INK, linewidth=0.8, linestyle=":")
        ax.grid(axis="y", linewidth=0.4)
        ax.set(title=f"{keep} tokens", xlabel="% of unpruned", yticks=range(len(order)), yticklabels=order)
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=PALETTE["blue"], label="ours, 95 % interval"),
        plt.Line2D([], [], marker="D", linestyle="", markerfacecolor="white", markeredgecolor=PALETTE["vermilion"], label="the paper, its own model and tasks"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _as_rgb(image) -> np.ndarray:
    """Float array (height, width, 3) from 0 to 1."""
    if hasattr(image, "convert"):
        image = image.convert("RGB")
    picture = np.asarray(image)
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"image must be a PIL image or an array (height, width, 3), got shape {picture.shape}")
    return picture / 255 if picture.dtype == np.uint8 else picture


def _faded(picture: np.ndarray) -> np.ndarray:
    """The same picture without colour, three quarters of the way to white."""
    grey = picture @ [0.2126, 0.7152, 0.0722]
    return np.repeat((0.75 + 0.25 * grey)[..., None], 3, axis=2)


def _libraries():
    try:
        import matplotlib.pyplot as plt
        import seaborn
    except ImportError as error:
        raise ImportError("figures need matplotlib and seaborn: pip install matplotlib seaborn") from error
    return plt, seaborn
