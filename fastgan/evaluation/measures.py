"""All measures of a set of samples, by the names that reports use, and the baselines that they stand beside."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan import metrics
from fastgan.data.dataset import Dataset

# Of so many samples the judges, whose SVM takes the square of their number, are asked.
MOST_JUDGED = 1000
# Images that are looked at for their grey levels, and levels of an image of 8 bits.
MOST_IMAGES, MOST_LEVELS = 5000, 256
# A cap of the points of which all pairs are looked at.
MOST_PAIRS = 5000


def of_mixture(samples: Tensor, modes: Tensor, std: float, held_out: Tensor) -> dict[str, float]:
    """The measures of samples (N, data) of a Gaussian mixture that is known.

    Args:
        samples: to be judged.
        modes: (M, data), the centres.
        std: of each mode.
        held_out: (K, data) of the mixture itself.

    Returns:
        The measures by name.
    """
    coverage = metrics.mode_coverage(samples, modes, std)
    found = metrics.prdc(held_out[:MOST_PAIRS], samples[:MOST_PAIRS])
    likelihood = math.nan
    if bool(samples.isfinite().all()):
        likelihood = metrics.mixture_log_likelihood(samples, held_out, len(modes))
    return {
        "modes": float(coverage.modes),
        "high quality": coverage.high_quality,
        "reverse KL": metrics.mode_reverse_kl(samples, modes),
        "std ratio": metrics.mode_std_ratio(samples, modes, std),
        "log-likelihood": likelihood,
        **found._asdict(),
        "sliced Wasserstein": metrics.sliced_wasserstein_distance(held_out, samples),
    }


def of_data(
    samples: Tensor, labels: Tensor | None, held_out: Tensor, held_out_labels: Tensor | None, seed: int = 0
) -> dict[str, float]:
    """The measures of samples (N, data) of any data, of the raw values.

    Args:
        samples: to be judged.
        labels: (N,) of them, where they have any.
        held_out: (K, data) real ones that the model has not seen; the first half of them chooses the Parzen width.
        held_out_labels: (K,), likewise.
        seed: of the order in which samples are taken, where there are more than a measure looks at.

    Returns:
        The measures by name.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(samples), generator=generator)
    samples, labels = samples[order], None if labels is None else labels[order]
    size = min(len(samples), len(held_out), MOST_PAIRS)
    real, fake = held_out[:size], samples[:size]
    half = len(held_out) // 2
    parzen = metrics.parzen_log_likelihood(fake, held_out[:half][:MOST_PAIRS], held_out[half:][:MOST_PAIRS])
    judged = min(size, MOST_JUDGED)
    apart = metrics.two_sample(real[:judged], fake[:judged])
    found = {
        **metrics.prdc(real, fake)._asdict(),
        "Fréchet distance": metrics.frechet_distance(held_out, samples),
        "kernel distance": metrics.kernel_distance(real, fake),
        "sliced Wasserstein": metrics.sliced_wasserstein_distance(held_out, samples),
        "Parzen log-likelihood": parzen.mean,
        **{f"told apart, {name}": value for name, value in apart.items()},
    }
    if labels is not None and held_out_labels is not None and len(labels[:MOST_PAIRS].unique()) > 1:
        use = metrics.learned_from(samples[:MOST_PAIRS], labels[:MOST_PAIRS], held_out, held_out_labels)
        found.update({f"learned from, {name}": value for name, value in use.items()})
    return found


def on_levels(samples: Tensor, dataset: Dataset) -> Tensor:
    """Samples of images, each value moved to the nearest one that the data has, where these are few: real images lie
    on their grey levels, and a forest would tell generated ones by lying between."""
    if dataset.image_shape is None:
        return samples
    levels = dataset.samples[:MOST_IMAGES].unique()
    if len(levels) > MOST_LEVELS or len(levels) < 2:
        return samples
    nearest = levels[torch.bucketize(samples, (levels[1:] + levels[:-1]) / 2)]
    return torch.where(samples.isnan(), samples, nearest)


def mixture_of(
    samples: Tensor, labels: Tensor | None, count: int, components: int, least_variance: float, seed: int = 0
) -> Tensor:
    """Draw (count, data) samples of Gaussian mixtures fitted to samples by EM, one for each label, in turns.

    Args:
        samples: (N, data).
        labels: (N,), or None for a single mixture.
        count: to draw.
        components: of each mixture.
        least_variance: added to each variance.
        seed: of the clusters that EM begins with, and of what is drawn.
    """
    if labels is None:
        mixture = metrics.fit_mixture(samples, components, least_variance=least_variance, seed=seed)
        return metrics.draw_mixture(mixture, count)
    classes = labels.unique().tolist()
    turns = torch.arange(count) % len(classes)
    drawn = torch.empty(count, samples.shape[1])
    for i, label in enumerate(classes):
        own = samples[labels == label][:MOST_PAIRS]
        mixture = metrics.fit_mixture(own, min(components, len(own)), least_variance=least_variance, seed=seed)
        of_class = turns == i
        drawn[of_class] = metrics.draw_mixture(mixture, int(of_class.sum()))
    return drawn


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean and its standard error, which is NaN of a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, spread / math.sqrt(len(values))
