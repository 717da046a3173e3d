"""The pictures of docs/models.md: samples of every model side by side, and what the judges say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fastgan.data.dataset import Dataset
from fastgan.training.pictures import image_grid

_IMAGES = 40  # a model
_POINTS = 1000


def save_all(data: Dataset, samples: Mapping[str, Tensor], folder: Path) -> None:
    """Samples of each model, real ones first: NAME.png."""
    figure, places = (_figure(9, 6.4), (2, 3)) if data.image_shape is None else (_figure(9, 6.3), (3, 2))
    for axes, (title, drawn) in zip(figure.subplots(*places).flat, samples.items(), strict=True):
        axes.set_title(title, fontsize=10)
        if data.image_shape is not None:
            axes.imshow(np.asarray(image_grid(drawn[:_IMAGES], data.image_shape)), cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
            continue
        axes.scatter(*drawn[:_POINTS].T.numpy(), s=3, alpha=0.5, linewidths=0)
        axes.set_xlim(-1.3, 1.3)
        axes.set_ylim(-1.3, 1.3)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=7)
        # The mode at (1, 0), and what is around it, ten times as large.
        inset = axes.inset_axes((0.33, 0.33, 0.34, 0.34))
        inset.scatter(*drawn.T.numpy(), s=2, alpha=0.5, linewidths=0)
        inset.set_xlim(0.95, 1.05)
        inset.set_ylim(-0.05, 0.05)
        inset.set_xticks([])
        inset.set_yticks([])
        axes.indicate_inset_zoom(inset, edgecolor="0.3")
    figure.savefig(folder / f"{data.name}.png", dpi=90)


def save_judges(told_apart: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """How often each judge told each model's samples from real ones, as bars."""
    figure = _figure(9, 3.2)
    axes = figure.subplots()
    width = 0.8 / len(told_apart)
    names: list[str] = []
    for i, (title, shares) in enumerate(told_apart.items()):
        names = list(shares)
        places = np.arange(len(names)) + width * (i - (len(told_apart) - 1) / 2)
        axes.bar(places, list(shares.values()), 0.9 * width, label=title)
    axes.set_xticks(range(len(names)), names)
    axes.axhline(0.5, color="0.3", linewidth=0.8, linestyle="--")
    axes.set_ylim(0.4, 1.02)
    axes.set_ylabel("told apart (1/2 is best)")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=90)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
