"""Learning-rate schedules: torch's own values, exact resume, and that the native step reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR

from fastgan import Trainer, TrainStep
from fastgan.nn import MLP
from fastgan.training.config import TrainConfig
from fastgan.training.schedules import GAMMA_EVERY, set_learning_rates, share_of_gamma, share_of_rate


@pytest.mark.parametrize(
    ("schedule", "final"), [("cosine", 0.0), ("cosine", 0.2), ("linear", 0.0), ("linear", 0.2), ("exponential", 0.2)]
)
def test_the_rates_are_those_of_torchs_schedulers(schedule: str, final: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    ours, theirs = (torch.optim.Adam([weight], lr=0.01) for _ in range(2))
    made = {
        "cosine": lambda: CosineAnnealingLR(theirs, T_max=50, eta_min=final * 0.01),
        "linear": lambda: LinearLR(theirs, start_factor=1.0, end_factor=final, total_iters=50),
        "exponential": lambda: ExponentialLR(theirs, gamma=final ** (1 / 50)),
    }[schedule]()
    for step in range(51):
        set_learning_rates([ours], share_of_rate(schedule, step, 50, final))
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        theirs.step()
        made.step()
    assert share_of_rate(schedule, 60, 50, final) == pytest.approx(final)
    assert share_of_rate("constant", 60, 50, final) == 1.0


def test_a_rate_that_is_a_tensor_is_changed_in_place() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=torch.tensor(0.01), foreach=False, capturable=False)
    rate = optimizer.param_groups[0]["lr"]
    for share in (0.5, 0.25):
        set_learning_rates([optimizer], share)
        assert optimizer.param_groups[0]["lr"] is rate
        assert float(rate) == pytest.approx(0.01 * share)


def test_a_step_reads_the_rates_each_time() -> None:
    """Adam's first update is of the size of the learning rate; at a rate of 0 nothing moves."""
    generator, discriminator = MLP([2, 16, 2]), MLP([2, 16, 1])
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.01, fused=True) for net in (generator, discriminator)]
    step = TrainStep(generator, discriminator, *optimizers)
    real = torch.randn(32, 2)
    step.step(real)
    for share, moves in ((0.0, False), (1.0, True), (0.0, False)):
        before = [p.detach().clone() for net in (generator, discriminator) for p in net.parameters()]
        set_learning_rates(optimizers, share)
        step.step(real)
        after = [p.detach() for net in (generator, discriminator) for p in net.parameters()]
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == moves


def test_the_discriminators_rate_has_an_end_of_its_own(tmp_path: Path) -> None:
    small = {"g_hidden": (8,), "d_hidden": (8,), "runs": tmp_path}
    trainer = Trainer("ring8", steps=5, g_lr=0.1, d_lr=0.2, lr_final=0.01, d_lr_final=0.5, **small)
    trainer.train(quiet=True)
    for optimizer, first, final in ((trainer.g_optimizer, 0.1, 0.01), (trainer.d_optimizer, 0.2, 0.5)):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(first * final**0.8)  # of the last step, number 4 of 5
    with pytest.raises(ValueError, match=r"d_lr_final must be over 0 with lr_schedule='exponential', such as 0\.01"):
        Trainer("ring8", d_lr_final=0.0)


def test_the_penalties_fall_by_equal_factors(tmp_path: Path) -> None:
    assert [share_of_gamma(step, 400, 1e-4) for step in (0, 99, 100, 350, 400, 500)] == pytest.approx(
        [1, 1, 0.1, 1e-3, 1e-4, 1e-4]
    )
    small = {"g_hidden": (8,), "d_hidden": (8,), "r1_gamma": 2.0, "r2_gamma": 0.0, "runs": tmp_path}
    trainer = Trainer("ring8", steps=2 * GAMMA_EVERY + 1, gamma_final=0.01, **small)
    native = trainer.train_step.plan
    trainer.train(quiet=True)
    left = 0.01 ** (2 * GAMMA_EVERY / (2 * GAMMA_EVERY + 1))
    assert (trainer.train_step.r1_gamma, trainer.train_step.r2_gamma) == (pytest.approx(2.0 * left), 0.0)
    assert trainer.train_step.plan.split(",")[0] == native.split(",")[0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential"])
def test_a_resumed_run_follows_its_schedule(schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgan.training.schedules.GAMMA_EVERY", 4)  # so that the run goes on between two weights
    options = {"steps": 12, "lr_schedule": schedule, "data_scale": 3.0, "g_hidden": (8,), "d_hidden": (8,)}
    whole = Trainer("ring8", **options, runs=tmp_path / "whole", checkpoint_every=6)
    path = whole.train(quiet=True)
    newest = path / "checkpoints" / "step_12"
    newest.rename(tmp_path / "step_12")
    again = Trainer.resume(path)
    assert again.step == 6
    again.train(quiet=True)
    for name in ("generator", "discriminator"):
        for a, b in zip(getattr(whole, name).parameters(), getattr(again, name).parameters(), strict=True):
            assert torch.equal(a, b)
    assert again.g_optimizer.param_groups[0]["lr"] == whole.g_optimizer.param_groups[0]["lr"]
    assert again.train_step.r1_gamma == whole.train_step.r1_gamma
    left = whole.config.gamma_final ** (8 / 12)
    assert whole.train_step.r1_gamma == pytest.approx(whole.config.r1_gamma * left)


def test_samples_are_in_the_datas_scale() -> None:
    """The networks see the data times data_scale; what they draw is divided by it."""
    trainer = Trainer("ring8", data_scale=4.0)
    generator = trainer.ema
    assert generator is not None
    drawn = trainer.sample(50, seed=3)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(drawn, generator(z) / 4)


def test_scaled_data_is_within_reach() -> None:
    with pytest.raises(
        ValueError, match=r"output_activation must be one without bounds with data_scale=4, .*not 'tanh'"
    ):
        TrainConfig(data="digits", data_scale=4.0)
