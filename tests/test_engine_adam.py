"""The updates of the whole-step engine against torch.optim's Adam and AdamW: every option, and memory of any kind."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conformance import assert_close_in_float64, in_double
from plain_step import Plain, adam, inputs, networks, state_of, twin
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from fastgan import TrainStep
from fastgan.nn import MLP

NATIVE = "the whole step as one native call"
pytestmark = pytest.mark.usefixtures("one_thread")

# Widths that fill no panel, tile or vector, and layers of one weight.
GENERATOR, DISCRIMINATOR = [3, 1, 34, 4], [4, 1, 67, 130, 1]


def errors(values: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """The largest of each tensor."""
    return [(value.double() - true).abs().max().item() for value, true in zip(values, exact, strict=True)]


def train(kind: Any, pair: tuple[nn.Module, nn.Module], make: Any, steps: int) -> Any:
    """A trainer over copies of the networks, after some steps; in each every parameter's version goes up."""
    dtype = next(pair[0].parameters()).dtype
    trainer = twin(kind, *pair, make, ema_decay=0.9)
    parameters = [p for network in (trainer.generator, trainer.discriminator) for p in network.parameters()]
    for i in range(steps):
        torch.manual_seed(i)
        given = inputs({}, torch.float64)
        versions = [p._version for p in parameters]
        trainer.step(*(t if t is None else t.to(dtype) for t in given))
        assert all(p._version > v for p, v in zip(parameters, versions, strict=True))
    assert kind is Plain or trainer.plan.startswith(NATIVE)
    return trainer


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"amsgrad": True},
        {"maximize": True, "weight_decay": 0.1},
        {"amsgrad": True, "maximize": True, "betas": (0.5, 0.9), "eps": 1e-4},
    ],
    ids=str,
)
def test_follows_torch(engine_backend: str, kind: Any, options: dict[str, Any]) -> None:
    """In float64 the same; in float32 no further from that than twice what plain PyTorch is."""
    steps = 5 if engine_backend == "simt" else 20  # the host model takes its time
    make = functools.partial(kind, lr=0.01, **{"weight_decay": 0.0, **options})
    pair = MLP(GENERATOR, "tanh", dtype=torch.float64), MLP(DISCRIMINATOR, "softplus", dtype=torch.float64)
    exact = train(Plain, pair, make, steps)
    assert_close_in_float64(state_of(train(TrainStep, pair, make, steps)), state_of(exact), bound=1e-8)
    for network in pair:
        network.float()
    exact = train(Plain, tuple(map(in_double, pair)), make, steps)
    ours, plain = (state_of(train(trainer, pair, make, steps)) for trainer in (TrainStep, Plain))
    bound = 2 * max(errors(plain, state_of(exact))) + 1e-6
    assert max(errors(ours, state_of(exact))) <= bound


def test_many_parameters(engine_backend: str) -> None:
    """More than one launch takes the numbers of on CUDA, and a network too deep for a launch of its own."""
    pair = MLP([3, *[2] * 16, 4], "tanh", dtype=torch.float64), MLP([4, *[2] * 16, 1], "tanh", dtype=torch.float64)
    ours, plain = (state_of(train(kind, pair, adam, 3)) for kind in (TrainStep, Plain))
    assert_close_in_float64(ours, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_that_is_not_aligned(engine_backend: str, dtype: torch.dtype) -> None:
    """Parameters, state and averages that begin an element after a multiple of 16 bytes get the same bits."""
    pair = networks(dtype=dtype)
    aligned, moved = (twin(TrainStep, *pair, adam, ema_decay=0.9) for _ in range(2))
    for i in range(3):
        given = inputs({}, dtype)
        results = [trainer.step(*given) for trainer in (aligned, moved)]
        assert all(map(torch.equal, *results))
        if i == 0:
            move(moved)
    assert moved.plan.startswith(NATIVE)
    assert all(map(torch.equal, state_of(aligned), state_of(moved)))


def move(trainer: TrainStep) -> None:
    def after_an_element(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.new_empty(tensor.numel() + 1)[1:].view_as(tensor)
        return memory.copy_(tensor)

    for network in (trainer.generator, trainer.discriminator, trainer.ema):
        for parameter in network.parameters():
            parameter.data = after_an_element(parameter.data)
            assert parameter.data_ptr() % 16 != 0
    for optimizer in (trainer.g_optimizer, trainer.d_optimizer):
        for state in optimizer.state.values():
            state.update({name: after_an_element(t) for name, t in state.items() if name != "step"})
