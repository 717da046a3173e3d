"""First layers of many slopes: how they are drawn, and that runs without them begin as before."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fastgan import Trainer
from fastgan.data import load
from fastgan.training import first_layer
from fastgan.training.config import TrainConfig
from fastgan.training.sampling import build_networks


def networks(width: int = 2, classes: int = 0, **options: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    given = {"latent_size": 3, "g_hidden": (512,), "d_hidden": (512, 4), "output_activation": "identity", **options}
    return build_networks(TrainConfig(**given), width, classes)


def test_slopes_are_spread_evenly_over_their_logarithms() -> None:
    layer = nn.Linear(2, 4000)
    zeros = torch.randn(4000, 2)
    first_layer.spread(layer, 10.0, zeros)
    slopes = layer.weight.detach().norm(dim=1)
    assert float(slopes.min()) >= 1 - 1e-5
    assert float(slopes.max()) <= 10 + 1e-4
    # Of a uniform distribution of width log(10): the mean's standard error is log(10) / sqrt(12 * 4000).
    assert float(slopes.log().mean()) == pytest.approx(math.log(10) / 2, abs=4 * math.log(10) / math.sqrt(12 * 4000))
    assert float(layer(zeros).detach().diagonal().abs().max()) < 1e-4
    angles = torch.atan2(*layer.weight.detach().unbind(dim=1))
    assert (torch.histc(angles, 4, -math.pi, math.pi) > 850).all()


def test_zeros_lie_where_the_inputs_are() -> None:
    generator, discriminator = networks(g_first_slope=10.0, d_first_slope=20.0, data_scale=4.0)
    steepest = [float(network[0].weight.detach().norm(dim=1).max()) for network in (generator, discriminator)]
    assert steepest[0] <= 10 + 1e-4
    assert 10 < steepest[1] <= 20 + 1e-4
    # A unit's plane is as near to the middle as its zero, or nearer.
    for layer, farthest in ((generator[0], 6.0), (discriminator[0], 4.4 * math.sqrt(2))):
        away = (layer.bias / layer.weight.norm(dim=1)).detach().abs()
        assert float(away.max()) <= farthest
        assert float(away.mean()) > farthest / 10


@pytest.mark.parametrize("pac", [1, 2])
def test_labels_move_no_zero(pac: int) -> None:
    """With the labels' columns left out the planes have their zeros in the data's range."""
    options = {"conditional": True, "pac": pac, "batch_size": 8, "data_scale": 4.0}
    generator, discriminator = networks(2, 5, g_first_slope=10.0, d_first_slope=10.0, **options)
    assert generator[0].weight.shape == (512, 3 + 5)
    assert discriminator[0].weight.shape == (512, pac * (2 + 5))
    of_data = discriminator[0].weight.unflatten(1, (pac, 7))[..., :2]
    assert (discriminator[0].bias.abs() <= 4.4 * of_data.abs().sum(dim=(1, 2)) + 1e-4).all()
    assert (discriminator[0].bias != 0).all()


def test_the_first_activation_is_of_the_first_layer_alone() -> None:
    _, discriminator = networks(d_first_activation="tanh")
    assert [type(module) for module in discriminator] == [
        nn.Linear,
        nn.Tanh,
        nn.Linear,
        nn.LeakyReLU,
        nn.Linear,
    ]
    _, alone = networks(d_first_activation="tanh", d_hidden=())
    assert [type(module) for module in alone] == [nn.Linear]


def test_without_slopes_a_run_begins_as_before() -> None:
    """torch's own initialisation, and the same draws afterwards."""
    plain = networks()
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 512), nn.ReLU(), nn.Linear(512, 2))
    discriminator = nn.Sequential(nn.Linear(2, 512), nn.LeakyReLU(), nn.Linear(512, 4), nn.LeakyReLU(), nn.Linear(4, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for ours, theirs in zip(plain, (generator, discriminator), strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_mixtures_train_so_in_one_native_call() -> None:
    trainer = Trainer(load("ring8"), steps=2)
    assert isinstance(trainer.discriminator[1], nn.Tanh)
    assert trainer.config.g_first_slope == trainer.config.d_first_slope == 10
    stats = trainer.state.take_step(trainer.config, *trainer.state.batches.next())
    assert all(value.isfinite() for value in stats)
