"""Classifiers as judges: can they tell generated data from real data, and can they learn from it? By scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastgan.metrics.points import Points, finite, labels

CLASSIFIERS = ("logistic regression", "nearest neighbours", "SVM", "random forest")


def judges() -> dict[str, Any]:
    """Four ways to draw a border between classes, by their names; the first has a straight line alone.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    found = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        KNeighborsClassifier(5),
        make_pipeline(StandardScaler(), SVC(C=10.0)),
        RandomForestClassifier(100, random_state=0),
    )
    return dict(zip(CLASSIFIERS, found, strict=True))


def two_sample(real: Points, fake: Points) -> dict[str, float]:
    """How often each judge tells a new sample's origin, after it has learned from others.

    The classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv:1610.06545), over five folds. 1/2 is what guessing
    gives, of sets of one size: the judge sees no difference. 1 means that it is always right.

    Args:
        real: (N, data), N at least 5.
        fake: (M, data), M at least 5; N = M for comparable values.

    Returns:
        The accuracy of each judge.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        ValueError: a shape does not fit, or a value is not finite.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    real = finite("real", real, least=5)
    fake = finite("fake", fake, real, least=5)
    x = torch.cat([real, fake]).cpu().numpy()
    y = np.repeat([1, 0], [len(real), len(fake)])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return {name: float(cross_val_score(judge, x, y, cv=folds).mean()) for name, judge in judges().items()}


def learned_from(fake: Points, fake_labels: Points, real: Points, real_labels: Points) -> dict[str, float]:
    """How many real samples each judge classifies right, after it has learned from fakes.

    "Train on synthetic, test on real" (Esteban, Hyland & Ratsch 2017, arXiv:1706.02633, section 4.2).

    Args:
        fake: (N, data).
        fake_labels: (N,) integers.
        real: (M, data).
        real_labels: (M,) integers.

    Returns:
        The accuracy of each judge.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        TypeError: labels are no integers.
        ValueError: a shape does not fit, or a value is not finite.
    """
    fake = finite("fake", fake)
    real = finite("real", real, fake)
    x, y = fake.cpu().numpy(), labels("fake_labels", fake_labels, len(fake))
    new_x, new_y = real.cpu().numpy(), labels("real_labels", real_labels, len(real))
    return {name: float(judge.fit(x, y).score(new_x, new_y)) for name, judge in judges().items()}
