"""Cases for the made-up device of simt_backend.py, in a process that has it: test_device_memory.py runs them.

What the whole step reads and writes lies on the device, or does not, and is taken for what it is by where it lies.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import simt_backend
import torch
from conformance import assert_close_in_float64, in_double, largest_error
from plain_step import Plain, adam, inputs, networks, twin

from fastgan import TrainStep

pytestmark = pytest.mark.usefixtures("device_backend")
DEVICE = "simt:0"
STEPS = 3


@pytest.fixture(params=["simt"])
def device_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    assert simt_backend.HAS_DEVICE, "these are run by test_device_memory.py, with FASTGAN_SIMT_DEVICE=1"
    with simt_backend.use_simt():
        yield


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def values(trainer: Any) -> list[torch.Tensor]:
    return [p.detach() for m in (trainer.generator, trainer.discriminator) for p in m.parameters()]


def train(trainer: Any, dtype: torch.dtype, **options: Any) -> None:
    for i in range(STEPS):
        torch.manual_seed(i)
        given = inputs(options, torch.float64)
        trainer.step(*(t.to(dtype) if t is not None and t.is_floating_point() else t for t in given))


def assert_follows(trainer: TrainStep, plain: Plain, exact: Plain | None = None) -> None:
    """In float64 the same; in float32 no further from `exact` than twice what plain PyTorch is."""
    assert trainer.plan.startswith("the whole step as one native call on simt"), trainer.plan
    assert all(str(value.device) == DEVICE for value in values(trainer))
    if exact is None:
        return assert_close_in_float64(values(trainer), values(plain), bound=1e-8)
    ours, torchs = (
        max(largest_error(value, true) for value, true in zip(values(of), values(exact), strict=True))
        for of in (trainer, plain)
    )
    assert ours <= 2 * torchs + 1e-6


def steps_of(trainer: TrainStep) -> list[torch.Tensor]:
    return [s["step"] for o in (trainer.g_optimizer, trainer.d_optimizer) for s in o.state.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 3}, {"d_steps": 2, "num_classes": 3, "ema_decay": 0.9}], ids=str
)
def test_a_whole_step(dtype: torch.dtype, options: dict[str, Any]) -> None:
    pair = networks(options.get("num_classes", 0), dtype)
    ours, plain = (twin(kind, *pair, adam, **options) for kind in (TrainStep, Plain))
    exact = twin(Plain, *map(in_double, pair), adam, **options)
    for trainer in (ours, plain, exact):
        train(trainer, torch.float64 if trainer is exact else dtype, **options)
    assert_follows(ours, plain, exact if dtype == torch.float32 else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_in_float64_on_the_device(float64_by_default: None, dtype: torch.dtype) -> None:
    pair = networks(dtype=dtype)
    ours = twin(TrainStep, *pair, functools.partial(adam, capturable=True))
    plain, exact = twin(Plain, *pair, adam), twin(Plain, *map(in_double, pair), adam)
    for trainer in (ours, plain, exact):
        train(trainer, torch.float64 if trainer is exact else dtype)
    assert_follows(ours, plain, exact if dtype == torch.float32 else None)
    for step in steps_of(ours):
        assert (step.dtype, str(step.device), step.item()) == (torch.float64, DEVICE, STEPS)


@pytest.mark.parametrize("count", [torch.float32, torch.float64])
def test_counts_on_the_host(count: torch.dtype) -> None:
    """As an optimizer has them whose options do not say that they lie on the device."""
    pair = networks()
    ours, plain = (twin(kind, *pair, adam) for kind in (TrainStep, Plain))
    train(ours, torch.float64), train(plain, torch.float64)
    for trainer in (ours, plain):
        for optimizer in (trainer.g_optimizer, trainer.d_optimizer):
            for state in optimizer.state.values():
                state["step"] = state["step"].to("cpu", count)
    train(ours, torch.float64), train(plain, torch.float64)
    assert_follows(ours, plain)
    for step in steps_of(ours):
        assert (step.dtype, step.device.type, step.item()) == (count, "cpu", 2 * STEPS)


def test_a_learning_rate_on_the_device() -> None:
    """It is read there, in each step."""
    pair = networks()
    rate = torch.tensor(2e-3)
    ours = twin(TrainStep, *pair, functools.partial(adam, lr=rate, capturable=True))
    plain = twin(Plain, *pair, adam)
    for factor in (1.0, 0.5):
        rate.fill_(2e-3 * factor)
        for optimizer in (plain.g_optimizer, plain.d_optimizer):
            optimizer.param_groups[0]["lr"] = rate.item()
        train(ours, torch.float64), train(plain, torch.float64)
    assert str(rate.device) == DEVICE
    assert_follows(ours, plain)


def test_a_copied_optimizer_state() -> None:
    """load_state_dict puts each tensor where torch would have it."""
    pair = networks()
    first = twin(TrainStep, *pair, functools.partial(adam, capturable=True))
    train(first, torch.float64)
    again = twin(TrainStep, first.generator, first.discriminator, functools.partial(adam, capturable=True))
    again.g_optimizer.load_state_dict(copy.deepcopy(first.g_optimizer.state_dict()))
    again.d_optimizer.load_state_dict(copy.deepcopy(first.d_optimizer.state_dict()))
    train(first, torch.float64), train(again, torch.float64)
    assert again.plan.startswith("the whole step as one native call on simt"), again.plan
    assert_close_in_float64(values(again), values(first), bound=0)
