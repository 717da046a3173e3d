"""The metrics, on points whose answers are known."""

from __future__ import annotations

import pytest
import torch

from fastgan.data import load
from fastgan.metrics import frechet_distance, mode_coverage, precision_recall


def test_mode_coverage() -> None:
    data = load("grid25")
    whole = mode_coverage(data.samples, data.modes, data.mode_std)
    assert whole.modes == 25
    assert whole.high_quality == pytest.approx(1 - 0.0111, abs=0.003)  # exp(-9/2) of a plane Gaussian is outside
    assert int(whole.counts.sum()) == round(whole.high_quality * len(data))
    one = mode_coverage(data.modes[:1].repeat(10, 1), data.modes, data.mode_std)
    assert (one.modes, one.high_quality) == (1, 1.0)
    far = mode_coverage(data.modes + 4 * data.mode_std, data.modes, data.mode_std)
    assert (far.modes, far.high_quality) == (0, 0.0)


def test_frechet_distance() -> None:
    torch.manual_seed(0)
    points = torch.randn(500, 4)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points, points + 2) == pytest.approx(16, rel=1e-5)
    # Scaling by c multiplies the roots of the covariance: tr(A + c^2 A - 2 c A) = (c - 1)^2 tr A.
    expected = 4 * torch.cov(points.double().T).trace().item() + (2 * points.double().mean(0)).square().sum().item()
    assert frechet_distance(points, 3 * points) == pytest.approx(expected, rel=1e-5)
    flat = torch.cat([points, torch.zeros(500, 1)], dim=1)
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points[:, :1], points[:, :1] + 1) == pytest.approx(1, rel=1e-5)


def test_precision_recall() -> None:
    torch.manual_seed(0)
    real = torch.cat([torch.randn(2000, 2), torch.randn(2000, 2) + 100])
    half = real[:2000].clone()
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, half) == (1.0, pytest.approx(0.5, abs=0.01))
    assert precision_recall(real, half + 1000) == (0.0, 0.0)


def test_refused() -> None:
    points = torch.zeros(5, 2)
    with pytest.raises(ValueError, match="std must be finite and greater than 0"):
        mode_coverage(points, points, 0.0)
    with pytest.raises(ValueError, match="modes must have 2 columns, not 3"):
        mode_coverage(points, torch.zeros(5, 3), 1.0)
    with pytest.raises(ValueError, match=r"real must have shape .* at least 2"):
        frechet_distance(points[:1], points)
    with pytest.raises(ValueError, match=r"real must have shape .* at least 6"):
        precision_recall(points, points, k=5)
    with pytest.raises(RuntimeError, match="fake must have a floating-point dtype"):
        frechet_distance(points, points.long())
