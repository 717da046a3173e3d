"""DiscriminatorStep's contract: what it learns, touches, refuses, keeps and says."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from conformance import assert_close_in_float64, here
from plain_step import BATCH, DATA, PlainDiscriminator, adam, networks, state_of
from torch import Tensor, nn

from fastgan import DiscriminatorStats, DiscriminatorStep, TrainStep
from fastgan.nn import MLP

pytestmark = pytest.mark.usefixtures("one_thread")

# On the CPU; a test takes them where it runs.
X = torch.randn(BATCH, DATA, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
F = torch.randn(BATCH, DATA, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
L = torch.zeros(BATCH, dtype=torch.long)


def samples() -> tuple[Tensor, Tensor]:
    """Real data and fakes, where the test runs."""
    real, fake = here((X, F))
    return real, fake


def step_of(kind: type = DiscriminatorStep, **options: Any) -> Any:
    torch.manual_seed(0)
    _, discriminator = networks(options.get("num_classes", 0), pac=options.get("pac", 1))
    return kind(discriminator, adam(discriminator.parameters()), **options)


def snapshot(step: DiscriminatorStep) -> list[Tensor]:
    return [t.clone() for t in (*state_of(step), torch.get_rng_state())]


def overlapping() -> tuple[Tensor, Tensor]:
    """Two classes that no plane separates: each has a row among those of the other. On the CPU, as scikit-learn is."""
    draw = functools.partial(
        torch.randn, generator=torch.Generator().manual_seed(5), dtype=torch.float64, device=torch.device("cpu")
    )
    real, fake = draw(60, 3) + torch.tensor([1.0, -0.5, 0.0], device="cpu"), draw(40, 3) * 1.5
    return torch.cat([real, -3 * real.mean(0, keepdim=True)]), torch.cat([fake, 3 * real.mean(0, keepdim=True)])


@pytest.mark.deep_on("simt")
def test_without_a_hidden_layer_it_is_logistic_regression(backend: str) -> None:
    """The two halves of the loss have a mean each, so that a sample weighs 1 over the size of its class."""
    sklearn = pytest.importorskip("sklearn.linear_model")
    real, fake = overlapping()
    samples = torch.cat([real, fake]).numpy()
    classes = np.concatenate([np.ones(len(real)), np.zeros(len(fake))])
    weights = np.where(classes == 1, 1 / len(real), 1 / len(fake))
    exact = sklearn.LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(samples, classes, weights)
    # No plane separates them: else the coefficients would grow without end.
    assert 0 < (exact.predict(samples) != classes).sum() < len(classes) / 2
    discriminator = MLP([3, 1], dtype=torch.float64)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.05)
    step = DiscriminatorStep(discriminator, optimizer)
    for i in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.99 ** max(0, i - 500)
        step.step(*here((real, fake)))
    found = np.append(discriminator[0].weight.detach().cpu().numpy(), discriminator[0].bias.item())
    expected = np.append(exact.coef_, exact.intercept_)
    assert_close_in_float64(torch.from_numpy(found), torch.from_numpy(expected), bound=1e-4)


def test_statistics_are_detached_scalars(backend: str) -> None:
    stats = step_of(r1_gamma=2.0, r1_every=2).step(*samples())
    assert isinstance(stats, DiscriminatorStats)
    for value in stats:
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert not value.requires_grad
    assert 0 < stats.real_score < 1
    assert stats.penalty > 0


def test_the_penalty_is_the_amount_added(backend: str) -> None:
    """And zero where none is due; with gp_weight one always is."""
    step = step_of(r1_gamma=2.0, r1_every=3)
    paid = [float(step.step(*samples()).penalty) for _ in range(7)]
    assert [value > 0 for value in paid] == [True, False, False, True, False, False, True]
    assert [value == 0 for value in paid] == [False, True, True, False, True, True, False]
    one, three = (step_of(r1_gamma=2.0, r1_every=every).step(*samples()).penalty for every in (1, 3))
    assert_close_in_float64(three, 3 * one)
    step = step_of(r1_gamma=2.0, r1_every=3, gp_weight=1.0)
    assert all(step.step(*samples()).penalty > 0 for _ in range(3))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_fakes_are_constants(backend: str, requires_grad: bool) -> None:
    """Whatever they come from: neither a gradient nor a graph goes into them, nor into real data."""
    network = nn.Linear(DATA, DATA, dtype=torch.float64).requires_grad_(requires_grad)
    real, fake = samples()
    fake, real = network(fake), real.clone().requires_grad_(requires_grad)
    step, expected = (step_of(kind, r1_gamma=1.0, gp_weight=1.0) for kind in (DiscriminatorStep, PlainDiscriminator))
    torch.manual_seed(4)
    ours = step.step(real, fake)
    torch.manual_seed(4)
    assert_close_in_float64(tuple(ours), expected.step(real.detach(), fake.detach()))
    assert_close_in_float64(state_of(step), state_of(expected))
    assert network.weight.grad is None
    assert real.grad is None
    if requires_grad:
        fake.sum().backward()  # whose graph is whole
        assert network.weight.grad is not None


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
@pytest.mark.parametrize("of_real", [True, False], ids=["real", "fake"])
def test_points_between_finite_and_infinite_samples(backend: str, of_real: bool, value: float) -> None:
    """Those are infinite, not NaN, and a discriminator that squashes its input trains on."""
    results = []
    for kind, options in ((PlainDiscriminator, {}), (DiscriminatorStep, {}), (DiscriminatorStep, {"engine": False})):
        torch.manual_seed(0)
        discriminator = nn.Sequential(nn.Tanh(), MLP([DATA, 8, 1], dtype=torch.float64))
        given = [value.clone() for value in samples()]
        given[0 if of_real else 1][1, 2] = value
        step = kind(discriminator, adam(discriminator.parameters()), gp_weight=10.0, **options)
        results.append([*step.step(*given), *state_of(step)])
    for ours in results[1:]:
        assert torch.isfinite(torch.stack(ours[:4])).all()
        assert_close_in_float64(ours, results[0])


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
def test_batches_of_any_layout_and_size_in_turn(backend: str, engine: bool) -> None:
    """Rows side by side in memory, columns, every other number, one row for all, and fakes that are the real data: what
    a step leaves in its memory is nothing to the next."""
    options = {"r1_gamma": 1.0, "r2_gamma": 0.7, "gp_weight": 2.0, "r1_every": 2, "pac": 3, "num_classes": 2}

    def layouts(n: int) -> list[tuple[Tensor, Tensor]]:
        wide, columns = torch.randn(n, 2 * DATA, dtype=torch.float64), torch.randn(DATA, n, dtype=torch.float64).T
        row = torch.randn(1, DATA, dtype=torch.float64).expand(n, DATA)
        return [(wide[:, :DATA], wide[:, DATA:]), (columns, wide[:, ::2]), (row, columns), (columns, columns)]

    results = []
    for kind, given in ((PlainDiscriminator, {}), (DiscriminatorStep, {"engine": engine})):
        step, statistics = step_of(kind, **options, **given), []
        torch.manual_seed(0)
        for n in (6, 99, 3, 99, 36):
            for real, fake in layouts(n):
                statistics += step.step(real, fake, torch.randint(2, (n,)), torch.randint(2, (n,)))
        results.append([*statistics, *state_of(step)])
    assert_close_in_float64(*results)


def test_labels_of_both(backend: str) -> None:
    """One set of labels serves both batches; each may have its own."""
    labels, others = torch.randint(3, (2, BATCH))
    for given in ((labels,), (labels, None), (labels, labels), (labels, others)):
        step, expected = (step_of(kind, num_classes=3) for kind in (DiscriminatorStep, PlainDiscriminator))
        assert_close_in_float64(tuple(step.step(*samples(), *given)), expected.step(*samples(), *given))
        assert_close_in_float64(state_of(step), state_of(expected))


def test_the_same_as_the_half_of_a_train_step(backend: str) -> None:
    """A frozen generator's fakes, given."""
    generator, discriminator = networks()
    noise = torch.randn(2, BATCH, 3, dtype=torch.float64)
    twins = [copy.deepcopy(discriminator) for _ in range(2)]
    real, fake = samples()[0], generator(noise[0])
    options: dict[str, Any] = {"loss": "relativistic", "r1_gamma": 1.0, "r2_gamma": 1.0, "r1_every": 1}
    alone = DiscriminatorStep(twins[0], adam(twins[0].parameters()), **options)
    whole = TrainStep(generator, twins[1], adam(generator.parameters()), adam(twins[1].parameters()), **options)
    ours, theirs = alone.step(real, fake), whole.step(real, noise=noise)
    assert_close_in_float64(
        [ours.d_loss, ours.real_score, ours.fake_score], [theirs.d_loss, theirs.real_score, theirs.fake_score]
    )
    assert_close_in_float64([p.detach() for p in twins[0].parameters()], [p.detach() for p in twins[1].parameters()])


