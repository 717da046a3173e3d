"""Numbers of a group that torch reads otherwise than the engine would: the step is then composed, and torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_step import adam as make
from plain_step import inputs, networks, twin

from fastgan import TrainStep

CHANGES: dict[str, dict[str, Any]] = {
    "beta of one": {"betas": (1.0, 0.9)},
    "both betas of one": {"betas": (1.0, 1.0)},
    "negative beta": {"betas": (-0.5, 0.9)},
    "beta above one": {"betas": (0.5, 1.5)},
    "a tensor beta, foreach": {"betas": (torch.tensor(0.5), 0.9), "foreach": True},
    "a tensor beta": {"betas": (torch.tensor(0.5, dtype=torch.float64), 0.9), "foreach": False},
    "three betas": {"betas": (0.5, 0.9, 0.9)},
    "betas in a string": {"betas": "no"},
    "no number": {"eps": None},
}


@pytest.mark.parametrize("change", CHANGES)
def test_as_the_composed_step(backend: str, change: str) -> None:
    pair, given, results = networks(), inputs({}), []
    for engine in (True, False):
        step = twin(TrainStep, *pair, make, engine=engine)
        step.step(*given)
        step.g_optimizer.param_groups[0].update(CHANGES[change])
        try:
            results.append(("ran", [float(s) for s in step.step(*given)]))
        except Exception as error:  # torch's own, whatever it is
            results.append((type(error).__name__, str(error)))
    assert results[0] == results[1]
