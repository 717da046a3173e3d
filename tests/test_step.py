"""TrainStep against the training loop written out in plain PyTorch, on every backend."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import as_double, assert_close_in_float64, assert_within_bound, overall_error
from plain_step import DATA, LATENT, Plain, adam, inputs, networks, state_of, twin
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import ExponentialLR

from fastgan import TrainStep
from fastgan.nn import fuse

STEPS = 7


# Tensors this small gain nothing from a second thread, and on a busy machine wait for it: 8 s became 85 s.
pytestmark = pytest.mark.usefixtures("one_thread")


def assert_follows(
    generator: nn.Module,
    discriminator: nn.Module,
    make: Callable[..., Any] = adam,
    draw: Callable[..., Any] = inputs,
    between: Callable[[Any, int], None] = lambda trainer, i: None,
    **options: Any,
) -> None:
    """Several steps of both with the same inputs: the same statistics, parameters, averages and optimizer state."""
    ours, plain = (twin(kind, generator, discriminator, make, **options) for kind in (TrainStep, Plain))
    before = [p.clone() for p in ours.generator.parameters()]
    for i in range(STEPS):
        given = draw(options)
        results = []
        for trainer in (ours, plain):
            torch.manual_seed(i)  # for what draws inside the networks
            results.append(tuple(trainer.step(*given)))
            between(trainer, i)
        assert_close_in_float64(*results, bound=1e-9)
        assert_close_in_float64(state_of(ours), state_of(plain), bound=1e-8)
    for name in ("g_optimizer", "d_optimizer"):
        groups = [getattr(trainer, name).state_dict()["param_groups"] for trainer in (ours, plain)]
        assert groups[0] == groups[1]
    assert any(not torch.equal(p, q) for p, q in zip(before, ours.generator.parameters(), strict=True))


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "minimax": {"loss": "minimax"},
    "smoothing": {"real_target": 0.9, "fake_target": 0.1},
    "three D steps": {"d_steps": 3},
    "reused fake": {"reuse_fake": True},
    "three D steps, reused fake": {"d_steps": 3, "reuse_fake": True},
    "R1": {"r1_gamma": 2.0, "r1_every": 1},
    "lazy R1": {"r1_gamma": 0.5, "r1_every": 3},
    "average": {"ema_decay": 0.9},
    "conditional": {"num_classes": 3},
    "all": {
        "loss": "minimax",
        "real_target": 0.8,
        "fake_target": 0.05,
        "d_steps": 2,
        "reuse_fake": True,
        "r1_gamma": 1.0,
        "r1_every": 2,
        "num_classes": 3,
        "ema_decay": 0.5,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(backend: str, options: dict[str, Any]) -> None:
    assert_follows(*networks(options.get("num_classes", 0)), **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_changes_what_is_learned(options: dict[str, Any]) -> None:
    """Else the test above could not tell whether an option is heeded."""
    pair = networks(options.get("num_classes", 0))
    changed, default = (
        twin(Plain, *pair, adam, **o) for o in (options, {k: v for k, v in options.items() if k == "num_classes"})
    )
    for _ in range(3):
        for trainer, o in ((changed, options), (default, {})):
            torch.manual_seed(1)
            trainer.step(*inputs({**o, "num_classes": options.get("num_classes", 0)}))
    same = len(state_of(changed)) == len(state_of(default)) and all(
        map(torch.equal, state_of(changed), state_of(default))
    )
    assert same == (options in ({}, {"num_classes": 3}))


OPTIMIZERS = {
    "Adam, fused": functools.partial(Adam, lr=2e-3, fused=True),
    "Adam, foreach": functools.partial(Adam, lr=2e-3, foreach=True),
    "Adam, amsgrad, decay, maximize": functools.partial(Adam, lr=2e-3, amsgrad=True, weight_decay=0.1, maximize=True),
    "AdamW": functools.partial(AdamW, lr=2e-3, weight_decay=0.1, eps=1e-6),
    "SGD": functools.partial(SGD, lr=0.1),
    "SGD, momentum": functools.partial(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "RMSprop": functools.partial(RMSprop, lr=1e-3),
    "two groups": lambda ps: (lambda p: Adam([{"params": p[:1], "lr": 1e-2}, {"params": p[1:]}]))(list(ps)),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, OPTIONS["all"]], ids=["defaults", "all"])
def test_optimizers(backend: str, make: Callable[..., Any], options: dict[str, Any]) -> None:
    assert_follows(*networks(options.get("num_classes", 0)), make, **options)


def test_schedulers(backend: str) -> None:
    """Hyperparameters are read at each step."""

    def make(parameters):
        optimizer = adam(parameters)
        optimizer.scheduler = ExponentialLR(optimizer, 0.5)
        return optimizer

    def decay(trainer: Any, i: int) -> None:
        for optimizer in (trainer.g_optimizer, trainer.d_optimizer):
            optimizer.scheduler.step()
            assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 * 0.5 ** (i + 1))

    assert_follows(*networks(), make, between=decay)


def test_states_loaded_in_the_middle(backend: str) -> None:
    """Networks and optimizers go back to an earlier state, and training goes on from there."""
    saved: dict[int, list[Any]] = {}

    def go_back(trainer: Any, i: int) -> None:
        parts = (trainer.generator, trainer.discriminator, trainer.g_optimizer, trainer.d_optimizer)
        if i == 2:
            saved[id(trainer)] = [torch.utils._pytree.tree_map(clone, part.state_dict()) for part in parts]
        if i == 5:
            for part, state in zip(parts, saved[id(trainer)], strict=True):
                part.load_state_dict(state)

    def clone(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    assert_follows(*networks(), between=go_back)


def test_sampling_between_steps(backend: str) -> None:
    """G in eval mode under no_grad, and parameters set to not require a gradient for a while."""

    def sample(trainer: Any, i: int) -> None:
        trainer.generator.eval().requires_grad_(False)
        with torch.inference_mode():
            trainer.generator(torch.randn(4, LATENT, dtype=torch.float64))
        trainer.generator.train().requires_grad_(True)

    generator, discriminator = NETWORKS["BatchNorm in G"]()
    assert_follows(generator.double(), discriminator, between=sample, d_steps=2)


class Residual(nn.Module):
    """A discriminator with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = fuse(nn.Sequential(nn.Linear(DATA, DATA), nn.SiLU(), nn.Linear(DATA, DATA)))
        self.head = nn.Linear(DATA, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.body(x)).squeeze(1)


