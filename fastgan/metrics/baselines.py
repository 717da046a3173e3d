"""What a generator is held against: a Gaussian mixture fitted by EM, and noise. They need scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from fastgan import checks
from fastgan.metrics.points import Points, finite


def fit_mixture(samples: Points, components: int, *, least_variance: float = 1e-6, seed: int = 0) -> Any:
    """A Gaussian mixture fitted by EM from the clusters of k-means (Dempster, Laird & Rubin 1977).

    Args:
        samples: (N, data), N at least components.
        components: Gaussians, each with a covariance matrix of its own.
        least_variance: added to each variance, in the squared units of the samples.
        seed: of the clusters.

    Returns:
        The fitted sklearn.mixture.GaussianMixture.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        ValueError: a shape does not fit, or a value is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    checks.integer("components", components, 1)
    values = finite("samples", samples, least=max(2, components)).cpu().numpy()
    mixture = GaussianMixture(components, reg_covar=least_variance, max_iter=100, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of samples that are fewer points than components
        return mixture.fit(values)


def draw_mixture(mixture: Any, count: int) -> Tensor:
    """Samples of a fitted mixture in random order; of one that was fitted with a seed, the same each time.

    Args:
        mixture: of `fit_mixture`.
        count: number of samples, at least 1.

    Returns:
        (count, data), float32.
    """
    checks.integer("count", count, 1)
    drawn, _ = mixture.sample(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return torch.from_numpy(drawn).float()[order]


def uniform_noise(samples: Points, count: int, seed: int = 0) -> Tensor:
    """Noise, uniform between the least and the largest value of each column of the samples.

    Args:
        samples: (N, data).
        count: number of points, at least 1.
        seed: of the noise.

    Returns:
        (count, data), float32.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.
    """
    checks.integer("count", count, 1)
    values = finite("samples", samples)
    low, high = values.amin(dim=0), values.amax(dim=0)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.rand(count, values.shape[1], generator=generator, dtype=torch.float64, device="cpu").to(values.device)
    return (low + (high - low) * noise).float()
