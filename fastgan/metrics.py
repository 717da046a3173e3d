"""Measures of generated samples: mode coverage, the Fréchet distance, precision and recall."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan import checks
from fastgan.distances import ENTRIES, are_inside, squared_radii

__all__ = ["ModeCoverage", "PrecisionRecall", "frechet_distance", "mode_coverage", "precision_recall"]


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


class PrecisionRecall(NamedTuple):
    """What `precision_recall` returns.

    Attributes:
        precision: share of the fakes that look real, in [0, 1].
        recall: share of the real data that fakes reach, in [0, 1].
    """

    precision: float
    recall: float


def mode_coverage(samples: Tensor, modes: Tensor, std: float) -> ModeCoverage:
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
    _points("samples", samples)
    _points("modes", modes, samples)
    checks.number("std", std, 0.0, low_open=True)
    good, nearest = [], []
    modes = modes.detach().double()
    for part in samples.detach().double().split(max(1, ENTRIES // len(modes))):
        # Not through a matrix product, whose cancellation is of the size of a narrow mode.
        distance, mode = torch.cdist(part, modes, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        good.append(distance <= 3 * std)
        nearest.append(mode)
    near = torch.cat(good)
    counts = torch.bincount(torch.cat(nearest)[near], minlength=len(modes))
    return ModeCoverage(int((counts > 0).sum()), float(near.double().mean()), counts)


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """The squared Fréchet distance of the Gaussians fitted to two sets of points, here of raw features.

    |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) with means m, n and covariances A, B (Dowson & Landau 1982). It is
    the formula of the FID (Heusel et al. 2017, arXiv:1706.08500, eq. 6) without the Inception network, so it
    compares values of one data set in one scaling only, and never with a published FID.

    Args:
        real: (N, data), N at least 2.
        fake: (M, data), M at least 2.

    Returns:
        A number of at least 0; 0 where means and covariances agree.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.
    """
    _points("real", real, least=2)
    _points("fake", fake, real, least=2)
    for name, points in (("real", real), ("fake", fake)):
        if not bool(points.isfinite().all()):
            raise ValueError(f"{name} must be finite")
    # From a place in their midst, so that means of data far from the origin keep their digits.
    shift = real[0].detach().double()
    real, fake = real.detach().double() - shift, fake.detach().double() - shift
    means = real.mean(0), fake.mean(0)
    # A = R^T R with R of a QR decomposition, so tr((A B)^1/2) is the nuclear norm of R S^T, and the trace term the
    # smallest |R - O S|^2 over orthogonal O: nothing is squared before it is subtracted.
    r, s = (_covariance_root(points - mean) for points, mean in zip((real, fake), means, strict=True))
    u, _, v = torch.linalg.svd(s @ r.T)
    return float((means[0] - means[1]).square().sum() + (r - v.T @ u.T @ s).square().sum())


def _covariance_root(centred: Tensor) -> Tensor:
    """R (data, data) with R^T R the covariance of centred points (N, data)."""
    centred = centred - centred.mean(0)  # the first mean was rounded
    root = torch.linalg.qr(centred / (len(centred) - 1) ** 0.5, mode="r").R
    return torch.nn.functional.pad(root, (0, 0, 0, root.shape[1] - root.shape[0]))


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
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
    _points("real", real, least=k + 1)
    _points("fake", fake, real, least=k + 1)
    real, fake = real.detach().double(), fake.detach().double()
    precision, recall = (
        are_inside(points, centres, squared_radii(centres, k)).double().mean().item()
        for points, centres in ((fake, real), (real, fake))
    )
    return PrecisionRecall(precision, recall)


def _points(name: str, value: Tensor, like: Tensor | None = None, least: int = 1) -> None:
    checks.floating(name, value)
    if value.dim() != 2 or len(value) < least or value.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, data) with N at least {least}, not {tuple(value.shape)}")
    if like is not None and value.shape[1] != like.shape[1]:
        raise ValueError(f"{name} must have {like.shape[1]} columns, not {value.shape[1]}")
