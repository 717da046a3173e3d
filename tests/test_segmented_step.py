"""A training step whose generator ends in a SegmentedActivation."""

from __future__ import annotations

import copy

import pytest
import torch
from conformance import assert_close_in_float64
from plain_step import DATA, LATENT, Plain, adam, inputs, networks, state_of, twin
from step_cases import PENALTIES
from torch import Tensor, nn

from fastgan import TrainStep, reference
from fastgan.nn import SegmentedActivation, fuse

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTHS, KINDS = [1, 2, 1], ["tanh", "gumbel_softmax", "softmax"]


class InPlainTorch(nn.Module):
    """The same in torch's own ops, drawn by torch's generator in the order of the calls."""

    def forward(self, x: Tensor) -> Tensor:
        uniform = torch.rand(*x.shape[:-1], 2, dtype=x.dtype)
        drawn = ((x[..., 1:3] - torch.log(-torch.log(uniform))) / 0.2).softmax(-1)
        return torch.cat([x[..., :1].tanh(), drawn, x[..., 3:].softmax(-1)], -1)


@pytest.mark.parametrize("penalty", ["none", "GP", "lazy R1"])
@pytest.mark.parametrize("reuse_fake", [True, False])
def test_step_follows_the_plain_loop(backend: str, penalty: str, reuse_fake: bool) -> None:
    assert sum(WIDTHS) == DATA
    options = {"d_steps": 2, "reuse_fake": reuse_fake, "num_classes": 0, **PENALTIES[penalty]}
    layers = nn.Sequential(nn.Linear(LATENT, 8), nn.ReLU(), nn.Linear(8, DATA)).double()
    discriminator = networks()[1]
    ends = {TrainStep: SegmentedActivation(WIDTHS, KINDS), Plain: InPlainTorch()}
    trainers = [
        twin(kind, fuse(nn.Sequential(*copy.deepcopy(layers), end)), discriminator, adam, **options)
        for kind, end in ends.items()
    ]
    before = state_of(trainers[0])[0].clone()
    for i in range(4):
        given = inputs(options)
        results = []
        for trainer in trainers:
            torch.manual_seed(i)
            results.append(tuple(trainer.step(*given)))
        assert_close_in_float64(*results, bound=1e-9)
    assert_close_in_float64(*map(state_of, trainers), bound=1e-9)
    assert not torch.equal(before, state_of(trainers[0])[0])
    assert_the_path(backend, trainers[0].plan)


def assert_the_path(backend: str, plan: str) -> None:
    assert plan.startswith("composed" if backend == "reference" else "the whole step as one native call")


def test_a_step_draws_what_its_generator_draws(backend: str) -> None:
    """With the fakes reused, one batch of uniform numbers an update of D, and nothing else."""
    options = {"d_steps": 2, "reuse_fake": True, "num_classes": 0}
    generator = nn.Sequential(nn.Linear(LATENT, DATA), SegmentedActivation(WIDTHS, KINDS)).double()
    step = twin(TrainStep, generator, networks()[1], adam, **options)
    given = inputs(options)
    step.step(*given)
    torch.manual_seed(3)
    step.step(*given)
    after = torch.rand(1)
    torch.manual_seed(3)
    for _ in range(2):
        reference.gumbel_noise(torch.empty(len(given[-1][0]), DATA, dtype=torch.float64), 2)
    assert torch.equal(torch.rand(1), after)
