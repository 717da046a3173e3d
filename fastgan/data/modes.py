"""The modes of a column of reals: a Gaussian mixture, values that many rows have, and missing values.

A real is given as its mode and, within that, as (x - mean) / (4 std) (CTGAN: Xu et al. 2019, arXiv:1907.00503, section
4.2), so that a network need not draw a distribution of several peaks from one number.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgan.data.errors import DataError

# As CTGAN has them.
MOST_GAUSSIANS, LEAST_WEIGHT, STDS = 10, 0.005, 4.0
# Rows that a mixture is fitted to. Its modes are of 0.5 % and more of the rows, 25 of these.
SUBSAMPLE = 5_000
# A value that so large a part of the rows has is a mode of its own, as the zeros of a column that is mostly zero are:
# one of a Gaussian would come back as numbers near it.
SPIKE = 0.05


@dataclass(frozen=True)
class Modes:
    """The modes of a column, in this order: Gaussians, single values, missing.

    Attributes:
        means: of the Gaussians.
        stds: of the Gaussians.
        weights: of the Gaussians, which sum to 1.
        spikes: the single values.
        has_missing: whether the last mode is that of missing values.
    """

    means: tuple[float, ...]
    stds: tuple[float, ...]
    weights: tuple[float, ...]
    spikes: tuple[float, ...] = ()
    has_missing: bool = False

    @property
    def count(self) -> int:
        """All of them."""
        return len(self.means) + len(self.spikes) + self.has_missing

    def in_words(self) -> str:
        """What is shown of them."""
        return f"{self.count} mode{'s' if self.count != 1 else ''}"

    def as_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Modes:
        """The inverse of `as_json`."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**given)

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The mode of each value (N,), NaN where it is missing, and its place within the mode.

        A mode is drawn by the probabilities that the value is from each. Where the value is more than 4 standard
        deviations from that one, it is of the nearest.

        Returns:
            (N,) int64 modes; (N,) float64 places, in [-1, 1] but for values far from every mode, 0 in a mode of one
            value.
        """
        means, stds, weights = (np.array(each) for each in (self.means, self.stds, self.weights))
        modes, places = np.zeros(len(values), dtype=np.int64), np.zeros(len(values))
        draws = rng.random(len(values))
        of_gaussian = ~np.isnan(values)
        modes[~of_gaussian] = self.count - 1
        for i, spike in enumerate(self.spikes):
            hit = values == spike
            modes[hit], of_gaussian[hit] = len(means) + i, False
        rows = np.flatnonzero(of_gaussian)
        for part in np.array_split(rows, len(rows) // 100_000 + 1):
            at = (values[part, None] - means) / stds
            density = np.log(weights) - np.log(stds) - 0.5 * at * at
            probability = np.exp(density - density.max(axis=1, keepdims=True)).cumsum(axis=1)
            picked = (probability < draws[part, None] * probability[:, -1:]).sum(axis=1)
            reach = np.abs(at) / STDS
            picked = np.where(reach[np.arange(len(part)), picked] <= 1, picked, reach.argmin(axis=1))
            modes[part], places[part] = picked, at[np.arange(len(part)), picked] / STDS
        return modes, places

    def decode(self, modes: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The inverse of `encode`: (N,) float64, NaN where it is missing."""
        still = len(self.spikes) + self.has_missing
        means = np.array([*self.means, *self.spikes, *([np.nan] * self.has_missing)])
        found: np.ndarray = means[modes] + STDS * np.array([*self.stds, *([0.0] * still)])[modes] * places
        return found


def fit_modes(columns: Sequence[np.ndarray], seed: int) -> list[Modes]:
    """The modes of columns of reals (N,), NaN where one is missing; each of two values or more, missing one of them.

    A variational Bayesian mixture of 10 Gaussians for each, fitted to at most 5,000 of its rows; those of weight over
    0.005 are kept. The columns are fitted side by side, on all cores.

    Raises:
        DataError: scikit-learn is missing.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import BayesianGaussianMixture  # noqa: F401  # once, before the threads
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise DataError(f'a table of reals needs scikit-learn ({error}): pip install "fastgan[train]"') from error
    cores = len(os.sched_getaffinity(0))
    with (
        ThreadPoolExecutor(max(1, min(cores, len(columns)))) as pool,
        threadpool_limits(1),  # a fit is one of many; products of 5,000 x 10 gain nothing from more threads
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)  # of 100 rounds, which suffice for a way to write numbers
        return list(pool.map(lambda i: _fit(columns[i], seed + i), range(len(columns))))


def _fit(column: np.ndarray, seed: int) -> Modes:
    present = column[~np.isnan(column)]
    has_missing = len(present) < len(column)
    values, counts = np.unique(present, return_counts=True)
    # Of few values each has a large part of the rows; as Gaussians they are one picture of the column.
    spikes = values[counts >= SPIKE * len(column)] if len(values) > 1 / SPIKE else values[:0]
    rest = present[~np.isin(present, spikes)]
    means, stds, weights = _gaussians(rest, seed) if len(rest) else (np.zeros(0),) * 3
    return Modes(
        tuple(means.tolist()), tuple(stds.tolist()), tuple(weights.tolist()), tuple(spikes.tolist()), has_missing
    )


def _gaussians(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, standard deviations and weights of a mixture fitted to values."""
    from sklearn.mixture import BayesianGaussianMixture

    if len(values) > SUBSAMPLE:
        values = np.random.default_rng(seed).choice(values, SUBSAMPLE, replace=False)
    centre, spread = values.mean(), values.std()
    spread = spread if spread > 0 else 1.0
    scaled = (values - centre) / spread  # the mixture's floor of a variance, 1e-6, is of this scale
    components = min(MOST_GAUSSIANS, len(np.unique(scaled)), len(scaled))
    if components == 1:
        return np.array([centre]), np.array([max(1e-3, abs(centre) * 1e-3)]), np.ones(1)
    mixture = BayesianGaussianMixture(
        n_components=components,
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=0.001,
        covariance_type="spherical",
        init_params="k-means++",
        random_state=seed % 2**32,
    ).fit(scaled[:, None])
    kept = mixture.weights_ > LEAST_WEIGHT
    weights = mixture.weights_[kept] / mixture.weights_[kept].sum()
    return mixture.means_[kept, 0] * spread + centre, np.sqrt(mixture.covariances_[kept]) * spread, weights
