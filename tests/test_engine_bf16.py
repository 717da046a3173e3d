"""The engine's products of bfloat16 against the plain loop in float64 whose Linears round their operands alike."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from conformance import as_double, overall_error
from plain_step import Plain, adam, state_of, twin
from rounded_linear import RoundedLinear
from torch import Tensor, nn
from torch.optim import Adam

from fastgan import TrainStep
from fastgan import backend as fastgan_backend
from fastgan.nn import MLP

ROOT = Path(__file__).parent.parent
NATIVE = "the whole step as one native call"


@pytest.fixture
def products(compiled: None) -> None:
    """For tests of what a CPU that multiplies bfloat16 has."""
    if not fastgan_backend.module.has_bf16_step(True):
        pytest.skip("neither AVX-512 BF16 nor AMX is available")


def stack(widths: list[int], activation: str, *extra: nn.Module) -> nn.Sequential:
    """An MLP whose first Linear is followed by other layers, and has no bias where one of them would cancel it."""
    first, *rest = MLP(widths, activation)
    if any(isinstance(module, nn.BatchNorm1d) for module in extra):
        first = nn.Linear(widths[0], widths[1], bias=False)
    return nn.Sequential(first, *extra, *rest)


def frozen(network: nn.Sequential, *names: str) -> nn.Sequential:
    for name in names:
        network.get_parameter(name).requires_grad_(False)
    return network


def without_bias(network: nn.Sequential) -> nn.Sequential:
    for module in network:
        if isinstance(module, nn.Linear):
            module.register_parameter("bias", None)
    return network


# Networks, batch, options. The tiles have 14 or 32 rows and 32 columns, sums are cut at 512 or 1024, a panel has 32
# samples, and a tile of the weight serves 16 panels.
CASES: dict[str, Any] = {
    "odd widths": lambda: (stack([7, 41, 33, 11], "gelu"), stack([11, 51, 37, 1], "leaky_relu"), 37, {}),
    "whole tiles": lambda: (stack([32, 28, 64, 32], "relu"), stack([32, 64, 14, 1], "tanh"), 64, {}),
    "sums of several blocks": lambda: (stack([9, 1101, 64], "relu"), stack([64, 1101, 1], "leaky_relu"), 37, {}),
    "thin inputs": lambda: (stack([2, 33, 8], "relu"), stack([8, 15, 7, 1], "leaky_relu"), 40, {}),
    "widths of one": lambda: (stack([1, 1, 1], "tanh"), stack([1, 1, 1], "tanh"), 3, {}),
    "one layer": lambda: (stack([5, 19], "relu"), stack([19, 1], "relu"), 1, {}),
    "many panels": lambda: (stack([9, 17, 10], "silu"), stack([10, 18, 1], "leaky_relu"), 601, {"reuse_fake": True}),
    "labels": lambda: (
        stack([7 + 3, 40, 11], "relu"),
        stack([11 + 3, 50, 1], "leaky_relu"),
        45,
        {"num_classes": 3, "d_steps": 2, "ema_decay": 0.9},
    ),
    "batch norm, dropout": lambda: (
        stack([7, 40, 20, 11], "relu", nn.BatchNorm1d(40), nn.Dropout(0.25)),
        stack([11, 50, 20, 1], "leaky_relu", nn.BatchNorm1d(50), nn.Dropout(0.5)),
        45,
        {"reuse_fake": True},
    ),
    "frozen": lambda: (
        frozen(stack([7, 40, 20, 11], "relu"), "0.weight", "0.bias", "2.weight"),
        frozen(stack([11, 50, 20, 1], "softplus"), "0.weight", "2.bias"),
        45,
        {},
    ),
    "no bias": lambda: (without_bias(stack([7, 40, 11], "elu")), without_bias(stack([11, 50, 1], "sigmoid")), 45, {}),
}


def trainers(generator: nn.Sequential, discriminator: nn.Sequential, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The engine in bfloat16; the loop in float64 with rounded operands, and without.

    Adam's epsilon is of the gradients' size: with the usual one, what rounding leaves of a zero is a full step.
    """
    make = functools.partial(Adam, lr=0.05, betas=(0.5, 0.9), eps=0.01)
    native = twin(TrainStep, generator, discriminator, make, precision="bf16", **options)
    assert native.plan.startswith(NATIVE)
    expected, exact = (twin(Plain, generator.double(), discriminator.double(), make, **options) for _ in range(2))
    expected.draws = exact.draws = torch.float32
    for module in (*expected.generator.modules(), *expected.discriminator.modules()):
        if type(module) is nn.Linear:
            module.__class__ = RoundedLinear
    return native, expected, exact


