"""The models of examples/: what each is held to, and that each ends in a picture."""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from torch import Tensor

import fastgan
from examples import (
    autoencoder,
    conditional_gan,
    diffusion,
    gan,
    gaussian_mixture,
    imitation,
    judges,
    logistic_regression,
)
from fastgan.data.dataset import Dataset

ROOT = Path(__file__).resolve().parent.parent
DATA = ("ring8", "digits")
COMMANDS = [
    *(f"gaussian_mixture --steps 2 --data {data}" for data in DATA),
    *(f"{name} --steps 20 --data {data}" for name in ("autoencoder", "diffusion", "gan") for data in DATA),
    *(f"conditional_gan --steps 20 --data {data}" for data in DATA),
    "logistic_regression --steps 20",
    "judges --number 100",
    "imitation --steps 1 --kind gail",
    "imitation --steps 1 --kind amp",
    "lightning_gan --steps 4",
    "lightning_gan --steps 20 --one-call",
]
MODELS = {command.partition(" ")[0] for command in COMMANDS} - {"imitation"}


@pytest.fixture(autouse=True)
def alone(one_thread: None) -> None:
    """The networks are small."""


@pytest.fixture(scope="module")
def ring8() -> Dataset:
    return fastgan.data.load("ring8")


@pytest.mark.parametrize(
    "command", [pytest.param(each, marks=pytest.mark.deep if i % 3 else ()) for i, each in enumerate(COMMANDS)]
)
def test_command_ends_in_a_picture(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command.split()
    if name == "lightning_gan":
        pytest.importorskip("lightning")
    monkeypatch.setattr(sys, "argv", [name, *options, "--out", str(tmp_path / "picture.png")])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.strip()
    with Image.open(tmp_path / "picture.png") as picture:
        assert min(picture.size) >= 200
        assert len(picture.convert("L").getcolors()) > 4


@pytest.mark.parametrize("name", sorted(MODELS))
def test_fits_on_two_screens(name: str) -> None:
    assert len((ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 100


def test_logistic_regression_is_scikit_learns() -> None:
    """Both end near the one minimum: a strictly convex function's gradient says how near at most, in float64."""
    real, fake = torch.randn(60, 5, dtype=torch.float64) + 0.5, torch.randn(90, 5, dtype=torch.float64)
    layer = logistic_regression.fit(real, fake, steps=2000)
    ours = torch.cat([layer.weight.detach()[0], layer.bias.detach()])
    judge = LogisticRegression(class_weight="balanced", tol=1e-12, max_iter=10_000)
    judge.fit(torch.cat([real, fake]).numpy(), [1] * 60 + [0] * 90)
    theirs = torch.tensor([*judge.coef_[0], *judge.intercept_], dtype=torch.float64)

    def objective(w: Tensor) -> Tensor:
        losses = F.softplus(-(real @ w[:-1] + w[-1])).mean() + F.softplus(fake @ w[:-1] + w[-1]).mean()
        return losses + w[:-1].square().sum() / 150

    curvature = torch.linalg.eigvalsh(torch.func.hessian(objective)(theirs)).min()
    slopes = [torch.func.grad(objective)(w).norm() for w in (ours, theirs)]
    assert (ours - theirs).norm() <= 2 * sum(slopes) / curvature + 1e-9
    assert 2 * sum(slopes) / curvature < 1e-3 * theirs.norm()


@pytest.mark.parametrize("components", [1, 3])
def test_em_is_scikit_learns(components: int) -> None:
    """From the same beginning, step by step, in float64; the mean log-likelihood never falls."""
    x = torch.cat([torch.randn(200, 3) + 2, torch.randn(100, 3) * torch.tensor([0.2, 1.0, 3.0])]).double()
    first, *later = (gaussian_mixture.em(x, components, steps, 1e-3) for steps in (0, 1, 5, 20))
    likelihoods = [first.log_prob(x).mean()]
    for steps, ours in zip((1, 5, 20), later, strict=True):
        found = ours.mixture_distribution.probs, ours.component_distribution.loc
        found += (ours.component_distribution.covariance_matrix,)
        theirs = GaussianMixture(
            components,
            tol=0,
            reg_covar=1e-3,
            max_iter=steps,
            weights_init=first.mixture_distribution.probs.numpy(),
            means_init=first.component_distribution.loc.numpy(),
            precisions_init=first.component_distribution.precision_matrix.numpy(),
        ).fit(x.numpy())
        # Twenty steps of some 300 sums each, of numbers of about 10, in float64.
        for value, expected in zip(found, (theirs.weights_, theirs.means_, theirs.covariances_), strict=True):
            assert (value - torch.from_numpy(expected)).abs().max() < 1e-9
        likelihoods.append(ours.log_prob(x).mean())
    # The least variance, which is added after each step, takes a little away again.
    assert all(later > earlier - 1e-3 for earlier, later in pairwise(likelihoods))


def no_labels(data: Dataset) -> Tensor:
    return torch.zeros(len(data), dtype=torch.long)


FITS: dict[str, Callable[[Dataset], Tensor]] = {
    "gaussian_mixture": lambda data: gaussian_mixture.fit(data.samples, no_labels(data), 8, 3)(no_labels(data)[:1000]),
    "autoencoder": lambda data: autoencoder.fit(data.samples, no_labels(data), 1, 64, 16, 1000)(no_labels(data)[:1000]),
    "diffusion": lambda data: diffusion.fit(data.samples, no_labels(data), 64, 400, 128, 4)(no_labels(data)[:1000]),
    "gan": lambda data: gan.fit(data.samples, 2, (64, 64), 4000)(1000),
    "conditional_gan": lambda data: conditional_gan.fit(data.samples, data.labels, 2, (64, 64), 4000)(
        data.labels[:1000]
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_samples_come_near_the_data(name: str, ring8: Dataset) -> None:
    """Nearer than a fifth of a normal distribution's distance, which has the right mean and twice the variance."""
    samples = FITS[name](ring8)
    assert samples.shape == (1000, 2)
    assert samples.dtype == torch.float32
    far = fastgan.metrics.frechet_distance(ring8.samples, torch.randn(1000, 2))
    assert fastgan.metrics.frechet_distance(ring8.samples, samples) < 0.2 * far


@pytest.mark.parametrize("name", ["gaussian_mixture", "autoencoder", "diffusion", "conditional_gan"])
def test_a_label_chooses_what_is_drawn(name: str, ring8: Dataset) -> None:
    x, y = ring8.samples, ring8.labels
    draw = {
        "gaussian_mixture": lambda: gaussian_mixture.fit(x, y, 1, 1),
        "autoencoder": lambda: autoencoder.fit(x, y, 2, 64, 1, 300),
        "diffusion": lambda: diffusion.fit(x, y, 64, 400, 128, 4),
        "conditional_gan": lambda: conditional_gan.fit(x, y, 2, (64, 64), 1500),
    }[name]()
    labels = torch.tensor([5, 0, 3, 3, 7] * 20)
    nearest = torch.cdist(draw(labels), ring8.modes).argmin(dim=1)
    assert (nearest == labels).double().mean() > 0.9
    assert draw(torch.empty(0, dtype=torch.long)).shape == (0, 2)


def test_noise_ends_as_noise_alone() -> None:
    assert diffusion.ALPHA_BARS[0] > 0.999
    assert diffusion.ALPHA_BARS[-1] < 1e-4
    assert (diffusion.ALPHA_BARS.diff() < 0).all()


def test_judges_see_what_differs_and_no_more() -> None:
    """Of samples of one distribution a share of 1/2 is told apart, here give or take five standard deviations."""
    one, other = torch.randn(2, 200, 4)
    assert all(abs(share - 0.5) < 5 * math.sqrt(0.25 / 400) for share in judges.two_sample(one, other).values())
    assert all(share > 0.95 for share in judges.two_sample(one, other + 3).values())


def test_judges_learn_from_samples() -> None:
    labels = torch.arange(200) % 2
    x = torch.randn(2, 200, 4) + 4 * labels[:, None]
    assert all(share > 0.95 for share in judges.learned_from(x[0], labels, x[1], labels).values())
    assert all(share < 0.05 for share in judges.learned_from(x[0], 1 - labels, x[1], labels).values())


def test_grey_levels_are_the_datas() -> None:
    digits = fastgan.data.load("digits").samples
    assert torch.equal(judges.grey_levels(digits), digits)
    assert set(judges.grey_levels(torch.linspace(-2, 2, 999)).tolist()) == set(digits.unique().tolist())


@pytest.mark.parametrize("kind", ["gail", "amp"])
def test_imitation_rewards_what_the_expert_does(kind: str) -> None:
    """Once the discriminator has learned; and the policy's way through the same plane is worth less."""
    imitated = imitation.Imitation(kind)
    moves = imitated.seen(*imitation.roll(imitation.expert, 64))
    with torch.no_grad():
        own = imitated.seen(*imitation.roll(imitated.policy, 64))
    before = [p.clone() for p in imitated.policy.parameters()]
    for _ in range(30):
        stats = imitated.step.step(moves, own)
    assert imitated.reward(moves).mean() > imitated.reward(own).mean() + 0.1
    assert stats.real_score > stats.fake_score
    assert stats.penalty > 0
    assert "native" in imitated.step.plan
    assert math.isfinite(imitated.train(moves.repeat(4, 1)))
    assert not all(torch.equal(p, q) for p, q in zip(before, imitated.policy.parameters(), strict=True))


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["gail", "amp"])
def test_imitation_comes_near_the_expert(kind: str) -> None:
    """From about ten to less than a tenth of the Fréchet distance of the states, in a third of the example's steps."""
    imitated = imitation.Imitation(kind)
    shown, actions = imitation.roll(imitation.expert, imitation.MASSES)
    demonstrations = imitated.seen(shown, actions)
    distances = []
    for steps in (0, 50):
        for _ in range(steps):
            imitated.train(demonstrations)
        with torch.no_grad():
            own, _ = imitation.roll(imitated.policy, imitation.MASSES)
        visited = [states[25:].flatten(end_dim=1) for states in (shown, own)]
        distances.append(fastgan.metrics.frechet_distance(*visited))
    assert distances[1] < 0.1 * distances[0]
