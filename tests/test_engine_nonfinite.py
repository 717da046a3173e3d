"""What is not finite in a step, a layer's gradient or Adam's state ends up where the loop in plain PyTorch has it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance import ACTIVATION_MODULES, ACTIVATIONS, assert_within_bound
from plain_step import Plain, twin
from torch import Tensor, nn
from torch.optim import Adam

from fastgan import TrainStep, reference
from fastgan.functional import linear_act, mlp

inf, nan = math.inf, math.nan
SPECIAL = (inf, -inf, nan)
NATIVE = "the whole step as one native call"
# With an eps that keeps Adam from scaling up what rounding leaves of gradients that cancel.
OPTIMIZERS = {
    "GAN's betas": functools.partial(Adam, lr=2e-3, betas=(0.5, 0.999), eps=1e-2),
    "amsgrad": functools.partial(Adam, lr=2e-3, betas=(0.9, 0.99), eps=1e-2, amsgrad=True),
}
LATENT, HIDDEN, DATA = 3, 9, 4
Case = tuple[str, float, int, str]  # where, value, batch, optimizer


pytestmark = [pytest.mark.deep_on("simt"), pytest.mark.usefixtures("one_thread")]


def networks(activation: str, extra: Callable[[], list[nn.Module]]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    make = ACTIVATION_MODULES[activation]
    generator = nn.Sequential(
        nn.Linear(LATENT, HIDDEN), *extra(), make(), nn.Linear(HIDDEN, HIDDEN), make(), nn.Linear(HIDDEN, DATA)
    )
    discriminator = nn.Sequential(
        nn.Linear(DATA, HIDDEN), make(), nn.Linear(HIDDEN, HIDDEN), *extra(), make(), nn.Linear(HIDDEN, 1)
    )
    return generator, discriminator


def named_state(trainer: Any) -> dict[str, Tensor]:
    state = {}
    pairs = (("G", trainer.generator, trainer.g_optimizer), ("D", trainer.discriminator, trainer.d_optimizer))
    for name, network, optimizer in pairs:
        state |= {f"{name}.{key}": value.detach() for key, value in network.state_dict().items()}
        for key, parameter in network.named_parameters():
            for what, value in optimizer.state[parameter].items():
                state[f"{what} of {name}.{key}"] = value
    if trainer.ema is not None:
        state |= {f"average {key}": value.detach() for key, value in trainer.ema.state_dict().items()}
    return state


def put(trainer: Any, given: list[Tensor], where: str, value: float) -> None:
    """One special value among a step's inputs, parameters or state."""
    place, _, network = where.partition(" of ")
    if place in ("real", "noise"):
        given[("real", "noise").index(place)].view(-1)[5] = value
        return
    module, optimizer = {
        "G": (trainer.generator, trainer.g_optimizer),
        "D": (trainer.discriminator, trainer.d_optimizer),
    }[network]
    parameter = module[0].bias if place == "bias" else [m for m in module if isinstance(m, nn.Linear)][1].weight
    with torch.no_grad():
        at = parameter if place in ("weight", "bias") else optimizer.state[parameter][place]
        at.view(-1)[2] = value


def assert_alike(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    """The same infinities and NaN, and the same numbers, which differ by float64's rounding alone."""
    assert ours.keys() == plain.keys()
    for name, value in ours.items():
        right = plain[name]
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(value), kind(right)), f"{name} is {value} and should be {right}"
        finite = torch.isfinite(right)
        error = (value - right)[finite].abs()
        assert (error <= 1e-9 * (1 + right[finite].abs())).all(), f"{name} differs by {error.max()}"


def train(
    kind: Any, dtype: torch.dtype, case: Case, pair: tuple[nn.Module, nn.Module], options: dict[str, Any]
) -> dict[str, Tensor]:
    """Two steps on usual values, then a special one, then another step; all that training changes."""
    where, value, batch, optimizer = case
    trainer = twin(kind, *(network.to(dtype) for network in pair), OPTIMIZERS[optimizer], **options)
    for i in range(4):
        torch.manual_seed(i)
        given = [torch.randn(s, dtype=torch.float64).to(dtype) for s in ((batch, DATA), (2, batch, LATENT))]
        if i == 2:
            put(trainer, given, where, value)
        trainer.step(given[0], None, given[1])
    if kind is TrainStep:
        assert NATIVE in trainer.plan
    return named_state(trainer)


of_plain: dict[Any, dict[str, Tensor]] = {}


def compare_steps(
    activation: str,
    where: str,
    value: float,
    batch: int,
    optimizer: str = "GAN's betas",
    extra: Callable[[], list[nn.Module]] = list,
    **options: Any,
) -> None:
    """The engine against plain PyTorch: in float64, and in float32, which has kernels of its own."""
    case = (where, value, batch, optimizer)
    ours, plain = {}, {}
    for dtype in (torch.float64, torch.float32):
        ours[dtype] = train(TrainStep, dtype, case, networks(activation, extra), options)
        # Whatever the backend, so once for all of them.
        key = (dtype, case, activation, repr(extra()), *options.items(), torch.get_default_device().type)
        if key not in of_plain:
            of_plain[key] = train(Plain, dtype, case, networks(activation, extra), options)
        plain[dtype] = of_plain[key].copy()
        for name in (*cancelled(extra, "G"), *cancelled(extra, "D")):
            del ours[dtype][name], plain[dtype][name]
    assert_alike(ours[torch.float64], plain[torch.float64])
    results = (ours[torch.float32], plain[torch.float32], plain[torch.float64])
    assert_within_bound(*([result[name] for name in ours[torch.float64]] for result in results))


