"""The trainer from Python: run folders, exact resumption, divergence, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fastgan
from fastgan import reference
from fastgan.data import DataError, Dataset, load
from fastgan.trainer import Trainer
from fastgan.training import pictures
from fastgan.training.checkpoint import CheckpointError, complete_checkpoints
from fastgan.training.config import LATER, TrainConfig
from fastgan.training.finite import NonFiniteError
from fastgan.training.run_folder import RunFolder

SMALL: dict[str, Any] = {
    "g_hidden": (16,),
    "d_hidden": (16,),
    "latent_size": 4,
    "batch_size": 32,
    "log_every": 4,
}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(data: Any = "digits", **options: Any) -> Trainer:
    return Trainer(data, **{**SMALL, **options})


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that training leaves behind, as tensors."""
    found = {}
    for key in ("generator", "discriminator", "ema"):
        module = getattr(trainer, key)
        found.update({f"{key}.{name}": value for name, value in (module.state_dict() if module else {}).items()})
    for key in ("g_optimizer", "d_optimizer"):
        for index, values in getattr(trainer, key).state_dict()["state"].items():
            found.update({f"{key}.{index}.{name}": torch.as_tensor(value) for name, value in values.items()})
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_its_folder() -> None:
    trainer = small(steps=10, sample_every=5, checkpoint_every=5)
    path = trainer.train(quiet=True)
    assert path == Path("runs/00000-digits")
    assert sorted(tree(path)) == sorted(
        [
            "config.toml",
            "dataset.json",
            "log.txt",
            "loss.png",
            "metrics.jsonl",
            *(f"samples/{name}.png" for name in ("real", "fakes_step_0", "fakes_step_5", "fakes_step_10")),
            *(
                f"checkpoints/step_{step}/{name}"
                for step in (0, 5, 10)
                for name in (
                    "checkpoint.json",
                    "discriminator.safetensors",
                    "ema.safetensors",
                    "generator.safetensors",
                    "optimizers.safetensors",
                    "random.safetensors",
                )
            ),
        ]
    )
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 5, 8, 10]
    assert set(rows[0]) == {"step", "seconds", "samples_per_second", *fastgan.StepStats._fields}
    assert Image.open(path / "samples/real.png").size == (604, 604)
    assert "step     10  D loss" in (path / "log.txt").read_text()
    assert small(steps=1).train(quiet=True).name == "00001-digits"
    assert small("ring8", steps=1, log_every=1).train(quiet=True).name == "00002-ring8"


def test_every_option_has_its_place_in_the_run_folder() -> None:
    """Those that have no value are named too; a run begun without the newer ones can be resumed."""
    given = {"loss": "least_squares", "real_target": 1.5, "pac": 2, "gp_center": 0.0, "instance_noise_steps": 9}
    path = small(steps=2, **given).train(quiet=True)
    text = (path / "config.toml").read_text()
    for each in dataclasses.fields(TrainConfig):
        assert re.search(rf"^(# )?{each.name} (=|is off)", text, re.M), each.name
    assert "# clip_grad_norm is off\n" in text
    assert "\nreal_target = 1.5\n" in text
    path = small(steps=2).train(quiet=True)
    lines = (path / "config.toml").read_text().splitlines(keepends=True)
    (path / "config.toml").write_text("".join(x for x in lines if x.split(" = ")[0] not in LATER))
    resumed = Trainer.resume(path, steps=3)
    assert (resumed.config.pac, resumed.config.clip_grad_norm) == (1, None)
    resumed.train(quiet=True)


@pytest.mark.parametrize("loss", reference.GAN_LOSSES)
def test_each_loss_trains_and_draws(loss: str) -> None:
    """Scores of a critic are no probabilities: the plot of the losses must take any."""
    trainer = small("ring8", steps=4, loss=loss, r1_gamma=0.1)
    assert (trainer.train(quiet=True) / "loss.png").is_file()
    assert trainer.train_step.loss == loss


