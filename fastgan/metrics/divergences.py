"""How far two sets of points are from each other: Fréchet, kernel and sliced Wasserstein distances.

All are taken of the features that are given, raw values where nothing else is said. They compare samples of one data
set in one scaling only, and never with figures that were taken of the features of a network, such as FID and KID.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan import checks
from fastgan.distances import ENTRIES
from fastgan.metrics.points import Points, finite


def frechet_distance(real: Points, fake: Points) -> float:
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
    real = finite("real", real, least=2)
    fake = finite("fake", fake, real, least=2)
    # From a place in their midst, so that means of data far from the origin keep their digits.
    shift = real[0].clone()
    real, fake = real - shift, fake - shift
    means = real.mean(0), fake.mean(0)
    # A = R^T R with R of a QR decomposition, so tr((A B)^1/2) is the nuclear norm of R S^T, and the trace term the
    # smallest |R - O S|^2 over orthogonal O: nothing is squared before it is subtracted.
    r, s = (_covariance_root(each - mean) for each, mean in zip((real, fake), means, strict=True))
    u, _, v = torch.linalg.svd(s @ r.T)
    return float((means[0] - means[1]).square().sum() + (r - v.T @ u.T @ s).square().sum())


def _covariance_root(centred: Tensor) -> Tensor:
    """R (data, data) with R^T R the covariance of centred points (N, data)."""
    centred = centred - centred.mean(0)  # the first mean was rounded
    root = torch.linalg.qr(centred / (len(centred) - 1) ** 0.5, mode="r").R
    return torch.nn.functional.pad(root, (0, 0, 0, root.shape[1] - root.shape[0]))


def kernel_distance(real: Points, fake: Points, degree: int = 3) -> float:
    """The squared maximum mean discrepancy of two sets of points, with a polynomial kernel, unbiased.

    The kernel is (x y / data + 1)^degree, the estimator that of Gretton et al. (2012), lemma 6, over all pairs: the
    KID (Binkowski et al. 2018, arXiv:1801.01401, section 4) without the Inception network and without its subsets.

    Args:
        real: (N, data), N at least 2.
        fake: (M, data), M at least 2.
        degree: of the polynomial, at least 1.

    Returns:
        A number around 0 where both are of one distribution, which may be below it.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.
    """
    checks.integer("degree", degree, 1)
    real = finite("real", real, least=2)
    fake = finite("fake", fake, real, least=2)
    n, m = len(real), len(fake)
    within = (
        (_kernel_sum(each, each, degree) - float(_kernel(each.square().sum(dim=1), each.shape[1], degree).sum()))
        / (len(each) * (len(each) - 1))
        for each in (real, fake)
    )
    return sum(within) - 2 * _kernel_sum(real, fake, degree) / (n * m)


def _kernel(products: Tensor, width: int, degree: int) -> Tensor:
    return (products / width + 1) ** degree


def _kernel_sum(x: Tensor, y: Tensor, degree: int) -> float:
    rows = max(1, ENTRIES // len(y))
    return sum(float(_kernel(part @ y.T, x.shape[1], degree).sum()) for part in x.split(rows))


def sliced_wasserstein_distance(real: Points, fake: Points, projections: int = 200, p: int = 2, seed: int = 0) -> float:
    """The Wasserstein distance of two sets of points, over random directions.

    (E[W_p(<u, real>, <u, fake>)^p])^(1/p) over unit vectors u (Rabin et al. 2011; Bonneel et al. 2015, J. Math. Imaging
    Vis. 51, eq. 8); in one dimension W_p is the distance of the quantile functions, whatever N and M are.

    Args:
        real: (N, data).
        fake: (M, data).
        projections: number of directions, at least 1.
        p: 1 or 2.
        seed: of the directions.

    Returns:
        A number of at least 0, in the points' units.

    Raises:
        ValueError: a shape or an argument does not fit, or a value is not finite.
    """
    checks.integer("projections", projections, 1)
    checks.integer("p", p, 1)
    checks.number("p", p, 1, 2)
    checks.integer("seed", seed, 0)
    real = finite("real", real)
    fake = finite("fake", fake, real)
    generator = torch.Generator("cpu").manual_seed(seed)
    directions = torch.randn(real.shape[1], projections, generator=generator, dtype=torch.float64, device="cpu")
    directions = (directions / directions.norm(dim=0)).to(real.device)
    # Quantiles change where either distribution function does: at multiples of 1/N and of 1/M, exact as integers.
    n, m = len(real), len(fake)
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(real.device)
    weights = levels.diff(prepend=levels.new_zeros(1)).double() / (n * m)
    rows = (levels - 1) // m, (levels - 1) // n
    total = 0.0
    for some in directions.split(max(1, ENTRIES // (n + m)), dim=1):
        ordered = (each @ some for each in (real, fake))
        x, y = (each.sort(dim=0).values[at] for each, at in zip(ordered, rows, strict=True))
        total += float(((x - y).abs() ** p * weights[:, None]).sum())
    return float((total / projections) ** (1 / p))