def cancelled(extra: Callable[[], list[nn.Module]], network: str) -> list[str]:
    """What a bias that BatchNorm takes off again has: its gradient is zero in a TrainStep, and rounding in torch."""
    if not any(isinstance(m, nn.BatchNorm1d) for m in extra()):
        return []
    bias = f"{network}.{0 if network == 'G' else 2}.bias"
    return [bias, f"exp_avg of {bias}", f"exp_avg_sq of {bias}"]


PLACES = ("real", "noise", "weight of G", "weight of D", "bias of G", "bias of D")
STATE = ("exp_avg of G", "exp_avg of D", "exp_avg_sq of G", "exp_avg_sq of D")


@pytest.mark.parametrize("batch", [5, 32])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_special_value_in_a_step(activation, where, batch, engine_backend) -> None:
    for value in SPECIAL:
        compare_steps(activation, where, value, batch)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("where", [*PLACES, *STATE])
def test_a_special_value_and_adam(where, optimizer, engine_backend) -> None:
    """The states' lerp and maximum, and the average of the generator, from either end of torch.lerp."""
    for value, decay in itertools.product(SPECIAL, (0.9, 0.25)):
        if not (where.startswith("exp_avg_sq") and value == -inf):
            compare_steps("relu", where, value, 5, optimizer, ema_decay=decay)


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("network", ["G", "D"])
def test_a_special_largest_square(network, value, engine_backend) -> None:
    compare_steps("leaky_relu", f"max_exp_avg_sq of {network}", value, 5, "amsgrad")


@pytest.mark.parametrize("batch", [5, 70])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_special_value_and_batch_norm(momentum, where, batch, engine_backend) -> None:
    for value in SPECIAL:
        compare_steps(
            "relu", where, value, batch, extra=lambda: [nn.BatchNorm1d(HIDDEN, momentum=momentum)], reuse_fake=False
        )


def test_statistics_that_are_not_trained(engine_backend) -> None:
    """BatchNorm in eval mode multiplies a gradient, whatever its input is."""
    for value, where in itertools.product(SPECIAL, PLACES):
        compare_steps("relu", where, value, 5, extra=lambda: [nn.BatchNorm1d(HIDDEN).eval()])


@pytest.mark.parametrize("training", [0, 1, None, "yes"])
def test_dropout_takes_no_other_training_than_a_bool(training, engine_backend) -> None:
    """As torch.dropout, which raises; an engine that had gone on would have trained otherwise than the modules."""
    step = twin(TrainStep, *networks("relu", lambda: [nn.Dropout(0.3)]), OPTIMIZERS["GAN's betas"])
    given = torch.randn(5, DATA), None, torch.randn(2, 5, LATENT)
    step.step(*given)
    step.discriminator[3].training = training
    with pytest.raises(TypeError, match="must be bool"):
        step.step(*given)
    step.discriminator[3].training = True
    step.step(*given)
    assert NATIVE in step.plan


VALUES = (-inf, -1e4, -0.5, -0.0, 0.0, 0.5, 30.0, 1e4, inf, nan)
COTANGENTS = (0.0, 1.0, -2.0, inf, -inf, nan)


def pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every value with every cotangent, (n, 1). ELU's derivative at NaN differs within torch: left out."""
    rows = torch.tensor(list(itertools.product(VALUES, COTANGENTS)), dtype=dtype)
    return rows[:, :1].contiguous(), rows[:, 1:].contiguous()


def assert_same_kinds(ours: Tensor, torchs: Tensor, name: str) -> None:
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        wrong = kind(ours) != kind(torchs)
        assert not wrong.any(), f"{name}, {kind.__name__}: {ours[wrong]}, torch {torchs[wrong]} at {wrong.nonzero()}"
    finite = torch.isfinite(torchs)
    assert ((ours - torchs)[finite].abs() <= 1e-5 * (1 + torchs[finite].abs())).all(), name


@pytest.mark.parametrize("whole", [False, True], ids=["linear_act", "mlp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_through_an_activation(activation, dtype, whole, backend) -> None:
    """Of each value with each cotangent, by the input of a layer whose weight is one."""
    x, cotangent = pairs(dtype)
    if activation == "elu":
        x, cotangent = (t[~x.isnan()].view(-1, 1) for t in (x, cotangent))
    one = torch.ones(1, 1, dtype=dtype)

    def ours(x: Tensor) -> Tensor:
        if whole:
            return mlp(x, [one, one], [None, None], ["identity", activation], [0.0, 0.2])
        return linear_act(x, one, None, activation=activation, negative_slope=0.2)

    gradients = []
    for function in (ours, lambda x: reference.ACTIVATIONS[activation].function(x, 0.2)):
        at = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(at), at, cotangent)
        gradients.append(gradient)
    assert_same_kinds(*gradients, activation)


@pytest.mark.parametrize("rows", [5, 32])
def test_relu_passes_nothing_where_it_is_shut(rows, backend) -> None:
    """Infinite cotangents and weights behind a shut relu leave the gradients before it finite, in each parameter."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    x, w, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((rows, 6), (9, 6), (3, 9)))
    w[4] = 0.0
    b = torch.full((9,), -1.0, dtype=torch.float64)
    v[1, 4] = inf
    results = []
    for function in (
        lambda x, w, b, v: mlp(x, [w, v], [b, None], ["relu", "identity"], [0.0, 0.0]),
        lambda x, w, b, v: F.linear(F.relu(F.linear(x, w, b)), v),
    ):
        given = [t.clone().requires_grad_() for t in (x, w, b, v)]
        y = function(*given)
        results.append([y, *torch.autograd.grad(y, given, torch.ones_like(y))])
    for i, (a, t) in enumerate(zip(*results, strict=True)):
        assert_same_kinds(a, t, f"result {i}")