def with_inside(module: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(DATA, 8), nn.LeakyReLU(0.2), module, nn.Linear(8, 1))


def normalised(network: nn.Sequential, norm: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    for i in (0, 2):
        norm(network[i])
    return network


def frozen_at_the_bottom(network: nn.Sequential) -> nn.Sequential:
    network[0].requires_grad_(False)
    return network


def hooked(network: nn.Sequential) -> nn.Sequential:
    network[0].register_forward_hook(double_the_output)
    return network


def double_the_output(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return 2 * output


def generator_with_batch_norm() -> nn.Sequential:
    return fuse(nn.Sequential(nn.Linear(LATENT, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, DATA)))


norms = nn.utils.parametrizations
NETWORKS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "plain Sequentials": lambda: tuple(nn.Sequential(*network) for network in networks()),
    "BatchNorm in D": lambda: (networks()[0], fuse(with_inside(nn.BatchNorm1d(8)))),
    "BatchNorm in G": lambda: (generator_with_batch_norm(), networks()[1]),
    "Dropout in D": lambda: (networks()[0], fuse(with_inside(nn.Dropout(0.5)))),
    "LayerNorm in D": lambda: (networks()[0], fuse(with_inside(nn.LayerNorm(8)))),
    "spectral_norm": lambda: (networks()[0], normalised(networks()[1], norms.spectral_norm)),
    "weight_norm": lambda: (networks()[0], normalised(networks()[1], norms.weight_norm)),
    "own forward": lambda: (networks()[0], Residual()),
    "frozen layers": lambda: tuple(map(frozen_at_the_bottom, networks())),
    "hook": lambda: (networks()[0], hooked(networks()[1])),
}


@pytest.mark.parametrize("options", [{}, {"d_steps": 2, "reuse_fake": True, "r1_gamma": 1.0, "r1_every": 2}], ids=str)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks(backend: str, make: Callable[[], tuple[nn.Module, nn.Module]], options: dict[str, Any]) -> None:
    generator, discriminator = (network.double() for network in make())
    assert_follows(generator, discriminator, **options)


def test_average_copies_buffers(backend: str) -> None:
    generator, discriminator = (network.double() for network in NETWORKS["BatchNorm in G"]())
    assert_follows(generator, discriminator, ema_decay=0.9)


@pytest.mark.parametrize("reuse_fake", [False, True])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("d_steps", [1, 3])
def test_one_batch_a_discriminator_step(backend: str, d_steps: int, classes: int, reuse_fake: bool) -> None:
    draw = functools.partial(inputs, lead=(d_steps,))
    options = {"d_steps": d_steps, "num_classes": classes, "reuse_fake": reuse_fake, "r1_gamma": 1.0, "r1_every": 2}
    assert_follows(*networks(classes), draw=draw, **options)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", [{}, {"reuse_fake": True}, {"d_steps": 2, "r1_gamma": 1.0, "r1_every": 1}], ids=str)
def test_low_precision(backend: str, options: dict[str, Any], precision: str) -> None:
    """One step of gradient descent, which does not magnify rounding as Adam does, against the one in float64."""
    make = functools.partial(SGD, lr=0.5)
    pair = networks(dtype=torch.float32)
    exact = twin(Plain, *(copy.deepcopy(network).double() for network in pair), make, **options)
    given = inputs(options, torch.float32)
    expected = [*exact.step(*as_double(given)), *state_of(exact)]
    results = []
    for kind in (TrainStep, Plain):
        trainer = twin(kind, *pair, make, **options, precision=precision)
        stats = trainer.step(*given)
        assert all(p.dtype == torch.float32 for p in state_of(trainer))
        results.append([value.float() for value in stats] + state_of(trainer))
    if precision == "fp32":
        assert_within_bound(*results, expected)
    else:  # where bf16 rounds differs between a fused layer and a chain of ops; both lose the same digits
        ours, torchs = (overall_error(values, expected) for values in results)
        assert ours <= 2 * torchs + 1e-6
        assert any((a - b).abs().max() > 1e-5 for a, b in zip(results[0], expected, strict=True))


def test_casts_kept_by_the_callers_autocast_are_not_used(backend: str) -> None:
    """An outer context would hand out 16-bit copies of weights that the step has updated since."""
    pair, options = networks(dtype=torch.float32), {"d_steps": 2, "reuse_fake": True}
    given = inputs(options, torch.float32)
    results = []
    for outer in (contextlib.nullcontext(), torch.autocast(torch.get_default_device().type, torch.bfloat16)):
        trainer = twin(TrainStep, *pair, functools.partial(SGD, lr=0.5), **options, precision="bf16")
        with outer:
            stats = trainer.step(*given)
        results.append([*stats, *state_of(trainer)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_the_discriminator_sees_each_batch_as_in_torch(backend: str, register: str) -> None:
    shapes = []
    for kind in (TrainStep, Plain):
        trainer, seen = twin(kind, *networks(), adam, d_steps=2), []
        getattr(trainer.discriminator, register)(lambda module, given, *output, seen=seen: seen.append(given[0].shape))
        trainer.step(*inputs({"d_steps": 2}))
        shapes.append(seen)
    assert len(shapes[0]) == 5  # real and fake in each of two D steps, and G's
    assert shapes[0] == shapes[1]
