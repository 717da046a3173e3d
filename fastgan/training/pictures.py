"""Pictures of a run: grids of images, scatter plots of points, and the course of the losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastgan import reference
from fastgan.data.columns import Column
from fastgan.data.table import Table, Values
from fastgan.output import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Side in pixels that the cells of a grid are enlarged to: an 8 x 8 digit is hard to see at its own size.
_CELL = 56
_BORDER = 4
# A column's plot in pixels; drawn so many times as fine, then reduced, so that slopes and letters are smooth.
_PLOT, _FINER = (250, 200), 2
_GREY, _BLUE = "#999999", "#1f77b4"


def save_samples(
    samples: Tensor,
    image_shape: Sequence[int] | None,
    path: Path | IO[bytes],
    behind: Tensor | None = None,
    classes: int = 0,
) -> None:
    """A picture of samples: a grid where they are images, else a plot of points.

    Args:
        samples: (N, data), in [-1, 1] where they are images.
        image_shape: (h, w) or (h, w, 3), or None.
        path: the PNG file to write, or a binary stream.
        behind: (M, data) points of the real data, drawn faintly behind the others.
        classes: that take turns, so that each has columns of its own; 0 where they do not.
    """
    if image_shape is None:
        save_points(samples, path, behind)
    else:
        # The multiple of the classes that is nearest to ten columns from below.
        columns = classes * max(1, 10 // classes) if 0 < classes <= 20 else 10
        image_grid(samples, image_shape, columns).save(path, format="PNG")


def _enlargement(image_shape: Sequence[int], cell: int = _CELL) -> int:
    """The whole factor by which small images are enlarged."""
    return max(1, round(cell / max(image_shape[:2])))


def cell_pixels(image_shape: Sequence[int]) -> int:
    """Numbers that a cell of a grid has, its border and colours included."""
    factor = _enlargement(image_shape)
    height, width = (side * factor + _BORDER for side in image_shape[:2])
    return height * width * (image_shape[2] if len(image_shape) == 3 else 1)


def image_grid(samples: Tensor, image_shape: Sequence[int], columns: int = 10, cell: int = _CELL) -> Image.Image:
    """Images (N, h * w [* 3]) in [-1, 1], row by row in a grid; small ones enlarged by a whole factor."""
    pixels = ((samples.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    pixels = pixels.reshape(len(samples), *image_shape)
    factor = _enlargement(image_shape, cell)
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = pixels.shape[1:3]
    columns = min(columns, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    # Mid-grey lines keep neighbouring cells apart, whatever the background of the images is.
    canvas = np.full(
        (rows * (height + _BORDER) + _BORDER, columns * (width + _BORDER) + _BORDER, *pixels.shape[3:]),
        96,
        np.uint8,
    )
    for i, image in enumerate(pixels):
        top, left = (
            _BORDER + at * (size + _BORDER) for at, size in zip(divmod(i, columns), (height, width), strict=True)
        )
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas)


def save_points(samples: Tensor, path: Path | IO[bytes], behind: Tensor | None = None) -> None:
    """A scatter plot of the first two columns of (N, data) points, or a histogram of the only one."""
    figure = _figure(5, 5)
    axes = figure.add_subplot()
    for points, colour, name in ((behind, "0.75", "real"), (samples, "tab:blue", "samples")):
        if points is None:
            continue
        values = points.detach().float().cpu().numpy()
        if values.shape[1] == 1:
            axes.hist(values[:, 0], bins=60, density=True, color=colour, alpha=0.7, label=name)
            axes.set_xlabel("column 0")
        else:
            axes.scatter(values[:, 0], values[:, 1], s=3, color=colour, alpha=0.6, linewidths=0, label=name)
            axes.set_xlabel("column 0")
            axes.set_ylabel("column 1")
    if behind is not None:
        axes.legend(loc="upper right", markerscale=3)
    figure.savefig(path, dpi=100, format="png")


def save_over_density(samples: Mapping[str, Tensor], modes: Tensor, std: float, path: Path | IO[bytes]) -> None:
    """Samples of several generators over the true density of a mixture in the plane, one mode of it enlarged below.

    Args:
        samples: (N, 2) of each, by name.
        modes: (M, 2), the centres.
        std: of each mode.
        path: the PNG file to write, or a binary stream.
    """
    figure = _figure(2.6 * len(samples), 5.4)
    panels = figure.subplots(2, len(samples), squeeze=False)
    centres = modes.double().numpy()
    far = float(np.abs(centres).max()) * 1.25
    for (title, points), column in zip(samples.items(), panels.T, strict=True):
        values = points.double().numpy()
        for axes, centre, reach, size in ((column[0], np.zeros(2), far, 1.0), (column[1], centres[0], 5 * std, 6.0)):
            x, y = (np.linspace(at - reach, at + reach, 300) for at in centre)
            distances = (x[None, :, None] - centres[:, 0]) ** 2 + (y[:, None, None] - centres[:, 1]) ** 2
            # Drawn to the power 1/4, so that the edge of a mode is seen.
            density = np.exp(-distances / (2 * std**2)).sum(axis=2) ** 0.25
            axes.imshow(density, extent=(x[0], x[-1], y[0], y[-1]), origin="lower", cmap="Greys", vmax=1.6)
            axes.scatter(values[:, 0], values[:, 1], s=size, color="tab:blue", alpha=0.5, linewidths=0)
            axes.set_xlim(x[0], x[-1])
            axes.set_ylim(y[0], y[-1])
            axes.tick_params(labelsize=6)
        column[0].set_title(title, fontsize=8)
    figure.savefig(path, dpi=100, format="png")


def save_columns(
    table: Table, values: Values, path: Path | IO[bytes], behind: Values | None = None, most: int = 12
) -> None:
    """A plot of each of a table's first columns: histograms of numbers and dates, bars of levels.

    It is drawn without matplotlib, whose axes and ticks took 0.5 s a picture: most of the training of a small table.

    Args:
        table: the Table.
        values: its values, (N,) of each column.
        path: the PNG file to write, or a binary stream.
        behind: values of the real data, drawn in grey beside the others.
        most: so many columns at most.
    """
    shown = [i for i, found in enumerate(values) if found is not None][:most]
    across = min(4, len(shown))
    width, height = (side * _FINER for side in _PLOT)
    canvas = Image.new("RGB", (max(1, across) * width, max(1, math.ceil(len(shown) / 4)) * height), "white")
    for place, i in enumerate(shown):
        outlines = [
            (_outline(table.columns[i], found, at), colour)
            for at, (found, colour) in enumerate(((None if behind is None else behind[i], _GREY), (values[i], _BLUE)))
            if found is not None
        ]
        _draw_column(canvas, (place % 4 * width, place // 4 * height), table.columns[i], outlines)
    canvas.reduce(_FINER).save(path, format="PNG")


Outline = tuple[np.ndarray, np.ndarray]  # edges, in [0, 1] and one more than heights, and those


def _outline(column: Column, found: np.ndarray, at: int) -> Outline:
    """Of the histogram or the bars of a column's values; `at` is 1 for the second bar of a level, else 0."""
    if column.kind == "discrete":
        counts = np.bincount(found[found >= 0], minlength=len(column.levels)) / max(1, len(found))
        left = np.arange(len(counts)) + 0.1 + 0.4 * at
        edges = np.stack([left, left + 0.4], axis=1).ravel() / len(counts)
        return edges, np.stack([counts, np.zeros_like(counts)], axis=1).ravel()[:-1]
    bins = np.linspace(column.low, max(column.high, column.low + 1e-9), 40)
    present = found[~np.isnan(found)]
    counts = np.histogram(present, bins)[0] / max(1, len(present))
    return np.linspace(0.0, 1.0, len(bins)), counts


