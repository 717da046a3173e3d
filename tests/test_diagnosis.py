"""Each fault of training is provoked and told in one line, once; a healthy run has none. The page of a run."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from extent import extent
from torch import Tensor
from typer.testing import CliRunner

from fastgan.cli import app
from fastgan.trainer import CheckpointError, NonFiniteError, Trainer
from fastgan.training.config import TrainConfig
from fastgan.training.diagnosis import Diagnosis, gradient_of
from fastgan.training.diversity import diversity_of, modes_reached
from fastgan.training.replay import replay

SMALL: dict[str, Any] = {
    "loss": "non_saturating",
    "g_hidden": (16,),
    "d_hidden": (32, 32),
    "batch_size": 64,
    "log_every": 50,
    "sample_every": 250,
}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def single(one_thread: None) -> None:
    """One thread for all."""


def warned(**options: Any) -> dict[str, dict[str, Any]]:
    """The warnings of a run on ring8, by kind; each is one line of log.txt."""
    trainer = Trainer("ring8", **{**SMALL, "keep_best": False, **options})
    path = trainer.train(quiet=True)
    lines = [line for line in (path / "log.txt").read_text().splitlines() if line.startswith("warning: ")]
    assert lines == [f"warning: {each['text']}" for each in trainer.diagnosis.warnings]
    assert all(re.search(r", since step \d+; try ", line) for line in lines)
    found = {each["kind"]: each for each in trainer.diagnosis.warnings}
    assert len(found) == len(lines)  # each once
    return found


def test_a_saturated_discriminator_and_a_vanished_gradient() -> None:
    """A generator that hardly moves, before a quick discriminator, with the loss that saturates."""
    found = warned(steps=600, loss="minimax", d_lr=5e-2, g_lr=1e-7, log_every=10)
    assert found["saturated"]["text"].startswith("the discriminator is saturated: its loss is ")
    assert "--real-target 0.9" in found["saturated"]["text"]
    assert found["vanished"]["text"].startswith("the generator's gradient has vanished: its norm is ")
    assert "try --loss non_saturating" in found["vanished"]["text"]
    assert found["vanished"]["step"] > found["saturated"]["step"]


def test_a_learning_rate_that_is_too_high() -> None:
    """Training oscillates, and the generator ends in a point."""
    found = warned(steps=1750, g_lr=0.1, d_lr=0.1)
    assert found["swings"]["text"].startswith("training oscillates: ")
    assert "smaller --g-lr and --d-lr" in found["swings"]["text"]
    assert found["collapsed"]["text"].startswith("the generator has collapsed: samples ")
    assert "--pac 10" in found["collapsed"]["text"]


def test_a_generator_that_is_collapsed() -> None:
    """One that gives a point, whatever its noise is, on data that has no known modes."""
    trainer = Trainer("digits", **{**SMALL, "steps": 800, "sample_every": 100, "g_lr": 1e-9, "conditional": False})
    with torch.no_grad():
        trainer.generator[0].weight.zero_()
    trainer.train(quiet=True)
    (warning,) = [each for each in trainer.diagnosis.warnings if each["kind"] == "collapsed"]
    assert warning["text"].startswith(
        "the generator has collapsed: samples lie 0% as far from each other as the data's"
    )
    assert "since step 100;" in warning["text"]
    assert warning["step"] == 600


@pytest.mark.parametrize(
    "loss", ["non_saturating", *(pytest.param(loss, marks=pytest.mark.deep) for loss in ("relativistic", "hinge"))]
)
def test_a_healthy_run_has_no_warning(loss: str) -> None:
    options = {"g_hidden": (64, 64), "d_hidden": (64, 64), "sample_every": 100}
    assert warned(steps=1000, loss=loss, **options) == {}


HEALTHY = [("digits", extent(800, full=2000)), ("ring8", extent(1200, full=5000)), ("grid25", extent(800, full=3000))]


@pytest.mark.deep
@pytest.mark.parametrize(("data", "steps"), HEALTHY)
def test_healthy_runs_with_the_defaults_have_no_warning(data: str, steps: int) -> None:
    trainer = Trainer(data, steps=steps)
    trainer.train(quiet=True)
    assert trainer.diagnosis.warnings == []


def readings(loss: float, count: int = 10) -> Tensor:
    """Statistics of steps with a discriminator's loss."""
    return torch.tensor([[loss, 0.7, 0.5, 0.5]], dtype=torch.float64).repeat(count, 1)


