"""A Linear's bias right before a BatchNorm1d has no gradient; what rounding leaves of it must not be trained on."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from conformance import assert_close_in_float64
from plain_step import Plain, inputs, state_of, twin
from torch import nn
from torch.optim import SGD, Adam

from fastgan import TrainStep, layers
from fastgan.nn import MLP


def generator(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), *between, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize("optimizer", [Adam, SGD])
@pytest.mark.parametrize("between", [[], [nn.Identity()], [nn.Dropout(0.0)]], ids=["right before", "identity", "idle"])
def test_it_stays_where_it_is(backend: str, engine: bool, optimizer: Callable, between: list[nn.Module]) -> None:
    step = twin(TrainStep, generator(*between), MLP([4, 8, 1]), functools.partial(optimizer, lr=1e-2), engine=engine)
    before = step.generator[0].bias.detach().clone()
    for _ in range(5):
        step.step(*inputs({}, torch.float32))
    assert torch.equal(step.generator[0].bias, before)
    assert not torch.equal(step.generator[0].weight, torch.zeros(8, 3))


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
def test_its_weight_decay_is_the_plain_loops(backend: str, engine: bool) -> None:
    pair = generator().double(), MLP([4, 8, 1], dtype=torch.float64)
    make = functools.partial(Adam, lr=1e-2, weight_decay=0.1)
    ours, plain = twin(TrainStep, *pair, make, engine=engine), twin(Plain, *pair, make)
    for _ in range(5):
        given = inputs({})
        ours.step(*given), plain.step(*given)
        assert_close_in_float64(state_of(ours), state_of(plain), 1e-7)  # the plain loop's 1e-17 over Adam's eps of 1e-8


def test_the_same_training_on_both_paths_in_float32() -> None:
    """Within a thousandth of a learning rate; with the remainders of rounding the biases went several apart."""
    pair = generator(), MLP([4, 8, 1])
    steps = [twin(TrainStep, *pair, functools.partial(Adam, lr=1e-2), engine=engine) for engine in (True, False)]
    for _ in range(6):
        given = inputs({}, torch.float32)
        for step in steps:
            step.step(*given)
    assert torch.equal(*(step.generator[0].bias for step in steps))


TWICE = nn.Linear(3, 3)
CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "right before": (generator, 1),
    "an Identity between": (lambda: generator(nn.Identity()), 1),
    "an activation between": (lambda: generator(nn.Tanh()), 0),
    "a Dropout between": (lambda: generator(nn.Dropout(0.5)), 0),
    "an idle Dropout between": (lambda: generator(nn.Dropout(0.0)), 1),
    "running statistics": (lambda: generator().eval(), 0),
    "no running statistics": (lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, track_running_stats=False)), 1),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 8)), nn.Sequential(nn.BatchNorm1d(8))), 1),
    "no bias": (lambda: nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8)), 0),
    "three dimensions": (lambda: nn.Sequential(nn.Unflatten(1, (8, 3)), nn.Linear(3, 8), nn.BatchNorm1d(8)), 0),
    "used twice": (lambda: nn.Sequential(TWICE, nn.BatchNorm1d(3), TWICE, nn.Tanh()), 0),
    "no BatchNorm": (lambda: MLP([3, 8, 1]), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_which_biases_cancel(case: str) -> None:
    make, count = CASES[case]
    assert len(layers.cancelled_biases(make())) == count


def test_hooks_are_left_alone() -> None:
    network = generator()
    network[0].bias.register_hook(lambda gradient: gradient + 1)
    assert layers.cancelled_biases(network) == []
    network = generator()
    network[0].register_forward_hook(lambda module, given, output: output * 2)
    assert layers.cancelled_biases(network) == []
