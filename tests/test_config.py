"""The options of a run: defaults by data, and the refusal of each value that is out of range."""

from __future__ import annotations

import pytest
import tomlkit
import torch

from fastgan.data import Dataset, load
from fastgan.training.config import LATER, TrainConfig
from fastgan.training.device import pick_device


def test_defaults_suit_the_data() -> None:
    digits, ring = load("digits"), load("ring8")
    config = TrainConfig.for_dataset(digits, "digits")
    assert config.conditional
    assert config.output_activation == "tanh"
    assert TrainConfig.for_dataset(ring, "ring8").as_dict() == {
        **TrainConfig.for_dataset(load("grid25"), "grid25").as_dict(),
        "data": "ring8",
    }
    stock = TrainConfig.for_dataset(ring, "ring8")
    assert (stock.loss, stock.data_scale, stock.lr_schedule) == ("relativistic", 4.0, "exponential")
    assert (stock.d_first_activation, stock.d_first_slope, stock.gamma_final) == ("tanh", 10.0, 2e-4)
    plain = TrainConfig.for_dataset(ring, "ring8", loss="non_saturating")
    assert (plain.g_hidden, plain.data_scale, plain.lr_schedule) == ((128, 128), 1.0, "constant")
    assert (plain.d_first_activation, plain.d_first_slope, plain.gamma_final) == (None, 0.0, 1.0)
    smooth = TrainConfig.for_dataset(ring, "ring8", real_target=0.9)
    assert (smooth.loss, smooth.g_hidden) == ("non_saturating", (128, 128))
    assert not TrainConfig.for_dataset(ring, "ring8").conditional
    table = Dataset("table", torch.zeros(50, 3))
    assert TrainConfig.for_dataset(table, "table.csv").output_activation == "identity"
    assert TrainConfig.for_dataset(table, "table.csv").batch_size == 50
    wide = Dataset("wide", torch.zeros(200, 784), image_shape=(28, 28))
    assert TrainConfig.for_dataset(wide, "wide").latent_size == 100
    assert not TrainConfig.for_dataset(wide, "wide").conditional