def look(diagnosis: Diagnosis, losses: list[float], every: int = 100) -> list[str]:
    found = []
    for i, loss in enumerate(losses, 1):
        found += diagnosis.look(i * every, readings(loss, every))
    return found


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**{"data": "ring8", **options})


@pytest.mark.parametrize(
    ("options", "sure", "healthy"),
    [
        ({}, 0.01, 0.3),
        ({"real_target": 0.9}, 0.33, 0.6),  # the entropy of 0.9 is 0.325
        ({"loss": "relativistic"}, 0.005, 0.3),
        ({"loss": "hinge"}, 0.01, 1.0),
        ({"loss": "least_squares"}, 0.002, 0.1),
    ],
)
def test_saturation_is_told_by_each_loss(options: dict[str, Any], sure: float, healthy: float) -> None:
    assert look(Diagnosis(config(**options)), [healthy] * 20) == []
    (line,) = look(Diagnosis(config(**options)), [healthy] * 3 + [sure] * 20)
    assert line.startswith("warning: the discriminator is saturated")
    assert "since step 301;" in line
    assert look(Diagnosis(config(**options)), [sure] * 4 + [healthy] + [sure] * 4) == []
    assert look(Diagnosis(config(loss="wasserstein")), [0.0] * 20) == []  # whose loss has no bounds


def test_oscillation_from_reading_to_reading() -> None:
    (line,) = look(Diagnosis(config()), [0.4, 2.0] * 10)
    assert "goes up and down between 29% and 144%" in line
    assert look(Diagnosis(config()), [2.0] * 5 + [0.6] * 15) == []  # that is a fall, not an oscillation


def test_what_it_knows_goes_on_with_the_run() -> None:
    """The same warnings at the same steps, where the state was kept between any two readings."""
    losses = [1.0] * 3 + [0.01] * 8 + [0.4, 2.0] * 8
    whole, parts = Diagnosis(config()), Diagnosis(config())
    expected = look(whole, losses)
    found: list[str] = []
    for i, loss in enumerate(losses, 1):
        found += parts.look(i * 100, readings(loss, 100))
        state = json.loads(json.dumps(parts.state()))
        parts = Diagnosis(config())
        parts.load(state)
    assert found == expected
    assert parts.warnings == whole.warnings
    assert len(found) == 2


def test_a_resumed_run_does_not_warn_again() -> None:
    options = {**SMALL, "keep_best": False, "steps": 400, "g_lr": 1e-7, "d_lr": 5e-2, "log_every": 10}
    path = Trainer("ring8", **options).train(quiet=True)
    Trainer.resume(path, steps=500).train(quiet=True)
    text = (path / "log.txt").read_text()
    assert text.count("the discriminator is saturated") == 1


def test_diversity() -> None:
    points = torch.randn(200, 4)
    whole = diversity_of(points)
    assert diversity_of(points[:1]) != diversity_of(points[:1])  # NaN
    assert diversity_of(points[:1].repeat(200, 1)) == 0
    assert diversity_of(points[:10].repeat(20, 1)) == 0  # ten points, again and again
    assert 1.9 < diversity_of(2 * points) / whole < 2.1
    # Two classes that are points far apart: within a class there is nothing.
    classes = torch.tensor([[0.0], [9.0]]).repeat(50, 1)
    assert diversity_of(classes, classes=2) == 0
    modes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    assert modes_reached(torch.tensor([[0.02, 0.0], [0.97, 0.0], [3.0, 3.0]]), modes, 0.01) == 2


def test_the_norm_of_the_gradient() -> None:
    network = torch.nn.Linear(3, 2)
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    assert gradient_of(sgd, network) is None
    network(torch.ones(1, 3)).sum().backward()
    expected = torch.cat([each.grad.flatten() for each in network.parameters()]).norm()
    assert gradient_of(sgd, network) == expected
    adam = torch.optim.Adam(network.parameters(), betas=(0.5, 0.9))
    adam.step()
    assert gradient_of(adam, network) == expected / 2  # the mean, after one step with beta1 = 1/2


