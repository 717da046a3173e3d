"""The whole-step engine: 200 steps against the loop in plain PyTorch, what it draws, allocates and falls back to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from allocations import assert_statistics_alone_are_allocated, blocks_allocated, bytes_allocated
from conformance import as_double, assert_close_in_float64, overall_error
from conftest import run_on_or_skip
from extent import FULL, extent
from plain_step import Plain, adam, inputs, networks, state_of, twin
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from fastgan import TrainStep
from fastgan import backend as fastgan_backend
from fastgan.nn import MLP, fuse

NATIVE = "the whole step as one native call"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["tiled", "library"])
def a_launch_a_layer(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where networks this narrow would have one a network; by the project's products, or by torch's."""
    with run_on_or_skip("simt"):
        fastgan_backend.module.set_layer_path(request.param)
        yield
        fastgan_backend.module.set_layer_path("automatic")


# The four standard configurations with an eighth of their widths (ring: a quarter), and a batch that fills no panel.
CONFIGURATIONS: dict[str, tuple[list[int], list[int], str, str | None, int]] = {
    "ring": ([2, 32, 32, 2], [2, 32, 32, 1], "relu", None, 33),
    "digits": ([8, 32, 64, 8], [8, 64, 32, 1], "relu", "tanh", 16),
    "mnist": ([13, 32, 64, 128, 98], [98, 128, 64, 32, 1], "leaky_relu", "tanh", 16),
    "wide": ([16, 100, 100, 70], [70, 100, 100, 1], "leaky_relu", "tanh", 40),
}
# amsgrad, weight decay and both kinds of it
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "Adam": functools.partial(Adam, lr=2e-4, betas=(0.5, 0.999)),
    "Adam, decay": functools.partial(Adam, lr=2e-4, betas=(0.5, 0.999), weight_decay=0.1, fused=True),
    "AdamW, amsgrad": functools.partial(AdamW, lr=2e-4, weight_decay=0.1, amsgrad=True),
}
CASES: dict[str, tuple[str, str, bool, dict[str, Any]]] = {  # configuration, optimizer, extra layers, options
    "ring": ("ring", "Adam", False, {"reuse_fake": True}),
    "digits": ("digits", "Adam", False, {"reuse_fake": True}),
    "mnist": ("mnist", "Adam", False, {"reuse_fake": True}),
    "wide": ("wide", "Adam", False, {"reuse_fake": True}),
    "minimax": ("ring", "Adam", False, {"loss": "minimax"}),
    "two D steps": ("digits", "Adam", False, {"d_steps": 2}),
    "two D steps, reused": ("digits", "Adam, decay", False, {"d_steps": 2, "reuse_fake": True, "ema_decay": 0.9}),
    "conditional": ("digits", "Adam", False, {"num_classes": 3}),
    "decay": ("ring", "Adam, decay", False, {}),
    "amsgrad": ("ring", "AdamW, amsgrad", False, {"real_target": 0.9, "fake_target": 0.1}),
    "batch_norm, dropout": ("digits", "Adam", True, {}),
    "all": (
        "digits",
        "AdamW, amsgrad",
        True,
        {"loss": "minimax", "d_steps": 2, "num_classes": 3, "ema_decay": 0.9, "real_target": 0.9},
    ),
    "all, reused": ("ring", "Adam, decay", True, {"d_steps": 2, "num_classes": 3, "reuse_fake": True}),
}


def build(name: str, extra: bool, classes: int, dtype: torch.dtype) -> tuple[nn.Sequential, nn.Sequential]:
    """The networks of a configuration, on request with BatchNorm and Dropout in both."""
    generator, discriminator, activation, output, _ = CONFIGURATIONS[name]
    torch.manual_seed(0)
    pair = (
        MLP([generator[0] + classes, *generator[1:]], activation, output, dtype=dtype),
        MLP([discriminator[0] + classes, *discriminator[1:]], dtype=dtype),
    )
    if not extra:
        return pair
    mixed = []
    for network in pair:
        width = network[0].out_features
        layers = [network[0], nn.BatchNorm1d(width, dtype=dtype), *network[1:2], nn.Dropout(0.3), *network[2:]]
        mixed.append(nn.Sequential(*layers))
    return mixed[0], mixed[1]