def test_runs_that_begin_at_once_get_numbers_of_their_own() -> None:
    config, facts = small().config, load("digits").describe()
    with ThreadPoolExecutor(8) as pool:
        names = ("digits", "ring8") * 12
        runs = list(pool.map(lambda name: RunFolder.create(config, name, facts).path.name, names))
    assert sorted(int(name[:5]) for name in runs) == list(range(24))


def test_checkpoints_are_pruned() -> None:
    path = small(steps=12, checkpoint_every=2, keep_checkpoints=2, keep_best=False).train(quiet=True)
    assert [found.name for found in complete_checkpoints(path / "checkpoints")] == ["step_10", "step_12"]


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("digits", {"conditional": False, "r1_gamma": 0.0, "ema": False}),
        ("digits", {"conditional": True, "r1_gamma": 0.5, "r1_every": 3}),
        ("ring8", {"d_steps": 2, "reuse_fake": False, "loss": "minimax", "real_target": 0.9}),
        ("digits", {"batch_size": 1000, "precision": "bf16"}),
        (
            "digits",
            {"loss": "relativistic", "r2_gamma": 0.5, "r1_every": 3, "pac": 2, "clip_grad_norm": 0.5},
        ),
        ("ring8", {"loss": "wasserstein", "gp_weight": 1.0, "instance_noise": 0.5, "instance_noise_steps": 15}),
    ],
)
def test_resume_is_exact(data: str, options: dict[str, Any]) -> None:
    """N steps, a resumption and N steps give the very bits of 2 N steps, amid an epoch, a period of the lazy penalties
    and the fall of the noise."""
    whole = small(data, steps=22, runs="whole", **options)
    whole.train(quiet=True)
    path = small(data, steps=11, runs="halves", **options).train(quiet=True)
    resumed = Trainer.resume(path, steps=22)
    assert resumed.step == 11
    resumed.train(quiet=True)
    expected, found = state(whole), state(resumed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert resumed.run.read_config().steps == 22
    picture = "samples/fakes_step_22.png"
    assert (path / picture).read_bytes() == (whole.run.path / picture).read_bytes()


def test_resume_with_own_modules_and_optimizers() -> None:
    """A network with buffers and dropout, another optimizer, and data that came from no file."""

    def parts() -> dict[str, Any]:
        torch.manual_seed(1)
        generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        discriminator = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.3), nn.LeakyReLU(), nn.Linear(16, 1))
        return {
            "generator": generator,
            "discriminator": discriminator,
            "g_optimizer": torch.optim.RMSprop(generator.parameters(), lr=1e-3, momentum=0.5),
            "d_optimizer": torch.optim.SGD(discriminator.parameters(), lr=1e-2, momentum=0.9),
        }

    dataset = Dataset("points", torch.rand(100, 3) * 2 - 1)
    whole = Trainer(dataset, **SMALL, **parts(), steps=14, runs="whole")
    whole.train(quiet=True)
    path = Trainer(dataset, **SMALL, **parts(), steps=7, runs="halves").train(quiet=True)
    with pytest.raises(CheckpointError, match=r"generator.safetensors: the tensor 0.weight|lacks the tensor"):
        Trainer.resume(path, steps=14, dataset=dataset)
    resumed = Trainer.resume(path, steps=14, dataset=dataset, **parts())
    resumed.train(quiet=True)
    for name, value in state(whole).items():
        assert torch.equal(state(resumed)[name], value), name


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    """The optimizers of a checkpoint are looked at before the networks are loaded."""
    path = small(steps=3).train(quiet=True) / "checkpoints/step_3"

    def with_another() -> Trainer:
        generator = small().generator
        return small(generator=generator, g_optimizer=torch.optim.SGD(list(generator.parameters())[:1], lr=0.1))

    other = with_another()
    before = {name: value.clone() for name, value in state(other).items()}
    with pytest.raises(CheckpointError, match=r"g_optimizer has \[4\] parameters in its groups, .* needs \[1\]"):
        other.state.load(path)
    assert all(torch.equal(value, state(other)[name]) for name, value in before.items())
    assert (other.step, other.state.seconds, other.train_step.steps_done) == (0, 0.0, 0)
    other = small()
    other.state.load(path)
    assert (other.step, other.train_step.steps_done) == (3, 3)
    assert other.state.networks.keys() == {"generator", "discriminator", "ema"}


