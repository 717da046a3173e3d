"""How far a run's samples are from each other beside its data, and how many modes they reach."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastgan.data.dataset import Dataset
from fastgan.training import sampling
from fastgan.training.config import TrainConfig

__all__ = ["Diversity", "diversity_of", "modes_reached"]

_SAMPLES = 256  # whose distances from each other are looked at


class Diversity:
    """The diversity of what a generator makes, over that of the data it is to imitate."""

    def __init__(self, dataset: Dataset, config: TrainConfig) -> None:
        """Nothing is computed yet.

        Args:
            dataset: the data.
            config: of the run.
        """
        self._dataset, self._config = dataset, config
        self._of_data: float | None = None

    def of_samples(self, generator: nn.Module) -> tuple[float, tuple[int, int] | None]:
        """Draw samples, and look at them.

        Args:
            generator: the network itself, not its average.

        Returns:
            Their diversity over the data's, NaN where there are too few samples for one; and of a mixture how many
            modes have a sample, of how many.
        """
        dataset, config = self._dataset, self._config
        by_class = config.conditional and dataset.table is None and len(dataset.classes) <= _SAMPLES // 8
        classes, count = len(dataset.classes) if by_class else 1, min(_SAMPLES, len(dataset))
        if by_class and dataset.labels is not None:  # no sample twice, which would lie at no distance from itself
            count = min(count, classes * int(dataset.labels.bincount()[list(dataset.classes)].amin()))
        if self._of_data is None:
            self._of_data = diversity_of(dataset.examples(count, config.seed, by_class), classes)
        fakes = sampling.draw(
            generator,
            config,
            count,
            num_classes=dataset.conditions,
            labels=dataset.classes,
            seed=config.seed,
            table=dataset.table,
        )
        modes = None
        if dataset.modes is not None:
            modes = modes_reached(fakes, dataset.modes, dataset.mode_std), len(dataset.modes)
        return diversity_of(fakes, classes) / self._of_data if self._of_data > 0 else math.nan, modes


def diversity_of(samples: Tensor, classes: int = 1) -> float:
    """How far samples are from each other, to be held against the same of the data.

    Args:
        samples: (N, data), on the CPU.
        classes: that take turns in them; only samples of one class are held against each other.

    Returns:
        The geometric mean of the mean distance to another sample and of that to the nearest one: samples that are few,
        or all alike, have little of it.
    """
    apart, nearest = [], []
    for first in range(classes):
        points = samples[first::classes].double()
        if len(points) < 2:
            continue
        distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        apart.append(distances.sum(dim=1) / (len(points) - 1))
        nearest.append(distances.fill_diagonal_(math.inf).amin(dim=1))
    if not apart:
        return math.nan
    return math.sqrt(float(torch.cat(apart).mean()) * float(torch.cat(nearest).mean()))


def modes_reached(samples: Tensor, modes: Tensor, std: float) -> int:
    """How many modes of a mixture have a sample within three standard deviations."""
    distances = torch.cdist(samples.double(), modes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return int((distances <= 3 * std).any(dim=0).sum())