# A value that is not finite.


@pytest.mark.parametrize(("options", "shape"), [({}, (64, 2)), ({"loss": "relativistic"}, (3, 64, 2))])
def test_the_step_that_fails_is_kept_and_taken_again(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Also where the data is scaled, the learning rate falls, and D takes several steps, as with the mixtures' loss."""
    trainer = Trainer("ring8", **{**SMALL, **options, "steps": 60, "g_lr": 1e38, "report": True})
    with pytest.raises(NonFiniteError) as caught:
        trainer.train(quiet=True)
    path = trainer.run.path
    message = str(caught.value)
    assert re.search(r"it began at the generator's layer 0, Linear\(in_features=2, .*values of its output", message)
    assert f"fastgan replay {path}" in message
    (dump,) = (path / "failure").iterdir()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    result = CliRunner().invoke(app, ["replay", "0"])
    assert result.exit_code == 0, result.stderr
    first, forward, after = result.output.splitlines()
    step = int(dump.name.removeprefix("step_")) + 1
    assert first.startswith(f"{dump}: the state before step {step}, and its batch, {shape}")
    assert forward.startswith("on the way forward: the generator's layer 0")
    assert after.startswith(f"after the step: step {step}: the discriminator's d_loss became ")
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert "training stopped at step" in (path / "report.html").read_text()


def test_the_step_that_fails_amid_a_run() -> None:
    """It is found by going the same way again from the newest checkpoint, whose state is finite."""
    trainer = Trainer("ring8", **{**SMALL, "steps": 60, "checkpoint_every": 20})
    take_step = trainer.train_step.step

    def poisoned(*arguments: Any) -> Any:
        stats = take_step(*arguments)
        if trainer.step == 36:
            with torch.no_grad():
                trainer.discriminator[2].bias[3] = float("inf")
        return stats

    trainer.train_step.step = poisoned
    with pytest.raises(NonFiniteError, match=r"it began at step 37 made it: .* of the discriminator's tensor 2.bias"):
        trainer.train(quiet=True)
    (dump,) = (trainer.run.path / "failure").iterdir()
    assert dump.name == "step_36"
    healthy = Trainer("ring8", **{**SMALL, "steps": 1}).train(quiet=True)
    with pytest.raises(CheckpointError, match="the run was not stopped at a value that is not finite"):
        replay(healthy)


# The page.


class Page(HTMLParser):
    """What a page holds, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("data", ["ring8", pytest.param("digits", marks=pytest.mark.deep)])
def test_the_page_of_a_run(data: str) -> None:
    options = ["--steps", "40", "--g-hidden", "16", "--d-hidden", "16", "--log-every", "5", "--sample-every", "4"]
    words = ["train", data, "--report", "--checkpoint-every", "10", "--d-lr", "0.002", *options]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"The run on one page: runs/00000-{data}/report.html" in result.output
    page = Page(Path(f"runs/00000-{data}/report.html").read_text())
    assert all(source.startswith("data:") for source in page.sources)
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    kinds = [source.partition(";")[0] for source in page.sources if source != "data:,"]
    # The losses and the distance; the data, and six of the eleven pictures over time.
    assert kinds == ["data:image/svg+xml"] * 2 + ["data:image/png"] * 7
    for source in page.sources[1:]:
        content = base64.b64decode(source.partition(",")[2])
        assert content.startswith(b"\x89PNG") or b"<svg" in content
    for words_of_page in ("None: no fault", "40 of 40 steps", "smallest distance to the data", "Step 0", "Step 40"):
        assert words_of_page in page.text
    assert "0.002" in page.text
    assert page.tags.count("h2") == 5


def test_names_of_the_data_are_text() -> None:
    """A path may hold what HTML would take for its own."""
    import numpy as np

    Path("<img src=x>&").mkdir()
    np.save("<img src=x>&/points.npy", np.random.default_rng(0).normal(size=(64, 2)))
    trainer = Trainer("<img src=x>&/points.npy", **{**SMALL, "steps": 2, "report": True})
    page = Page((trainer.train(quiet=True) / "report.html").read_text())
    assert all(source.startswith("data:") for source in page.sources)
    assert "<img src=x>&/points.npy" in page.text
