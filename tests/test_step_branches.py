"""The updates of a step on CUDA run beside what comes next: as early as they may, or as late, the results are the same.

While a step is captured each of its branches has a stream of its own on a device: what a branch reads must not be
written meanwhile, nor may what it writes be read. The host model runs a branch's work at once or, asked to, no sooner
than it has to be done.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import run_on_or_skip
from plain_step import adam, inputs, state_of, twin
from step_cases import Case, all_pairs
from torch import Tensor

from fastgan import DiscriminatorStep, TrainStep
from fastgan import backend as fastgan_backend

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["tiled", "library", "automatic"])
def on_simt(request: pytest.FixtureRequest) -> Iterator[None]:
    with run_on_or_skip("simt"):
        fastgan_backend.module.set_layer_path(request.param)
        yield
        fastgan_backend.module.set_layer_path("automatic")


def trained(case: Case, alone: bool) -> list[Tensor]:
    torch.manual_seed(2)
    pair = [network.float() for network in case.networks()]
    real, labels, _ = inputs(case.options(), torch.float32)
    if alone:
        step = DiscriminatorStep(pair[1], adam(pair[1].parameters()), **case.discriminator_options())
        given = (real, torch.randn_like(real), labels)
    else:
        step = twin(TrainStep, *pair, adam, **case.options())
        given = (real, labels)
    stats = [value.clone() for _ in range(4) for value in step.step(*given)]
    assert "one native call" in step.plan
    return [*stats, *state_of(step)]


@pytest.mark.parametrize("alone", [False, True], ids=["both networks", "D alone"])
@pytest.mark.parametrize("case", all_pairs()[::4], ids=str)
def test_late_or_early(on_simt: None, case: Case, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    early = trained(case, alone)
    monkeypatch.setenv("FASTGAN_SIMT_BRANCHES", "late")
    late = trained(case, alone)
    for a, b in zip(early, late, strict=True):
        assert torch.equal(a, b)
    assert all(value.isfinite().all() for value in early)
