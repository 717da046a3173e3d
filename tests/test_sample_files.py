"""Samples of a run drawn and written a part at a time: the same as at once, whole or not at all, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extent import rest
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import fastgan
from fastgan.cli import app
from fastgan.data import load
from fastgan.training import sample_files, sampling
from fastgan.training.run_samples import open_run, sample_run

pytestmark = pytest.mark.above_kernels

SMALL: dict[str, Any] = {"steps": 4, "g_hidden": (12,), "d_hidden": (8,), "ema_decay": 0.5, "log_every": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("samples")
    rows = "".join(f"{i * 7 % 50},{(i * i) % 97 + 0.5},{'äbc'[i % 3]}x\n" for i in range(120))
    (folder / "x.csv").write_text("age,pay,job\n" + rows, encoding="utf-16")
    data: dict[str, Any] = {"digits": "digits", "points": "ring8", "table": folder / "x.csv"}
    more: dict[str, dict[str, Any]] = {"table": {"batch_size": 20}}
    return {
        name: fastgan.Trainer(source, **{**SMALL, **more.get(name, {})}, runs=str(folder / "runs")).train(quiet=True)
        for name, source in data.items()
    }


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


class Looks(nn.Module):
    """A generator that keeps what it is given, and gives back its draws."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, input: Tensor) -> Tensor:
        self.seen.append(input)
        return torch.rand(len(input), 3)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 96, 100, 250])
