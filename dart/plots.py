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
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    return figure


MARKS = tuple(zip((*PALETTE.values(), "white") * 2, "osD^vPX*h<"))


def draw_curves(experiment, curves, *, xlabel, tasks=None, levels=None, log=False):
    """Draw what is left of the unpruned scores against a number, the average over tasks first, then task by task.

    Parameters
    ----------
    experiment : dart.reproduction.Experiment
        After its `run`.
    curves : mapping of str to mapping of float to dart.reproduction.Row
        Lines by name, each a row for every number.
    xlabel : str
    tasks : sequence of str, optional
        Those with a panel of their own; the experiment's by default. The average is over all tasks of the experiment.
    levels : mapping of str to dart.reproduction.Row, optional
        Rows without a number, drawn as a line across with their interval.
    log : bool
        Whether the number is shown by powers of two, ticks where it has values.

    Returns
    -------
    matplotlib Figure
        Rows that were not run are left out; a panel without any says "not run".

    Raises
    ------
    ValueError
        For more lines than can be told apart.
    """
    _few("curves", curves)
    plt, _ = _libraries()
    panels = {"average": None, **{task: [task] for task in (experiment.tasks if tasks is None else tasks)}}
    columns = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.9 * columns, 0.6 + 2.3 * lines), sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, (title, of) in zip(axes.flat, panels.items()):
        drawn = 0
        for (name, row), (color, _) in zip((levels or {}).items(), MARKS[3::-1]):
            found = _left(experiment, row, of)
            if found is not None:
                ax.axhspan(found.low, found.high, color=color, alpha=0.5, linewidth=0)
                ax.axhline(found.value, color=INK, linewidth=1, linestyle="--", label=name)
                drawn += 1
        for (name, rows), (color, marker) in zip(curves.items(), MARKS):
            points = [(x, found) for x, row in rows.items() if (found := _left(experiment, row, of)) is not None]
            if points:
                x, found = zip(*points)
                ax.vlines(x, [each.low for each in found], [each.high for each in found], color=INK, linewidth=1)
                ax.plot(x, [each.value for each in found], color=INK if color == "white" else color, linewidth=1.2, marker=marker,
                        markersize=6, markerfacecolor=color, markeredgecolor=INK, markeredgewidth=0.8, label=name)
                drawn += 1
        if not drawn:
            ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center")
        ax.axhline(100, color=INK, linewidth=0.8, linestyle=":")
        ax.set_title(title)
        if log:
            ax.set_xscale("log", base=2)
            numbers = sorted({x for rows in curves.values() for x in rows})
            ax.set_xticks(numbers, [f"{x:g}" for x in numbers])
            ax.minorticks_off()
        else:
            ax.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    for ax in axes[:, 0]:
        ax.set_ylabel("% of unpruned")
    for number in range(columns):                           # the lowest panel of each column; those below are empty
        axes.flat[max(range(number, len(panels), columns))].tick_params(labelbottom=True)
    figure.supxlabel(xlabel, fontsize="medium")
    _one_legend(figure, axes)
    return figure


def draw_differences(experiment, rows, reference, *, tasks=None):
    """Draw by how much rows differ from a reference, in points of the unpruned score, average first; filled where it is clear.

    Parameters
    ----------
    experiment : dart.reproduction.Experiment
        After its `run`.
    rows : sequence of dart.reproduction.Row
    reference : dart.reproduction.Row
    tasks : sequence of str, optional
        The experiment's by default.

    Returns
    -------
    matplotlib Figure
        A marker is filled where the 95 % interval of the paired difference leaves 0 out.

    Raises
    ------
    ValueError
        For more rows than can be told apart.
    """
    _few("rows", rows)
    plt, _ = _libraries()
    tasks = list(experiment.tasks if tasks is None else tasks)
    panels = {"average": tasks, **{task: [task] for task in tasks}}
    step = 0.8 / max(len(rows), 1)
    figure, ax = plt.subplots(figsize=(7.5, 1.4 + 0.16 * (len(rows) + 1) * len(panels)))
    for height, of in enumerate(panels.values()):
        for number, (row, (color, marker)) in enumerate(zip(rows, MARKS)):
            found, y = experiment.difference(row, reference, of), height - 0.4 + step * (number + 0.5)
            if found is None or not np.isfinite((found.low, found.high)).all():
                ax.text(0, y, "not run" if found is None else "too few questions", fontsize=7, va="center")
                continue
            clear = found.low > 0 or found.high < 0
            ax.hlines(y, 100 * found.low, 100 * found.high, color=INK, linewidth=1.2)
            ax.plot(100 * found.value, y, marker, color=color if clear else "white", markeredgecolor=color, markeredgewidth=1.5, markersize=6)
    for height in range(1, len(panels)):
        ax.axhline(height - 0.5, color=INK, linewidth=0.8 if height == 1 else 0.2)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set(yticks=range(len(panels)), yticklabels=list(panels), ylim=(len(panels) - 0.5, -0.5),
           xlabel=f"minus {reference.label}, points of the unpruned score")
    handles = [
        plt.Line2D([], [], linestyle="", marker=marker, color=color, markersize=6, label=row.label)
        for row, (color, marker) in zip(rows, MARKS)
    ]
    handles.append(plt.Line2D([], [], linestyle="", marker="o", markerfacecolor="white", markeredgecolor=INK, label="not clear"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), fontsize=9)
    return figure


def _few(what: str, drawn) -> None:
    if len(drawn) > len(MARKS):
        raise ValueError(f"{len(drawn)} {what} in one figure cannot be told apart; draw {len(MARKS)} or fewer")


def _left(experiment, row, tasks):
    """What is left of the unpruned score in percent, with its interval; None if that is not run or no number."""
    found = experiment.average(row, tasks)
    if found is None or not np.isfinite(found.value):
        return None
    interval = found.interval
    return type(interval)(*(100 * each for each in (interval.value, interval.low, interval.high)))


def _one_legend(figure, axes) -> None:
    handles = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if handles:
        # above, for below it would lie on the common label
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=min(len(handles), 5), fontsize=9)


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
