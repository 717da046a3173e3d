"""fastgan eval: protocols over seeds, their files, and the measures of any run."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastgan import Trainer, metrics
from fastgan.cli import app
from fastgan.data import load
from fastgan.data.dataset import DataError, from_array
from fastgan.evaluation import measures, running
from fastgan.evaluation import runs as of_runs
from fastgan.evaluation.protocols import PROTOCOLS, pacgan_networks

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"g_hidden": (8,), "d_hidden": (8,), "batch_size": 20}


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


@pytest.mark.deep
def test_a_protocol_writes_all_that_it_found(tmp_path: Path) -> None:
    shown = run("eval", "pacgan-ring8", "--seeds", 2, "--steps", 2, "--processes", 1, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert found["published"] == {"modes": "7.9", "high quality": "0.982"}
    assert list(found["rows"]) == ["stock GAN", running.MIXTURE, running.CEILING, running.FLOOR]
    for row in found["rows"].values():
        assert len(row["seeds"]) == 2
        values = [seed["high quality"] for seed in row["seeds"]]
        assert row["mean"]["high quality"] == pytest.approx(sum(values) / 2, rel=1e-5)
        assert row["standard_error"]["high quality"] == pytest.approx(
            abs(values[0] - values[1]) / 2, rel=1e-4, abs=1e-9
        )
    ceiling = found["rows"][running.CEILING]["mean"]
    assert ceiling["modes"] == 8
    assert ceiling["high quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.005)
    assert ceiling["std ratio"] == pytest.approx(1, abs=0.05)
    assert found["rows"][running.FLOOR]["mean"]["high quality"] < 0.05
    with (tmp_path / "out/results.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    assert {line["row"] for line in lines} == set(found["rows"])
    with Image.open(tmp_path / "out/samples.png") as picture:
        assert picture.size[0] > 800
    assert "published" in shown
    assert "0.982" in shown


@pytest.mark.deep
def test_digits_with_every_baseline() -> None:
    found = {
        title: running.run_seed("digits", title, 0, "", 1, {"steps": 2})[0]
        for title in (running.CEILING, running.FLOOR, running.MIXTURE, "conditional GAN", "GAN")
    }
    assert found[running.CEILING]["precision"] > 0.9
    assert found[running.CEILING]["learned from, SVM"] > 0.9
    assert found[running.FLOOR]["coverage"] < 0.1
    assert found[running.FLOOR]["told apart, random forest"] > 0.95
    assert found[running.MIXTURE]["learned from, SVM"] > 0.8
    assert "learned from, SVM" in found["conditional GAN"]
    assert "learned from, SVM" not in found["GAN"]


@pytest.mark.deep
def test_the_mixture_takes_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load("digits")
    assert digits.labels is not None
    few, labels = digits.samples[:300], digits.labels[:300]
    for of_classes in (None, labels):
        drawn = [measures.mixture_of(few, of_classes, 40, 2, 0.01, seed) for seed in (3, 3, 4)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
    seeds: list[int] = []

    def fit(*arguments: object, seed: int = -1, **named: object) -> Any:
        seeds.append(seed)
        raise RuntimeError("seen")

    monkeypatch.setattr(metrics, "fit_mixture", fit)
    for name in ("digits", "pacgan-ring8"):
        with pytest.raises(RuntimeError, match="seen"):
            running.run_seed(name, running.MIXTURE, 7, "", 1)
    assert seeds == [7, 7]


LARGE = pytest.param("fashion-mnist", marks=pytest.mark.deep)  # which is read three times


@pytest.mark.parametrize("name", [LARGE if name == "fashion-mnist" else name for name in PROTOCOLS])
def test_protocols_hold_out_what_is_measured(name: str) -> None:
    protocol = PROTOCOLS[name]
    if protocol.where and not Path(protocol.where).is_dir():
        with pytest.raises(DataError, match=f"{name} must be there to be evaluated; name its folder with --data"):
            protocol.build(0, protocol.where)
        return
    known, held_out = protocol.build(0, protocol.where)
    assert len(held_out) >= 600
    assert not torch.equal(known.samples[:50], protocol.build(1, protocol.where)[0].samples[:50])
    assert torch.equal(known.samples[:50], protocol.build(0, protocol.where)[0].samples[:50])
    if known.modes is not None:
        assert (len(known), len(held_out)) == (100_000, 2500)
        assert len(known.modes.unique(dim=0)) == known.num_classes  # no mode is there twice
    else:
        joined = torch.cat([known.samples, held_out.samples])
        assert len(joined) == {"digits": 1797, "fashion-mnist": 60_000}[name]


def test_the_published_networks() -> None:
    generator, discriminator = pacgan_networks()
    assert discriminator(generator(torch.randn(100, 2))).shape == (100, 1)
    assert sum(isinstance(module, torch.nn.BatchNorm1d) for module in generator) == 4
    found, samples = running.run_seed("pacgan-ring8", "published networks, plain loss", 0, "", 1, {"steps": 2})
    assert samples.shape == (2500, 2)
    assert 0 <= found["modes"] <= 8


@pytest.mark.deep
def test_runs_of_every_kind(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    ring = Trainer("ring8", steps=2, runs=runs, **SMALL).train(quiet=True)
    shown = run("eval", ring, "--number", 500, "--out", tmp_path / "ring.json")
    found = json.loads((tmp_path / "ring.json").read_text(encoding="utf-8"))
    assert found["real"]["modes"] == 8
    assert found["samples"] == 500
    assert "half of ring8, which the run has learned from" in shown
    digits = Trainer("digits", steps=2, runs=runs, **SMALL).train(quiet=True)
    pixels = load("digits").unscale(load("digits").samples[:300]).reshape(-1, 8, 8).numpy().astype(np.float32)
    np.save(tmp_path / "other.npy", pixels)
    shown = run("eval", digits, "--holdout", tmp_path / "other.npy", "--number", 200)
    assert "other.npy, which the run has not seen" in shown
    assert "told apart, SVM" in shown


def test_refused(tmp_path: Path) -> None:
    for words, sentence in (
        (("pacgan-ring8", "--number", 5), "number must be given for a run alone, not for the protocol pacgan-ring8"),
        (("nowhere", "--seeds", 5), "seeds must be given for a protocol (pacgan-ring8, pacgan-grid25,"),
        (("pacgan-ring8", "--seeds", 0), "seeds must be at least 1, not 0"),
        (("pacgan-ring8", "--entrant", "x"), "entrant must be one of stock GAN, published networks, plain loss for"),
        (("fashion-mnist", "--data", tmp_path), "fashion-mnist must be there to be evaluated"),
        (("nowhere",), "run must be a run folder or the number of one in runs, not 'nowhere'"),
    ):
        result = CliRunner().invoke(app, ["eval", *map(str, words)])
        assert result.exit_code == 2, words
        assert sentence in " ".join(result.output.split()), (words, result.output)


def test_mean_and_error() -> None:
    assert measures.mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    mean, error = measures.mean_and_error([5.0])
    assert mean == 5
    assert math.isnan(error)


def test_images_are_rounded_to_the_levels_of_the_data() -> None:
    digits = load("digits")
    assert torch.equal(measures.on_levels(digits.samples, digits), digits.samples)
    rounded = measures.on_levels(torch.linspace(-1.1, 1.1, 999)[:, None].repeat(1, 64), digits)
    assert len(rounded.unique()) == 17


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_images_of_bytes_keep_their_levels(levels: int) -> None:
    grey = (np.arange(levels) * (255 // (levels - 1))).astype(np.uint8)
    pictures = from_array(np.random.default_rng(0).choice(grey, (200, 4, 4)), None, "x", "x")
    assert torch.equal(measures.on_levels(pictures.samples, pictures), pictures.samples)
    between = (pictures.samples + 0.2 / (levels - 1)).clamp(-1, 1)
    assert torch.equal(measures.on_levels(between, pictures), pictures.samples)
    assert bool(measures.on_levels(torch.full((1, 16), math.nan), pictures).isnan().all())


def test_images_of_real_numbers_stay_as_they_are() -> None:
    pictures = from_array(np.random.default_rng(0).random((60, 4, 4)), None, "x", "x")
    samples = torch.rand(10, 16)
    assert torch.equal(measures.on_levels(samples, pictures), samples)


def test_classes_are_drawn_in_the_shares_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images of which nine in ten are of one class, so are the generated ones that are measured."""
    monkeypatch.chdir(tmp_path)
    labels = np.arange(200) % 10 == 0
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4)).astype(np.uint8)
    np.savez("x.npz", samples=images, labels=labels.astype(np.int64))
    Trainer("x.npz", steps=2, g_hidden=(8,), d_hidden=(8,), batch_size=16, conditional=True).train(quiet=True)
    seen: list[torch.Tensor] = []

    def look(points: torch.Tensor, of_points: torch.Tensor, *others: object) -> dict[str, float]:
        seen.append(of_points)
        return {}

    monkeypatch.setattr(measures, "of_data", look)
    of_runs.measure_run(None, seed=3)
    generated, real = seen
    assert len(generated) == len(real) == 100
    assert generated.bincount(minlength=2).tolist() == real.bincount(minlength=2).tolist()


SLOW = """
import signal
from fastgan.evaluation import running
from fastgan.cli import app

def slow(name, title, seed, *others):
    open(f"{title}-{seed}", "w").close()
    while True:
        signal.pause()  # it never ends by itself

running.run_seed = slow
if __name__ == "__main__":
    app(["eval", "pacgan-ring8", "--seeds", "9", "--processes", "2"])
"""


@pytest.mark.deep
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_protocol_that_is_stopped_leaves_nothing_running(number: int, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "slow.py"]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    started = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    begun = lambda: list(tmp_path.glob("*-[0-9]"))  # noqa: E731
    children: list[int] = []
    try:
        assert waited(lambda: len(begun()) == 2), started.stderr
        children = running_below(started.pid)
        assert len(children) >= 2
        started.send_signal(number)
        started.wait(300)
        assert waited(lambda: not any(is_alive(child) for child in children))
        assert len(begun()) == 2
    finally:
        for process in filter(is_alive, (started.pid, *children)):
            os.kill(process, signal.SIGKILL)


def waited(is_so: Callable[[], bool], seconds: float = 300) -> bool:
    end = time.monotonic() + seconds
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def running_below(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