def draw(name: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    """One step's real data, labels and noise."""
    generator, *_, batch = CONFIGURATIONS[name]
    rows = options.get("d_steps", 1) + (not options.get("reuse_fake", False))
    classes = options.get("num_classes", 0)
    labels = torch.randint(classes, (batch,)) if classes else None
    real = torch.randn(batch, generator[-1], dtype=torch.float64).clamp(-1, 1)
    return real.to(dtype), labels, torch.randn(rows, batch, generator[0], dtype=torch.float64).to(dtype)


def train(kind: Any, case: str, dtype: torch.dtype, steps: int) -> tuple[Any, list[tuple[Tensor, ...]]]:
    """A trainer after some steps, and its statistics."""
    name, optimizer, extra, options = CASES[case]
    pair = build(name, extra, options.get("num_classes", 0), dtype)
    trainer = twin(kind, *pair, OPTIMIZERS[optimizer], **options)
    statistics = []
    for i in range(steps):
        torch.manual_seed(i)
        given = draw(name, options, dtype)
        torch.manual_seed(1000 + i)  # of the masks of Dropout, which the engine draws as torch does
        statistics.append(tuple(trainer.step(*given)))
    return trainer, statistics


Results = tuple[list[Tensor], list[tuple[Tensor, ...]]]


@functools.cache
def train_plain(case: str, dtype: torch.dtype, steps: int, device: str) -> Results:
    """What plain PyTorch ends with, whichever backend it is held against, and its statistics."""
    trainer, statistics = train(Plain, case, dtype, steps)
    return state_of(trainer), statistics


def plain_results(case: str, dtype: torch.dtype, steps: int) -> Results:
    return train_plain(case, dtype, steps, torch.get_default_device().type)


def deep_in_200_steps(test: Any) -> Any:
    """A test of 50 steps, and of 200 where it is deep: there not on the host model, which takes its time."""
    return pytest.mark.parametrize("steps", [50, pytest.param(200, marks=pytest.mark.deep)])(test)


def fewer_where_slow(engine_backend: str, steps: int) -> int:
    return extent(15, full=steps) if engine_backend == "simt" else steps


def skip_where_slow(engine_backend: str, steps: int, case: str) -> None:
    if steps == 200 and not FULL and case not in ("ring", "two D steps, reused", "amsgrad", "all"):
        pytest.skip("make check-full has 200 steps of each case, make test 50")
    if steps == 200 and engine_backend in ("simt", "cpu"):
        pytest.skip("the host model takes its time, and the kernels of cpu are those of auto")


@deep_in_200_steps
@pytest.mark.deep_on("simt")
@pytest.mark.parametrize("case", CASES)
def test_many_steps(engine_backend: str, case: str, steps: int) -> None:
    """In float64, where 200 steps amplify rounding to no more than this."""
    skip_where_slow(engine_backend, steps, case)
    steps = fewer_where_slow(engine_backend, steps)
    ours, statistics = train(TrainStep, case, torch.float64, steps)
    assert ours.plan.startswith(NATIVE)
    state, expected = plain_results(case, torch.float64, steps)
    assert_close_in_float64(statistics, expected, bound=1e-7)
    assert_close_in_float64(state_of(ours), state, bound=1e-6)


@deep_in_200_steps
@pytest.mark.deep_on("simt")
@pytest.mark.parametrize("case", [case for case in CASES if not CASES[case][2]])
def test_many_steps_in_float32(engine_backend: str, case: str, steps: int) -> None:
    """No further from float64 than twice what plain PyTorch in float32 is.

    Not where a bias is followed by BatchNorm: its gradient is zero but for rounding, and Adam makes a full step of it.
    """
    skip_where_slow(engine_backend, steps, case)
    if engine_backend == "simt" and case not in ("mnist", "two D steps, reused", "amsgrad"):
        pytest.skip("the host model takes its time, and the other cases are the same kernels")
    steps = fewer_where_slow(engine_backend, steps)
    exact, _ = plain_results(case, torch.float64, steps)
    plain, _ = plain_results(case, torch.float32, steps)
    ours, _ = train(TrainStep, case, torch.float32, steps)
    assert overall_error(state_of(ours), exact) <= 2 * overall_error(plain, exact) + 1e-6


@pytest.mark.deep
@pytest.mark.parametrize("case", ["mnist", "two D steps, reused", "conditional", "amsgrad", "all"])
def test_other_layer_paths(a_launch_a_layer: None, case: str) -> None:
    steps = 20
    ours, statistics = train(TrainStep, case, torch.float64, steps)
    state, expected = plain_results(case, torch.float64, steps)
    assert_close_in_float64(statistics, expected, bound=1e-9)
    assert_close_in_float64(state_of(ours), state, bound=1e-8)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"make": functools.partial(SGD, lr=0.1)}, "g_optimizer is SGD"),
        ({"r1_gamma": 1.0, "r1_every": 1, "norm": True}, "every step has the R1 penalty (r1_every is 1) and D has a"),
        (
            {"gp_weight": 1.0, "norm": True},
            "every step has the WGAN-GP penalty (gp_weight is over 0) and D has a Batch",
        ),
        ({"engine": False}, "engine is False"),
        ({"tail": nn.Hardtanh()}, "generator[4] is a Hardtanh"),
        ({"make": functools.partial(Adam, differentiable=True)}, "differentiable"),
        ({"tail": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4).double())}, "generator[4] is a Parametrized"),
    ],
    ids=["SGD", "R1", "GP", "off", "layer", "differentiable", "spectral_norm"],
)
def test_what_it_cannot_plan_runs_composed(compiled: None, changed: dict[str, Any], reason: str) -> None:
    make, tail = changed.pop("make", adam), changed.pop("tail", None)
    generator, discriminator = networks()
    if changed.pop("norm", False):
        discriminator.insert(1, nn.BatchNorm1d(8, dtype=torch.float64))
    generator = fuse(nn.Sequential(*generator, *([tail] if tail else [])))
    trainer = twin(TrainStep, generator, discriminator, make, **changed)
    assert trainer.plan.startswith("composed")
    assert reason in trainer.plan
    assert "\n" not in trainer.plan
    with pytest.raises(RuntimeError, match="composed"):
        trainer.profile(*inputs({}))


