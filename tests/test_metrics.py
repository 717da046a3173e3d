"""The metrics, on points whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastgan import distances
from fastgan.data import load
from fastgan.metrics import frechet_distance, mode_coverage, modes, precision_recall


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


PLACES = [(0.0, 1.0), (100.0, 1.0), (10.0, 0.01), (1000.0, 0.01), (-1e6, 1.0), (0.0, 1e-25), (0.0, 1e25)]


def exactly(real: torch.Tensor, fake: torch.Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall of differences in float64, all at once."""

    def share(points: torch.Tensor, centres: torch.Tensor) -> float:
        radii = (centres[:, None] - centres).square().sum(dim=2).sort(dim=1).values[:, k]
        return ((points[:, None] - centres).square().sum(dim=2) <= radii).any(dim=1).double().mean().item()

    return share(fake, real), share(real, fake)


@pytest.mark.parametrize(("offset", "scale"), PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_do_not_depend_on_the_origin(offset: float, scale: float, dtype: torch.dtype) -> None:
    """Of the very points that were given, wherever they lie: as from differences in float64."""
    real, fake = (torch.randn(300, 2).to(dtype) * scale + offset for _ in range(2))
    assert precision_recall(real, fake) == pytest.approx(exactly(real.double(), fake.double()), abs=1e-12)
    there = [(points.double() - offset) / scale for points in (real, fake)]
    assert frechet_distance(real, fake) / scale**2 == pytest.approx(frechet_distance(*there), rel=1e-6)
    modes = real[:9].contiguous()
    coverage = mode_coverage(fake, modes, 0.2 * scale)
    near = (there[1][:, None] - there[0][:9]).norm(dim=2).min(dim=1)
    good = near.values <= 3 * 0.2
    assert coverage.high_quality == pytest.approx(good.double().mean().item(), abs=2 / 300)
    assert coverage.counts.sum() == round(coverage.high_quality * 300)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_duplicates_are_at_distance_zero(dtype: torch.dtype) -> None:
    points = (torch.rand(50, 3) * 100 + 100).to(dtype).repeat(5, 1)
    assert precision_recall(points, points) == (1.0, 1.0)
    assert precision_recall(points, points * 1.5) == exactly(points.double(), (points * 1.5).double())
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-18)
    assert mode_coverage(points, points[:50], 1e-6).high_quality == 1.0


def test_distances_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by parts of rows, down to one row; the parts give the same answer."""
    real, fake = torch.randn(70, 3), torch.randn(50, 3)
    whole = precision_recall(real, fake), mode_coverage(fake, real, 0.3)
    parts = distances._parts
    sizes = []

    def watched(points: torch.Tensor, centres: torch.Tensor) -> Iterator[distances.Part]:
        for part in parts(points, centres):
            sizes.append(part.squares.numel())
            yield part

    monkeypatch.setattr(distances, "_parts", watched)
    for entries in (1, 200, 1000):
        for module, name in ((distances, "ENTRIES"), (distances, "VALUES"), (modes, "ENTRIES")):
            monkeypatch.setattr(module, name, entries)
        sizes.clear()
        assert precision_recall(real, fake) == whole[0]
        assert max(sizes) <= max(entries, 70)
        assert torch.equal(mode_coverage(fake, real, 0.3).counts, whole[1].counts)


HARD = {
    "a lattice": lambda: torch.cartesian_prod(*[torch.arange(4.0)] * 3) + 1e6,
    "all the same": lambda: torch.full((40, 3), 0.1),
    "two far clusters": lambda: torch.cat([torch.randn(60, 3), torch.randn(60, 3) + 1e7]),
    "one far point": lambda: torch.cat([torch.randn(60, 3) * 1e-6, torch.full((1, 3), 1e8)]),
    "wide": lambda: torch.randn(60, 400) * 1e-3 + 100,
    "a line": lambda: torch.arange(60.0)[:, None].repeat(1, 5) * 1e-5 + 3,
}


@pytest.mark.parametrize("name", HARD)
def test_ties_and_near_ties_are_decided_by_differences(name: str) -> None:
    """Where the product's error leaves most pairs in doubt, and where distances are equal by the dozen."""
    real = HARD[name]()
    for fake in (real, real.flip(0) * (1 + 1e-7), real[::2] + real.std() * 1e-3, real[torch.randperm(len(real))[:20]]):
        for k in (1, 3):
            got = precision_recall(real, fake.contiguous(), k)
            assert got == pytest.approx(exactly(real.double(), fake.double(), k), abs=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_point_that_is_not_finite_is_far_from_all_others(value: float) -> None:
    real, fake = torch.randn(40, 2), torch.randn(40, 2)
    expected = precision_recall(real, fake[1:])
    fake[0, 1] = value
    precision, recall = precision_recall(real, fake)
    assert precision == pytest.approx(expected.precision * 39 / 40)
    assert recall == pytest.approx(expected.recall)


@pytest.mark.parametrize("shift", [1e-3, 1e-7, 1e-11])
def test_frechet_distance_of_what_is_nearly_equal(shift: float) -> None:
    """A small distance is not the difference of large numbers: exact to a millionth, not to 1e-16 of the variance."""
    points = torch.randn(200, 3, dtype=torch.float64)
    assert frechet_distance(points, points + shift) == pytest.approx(3 * shift**2, rel=1e-3, abs=1e-27)
    middle = points - points.mean(0)
    expected = shift**2 * torch.cov(points.T).trace().item()
    assert frechet_distance(middle, middle * (1 + shift)) == pytest.approx(expected, rel=1e-3, abs=1e-27)


@pytest.mark.parametrize("rows", [2, 3, 40])
def test_frechet_distance_of_few_points(rows: int) -> None:
    """Fewer points than columns: covariances without full rank, against the formula with eigenvalues."""
    real, fake = torch.randn(rows, 5, dtype=torch.float64), torch.randn(rows + 1, 5, dtype=torch.float64) * 2
    a, b = torch.cov(real.T), torch.cov(fake.T)
    product = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    expected = (real.mean(0) - fake.mean(0)).square().sum() + a.trace() + b.trace() - 2 * product
    assert frechet_distance(real, fake) == pytest.approx(expected.item(), rel=1e-6)


def test_frechet_distance_of_what_is_not_finite() -> None:
    points = torch.randn(9, 2)
    bad = points.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match="fake must be finite"):
        frechet_distance(points, bad)


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
