"""What becomes of a TrainStep: it is given back, it is one thread's at a time, and how its discriminator may end."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from conformance import assert_close_in_float64
from plain_step import Plain, inputs, networks, state_of, twin
from plain_step import adam as make
from torch import nn
from torch.optim import Adam

from fastgan import TrainStep


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_it_is_given_back(backend: str, steps: int) -> None:
    step = twin(TrainStep, *networks(), make, ema_decay=0.9)
    for _ in range(steps):
        step.step(*inputs({}))
    held = [weakref.ref(x) for x in (step, step.generator, step.discriminator, step.g_optimizer, step.ema)]
    del step
    gc.collect()
    assert [x() for x in held] == [None] * len(held)


def test_two_threads_in_one_step_are_an_error_or_take_turns(compiled: None) -> None:
    step = twin(TrainStep, *networks(), make)
    step.step(*inputs({}))
    errors: list[BaseException] = []

    def work(rows: int) -> None:
        for _ in range(300):
            try:
                step.step(torch.randn(rows, 4, dtype=torch.float64))
            except RuntimeError as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (64, 96)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another thread is in this TrainStep" in str(error) for error in errors), errors[:1]
    step.step(*inputs({}))  # and it goes on


def test_a_step_that_finds_no_memory_counts_nothing(backend: str) -> None:
    """Of 2^36 samples, which all are one in memory."""
    step = twin(TrainStep, *networks(), make)
    step.step(*inputs({}))
    before = [t.clone() for t in state_of(step)]
    rows = 2**36
    real, noise = torch.zeros(1, 4, dtype=torch.float64), torch.zeros(2, 1, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        step.step(real.expand(rows, 4), noise=noise.expand(2, rows, 3))
    assert all(map(torch.equal, before, state_of(step)))
    step.step(*inputs({}))


def test_a_learning_rate_that_becomes_a_tensor(backend: str) -> None:
    """torch's foreach refuses it where it is not capturable, the engine likewise."""
    results: list[Any] = []
    for engine in (True, False):
        step = twin(TrainStep, *networks(), functools.partial(Adam, lr=1e-3, foreach=True), engine=engine)
        step.step(*inputs({}))
        step.g_optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)
        with pytest.raises(Exception, match="lr as a Tensor") as raised:
            step.step(*inputs({}))
        results.append(type(raised.value))
    assert results[0] is results[1]


IDLE = {
    "p of zero": lambda: nn.Dropout(0.0),
    "eval": lambda: nn.Dropout(0.3).eval(),
}


@pytest.mark.parametrize("idle", IDLE)
@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
def test_an_idle_dropout_behind_the_sigmoid(backend: str, engine: bool, idle: str) -> None:
    d = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1), nn.Sigmoid(), IDLE[idle]()).double()
    pair = networks()[0], d
    ours, plain = twin(TrainStep, *pair, make, engine=engine), twin(Plain, *pair, make)
    for _ in range(3):
        given = inputs({})
        assert_close_in_float64([*ours.step(*given)], [*plain.step(*given)], 1e-9)
    assert_close_in_float64(state_of(ours), state_of(plain), 1e-8)
    assert "Sigmoid" in ours.plan


def test_a_log_sigmoid_before_an_idle_dropout_is_refused() -> None:
    d = nn.Sequential(nn.Linear(4, 1), nn.LogSigmoid(), nn.Dropout(0.0)).double()
    with pytest.raises(ValueError, match="LogSigmoid"):
        twin(TrainStep, networks()[0], d, make)
