"""Measures of a synthetic table beside the real one: its columns, its pairs of columns, and how near its rows are.

Column and pair scores are those of SDMetrics (https://docs.sdv.dev/sdmetrics), in [0, 1], 1 the best. A column is an
array (N,): floats, NaN where they are missing, of numbers and dates; integers, the numbers of levels, of words.
"""

from __future__ import annotations

import numpy as np

# As SDMetrics rounds before it compares, so that a rounding error makes no two numbers of one.
_DECIMALS = 14
BINS = 10


def ks_complement(real: np.ndarray, synthetic: np.ndarray) -> float:
    """1 - the two-sample Kolmogorov-Smirnov statistic, the largest difference of the distribution functions.

    Args:
        real: (N,) numbers; NaN is left out.
        synthetic: (M,), likewise.

    Returns:
        The score, NaN where one has no number.
    """
    first, second = (np.sort(np.round(each[~np.isnan(each)], _DECIMALS)) for each in (real, synthetic))
    if not len(first) or not len(second):
        return float("nan")
    both = np.concatenate([first, second])
    shares = (np.searchsorted(each, both, side="right") / len(each) for each in (first, second))
    return 1.0 - float(np.abs(np.subtract(*shares)).max())


def tv_complement(real: np.ndarray, synthetic: np.ndarray) -> float:
    """1 - the total variation distance of the shares of levels.

    Args:
        real: (N,) levels, at least one.
        synthetic: (M,), likewise.

    Returns:
        The score.
    """
    return 1.0 - _total_variation(real, synthetic)


def missing_similarity(real: np.ndarray, synthetic: np.ndarray) -> float:
    """1 - the difference of the shares of missing values.

    Args:
        real: (N,) whether each is missing.
        synthetic: (M,), likewise.

    Returns:
        The score.
    """
    return 1.0 - abs(float(real.mean()) - float(synthetic.mean()))


def correlation_similarity(real: tuple[np.ndarray, np.ndarray], synthetic: tuple[np.ndarray, np.ndarray]) -> float:
    """1 - half the difference of Pearson's correlations of two columns of numbers, over the rows that have both.

    Args:
        real: two columns (N,).
        synthetic: two columns (M,).

    Returns:
        The score, NaN where a column is constant.
    """
    first, second = _pearson(*real), _pearson(*synthetic)
    return 1.0 - abs(first - second) / 2


def contingency_similarity(real: tuple[np.ndarray, np.ndarray], synthetic: tuple[np.ndarray, np.ndarray]) -> float:
    """1 - the total variation distance of the joint shares of two columns.

    A column of floats is cut into ten bins of one width between the smallest and the largest real number; missing
    numbers are a bin of their own.

    Args:
        real: two columns (N,).
        synthetic: two columns (M,).

    Returns:
        The score.
    """
    joint_real = np.zeros(len(real[0]), dtype=np.int64)
    joint_synthetic = np.zeros(len(synthetic[0]), dtype=np.int64)
    for of_real, of_synthetic in zip(real, synthetic, strict=True):
        if of_real.dtype.kind == "f":
            edges = np.histogram_bin_edges(of_real[~np.isnan(of_real)], bins=BINS)
            edges[0], edges[-1] = -np.inf, np.inf
            of_real, of_synthetic = np.digitize(of_real, edges), np.digitize(of_synthetic, edges)
        base = int(max(of_real.max(), of_synthetic.max())) + 2
        joint_real = joint_real * base + of_real + 1
        joint_synthetic = joint_synthetic * base + of_synthetic + 1
    return 1.0 - _total_variation(joint_real, joint_synthetic)


def nearest_distances(points: np.ndarray, others: np.ndarray, leave_out_self: bool = False) -> np.ndarray:
    """The Euclidean distance of each point to the nearest of others ("distance to the closest record").

    Args:
        points: (N, d).
        others: (M, d); the same points where leave_out_self.
        leave_out_self: a point is not its own nearest.

    Returns:
        (N,), float64.
    """
    squares = (others * others).sum(axis=1)
    found = []
    at = 0
    for part in np.array_split(points, max(1, len(points) * len(others) // 20_000_000)):
        distances = (part * part).sum(axis=1)[:, None] + squares - 2.0 * part @ others.T
        if leave_out_self:
            distances[np.arange(len(part)), at + np.arange(len(part))] = np.inf
        nearest = distances.argmin(axis=1)
        # Anew by subtraction: the product above rounds, and a copy has the distance 0.
        found.append(np.linalg.norm(part - others[nearest], axis=1))
        at += len(part)
    return np.concatenate(found)


def _total_variation(real: np.ndarray, synthetic: np.ndarray) -> float:
    levels, codes = np.unique(np.concatenate([real, synthetic]), return_inverse=True)
    shares = [np.bincount(each, minlength=len(levels)) / len(each) for each in (codes[: len(real)], codes[len(real) :])]
    return float(np.abs(shares[0] - shares[1]).sum()) / 2


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    both = ~np.isnan(x) & ~np.isnan(y)
    x, y = x[both], y[both]
    if len(x) < 2:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0 else float("nan")