@pytest.mark.parametrize("name", ["digits", "points", "table"])
def test_parts_have_the_inputs_and_draws_of_all_at_once(
    name: str, count: int, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, so that a seed means the same samples however many are drawn at a time."""
    opened = open_run(runs[name])
    known = {"num_classes": opened.num_classes, "labels": opened.labels, "table": opened.table, "seed": 7}
    found = []
    for rows in (2**13, 32):
        monkeypatch.setattr(sampling, "_ROWS_AT_A_TIME", rows)
        generator = Looks()
        before = torch.get_rng_state()
        parts = list(sampling.drawn(generator, opened.config, count, **known))
        assert torch.equal(torch.get_rng_state(), before)
        assert len(parts) == len(generator.seen) == (1 if rows > count else max(1, len(generator.seen)))
        assert rows > count or max(map(len, generator.seen)) <= rows + 16
        labels = [] if parts[0].labels is None else [torch.cat([part.labels for part in parts])]
        found.append([torch.cat(generator.seen), torch.cat([part.samples for part in parts]), *labels])
    for whole, in_parts in zip(*found, strict=True):
        assert torch.equal(whole, in_parts)
        assert len(whole) == count


def test_a_walk(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row begins at a sample, the next row ends it, and the steps along a circle are of one length."""
    opened = open_run(runs["digits"])
    monkeypatch.setattr(sampling, "_ROWS_AT_A_TIME", 32)
    generator = Looks()
    known = {"num_classes": 10, "labels": opened.labels, "seed": 3}
    parts = list(sampling.walk(generator, opened.config, 50, 4, **known))
    assert sum(len(part.samples) for part in parts) == 200
    steps = [torch.cat(generator.seen[frame::4]).double() for frame in range(4)]
    plain = Looks()
    sampling.draw(plain, opened.config, 50, **known)
    starts = torch.cat(plain.seen).double()
    assert torch.equal(steps[0], starts)
    ends = starts.roll(-1, dims=0)
    for frame, found in enumerate(steps):
        share = frame / 4
        latents, condition = found[:, :64], found[:, 64:]
        assert torch.equal(condition, ((1 - share) * starts + share * ends)[:, 64:])  # quarters of ones are exact
        a, b = starts[:, :64], ends[:, :64]
        angle = (nn.functional.normalize(a, dim=1) * nn.functional.normalize(b, dim=1)).sum(1, keepdim=True).acos()
        on_circle = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
        rounding = torch.finfo(torch.float32).eps * on_circle.abs().max()
        assert (latents - on_circle).abs().max() <= rounding  # computed in float64, and rounded to float32
    samples, _ = sample_run(runs["digits"], 50, seed=3)
    walked = torch.cat([part.samples for part in opened.walk(50, 4, seed=3)])
    assert torch.equal(walked[::4], samples)


def test_a_walk_through_a_table_keeps_the_draws_of_a_row(runs: dict[str, Path]) -> None:
    opened = open_run(runs["table"])
    walked = torch.cat([part.samples for part in opened.walk(6, 3, label=1, seed=2)])
    assert torch.equal(walked[::3], sample_run(runs["table"], 6, label=1, seed=2)[0])


@pytest.mark.parametrize("name", ["digits", "points", "table"])
def test_the_scale_of_latents(name: str, runs: dict[str, Path]) -> None:
    """It multiplies latents, and leaves conditions, classes and draws as they are; of a walk it scales the circle."""
    opened = open_run(runs[name])
    scaled = open_run(runs[name], latent_scale=1.5)
    size = opened.config.latent_size
    known = {"num_classes": opened.num_classes, "labels": opened.labels, "table": opened.table, "seed": 5}
    inputs, draws = [], []
    for each in (opened, scaled):
        generator = Looks()
        parts = list(sampling.drawn(generator, each.config, 40, **known))
        inputs.append(torch.cat(generator.seen))
        draws.append(torch.cat([part.samples for part in parts]))
    assert torch.equal(inputs[1][:, :size], inputs[0][:, :size] * 1.5)
    assert torch.equal(inputs[1][:, size:], inputs[0][:, size:])
    assert torch.equal(*draws)
    samples, _ = sample_run(runs[name], 6, seed=2, latent_scale=1.5)
    assert not torch.equal(samples, sample_run(runs[name], 6, seed=2)[0])
    if name != "table":  # whose walks keep the draws of a row
        walked = torch.cat([part.samples for part in scaled.walk(6, 3, seed=2)])
        assert torch.equal(walked[::3], samples)


def test_a_run_has_a_scale_of_latents(tmp_path: Path) -> None:
    """Training takes latents as they are; the run draws with the scale that it was given, unless another is asked."""
    options = {**SMALL, "runs": str(tmp_path / "runs")}
    plain, wide = (fastgan.Trainer("ring8", **options, latent_scale=scale) for scale in (None, 2.0))
    paths = [each.train(quiet=True) for each in (plain, wide)]
    for one, other in zip(plain.generator.parameters(), wide.generator.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "latent_scale = 2.0" in (paths[1] / "config.toml").read_text()
    assert torch.equal(wide.sample(9), sample_run(paths[0], 9, latent_scale=2.0)[0])
    assert torch.equal(plain.sample(9), sample_run(paths[1], 9, latent_scale=1.0)[0])
    files = [tmp_path / "own.npy", tmp_path / "asked.npy"]
    run("sample", paths[1], "-n", 9, "--out", files[0])
    run("sample", paths[0], "-n", 9, "--latent-scale", 2, "--out", files[1])
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("label", [None, 3, [3, 8]])
def test_npz_and_npy(label: Any, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [] if label is None else ["--label", str(label).strip("[]").replace(" ", "")]
    for out in ("x.npz", "x.npy"):
        run("sample", runs["digits"], "-n", 70, "--seed", 4, *words, "--out", tmp_path / out)
    samples, facts = sample_run(runs["digits"], 70, seed=4, label=label)
    expected = (samples.double() * torch.tensor(facts["scale"]) + torch.tensor(facts["offset"])).reshape(70, 8, 8)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert set(archive) == {"samples", "labels"}
        np.testing.assert_array_equal(archive["samples"], expected.numpy())
        turns = range(10) if label is None else label if isinstance(label, list) else [label]
        assert archive["labels"].tolist() == [list(turns)[i % len(turns)] for i in range(70)]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected.numpy())
    assert load(tmp_path / "x.npz").labels is not None if label is None else True
    monkeypatch.setattr(sampling, "_ROWS_AT_A_TIME", 16)
    run("sample", runs["digits"], "-n", 70, "--seed", 4, *words, "--out", tmp_path / "parts.npz")
    whole, parts = (np.load(tmp_path / name) for name in ("x.npz", "parts.npz"))
    assert whole["samples"].shape == parts["samples"].shape
    np.testing.assert_array_equal(whole["labels"], parts["labels"])


def test_numbers_and_tables_in_parts(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("points", "table"):
        monkeypatch.setattr(sampling, "_ROWS_AT_A_TIME", 2**13)
        run("sample", runs[name], "-n", 90, "--out", tmp_path / "whole.csv")
        monkeypatch.setattr(sampling, "_ROWS_AT_A_TIME", 16)
        run("sample", runs[name], "-n", 90, "--out", tmp_path / "parts.csv")
        encoding = "utf-16" if name == "table" else "utf-8"
        whole, parts = ((tmp_path / f"{each}.csv").read_text(encoding).splitlines() for each in ("whole", "parts"))
        assert len(whole) == len(parts) == 90 + (name == "table")
        assert "\ufeff" not in "".join(parts)
        assert [line.count(",") for line in whole] == [line.count(",") for line in parts]
    numbers = np.loadtxt(tmp_path / "whole.csv", delimiter=",", skiprows=1, usecols=0, encoding="utf-16")
    assert ((numbers >= 0) & (numbers < 50)).all()


def test_points_are_written_so_that_they_are_read_again(runs: dict[str, Path], tmp_path: Path) -> None:
    run("sample", runs["points"], "-n", 20, "--out", tmp_path / "x.csv")
    run("sample", runs["points"], "-n", 20, "--out", tmp_path / "x.npy")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "x.csv", delimiter=","), np.load(tmp_path / "x.npy"))


def test_pictures(runs: dict[str, Path], tmp_path: Path) -> None:
    run("sample", runs["digits"], "-n", 3, "--interpolate", 5, "--out", tmp_path / "walk.png")
    assert Image.open(tmp_path / "walk.png").size == (5 * 60 + 4, 3 * 60 + 4)
    assert run("sample", runs["digits"], "-n", 3, "--interpolate", 5, "--out", tmp_path / "walk.gif").startswith("15 ")
    gif = Image.open(tmp_path / "walk.gif")
    assert (gif.n_frames, gif.size, gif.info["loop"]) == (15, (232, 232), 0)
    run("sample", runs["points"], "-n", 5, "--interpolate", 4, "--out", tmp_path / "points.png")
    assert (tmp_path / "points.png").read_bytes().startswith(b"\x89PNG")


def test_refusals(runs: dict[str, Path], tmp_path: Path) -> None:
    digits, points, table = runs["digits"], runs["points"], runs["table"]
    for words, sentence in (
        ([digits, "-o", "x.gif"], "out must not end in .gif for samples that stand alone"),
        ([digits, "-o", "x.gif", "--interpolate", 100], "out must not end in .gif for more than 2,000 frames"),
        ([points, "-o", "x.gif", "--interpolate", 2], "out must end in .png, .npy, .npz or .csv for what is no image"),
        ([table, "-o", "x.npz"], "out must end in .csv or .png for a table"),
        ([table, "-o", "x.png", "--interpolate", 2], "out must end in .csv for a table"),
        ([table, "-o", "x.csv", "--interpolate", 2, "--where", "job=bx"], "where must not be given beside interpolate"),
        ([digits, "-o", "x.npy", "--interpolate", 0], "frames must be at least 1, not 0"),
        ([digits, "-o", "x.npy", "--interpolate", 3, "-n", 1], "count must be finite and at least 2, not 1"),
        ([digits, "-o", "x.png", "-n", 10**6], "out must end in .npy or .npz for more than 37,282 such images"),
        ([digits, "-o", "x.npy", "--label", "3,x"], "label must be a class, or classes separated by commas"),
        ([digits, "-o", "x.npy", "--label", "3,12"], "label must be in [0, 9], not 12"),
        ([digits, "-o", "x.npy", "--latent-scale", 0], "latent_scale must be finite and greater than 0, not 0.0"),
        ([digits, "-o", "x.npy", "--checkpoint", "3"], "checkpoint must be best, newest or a step that"),
    ):
        words = [tmp_path / word if str(word).startswith("x.") else word for word in words]
        assert sentence in refused("sample", *words), words
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_leaves_what_was_there(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.npz"
    run("sample", runs["digits"], "-n", 3, "--out", out)
    before = out.read_bytes()
    monkeypatch.setattr(sampling, "_ROWS_AT_A_TIME", 16)

    def fails(samples: Tensor, facts: Any, done: list[int] = []) -> Any:  # noqa: B006  # counts the calls
        done.append(1)
        if len(done) > 2:
            raise OSError(28, "No space left on device")
        return np.zeros((len(samples), 8, 8))

    monkeypatch.setattr(sample_files, "_units", fails)
    assert "out cannot be written: " in refused("sample", runs["digits"], "-n", 100, "--out", out)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/link.npz").symlink_to(out)
    monkeypatch.undo()
    run("sample", runs["digits"], "-n", 4, "--out", tmp_path / "folder/link.npz")
    assert len(np.load(out)["samples"]) == 4  # where the link leads to
    assert (tmp_path / "folder/link.npz").is_symlink()


@pytest.mark.deep
@pytest.mark.parametrize(("name", "ending"), [("digits", "npz"), rest("points", "csv"), ("table", "csv")])
def test_a_million_samples_in_bounded_memory(name: str, ending: str, runs: dict[str, Path], tmp_path: Path) -> None:
    """Under 500 MB at the peak, Python and PyTorch among them."""
    out = tmp_path / f"x.{ending}"
    code = (
        "import sys; from fastgan.__main__ import main\n"
        "sys.argv = ['fastgan', *sys.argv[1:]]\n"
        "try:\n    main()\nfinally:\n    print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    words = ["sample", str(runs[name]), "--number", "1000000", "--out", str(out)]
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1]) * 1024  # not getrusage's, which begins with that of the process that forked
    assert peak < 500e6
    if ending == "npz":
        samples = np.load(out, mmap_mode="r")["samples"]
        assert samples.shape == (10**6, 8, 8)
        assert np.isfinite(samples[:: 10**4]).all()
    else:
        with out.open("rb") as file:
            content = file.read().decode("utf-16" if name == "table" else "utf-8")
        assert content.count("\n") == 10**6 + (name == "table")