def _draw_column(
    canvas: Image.Image, corner: tuple[int, int], column: Column, outlines: Sequence[tuple[Outline, str]]
) -> None:
    """One plot: its title, a frame with the outlines filled, and what stands at the two ends of the axis."""
    left, top = corner[0] + 10 * _FINER, corner[1] + 24 * _FINER
    width, height = _PLOT[0] * _FINER - 20 * _FINER, _PLOT[1] * _FINER - 48 * _FINER
    highest = max((heights.max(initial=0.0) for (_, heights), _ in outlines), default=0.0)
    for (edges, heights), colour in outlines:
        if highest <= 0:
            continue
        x = np.repeat(edges, 2) * (width - 1)
        y = (height - 1) * (1 - 0.95 * np.concatenate([[0.0], np.repeat(heights, 2), [0.0]]) / highest)
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=160)
        canvas.paste(colour, (left, top), mask)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(10 * _FINER)
    draw.rectangle((left, top, left + width, top + height), outline="black", width=_FINER)
    below = top + height + 4 * _FINER
    for text, across, down, anchor in (
        (column.name, left + width // 2, top - 6 * _FINER, "ms"),
        (_ends(column)[0], left, below, "lt"),
        (_ends(column)[1], left + width, below, "rt"),
    ):
        draw.text((across, down), printable(text, "ascii")[:24], fill="black", font=font, anchor=anchor)


def _ends(column: Column) -> tuple[str, str]:
    """The smallest and the largest value, or the first and the last level."""
    if column.kind == "discrete":
        return column.levels[0], column.levels[-1]
    ends = column.low, column.high
    low, high = (f"{end:g}" if column.form is None else column.form.write(end) for end in ends)
    return low, high


def save_loss_plot(rows: Sequence[dict[str, float]], path: Path | IO[bytes], loss: str, kind: str = "png") -> None:
    """Both losses and both scores over the steps of a loss, from the rows of metrics.jsonl."""
    # Placed by hand: a constrained layout draws all of it an extra time.
    figure = _figure(7, 6, layout=None)
    figure.subplots_adjust(0.12, 0.08, 0.98, 0.98, hspace=0.06)
    losses, scores = figure.subplots(2, 1, sharex=True)
    steps = [row["step"] for row in rows]
    marker = "." if len(rows) < 3 else ""
    for axes, key, name in (
        (losses, "d_loss", "discriminator"),
        (losses, "g_loss", "generator"),
        (scores, "real_score", "D(x)"),
        (scores, "fake_score", "D(G(z))"),
    ):
        axes.plot(steps, [row[key] for row in rows], marker=marker, linewidth=1, label=name)
    if reference.GAN_LOSSES[loss].discriminator == "bce":
        # Where D cannot tell real from fake: both scores 1/2, its loss log 4 (Goodfellow et al. 2014, theorem 1).
        losses.axhline(math.log(4), color="0.7", linewidth=0.8, linestyle="--", zorder=0)
        scores.axhline(0.5, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
    losses.set_ylabel("loss")
    scores.set_ylabel("mean score")
    if reference.GAN_LOSSES[loss].scores_probability:
        scores.set_ylim(0, 1)
    scores.set_xlabel("step")
    for axes in (losses, scores):
        axes.legend(loc="upper right")
    figure.savefig(path, dpi=100, format=kind)


def save_curve(rows: Sequence[dict[str, float]], key: str, name: str, path: IO[bytes]) -> None:
    """One value of metrics.jsonl over the steps, as SVG, where rows have it."""
    figure = _figure(7, 3)
    axes = figure.add_subplot()
    having = [row for row in rows if key in row]
    axes.plot([row["step"] for row in having], [row[key] for row in having], marker=".", linewidth=1)
    axes.set_ylabel(name)
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)
    figure.savefig(path, format="svg")


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure on the Agg canvas, which needs no display and leaves the user's pyplot backend alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure
