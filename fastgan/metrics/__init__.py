"""Measures of generated samples, each a pure function of points (N, data): Tensors or numpy arrays.

`import fastgan` and most of these need torch and numpy alone; the judges and mixtures need scikit-learn.
"""

from fastgan.metrics.baselines import draw_mixture, fit_mixture, uniform_noise
from fastgan.metrics.classifiers import judges, learned_from, two_sample
from fastgan.metrics.divergences import frechet_distance, kernel_distance, sliced_wasserstein_distance
from fastgan.metrics.likelihood import ParzenLogLikelihood, mixture_log_likelihood, parzen_log_likelihood
from fastgan.metrics.manifold import PRDC, PrecisionRecall, prdc, precision_recall
from fastgan.metrics.modes import ModeCoverage, mode_coverage, mode_reverse_kl, mode_std_ratio

__all__ = [
    "PRDC",
    "ModeCoverage",
    "ParzenLogLikelihood",
    "PrecisionRecall",
    "draw_mixture",
    "fit_mixture",
    "frechet_distance",
    "judges",
    "kernel_distance",
    "learned_from",
    "mixture_log_likelihood",
    "mode_coverage",
    "mode_reverse_kl",
    "mode_std_ratio",
    "parzen_log_likelihood",
    "prdc",
    "precision_recall",
    "sliced_wasserstein_distance",
    "two_sample",
    "uniform_noise",
]