def test_options_replace_defaults() -> None:
    config = TrainConfig.for_dataset(load("ring8"), "ring8", steps=7, latent_size=None, g_hidden=[5])
    assert (config.steps, config.latent_size, config.g_hidden) == (7, 2, (5,))
    with pytest.raises(TypeError, match="stepz is no option of training"):
        TrainConfig.for_dataset(load("ring8"), "ring8", stepz=7)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("steps", 0, "steps must be at least 1, not 0"),
        ("steps", 1.5, "steps must be an integer"),
        ("batch_size", 0, "batch_size must be at least 1, not 0"),
        ("latent_size", 0, "latent_size must be at least 1, not 0"),
        ("latent_scale", 0.0, "latent_scale must be finite and greater than 0, not 0.0"),
        ("latent_scale", float("inf"), "latent_scale must be finite"),
        ("g_hidden", (8, 0), r"g_hidden\[1\] must be at least 1, not 0"),
        ("d_hidden", 8, "d_hidden must be a tuple of widths"),
        ("g_activation", "rellu", "g_activation must be one of identity, relu,"),
        ("output_activation", None, "output_activation must be one of"),
        ("negative_slope", float("nan"), "negative_slope must be finite"),
        ("loss", "wgan", "loss must be one of non_saturating, minimax, relativistic, .*, not 'wgan'"),
        ("real_target", 1.1, r"real_target must be in \[0, 1\], not 1.1"),
        ("fake_target", -0.1, r"fake_target must be in \[0, 1\], not -0.1"),
        ("d_steps", 0, "d_steps must be at least 1"),
        ("reuse_fake", 1, "reuse_fake must be True or False"),
        ("g_lr", 0, "g_lr must be finite and greater than 0, not 0"),
        ("d_lr", -1e-3, "d_lr must be finite and greater than 0, not -0.001"),
        ("d_lr", float("inf"), "d_lr must be finite"),
        ("lr_schedule", "step", "lr_schedule must be one of constant, cosine, linear, exponential, not 'step'"),
        ("lr_final", 1.5, r"lr_final must be in \[0, 1\], not 1.5"),
        ("lr_schedule", "exponential", "lr_final must be over 0 with lr_schedule='exponential', such as 0.01, not 0"),
        ("d_lr_final", -0.5, r"d_lr_final must be in \[0, 1\], not -0.5"),
        ("gamma_final", 0.0, r"gamma_final must be in \(0, 1\], not 0.0"),
        ("gamma_final", 2.0, r"gamma_final must be in \(0, 1\], not 2.0"),
        ("d_first_activation", "tan", "d_first_activation must be one of identity, relu,"),
        ("g_first_slope", 0.5, "g_first_slope must be 0 or at least 1, not 0.5"),
        ("d_first_slope", -1.0, "d_first_slope must be finite and at least 0, not -1.0"),
        ("data_scale", 0.0, "data_scale must be finite and greater than 0, not 0.0"),
        ("beta1", 1.0, r"beta1 must be in \[0, 1\), not 1"),
        ("beta2", -0.5, r"beta2 must be in \[0, 1\], not -0.5"),
        ("ema_decay", 1, r"ema_decay must be in \[0, 1\), not 1"),
        ("r1_gamma", -1, "r1_gamma must be finite and at least 0, not -1"),
        ("r1_every", 0, "r1_every must be at least 1"),
        ("r2_gamma", -1, "r2_gamma must be finite and at least 0, not -1"),
        ("r2_gamma", "1", "r2_gamma must be a number, not str '1'"),
        ("gp_weight", float("inf"), "gp_weight must be finite and at least 0, not inf"),
        ("gp_center", -1, "gp_center must be finite and at least 0, not -1"),
        ("pac", 0, "pac must be at least 1, not 0"),
        ("pac", 2**31, "pac must be in"),
        ("pac", 3, "batch_size must be a multiple of pac=3, not 128"),
        ("clip_grad_norm", 0.0, "clip_grad_norm must be finite and greater than 0, not 0.0"),
        ("clip_grad_norm", "none", "clip_grad_norm must be a number, not str 'none'"),
        ("instance_noise", -0.1, "instance_noise must be finite and at least 0, not -0.1"),
        ("instance_noise_steps", -1, "instance_noise_steps must be at least 0, not -1"),
        ("instance_noise_steps", 2**63, "instance_noise_steps must be in"),
        ("seed", -1, "seed must be at least 0, not -1"),
        ("seed", 2**63, "seed must be in"),
        ("precision", "fp16", "precision must be one of fp32, bf16, not 'fp16'"),
        ("device", "tpu", "device must be auto, cpu, cuda or cuda:N, not 'tpu'"),
        ("device", "cpu:1", "device must be auto, cpu, cuda or cuda:N, not 'cpu:1'"),
        ("log_every", 0, "log_every must be at least 1"),
        ("keep_checkpoints", 0, "keep_checkpoints must be at least 1"),
        ("runs", "", "runs must not be empty"),
        ("data", 3, "data must be a string"),
    ],
)
def test_refused(option: str, value: object, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        TrainConfig(**{option: value})


def test_targets_are_those_of_the_loss() -> None:
    assert TrainConfig(loss="least_squares", real_target=2, fake_target=-1.5).fake_target == -1.5
    with pytest.raises(ValueError, match="fake_target must be finite, not nan"):
        TrainConfig(loss="least_squares", fake_target=float("nan"))
    with pytest.raises(ValueError, match=r"real_target must be 1\.0, its default, for loss 'wasserstein', .* not 0\.9"):
        TrainConfig(loss="wasserstein", real_target=0.9)


def test_a_batch_size_that_nobody_chose_is_of_whole_packs() -> None:
    table = Dataset("table", torch.zeros(53, 3))
    assert TrainConfig.for_dataset(load("digits"), "digits", pac=10).batch_size == 120
    assert TrainConfig.for_dataset(table, "table.csv", pac=5).batch_size == 50
    for pac, sentence in ((54, "batch_size must be a multiple of pac=54, not 53"), ("2", "pac must be an integer")):
        with pytest.raises((TypeError, ValueError), match=sentence):
            TrainConfig.for_dataset(table, "table.csv", pac=pac)
    with pytest.raises(ValueError, match="batch_size must be a multiple of pac=10, not 64"):
        TrainConfig.for_dataset(load("digits"), "digits", pac=10, batch_size=64)


def test_refused_for_the_data() -> None:
    ring = load("ring8")
    with pytest.raises(ValueError, match=r"batch_size must be at most 25000, .* in ring8, not 25001"):
        TrainConfig.for_dataset(ring, "ring8", batch_size=25_001)
    plain = Dataset("plain", torch.zeros(200, 3))
    with pytest.raises(ValueError, match="conditional must be False for plain, which has no labels"):
        TrainConfig.for_dataset(plain, "plain", conditional=True)


def test_round_trip_through_toml() -> None:
    config = TrainConfig(g_hidden=(3, 4), d_hidden=(), g_lr=1e-5, conditional=True, data='a "b"\\c')
    text = tomlkit.dumps(config.as_dict())
    assert TrainConfig.from_dict(tomlkit.parse(text).unwrap()) == config
    full = config.with_(clip_grad_norm=0.5, pac=2, loss="hinge", r2_gamma=0.1, instance_noise=0.3)
    assert TrainConfig.from_dict(tomlkit.parse(tomlkit.dumps(full.as_dict())).unwrap()) == full
    values = config.as_dict()
    values["stepz"] = values.pop("steps")
    with pytest.raises(ValueError, match="unknown: stepz"):
        TrainConfig.from_dict(values)
    del values["stepz"]
    with pytest.raises(ValueError, match="missing: steps"):
        TrainConfig.from_dict(values)


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device must be one that this machine has"):
        pick_device("cuda:99")


def test_a_run_that_began_before_some_options_has_them_off() -> None:
    """Any other option that is missing is an error, and so is one of these that is misspelt."""
    config = TrainConfig(steps=7)
    values = {name: value for name, value in config.as_dict().items() if name not in LATER}
    off = [name for name in LATER if getattr(config, name) is None]  # which TOML cannot hold
    assert "clip_grad_norm" in off
    assert len(values) == len(config.as_dict()) - len(LATER) + len(off)
    assert TrainConfig.from_dict(values) == config
    for changed, sentence in (({"packs": 2}, "unknown: packs"), ({"pac": 0}, "pac must be at least 1")):
        with pytest.raises(ValueError, match=sentence):
            TrainConfig.from_dict({**values, **changed})
