"""Log-likelihoods of held-out data under a density that is fitted to samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan import checks
from fastgan.distances import ENTRIES
from fastgan.metrics.points import Points, finite


class ParzenLogLikelihood(NamedTuple):
    """What `parzen_log_likelihood` returns.

    Attributes:
        mean: of the test data's log-likelihoods, in nats.
        standard_error: of that mean.
        width: the standard deviation of the windows, chosen on the validation data.
    """

    mean: float
    standard_error: float
    width: float


def parzen_log_likelihood(
    samples: Points, validation: Points, test: Points, widths: Sequence[float] | None = None
) -> ParzenLogLikelihood:
    """The log-likelihood of test data under Gaussian windows around samples.

    The measure of Goodfellow et al. 2014 (arXiv:1406.2661), section 5 and table 1; the width is the one under which the
    validation data is the likeliest. It prefers samples near the means of clusters, and says little in many dimensions
    (Theis et al. 2016, arXiv:1511.01844).

    Args:
        samples: (N, data), generated.
        validation: (M, data), real, to choose the width with.
        test: (T, data), other real ones; T at least 2.
        widths: to choose from, positive; by default ten from 0.01 to 1 times the samples' standard deviation.

    Returns:
        The ParzenLogLikelihood.

    Raises:
        ValueError: a shape or a width does not fit, or a value is not finite.
    """
    samples = finite("samples", samples)
    validation, test = finite("validation", validation, samples), finite("test", test, samples, least=2)
    if widths is None:
        spread = float((samples - samples.mean(dim=0)).square().mean().sqrt()) or 1.0
        widths = torch.logspace(-2, 0, 10, dtype=torch.float64).mul(spread).tolist()
    if not widths:
        raise ValueError("widths must not be empty")
    for i, width in enumerate(widths):
        checks.number(f"widths[{i}]", width, 0.0, low_open=True)
    means = _parzen(samples, validation, widths).mean(dim=1)
    best = float(widths[int(means.argmax())])
    found = _parzen(samples, test, [best])[0]
    return ParzenLogLikelihood(float(found.mean()), float(found.std()) / math.sqrt(len(found)), best)


def _parzen(samples: Tensor, at: Tensor, widths: Sequence[float]) -> Tensor:
    """(widths, M) log densities at (M, data) points: logsumexp of -|x - s|^2 / 2 w^2, less log(N (2 pi)^(d/2) w^d)."""
    found = []
    shift = samples.mean(dim=0)
    samples, at = samples - shift, at - shift
    for part in at.split(max(1, ENTRIES // len(samples))):
        squares = torch.cdist(part, samples, compute_mode="use_mm_for_euclid_dist").square_()
        found.append(torch.stack([(squares / (-2 * w * w)).logsumexp(dim=1) for w in widths]))
    logs = torch.tensor([math.log(w) for w in widths], dtype=samples.dtype, device=samples.device)
    norms = math.log(len(samples)) + samples.shape[1] * (logs + math.log(2 * math.pi) / 2)
    return torch.cat(found, dim=1) - norms[:, None]


def mixture_log_likelihood(samples: Points, held_out: Points, components: int, seed: int = 0) -> float:
    """The mean log-likelihood of held-out data under a Gaussian mixture fitted to samples by EM, in nats.

    Of modes that the samples miss or whose width they do not have, the data is unlikely. scikit-learn fits the mixture,
    with a covariance matrix of each component.

    Args:
        samples: (N, data), generated; N at least components.
        held_out: (M, data), real.
        components: of the mixture, at least 1.
        seed: of where EM begins.

    Returns:
        The mean over the held-out data.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        ValueError: a shape does not fit, or a value is not finite.
    """
    from fastgan.metrics.baselines import fit_mixture

    checks.integer("components", components, 1)
    samples = finite("samples", samples, least=components)
    held_out = finite("held_out", held_out, samples)
    return float(fit_mixture(samples, components, seed=seed).score(held_out.cpu().numpy()))