def test_shared_parameters_run_composed(compiled: None) -> None:
    generator = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 4)).double()
    generator[0].weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
    generator.insert(2, generator[0])
    trainer = twin(TrainStep, generator, networks()[1], adam)
    assert "shares a parameter" in trainer.plan


def test_gradients_are_not_kept(compiled: None) -> None:
    trainer = twin(TrainStep, *networks(), adam)
    for p in trainer.generator.parameters():
        p.grad = torch.ones_like(p)
    trainer.step(*inputs({}))
    assert all(p.grad is None for n in (trainer.generator, trainer.discriminator) for p in n.parameters())


def test_autograd_notices_the_update(compiled: None) -> None:
    """A graph from before the step must not be walked with the weights from after it."""
    trainer = twin(TrainStep, *networks(), adam)
    value = trainer.generator(torch.randn(2, 3, dtype=torch.float64, requires_grad=True))
    trainer.step(*inputs({}))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_noise_is_drawn_as_torch_draws_it(engine_backend: str) -> None:
    steps = [twin(TrainStep, *networks(), adam, d_steps=2) for _ in range(2)]
    steps[1].generator.load_state_dict(steps[0].generator.state_dict())
    steps[1].discriminator.load_state_dict(steps[0].discriminator.state_dict())
    real, _, _ = inputs({"d_steps": 2})
    torch.manual_seed(3)
    drawn = steps[0].step(real)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    given = steps[1].step(real, noise=torch.randn(3, *real.shape[:1], 3, dtype=torch.float64))
    assert torch.equal(torch.stack(drawn), torch.stack(given))
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("options", [{}, {"d_steps": 2, "num_classes": 3, "ema_decay": 0.9}], ids=str)
def test_nothing_is_allocated_but_the_statistics(engine_backend: str, options: dict[str, Any]) -> None:
    """Counted by torch's own record of its allocations, noise and masks included."""
    classes = options.get("num_classes", 0)
    pair = build("digits", True, classes, torch.float32)
    trainer = twin(TrainStep, *pair, OPTIMIZERS["Adam"], **options)
    real, labels, _ = draw("digits", options, torch.float32)
    for _ in range(2):
        trainer.step(real, labels)
    assert trainer.plan.startswith(NATIVE)
    assert_statistics_alone_are_allocated(lambda: trainer.step(real, labels), 5)
    # The record sees what it should: the composed path allocates far more.
    trainer.engine = False
    record, least = (blocks_allocated, 20) if real.is_cuda else (bytes_allocated, 10_000)
    assert record(lambda: trainer.step(real, labels), 1) > least