def test_the_seed_decides_and_the_caller_keeps_its_own() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = small(steps=3, seed=1, runs="one")
    one.train(quiet=True)
    assert torch.equal(torch.rand(3), expected)
    torch.rand(7)
    two = small(steps=3, seed=1, runs="two")
    two.train(quiet=True)
    three = small(steps=3, seed=2, runs="three")
    assert all(torch.equal(a, b) for a, b in zip(state(one).values(), state(two).values(), strict=True))
    assert not torch.equal(three.generator[0].weight, small(seed=1).generator[0].weight)


def test_metrics_stay_monotonic_after_a_crash() -> None:
    path = small(steps=8, checkpoint_every=6, log_every=2).train(quiet=True)
    for found in complete_checkpoints(path / "checkpoints")[-1:]:
        found.rename(found.with_name(".step_8.writing"))  # as if the process had died while writing it
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "d_lo')
    trainer = Trainer.resume(path)
    assert trainer.step == 6
    before = tree(path)
    trainer.train(quiet=True)
    steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]
    assert len(before) > 0
    assert not list((path / "checkpoints").glob(".*"))


def test_labels_reach_the_networks() -> None:
    trainer = small(steps=1)
    assert trainer.generator[0].in_features == 4 + 10
    assert trainer.sample(3, label=7).shape == (3, 64)
    with pytest.raises(ValueError, match=r"label must be in \[0, 9\], not 10"):
        trainer.sample(3, label=10)
    with pytest.raises(ValueError, match="not conditional"):
        small(conditional=False).sample(3, label=1)
    with pytest.raises(ValueError, match="count must be at least 1"):
        trainer.sample(0)


def test_samples_come_from_the_average() -> None:
    trainer = small(steps=6, ema_decay=0.5)
    trainer.train(quiet=True)
    before = trainer.sample(5)
    with torch.no_grad():
        trainer.generator[0].weight.zero_()
    assert torch.equal(trainer.sample(5), before)
    with torch.no_grad():
        trainer.ema[0].weight.zero_()
    assert not torch.equal(trainer.sample(5), before)


@pytest.mark.parametrize("lr", ["g_lr", "d_lr"])
def test_divergence_keeps_the_last_good_checkpoint(lr: str) -> None:
    trainer = small(steps=40, checkpoint_every=10, **{lr: 1e38})
    with pytest.raises(NonFiniteError) as caught:
        trainer.train(quiet=True)
    path = Path("runs/00000-digits")
    message = str(caught.value)
    assert "training stopped at step " in message
    assert "weight" in message or "bias" in message
    assert "generator" in message or "discriminator" in message
    assert str(path / "checkpoints/step_0") in message
    assert message in (path / "log.txt").read_text()
    (kept,) = complete_checkpoints(path / "checkpoints")
    assert Trainer.resume(path).step == 0
    for file in kept.glob("*tor.safetensors"):
        assert b"nan" not in file.read_bytes()