def draw(generator: nn.Sequential, batch: int, options: dict[str, Any]) -> tuple[Tensor, Tensor | None, Tensor]:
    """One step's real data, labels and noise."""
    classes = options.get("num_classes", 0)
    rows = options.get("d_steps", 1) + (not options.get("reuse_fake", False))
    real = torch.randn(batch, generator[-1].out_features).clamp(-1, 1)
    labels = torch.randint(classes, (batch,)) if classes else None
    return real, labels, torch.randn(rows, batch, generator[0].in_features - classes)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", CASES)
def test_operands_are_rounded_and_nothing_else(products: None, name: str) -> None:
    """The error is a twentieth, at most, of what rounding the operands does to the result.

    Float32 and float64 differ by some 1e-7. So of 30,000 operands one is rounded to the other side, by a whole unit of
    2^-8, where the usual error of rounding is 0.29 of one: all such errors together are some 2 % of all roundings'.
    """
    torch.manual_seed(0)
    generator, discriminator, batch, options = CASES[name]()
    native, expected, exact = trainers(generator, discriminator, options)
    given = draw(generator, batch, options)
    results = []
    for step in (native, expected, exact):
        torch.manual_seed(1)  # of the masks of Dropout, which the engine draws as torch does
        statistics = step.step(*(given if step is native else as_double(given)))
        moments = [step.d_optimizer.state_dict()["state"], step.g_optimizer.state_dict()["state"]]
        results.append(([*statistics, *state_of(step)], moments))
    for ours, alike, unrounded in zip(*results, strict=True):
        assert overall_error(ours, alike) <= 0.05 * overall_error(unrounded, alike)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3.4e38])
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_special_values_go_where_they_go_in_the_loop(products: None, network: str, value: float) -> None:
    """A weight that is not finite, or that rounds to infinity: what fills up pairs and panels stays out of the sums."""
    torch.manual_seed(0)
    pair = {"generator": stack([7, 41, 11], "relu"), "discriminator": stack([11, 51, 1], "leaky_relu")}
    with torch.no_grad():
        pair[network][-1].weight[0, 40] = value
    batch, options = 37, {"reuse_fake": True}
    native, expected, _ = trainers(*pair.values(), options)
    given = draw(pair["generator"], batch, options)
    results = []
    for step in (native, expected):
        statistics = step.step(*(given if step is native else as_double(given)))
        results.append([*statistics, *state_of(step)])
    for i, (ours, alike) in enumerate(zip(*results, strict=True)):
        assert torch.equal(ours.isnan(), alike.isnan()), i
        assert torch.equal(ours.isposinf(), alike.isposinf()), i
        assert torch.equal(ours.isneginf(), alike.isneginf()), i
    assert not all(value.isfinite().all() for value in results[0])


@pytest.mark.parametrize("batch", [32, 100])
def test_threads_agree(products: None, batch: int) -> None:
    """The same bits on any number of threads, which share panels or each layer's features."""
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        pair = stack([16, 128, 100], "relu", nn.BatchNorm1d(128)), stack([100, 200, 128, 1], "leaky_relu")
        trainer = twin(TrainStep, *pair, adam, precision="bf16")
        for i in range(3):
            torch.manual_seed(i)
            statistics = trainer.step(torch.randn(batch, 100))
        assert trainer.plan.startswith(NATIVE)
        results.append([*state_of(trainer), *statistics])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


PLAN = """
import json, torch, fastgan
from fastgan.nn import MLP
G, D = MLP([2, 4, 2]), MLP([2, 4, 1])
step = fastgan.TrainStep(G, D, torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters()), precision="bf16")
step.step(torch.randn(8, 2))
print(json.dumps([fastgan.info()["build"]["cpu_bf16_instructions"], step.plan]))
"""


@pytest.mark.deep
def test_the_environment_limits_the_instructions(compiled: None) -> None:
    found = {}
    for isa in ("", "avx512_bf16", "avx512"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FASTGAN_ISA": isa, "FASTGAN_TUNE": "0"}
        done = warm.run(["-c", PLAN], ROOT, environment)
        assert done.returncode == 0, done.stderr
        found[isa] = json.loads(done.stdout.splitlines()[-1])
    best = found[""][0]
    assert best in (None, "avx512_bf16", "amx")
    assert found["avx512_bf16"][0] == (best and "avx512_bf16")
    assert found["avx512"][0] is None
    for name, plan in found.values():
        assert plan.startswith("composed" if name is None else NATIVE)
        assert ("needs AVX-512 BF16 or AMX, and neither is available" in plan) == (name is None)
