"""The metrics of any data and of mixtures: against their definitions, scikit-learn's own and the package prdc."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from extent import extent

from fastgan import distances, metrics
from fastgan.data import load
from fastgan.metrics import divergences, likelihood

RNG = np.random.default_rng(0)


def sets(real: int = 300, fake: int = 250, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    return RNG.standard_normal((real, width)), 0.8 * RNG.standard_normal((fake, width)) + 0.3


def by_definition(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Naeem et al. 2020, eq. 1 to 4, with every distance from differences."""

    def between(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(x[:, None] - y[None]).sum(axis=2))

    r, f = (np.sort(between(each, each), axis=1)[:, k] for each in (real, fake))
    d = between(real, fake)
    inside = d < r[:, None]
    return inside.any(0).mean(), (d < f).any(1).mean(), inside.sum(0).mean() / k, (d.min(1) < r).mean()


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("entries", [2**24, 500])
def test_prdc_is_its_definition(k: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "ENTRIES", entries)
    real, fake = sets()
    assert metrics.prdc(real, fake, k) == pytest.approx(by_definition(real, fake, k), abs=1e-12)
    lattice = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3) + 1e6
    assert metrics.prdc(lattice, lattice[::2], k) == pytest.approx(by_definition(lattice, lattice[::2], k), abs=1e-12)


def test_prdc_of_the_same_points_and_of_far_ones() -> None:
    real, _ = sets()
    # A point is in its own ball and in those that reach over it, k of N on average.
    assert metrics.prdc(real, real) == (1.0, 1.0, 1.0, 1.0)
    assert metrics.prdc(real, real + 100) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.deep
def test_prdc_agrees_with_the_public_package() -> None:
    package = pytest.importorskip("prdc", reason="the package prdc is not installed")
    for width in (2, 64, 784):
        real, fake = RNG.standard_normal((1000, width)), 0.9 * RNG.standard_normal((800, width))
        theirs = package.compute_prdc(real_features=real, fake_features=fake, nearest_k=5)
        ours = metrics.prdc(real, fake)._asdict()
        assert ours == {name: pytest.approx(value, abs=1e-6) for name, value in theirs.items()}


@pytest.mark.deep
def test_prdc_of_50_000_images_stays_under_4_gb() -> None:
    """Peak memory of a process of its own, the points among it; the products are replaced, as they take minutes.

    Of half as many it stays under that less the others' memory, in float32 and float64; their distances are 5 GB.
    """
    count = extent(25_000, full=50_000)
    code = r"""
import re, torch
from fastgan import distances, metrics
torch.set_num_threads(1)
rows = distances._parts
distances._parts = lambda x, c: (part for _, part in zip(range(3), rows(x, c)))
real, fake = torch.rand(COUNT, 784), torch.rand(COUNT, 784)
radii = distances.squared_radii(real.double(), 5)
distances.count_inside(fake.double(), real.double(), radii.mean().repeat(COUNT))
metrics.sliced_wasserstein_distance(real, fake, 50)
metrics.frechet_distance(real, fake)
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])  # ru_maxrss begins with the parent's
"""
    code = code.replace("COUNT", str(count))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 4e9 - 2 * (50_000 - count) * 784 * (4 + 8)


