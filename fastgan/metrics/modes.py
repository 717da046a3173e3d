"""Measures of samples of a Gaussian mixture whose modes are known."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan import checks
from fastgan.distances import ENTRIES
from fastgan.metrics.points import Points, points


class ModeCoverage(NamedTuple):
    """What `mode_coverage` returns.

    Attributes:
        modes: how many modes have at least one high-quality sample.
        high_quality: fraction of the samples within three standard deviations of a mode.
        counts: (M,) high-quality samples a mode.
    """

    modes: int
    high_quality: float
    counts: Tensor


def mode_coverage(samples: Points, modes: Points, std: float) -> ModeCoverage:
    """How many modes of a Gaussian mixture the samples reach, and how many samples lie near one.

    A sample is of high quality within 3 standard deviations of its nearest mode (VEEGAN: Srivastava et al.
    2017, arXiv:1705.07761, section 4.1).

    Args:
        samples: (N, data).
        modes: (M, data), the centres.
        std: standard deviation of each mode, positive, in the samples' units.

    Returns:
        The ModeCoverage.

    Raises:
        ValueError: a shape does not fit, or std is not positive.
    """
    samples, modes = points("samples", samples), points("modes", modes, samples)
    checks.number("std", std, 0.0, low_open=True)
    distances, nearest = _nearest(samples, modes)
    near = distances <= 3 * std
    counts = torch.bincount(nearest[near], minlength=len(modes))
    return ModeCoverage(int((counts > 0).sum()), float(near.double().mean()), counts)


def mode_reverse_kl(samples: Points, modes: Points) -> float:
    """KL(q || p) of the histogram q of the samples' nearest modes from the uniform p, in nats.

    It is 0 where every mode has its share and log(M) where all samples are of one of M modes; missing modes leave it
    finite (Metz et al. 2017, arXiv:1611.02163, section 3.3.1; PacGAN: Lin et al. 2018, arXiv:1712.04086, section 4.1).

    Args:
        samples: (N, data).
        modes: (M, data), the centres of modes that are equally likely.

    Returns:
        A number in [0, log(M)].

    Raises:
        ValueError: a shape does not fit.
    """
    samples, modes = points("samples", samples), points("modes", modes, samples)
    counts = torch.bincount(_nearest(samples, modes)[1], minlength=len(modes)).double()
    shares = counts / counts.sum()
    return max(0.0, float(torch.special.xlogy(shares, shares * len(modes)).sum()))


def mode_std_ratio(samples: Points, modes: Points, std: float) -> float:
    """The standard deviation of samples within their modes, over the true one: under 1 where modes are too narrow.

    Of each mode, the high-quality samples (see `mode_coverage`) have a variance about their own mean, averaged over the
    columns; its root is divided by that of a Gaussian that is cut off at 3 standard deviations likewise, so that
    samples of the data itself have a ratio of 1. Returned is the mean over the modes with 10 such samples or more.
    VEEGAN (arXiv:1705.07761) and PacGAN (arXiv:1712.04086) discuss this spread without a figure of it.

    Args:
        samples: (N, data).
        modes: (M, data), the centres.
        std: standard deviation of each mode, positive, in the samples' units.

    Returns:
        The ratio; NaN where no mode has 10 such samples.

    Raises:
        ValueError: a shape does not fit, or std is not positive.
    """
    samples, modes = points("samples", samples), points("modes", modes, samples)
    checks.number("std", std, 0.0, low_open=True)
    distances, nearest = _nearest(samples, modes)
    near = distances <= 3 * std
    width = samples.shape[1]
    # |x|^2 of a Gaussian is chi-squared of `width` degrees; P(a, x) is the regularised lower incomplete gamma function:
    # E[|x|^2; |x| <= 3] = width P(width / 2 + 1, 9 / 2), P(|x| <= 3) = P(width / 2, 9 / 2).
    above, below = (
        float(torch.special.gammainc(torch.tensor(width / 2 + more, dtype=torch.float64), torch.tensor(4.5).double()))
        for more in (1, 0)
    )
    ratios = []
    for mode in range(len(modes)):
        own = samples[near & (nearest == mode)].double()
        if len(own) >= _FEWEST:
            ratios.append(math.sqrt(float(own.var(dim=0).mean()) / (above / below)) / std)
    return sum(ratios) / len(ratios) if ratios else math.nan


# Samples of a mode whose spread is looked at.
_FEWEST = 10


def _nearest(samples: Tensor, modes: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) the distance of each sample to its nearest mode, float64, and (N,) which one that is."""
    found, nearest = [], []
    modes = modes.double()
    for part in samples.double().split(max(1, ENTRIES // len(modes))):
        # Not through a matrix product, whose cancellation is of the size of a narrow mode.
        distance, mode = torch.cdist(part, modes, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        found.append(distance)
        nearest.append(mode)
    return torch.cat(found), torch.cat(nearest)
