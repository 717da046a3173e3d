"""The updates of a step on CUDA run beside what comes next: as early as they may, or as late, the results are the same.

On a device each branch of a step has a stream of its own while the step is captured; what such a branch reads must not
be written meanwhile, nor read what it writes. The host model runs a branch's work at once, or, asked to, no sooner than
it has to be done.
"""

from __future__ import annotations

import copy

import pytest
import torch
from plain_step import adam, inputs, state_of, twin
from step_cases import Case, all_pairs

from fastgan import DiscriminatorStep, TrainStep

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["products here", "the library's"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgan import backend

    before = backend.module.layer_path()
    backend.module.set_layer_path({"products here": "tiled", "the library's": "library"}[request.param])
    yield
    backend.module.set_layer_path(before)


def trained(case: Case, alone: bool) -> list[torch.Tensor]:
    options, pair = case.options(), case.networks(torch.float32)
    real, labels, _ = inputs(options, torch.float32)
    torch.manual_seed(5)
    if alone:
        step = DiscriminatorStep(pair[1], adam(pair[1].parameters()), **case.discriminator_options())
        given = (real, torch.randn_like(real), labels)
    else:
        step = twin(TrainStep, *pair, adam, **options)
        given = (real, labels)
    stats = [value.clone() for _ in range(4) for value in step.step(*given)]
    assert "one native call" in step.plan
    return [*stats, *state_of(step)]