@pytest.mark.parametrize("degree", [1, 3])
@pytest.mark.parametrize("entries", [2**24, 700])
def test_kernel_distance(degree: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against scikit-learn's polynomial kernel and the unbiased estimator written out."""
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    monkeypatch.setattr(divergences, "ENTRIES", entries)
    real, fake = sets()
    xx, yy, xy = (
        pairwise.polynomial_kernel(a, b, degree=degree, coef0=1) for a, b in ((real, real), (fake, fake), (real, fake))
    )
    n, m = len(real), len(fake)
    expected = (xx.sum() - xx.trace()) / n / (n - 1) + (yy.sum() - yy.trace()) / m / (m - 1) - 2 * xy.mean()
    assert metrics.kernel_distance(real, fake, degree) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_kernel_distance_of_one_distribution_is_unbiased() -> None:
    found = [metrics.kernel_distance(RNG.standard_normal((60, 3)), RNG.standard_normal((60, 3))) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(200)
    assert min(found) < 0 < max(found)


@pytest.mark.parametrize("shape", [(40, 40), (40, 30), (7, 1)])
def test_sliced_wasserstein_of_one_column_is_scipys(shape: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = (RNG.standard_normal((count, 1)) for count in shape)
    expected = stats.wasserstein_distance(x[:, 0], y[:, 0])
    assert metrics.sliced_wasserstein_distance(x, y, 3, p=1) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_a_shift() -> None:
    """W_2 along u is |<u, shift>|, and the mean of its square over directions |shift|^2 / data."""
    x = RNG.standard_normal((50, 4))
    found = metrics.sliced_wasserstein_distance(x, x + np.array([3.0, 0, 0, 0]), 4000)
    assert found == pytest.approx(3 / math.sqrt(4), rel=0.05)
    assert metrics.sliced_wasserstein_distance(x, x[::-1].copy()) == pytest.approx(0, abs=1e-7)
    repeated = np.concatenate([x, x])
    assert metrics.sliced_wasserstein_distance(x, repeated) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("entries", [2**24, 700])
def test_parzen_windows_are_scikit_learns(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    monkeypatch.setattr(likelihood, "ENTRIES", entries)
    samples, test = sets()
    validation = test[:100]
    widths = [0.1, 0.5, 1.0]
    found = metrics.parzen_log_likelihood(samples, validation, test, widths)

    def scores(width: float, at: np.ndarray) -> np.ndarray:
        return neighbors.KernelDensity(bandwidth=width).fit(samples).score_samples(at)

    assert found.width == max(widths, key=lambda width: scores(width, validation).mean())
    expected = scores(found.width, test)
    assert found.mean == pytest.approx(expected.mean(), rel=1e-6)
    assert found.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(len(test)), rel=1e-6)
    assert metrics.parzen_log_likelihood(samples, validation, test).mean > scores(0.02, test).mean()


def test_mixture_log_likelihood_is_that_of_the_density() -> None:
    pytest.importorskip("sklearn")
    x, new = (RNG.standard_normal((4000, 2)) for _ in range(2))
    expected = -math.log(2 * math.pi) - np.square(new).sum(axis=1).mean() / 2
    assert metrics.mixture_log_likelihood(x, new, 1) == pytest.approx(expected, abs=0.01)
    assert metrics.mixture_log_likelihood(0.5 * x, new, 1) < expected - 1


def test_modes_of_a_mixture() -> None:
    data = load("grid25")
    assert data.modes is not None
    assert metrics.mode_reverse_kl(data.samples, data.modes) == pytest.approx(0, abs=1e-9)
    assert metrics.mode_reverse_kl(data.modes[:1], data.modes) == pytest.approx(math.log(25))
    half = data.samples[data.labels < 5]
    assert metrics.mode_reverse_kl(half, data.modes) == pytest.approx(math.log(5), abs=1e-6)
    assert metrics.mode_std_ratio(data.samples, data.modes, data.mode_std) == pytest.approx(1, abs=0.01)
    narrow = data.modes.repeat_interleave(2000, 0)
    narrow = narrow + 0.5 * data.mode_std * torch.randn(narrow.shape, dtype=torch.float64)
    # Nothing of the narrow ones is cut off, but the reference's standard deviation is 0.974 of the whole.
    assert metrics.mode_std_ratio(narrow, data.modes, data.mode_std) == pytest.approx(0.5 / 0.9744, abs=0.01)
    assert math.isnan(metrics.mode_std_ratio(data.modes, data.modes, data.mode_std))


def test_arrays_and_tensors_are_the_same_points() -> None:
    real, fake = sets()
    for measure in (
        metrics.prdc,
        metrics.precision_recall,
        metrics.frechet_distance,
        metrics.kernel_distance,
        metrics.sliced_wasserstein_distance,
    ):
        assert measure(real, fake) == measure(torch.from_numpy(real), torch.from_numpy(fake))


def test_judges_of_arrays() -> None:
    pytest.importorskip("sklearn")
    one, other = RNG.standard_normal((200, 2)), RNG.standard_normal((200, 2))
    assert all(abs(share - 0.5) < 5 * math.sqrt(0.25 / 400) for share in metrics.two_sample(one, other).values())
    assert all(share > 0.95 for share in metrics.two_sample(one, other + 4).values())
    labels = (one[:, 0] > 0).astype(int)
    assert all(share > 0.85 for share in metrics.learned_from(one, labels, one, labels).values())
    with pytest.raises(TypeError, match="fake_labels must be integers, not float64"):
        metrics.learned_from(one, labels.astype(float), one, labels)
    with pytest.raises(ValueError, match=r"real_labels must have shape \(200,\), one for each point, not \(199,\)"):
        metrics.learned_from(one, labels, one, labels[1:])


def test_baselines() -> None:
    pytest.importorskip("sklearn")
    ring = load("ring8")
    mixture = metrics.fit_mixture(ring.samples, 8)
    drawn = metrics.draw_mixture(mixture, 2500)
    coverage = metrics.mode_coverage(drawn, ring.modes, ring.mode_std)
    assert coverage.modes == 8
    assert coverage.high_quality > 0.97
    noise = metrics.uniform_noise(ring.samples, 500)
    assert torch.equal(noise, metrics.uniform_noise(ring.samples, 500))
    assert metrics.mode_coverage(noise, ring.modes, ring.mode_std).high_quality < 0.05
    assert noise.abs().max() <= ring.samples.abs().max()


def test_refused() -> None:
    real, fake = sets(9, 9)
    bad = fake.copy()
    bad[0, 0] = np.nan
    for measure in (metrics.kernel_distance, metrics.sliced_wasserstein_distance, metrics.two_sample):
        with pytest.raises(ValueError, match="fake must be finite"):
            measure(real, bad)
    for sentence, call in {
        "k must be at least 1, not 0": lambda: metrics.prdc(real, fake, 0),
        "fake must have 6 columns, not 5": lambda: metrics.prdc(real, fake[:, 1:]),
        r"real must have shape \(N, data\) with N at least 10": lambda: metrics.prdc(real, fake, 9),
        r"p must be in \[1, 2\], not 3": lambda: metrics.sliced_wasserstein_distance(real, fake, p=3),
        "widths must not be empty": lambda: metrics.parzen_log_likelihood(real, fake, fake, []),
        r"widths\[0\] must be finite and greater than 0": lambda: metrics.parzen_log_likelihood(
            real, fake, fake, [0.0]
        ),
        "components must be at least 1": lambda: metrics.mixture_log_likelihood(real, fake, 0),
        "count must be at least 1": lambda: metrics.uniform_noise(real, 0),
        "std must be finite and greater than 0": lambda: metrics.mode_std_ratio(real, fake, 0.0),
    }.items():
        with pytest.raises(ValueError, match=sentence):
            call()
    with pytest.raises(RuntimeError, match="real must have a floating-point dtype"):
        metrics.prdc(np.arange(10).reshape(5, 2), fake)