def test_divergence_names_step_network_and_tensor() -> None:
    trainer = small(steps=40, log_every=10)
    take_step = trainer.train_step.step

    def poisoned(*args: Any) -> Any:
        stats = take_step(*args)
        if trainer.step == 6:
            with torch.no_grad():
                trainer.discriminator[2].bias.fill_(float("inf"))
        return stats

    trainer.train_step.step = poisoned
    with pytest.raises(NonFiniteError, match=r"step 8: the discriminator's d_loss became (inf|nan); .* tensor"):
        trainer.train(quiet=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 2000}, "batch_size must be at most 1797"),
        ({"g_lr": 0.0}, "g_lr must be finite and greater than 0"),
        ({"real_target": 1.5}, "real_target must be in"),
        ({"latent_size": 0}, "latent_size must be at least 1"),
        ({"device": "cuda:77"}, "device must be one that this machine has"),
        ({"bogus": 1}, "bogus is no option"),
        ({"g_optimizer": object()}, "g_optimizer must come with the network"),
        ({"seed": "x"}, "seed must be an integer"),
    ],
)
def test_refused_before_anything_is_written(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        small(**options)
    assert not Path("runs").exists()


def test_a_failure_before_the_first_step_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small(steps=5)
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "save_samples", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.train(quiet=True)
    assert not Path("runs").exists()
    generator = nn.Linear(4, 3)
    with pytest.raises((RuntimeError, ValueError)):
        small(Dataset("x", torch.zeros(64, 5)), generator=generator).train(quiet=True)
    assert not Path("runs").exists()


def test_resume_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="runs holds no run"):
        Trainer.resume()
    np.save("points.npy", np.random.default_rng(0).normal(size=(64, 2)))
    path = small("points.npy", steps=6).train(quiet=True)
    assert RunFolder.find("0").path == RunFolder.find(None).path == path
    before = tree(path)
    with pytest.raises(CheckpointError, match=r"run must be a run folder or the number of one in runs, not '7'"):
        Trainer.resume("7")
    with pytest.raises(ValueError, match="steps must be at least 6, which the run has done, not 5"):
        Trainer.resume(path, steps=5)
    (path / "config.toml").write_text((path / "config.toml").read_text().replace("g_hidden = [16]", "g_hidden = [17]"))
    with pytest.raises(CheckpointError, match=r"config.toml was changed since .*: g_hidden was 16 and is 17\. Put"):
        Trainer.resume(path)
    for text in ("steps = ", "steps = 3\n", before["config.toml"].decode().replace("loss = ", "lost = ")):
        (path / "config.toml").write_text(text)
        with pytest.raises(CheckpointError, match=r"config.toml cannot be used"):
            Trainer.resume(path)
    (path / "config.toml").write_bytes(before["config.toml"])
    assert tree(path) == before
    np.save("points.npy", np.random.default_rng(1).normal(size=(64, 2)))
    with pytest.raises(DataError, match="it has changed"):
        Trainer.resume(path)
    assert tree(path) == before


def test_interrupt_saves_and_resumes_exactly() -> None:
    whole = small(steps=12, runs="whole")
    whole.train(quiet=True)
    trainer = small(steps=12)
    take_step = trainer.train_step.step

    def interrupted(*args: Any) -> Any:
        if trainer.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(*args)

    trainer.train_step.step = interrupted
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    with pytest.raises(KeyboardInterrupt):
        trainer.train(quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    assert "fastgan resume runs/00000-digits" in (trainer.run.path / "log.txt").read_text()
    resumed = Trainer.resume()
    assert resumed.step == 6
    resumed.train(quiet=True)
    for name, value in state(whole).items():
        assert torch.equal(state(resumed)[name], value), name


def test_whole_config_and_dataset() -> None:
    config = dataclasses.replace(small(steps=2).config, runs="other")
    trainer = Trainer(config)
    assert trainer.train(quiet=True) == Path("other/00000-digits")
    with pytest.raises(TypeError, match="inside the TrainConfig"):
        Trainer(config, steps=3)
    assert small(load("grid25"), steps=1).train(quiet=True).name.endswith("-grid25")


def test_pictures(tmp_path: Path) -> None:
    grid = pictures.image_grid(torch.linspace(-1, 1, 3 * 12).reshape(3, 12), (2, 2, 3), columns=2)
    assert grid.mode == "RGB"
    assert grid.size == (2 * 56 + 3 * 4, 2 * 56 + 3 * 4)
    assert grid.getpixel((4, 4)) == (0, 7, 15)
    for width in (1, 2, 5):
        pictures.save_points(torch.randn(20, width), tmp_path / "points.png", torch.randn(20, width))
        assert Image.open(tmp_path / "points.png").size == (500, 500)