def test_options_may_be_set_between_steps(backend: str) -> None:
    step, expected = step_of(), step_of(PlainDiscriminator)
    for changed in ({}, {"loss": "hinge"}, {"r1_gamma": 1.0}, {"loss": "minimax", "clip_grad_norm": 0.01}):
        for each in (step, expected):
            for name, value in changed.items():
                setattr(each, name, value)
        assert_close_in_float64(tuple(step.step(*samples())), expected.step(*samples()))
    assert_close_in_float64(state_of(step), state_of(expected))


def test_its_state_holds_the_phase_of_the_lazy_penalties(backend: str) -> None:
    step = step_of(r1_gamma=1.0, r1_every=3)
    for _ in range(4):
        step.step(*samples())
    assert step.state_dict() == {"steps_done": 4}
    for copied in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert copied.steps_done == 4
        copied.load_state_dict({"steps_done": 5})
        paid = [bool(copied.step(*samples()).penalty > 0) for _ in range(3)]
        assert paid == [False, True, False]
    for state, error, message in (
        (3, TypeError, "state must be a dict, not int"),
        ({}, ValueError, "state must have steps_done, but it has nothing"),
        ({"steps": 3}, ValueError, "state must have steps_done, but it has steps"),
        ({"steps_done": -1}, ValueError, "steps_done of the state must be at least 0, not -1"),
    ):
        with pytest.raises(error, match=message):
            step.load_state_dict(state)
    assert step.steps_done == 4


