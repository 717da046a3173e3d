"""The data sets that need no file: scikit-learn's digits and two Gaussian mixtures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.data.dataset import DataError, Dataset

# Samples a mixture: enough that an epoch at batch 256 is about a hundred steps.
POINTS = 25_000


def digits() -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels in 17 grey levels, with labels.

    The test part of Alpaydin & Kaynak's "Optical Recognition of Handwritten Digits" (UCI, 1998), as scikit-learn ships
    it: real data that needs no download.

    Returns:
        A Dataset of 1,797 samples (64 values each, in [-1, 1]) in 10 classes.

    Raises:
        DataError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f'digits needs scikit-learn ({error}): pip install "fastgan[train]"') from error
    bunch = load_digits()
    return Dataset(
        name="digits",
        samples=torch.from_numpy(bunch.data).float() / 8 - 1,
        labels=torch.from_numpy(bunch.target).long(),
        num_classes=10,
        image_shape=(8, 8),
        scale=_scalar(8.0),
        offset=_scalar(8.0),
    )


def ring8(seed: int = 0, points: int = POINTS) -> Dataset:
    """Eight Gaussians on the circle of radius 1, standard deviation 0.01; the label is the mode.

    The 2D-ring of VEEGAN (Srivastava et al. 2017, arXiv:1705.07761, section 4.1).

    Args:
        seed: of the points, at least 0.
        points: their number, at least 1.

    Returns:
        A Dataset of so many points (two values each), with its modes.
    """
    angles = torch.arange(8, dtype=torch.float32, device="cpu") * (2 * math.pi / 8)
    return _mixture(
        "ring8", torch.stack([angles.cos(), angles.sin()], dim=1), std=0.01, scale=1.0, seed=seed, points=points
    )


def grid25(seed: int = 0, points: int = POINTS) -> Dataset:
    """Twenty-five Gaussians on the grid of spacing 2 in [-4, 4]^2, standard deviation 0.05; label = mode.

    The 2D-grid of VEEGAN (Srivastava et al. 2017, arXiv:1705.07761, section 4.1), divided by 4 for the networks.

    Args:
        seed: of the points, at least 0.
        points: their number, at least 1.

    Returns:
        A Dataset of so many points (two values each), with its modes.
    """
    axis = torch.arange(-4.0, 5.0, 2.0, dtype=torch.float32, device="cpu")
    return _mixture("grid25", torch.cartesian_prod(axis, axis), std=0.05, scale=4.0, seed=seed, points=points)


def _mixture(name: str, centres: Tensor, std: float, scale: float, seed: int, points: int) -> Dataset:
    generator = torch.Generator("cpu").manual_seed(seed)
    labels = torch.arange(points, device="cpu") % len(centres)
    drawn = centres[labels] + std * torch.randn(points, 2, generator=generator, dtype=torch.float32, device="cpu")
    return Dataset(
        name=name,
        samples=drawn / scale,
        labels=labels,
        num_classes=len(centres),
        scale=_scalar(scale),
        modes=centres / scale,
        mode_std=std / scale,
    )


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")
