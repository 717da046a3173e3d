"""Measures of the balls around points that reach to their k-th neighbour: precision, recall, density, coverage."""

from __future__ import annotations

from typing import NamedTuple

from fastgan import checks
from fastgan.distances import are_inside, count_inside, squared_radii
from fastgan.metrics.points import Points, points


class PrecisionRecall(NamedTuple):
    """What `precision_recall` returns.

    Attributes:
        precision: share of the fakes that look real, in [0, 1].
        recall: share of the real data that fakes reach, in [0, 1].
    """

    precision: float
    recall: float


class PRDC(NamedTuple):
    """What `prdc` returns.

    Attributes:
        precision: share of the fakes that lie in the ball of a real point, in [0, 1].
        recall: share of the real points that lie in the ball of a fake, in [0, 1].
        density: how many balls of real points a fake lies in, over k: about 1 where both are of one distribution.
        coverage: share of the real points with a fake in their ball, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Points, fake: Points, k: int = 3) -> PrecisionRecall:
    """Which share of the fakes looks real, and which share of the real data is reached by fakes.

    Each set is taken for the union of the balls around its points that reach to their k-th neighbour;
    precision is the share of fakes inside the balls of the real points, recall the reverse (Kynkäänniemi et
    al. 2019, arXiv:1904.06991, eq. 1 and 2), here in the raw features.

    Args:
        real: (N, data), N greater than k.
        fake: (M, data), M greater than k; for comparable values N = M.
        k: the neighbour that sets a ball's radius, at least 1.

    Returns:
        The PrecisionRecall.

    Raises:
        ValueError: a shape does not fit, or k is too large.
    """
    checks.integer("k", k, 1)
    real = points("real", real, least=k + 1).double()
    fake = points("fake", fake, real, least=k + 1).double()
    precision, recall = (
        are_inside(each, centres, squared_radii(centres, k)).double().mean().item()
        for each, centres in ((fake, real), (real, fake))
    )
    return PrecisionRecall(precision, recall)


def prdc(real: Points, fake: Points, k: int = 5) -> PRDC:
    """Precision, recall, density and coverage of fakes, as their paper and the package `prdc` have them.

    Density and coverage do not suffer from outliers among the real points as precision and recall do (Naeem et al.
    2020, arXiv:2002.09797, eq. 1 to 4). Here the surface does not belong to a ball, as in the package, and unlike in
    `precision_recall`. Memory beside the points in float64 is below 1 GB, whatever their number.

    Args:
        real: (N, data), N greater than k.
        fake: (M, data), M greater than k; for comparable values N = M.
        k: the neighbour that sets a ball's radius, at least 1.

    Returns:
        The PRDC.

    Raises:
        ValueError: a shape does not fit, or k is too large.
    """
    checks.integer("k", k, 1)
    real = points("real", real, least=k + 1).double()
    fake = points("fake", fake, real, least=k + 1).double()
    around_real, reached = count_inside(fake, real, squared_radii(real, k))
    around_fake, _ = count_inside(real, fake, squared_radii(fake, k))
    return PRDC(
        precision=float((around_real > 0).double().mean()),
        recall=float((around_fake > 0).double().mean()),
        density=float(around_real.double().mean()) / k,
        coverage=float(reached.double().mean()),
    )