@pytest.mark.parametrize("batch", [32, 96, 100, 256])
def test_threads_agree(compiled: None, batch: int) -> None:
    """The same bits on any number of threads, however the batch is shared out among them."""
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(16, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 100), nn.Tanh())
        discriminator = MLP([100, 200, 128, 1])
        trainer = TrainStep(generator, discriminator, adam(generator.parameters()), adam(discriminator.parameters()))
        for i in range(3):
            torch.manual_seed(i)
            statistics = trainer.step(torch.randn(batch, 100))
        results.append([*state_of(trainer), *statistics])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_strided_inputs(engine_backend: str) -> None:
    pair = networks(3)
    ours, plain = (twin(kind, *pair, adam, num_classes=3, d_steps=2) for kind in (TrainStep, Plain))
    real = torch.randn(4, 2, 6, dtype=torch.float64).permute(1, 2, 0)
    noise = torch.randn(3, 6, 6, dtype=torch.float64)[:, :, ::2]
    labels = torch.arange(12).reshape(2, 6) % 3
    assert_close_in_float64(tuple(ours.step(real, labels, noise)), tuple(plain.step(real, labels, noise)))
    assert_close_in_float64(state_of(ours), state_of(plain))


def test_profile_names_the_phases(compiled: None) -> None:
    trainer = twin(TrainStep, *networks(), adam)
    seconds = trainer.profile(*inputs({}))
    assert {"generator forward", "discriminator forward", "discriminator update"} <= set(seconds)
    assert all(value >= 0 for value in seconds.values())
    assert sum(seconds.values()) > 0
    assert trainer.steps_done == 1


@pytest.mark.parametrize("name", ["odd", "wide enough for two blocks of a sum"])
@pytest.mark.parametrize("options", [{}, {"d_steps": 2, "reuse_fake": True, "num_classes": 3}], ids=str)
def test_bf16_is_as_exact_as_autocast(engine_backend: str, name: str, options: dict[str, Any]) -> None:
    """No further from float64 than what torch.autocast makes of the same training."""
    classes = options.get("num_classes", 0)
    sizes = {
        "odd": ([7, 40, 33, 11], [11, 50, 37, 1]),
        "wide enough for two blocks of a sum": ([9, 1100, 64], [64, 1100, 1]),
    }
    generator, discriminator = (list(s) for s in sizes[name])
    generator[0], discriminator[0] = generator[0] + classes, discriminator[0] + classes
    torch.manual_seed(0)
    pair = MLP(generator, "gelu", "tanh"), MLP(discriminator)
    make = OPTIMIZERS["Adam"]
    exact = twin(Plain, pair[0].double(), pair[1].double(), make, **options)
    for network in pair:
        network.float()
    native = twin(TrainStep, *pair, make, precision="bf16", **options)
    if not native.plan.startswith(NATIVE):
        assert "AMX" in native.plan
        pytest.skip(native.plan)
    autocast = twin(TrainStep, *pair, make, precision="bf16", engine=False, **options)
    rows = options.get("d_steps", 1) + (not options.get("reuse_fake", False))
    statistics: list[list[Any]] = [[], [], []]
    for _ in range(4):
        labels = torch.randint(classes, (37,)) if classes else None
        real, noise = torch.randn(37, sizes[name][0][-1]).clamp(-1, 1), torch.randn(rows, 37, sizes[name][0][0])
        for record, step in zip(statistics, (native, autocast, exact), strict=True):
            record += step.step(*(as_double((real, labels, noise)) if step is exact else (real, labels, noise)))
    errors = [overall_error(record, statistics[2]) for record in statistics[:2]]
    assert errors[0] <= 2 * errors[1] + 1e-6
    errors = [overall_error(state_of(step), state_of(exact)) for step in (native, autocast)]
    assert errors[0] <= 1.2 * errors[1]
    assert errors[0] > 0