def test_the_plan_says_what_runs(compiled: None) -> None:
    assert step_of().plan.startswith("the whole update of D as one native call on ")
    plan = step_of(engine=False).plan
    assert plan.startswith("composed: ")
    assert "\n" not in plan
    assert "not one call, because engine is False" in plan
    discriminator = nn.Sequential(nn.Linear(DATA, 1), nn.Sigmoid())
    step = DiscriminatorStep(discriminator, adam(discriminator.parameters()))
    assert "Sigmoid is folded" in step.plan
    step.loss = "wasserstein"
    assert "Sigmoid" not in step.plan


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"discriminator": 1}, TypeError, "discriminator must be a torch.nn.Module, not int"),
        ({"optimizer": None}, TypeError, "optimizer must be a torch.optim.Optimizer, not NoneType"),
        ({"loss": "wgan"}, ValueError, "loss must be one of non_saturating, .* not 'wgan'"),
        ({"real_target": 2.0}, ValueError, r"real_target must be in \[0, 1\], not 2.0"),
        (
            {"loss": "hinge", "fake_target": 0.1},
            ValueError,
            "fake_target must be 0.0, its default, for loss 'hinge', which takes no targets, not 0.1",
        ),
        ({"gp_weight": -1.0}, ValueError, "gp_weight must be .*at least 0, not -1.0"),
        ({"pac": 0}, ValueError, "pac must be at least 1, not 0"),
        ({"clip_grad_norm": 0}, ValueError, "clip_grad_norm must be finite and greater than 0, not 0"),
        ({"r1_every": 0}, ValueError, "r1_every must be at least 1, not 0"),
        ({"precision": "fp16"}, ValueError, "precision must be one of fp32, bf16, not 'fp16'"),
        ({"d_steps": 2}, TypeError, "unexpected keyword argument 'd_steps'"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    _, discriminator = networks()
    with pytest.raises(error, match=message):
        DiscriminatorStep(**{"discriminator": discriminator, "optimizer": adam(discriminator.parameters()), **options})


@pytest.mark.parametrize(
    ("options", "given", "error", "message"),
    [
        ({}, (None, F), TypeError, "real must be a Tensor, not NoneType"),
        ({}, (X, [0.0]), TypeError, "fake must be a Tensor, not list"),
        ({}, (X, F.long()), RuntimeError, "fake must have a floating-point dtype, not torch.int64"),
        ({}, (X, F.float()), RuntimeError, "fake must have the same dtype as real"),
        ({}, (X.float(), F.float()), RuntimeError, "real must have the same dtype as the discriminator's parameters"),
        ({}, (X, F.to("meta")), RuntimeError, "fake must be on the same device as real"),
        ({}, (X[0], F), ValueError, r"real must have shape \(batch, data\), not \(4,\)"),
        ({}, (X, F[None]), ValueError, r"fake must have shape \(batch, data\), not \(1, 6, 4\)"),
        ({}, (X, F[:0]), ValueError, "fake must hold at least one sample"),
        ({}, (X, F[:, :3]), ValueError, "fake must be as wide as real, 4, not 3"),
        ({}, (X[:, :3], F[:, :3]), RuntimeError, "the discriminator's first weight .* must have 3 columns"),
        ({"pac": 3}, (X, F[:4]), ValueError, "fake must have a batch that is a multiple of pac=3, not 4"),
        ({"loss": "relativistic"}, (X, F[:4]), ValueError, "fake must have real's batch of 6, since the loss is rel"),
        ({"gp_weight": 1.0}, (X, F[:4]), ValueError, "fake must have real's batch of 6, since gp_weight is over 0"),
        ({}, (X, F, L), ValueError, "labels were given, but num_classes is 0"),
        ({}, (X, F, None, L), ValueError, "fake_labels were given, but num_classes is 0"),
        ({"num_classes": 3}, (X, F), ValueError, "labels are needed.*num_classes=3"),
        ({"num_classes": 3}, (X, F, None, L), ValueError, "labels are needed.*num_classes=3"),
        ({"num_classes": 3}, (X, F[:4], L), ValueError, "fake_labels are needed: fake has a batch of 4"),
        ({"num_classes": 3}, (X, F[:4], L, L), ValueError, r"fake_labels must have shape \(4,\), not \(6,\)"),
        ({"num_classes": 3}, (X, F, L, L + 3), ValueError, r"fake_labels must be in \[0, 3\), but they span \[3, 3\]"),
        ({"num_classes": 3}, (X, F, L.double()), TypeError, "labels must be integers, not torch.float64"),
    ],
)
def test_bad_input_changes_nothing(
    backend: str, options: dict[str, Any], given: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    if backend == "cuda" and "they span" in message:
        pytest.skip("labels on a GPU are looked at there: test_gpu_step.py")
    step = step_of(**options)
    step.step(*samples(), *([here(L)] if options.get("num_classes") else []))  # so that there is optimizer state
    before = snapshot(step)
    with pytest.raises(error, match=message):
        step.step(*here(given))
    assert all(map(torch.equal, before, snapshot(step)))
    assert step.steps_done == 1


def test_a_frozen_discriminator_is_refused(backend: str) -> None:
    step = step_of()
    step.discriminator.requires_grad_(False)
    with pytest.raises(ValueError, match="optimizer must hold a parameter that requires grad"):
        step.step(*samples())


def test_bf16_takes_fakes_of_16_bits(backend: str) -> None:
    """Such as a generator under autocast gives."""
    discriminator = networks(dtype=torch.float32)[1]
    step = DiscriminatorStep(discriminator, adam(discriminator.parameters()), precision="bf16", r2_gamma=1.0)
    real, fake = samples()
    stats = step.step(real.float(), fake.bfloat16())
    assert all(value.isfinite() for value in stats)
    assert stats.penalty > 0
