"""Data that is larger than memory: mapped files give what files that are read give, in little memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastgan.data import DataError, mapped, order
from fastgan.data.loading import load
from fastgan.data.mapped import MappedSamples
from fastgan.data.order import ComputedOrder
from fastgan.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mapped, "_VALUES", 40)  # many chunks


def both(path: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A data set that is read, and the same one mapped."""
    read = load(path)
    monkeypatch.setattr(mapped, "MAP_FROM", 1)
    found = load(path)
    assert isinstance(read.samples, torch.Tensor)
    assert isinstance(found.samples, MappedSamples)
    return read, found


RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.normal(size=(70, 5)).astype(np.float32),
    "float64": RNG.normal(size=(70, 5)) * 1e9,
    "big-endian": RNG.normal(size=(70, 3)).astype(">f4"),
    "int16": RNG.integers(-500, 500, (70, 4)).astype(np.int16),
    "a constant column": np.stack([np.ones(70), np.arange(70.0)], axis=1),
    "8 bits": RNG.integers(0, 256, (70, 6, 6), dtype=np.uint8),
    "colour": RNG.normal(size=(70, 4, 4, 3)).astype(np.float32),
    "grey": RNG.normal(size=(70, 4, 4, 1)).astype(np.float16),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_mapped_samples_are_those_that_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("data.npy", ARRAYS[name])
    read, found = both("data.npy", monkeypatch)
    index = torch.randperm(70)[:32]
    for rows in (slice(None), slice(3, 17), index, index.reshape(4, 8)):
        assert torch.equal(found.samples[rows], read.samples[rows])
    assert found.samples.shape == read.samples.shape
    assert (found.fingerprint, len(found), found.width) == (read.fingerprint, 70, read.width)
    assert found.describe() == read.describe()
    assert torch.equal(found.examples(9, 1, False), read.examples(9, 1, False))


def test_a_run_on_mapped_data_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("data.npy", ARRAYS["float32"])
    options: dict[str, Any] = {"steps": 12, "g_hidden": (8,), "d_hidden": (8,), "batch_size": 16, "d_steps": 2}
    read = Trainer("data.npy", **options, runs="read")
    path = read.train(quiet=True)
    monkeypatch.setattr(mapped, "MAP_FROM", 1)
    found = Trainer("data.npy", **options, runs="mapped")
    found.train(quiet=True)
    assert isinstance(found.dataset.samples, MappedSamples)
    for name, value in read.generator.state_dict().items():
        assert torch.equal(found.generator.state_dict()[name], value)
    assert Trainer.resume(path, steps=14).step == 12  # it is the same data


def test_mapped_idx_files(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mnist").mkdir()
    pixels = RNG.integers(0, 256, (60, 6, 6), dtype=np.uint8)
    head = struct.pack(">4B3I", 0, 0, 8, 3, 60, 6, 6)
    Path("mnist/train-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
    Path("mnist/train-labels-idx1-ubyte").write_bytes(
        struct.pack(">4BI", 0, 0, 8, 1, 60) + bytes(i % 4 for i in range(60))
    )
    read, found = both("mnist", monkeypatch)
    assert torch.equal(found.samples[:], read.samples)
    assert torch.equal(found.labels, read.labels)
    assert found.fingerprint == read.fingerprint
    assert torch.equal(found.unscale(found.samples[:]), read.unscale(read.samples))
    Path("mnist/train-images-idx3-ubyte").write_bytes(head + pixels.tobytes()[:-5])
    with pytest.raises(DataError, match="is truncated: it ends at byte 2171"):
        load("mnist")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_faults_of_a_mapped_file_have_their_place(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    array = RNG.normal(size=(70, 5))
    array[58, 3] = bad
    np.save("data.npy", array)
    monkeypatch.setattr(mapped, "MAP_FROM", 1)
    with pytest.raises(DataError, match=r"data\.npy has .* at row 58, column 3"):
        load("data.npy")
    Path("data.npy").write_bytes(Path("data.npy").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"data\.npy is no intact \.npy"):
        load("data.npy")


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 65_537, 200_000])
def test_a_computed_order_is_a_permutation(count: int) -> None:
    found = ComputedOrder(count, torch.Generator().manual_seed(3))
    parts = [found[first : first + 999] for first in range(0, count, 999)]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(count))
    again, other = (ComputedOrder(count, torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert torch.equal(again[:999], parts[0])
    if count >= 1000:
        assert not torch.equal(other[:999], parts[0])
        # As far from its own place as in a random order: a third of the range on average.
        whole = torch.cat(parts)
        apart = (whole - torch.arange(count)).abs().double().mean() / count
        assert abs(float(apart) - 1 / 3) < 4 * 0.24 / count**0.5
        neighbours = (whole[1:] - whole[:-1]).abs().double().mean() / count
        assert abs(float(neighbours) - 1 / 3) < 8 * 0.24 / count**0.5


def test_a_run_over_a_computed_order_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "MOST_HELD", 100)
    options: dict[str, Any] = {"loss": "non_saturating", "g_hidden": (8,), "d_hidden": (8,), "batch_size": 5000}
    whole = Trainer("ring8", steps=14, runs="whole", **options)
    whole.train(quiet=True)
    resumed = Trainer.resume(Trainer("ring8", steps=7, runs="halves", **options).train(quiet=True), steps=14)
    resumed.train(quiet=True)
    for name, value in whole.generator.state_dict().items():
        assert torch.equal(resumed.generator.state_dict()[name], value)


PEAK = """
import json, sys, threading, time
import torch, fastgan
from fastgan.training.trainer import Trainer

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024

torch.set_num_threads(1)
Trainer("ring8", steps=2, runs="warm").train(quiet=True)
before = peak = anonymous()
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
began = time.perf_counter()
trainer = Trainer(sys.argv[1], steps=int(sys.argv[2]), g_hidden=(32,), d_hidden=(32,), log_every=5, runs="big")
print("loaded in", time.perf_counter() - began, file=sys.stderr)
trainer.train(quiet=True)
print("trained at", time.perf_counter() - began, file=sys.stderr)
print(json.dumps({"before": before, "peak": peak, "samples": len(trainer.dataset)}))
"""


def peak_of(path: Path, steps: int = 10) -> dict[str, int]:
    """Of a process that trains on a file, its anonymous memory before it and at most, in bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, str(path), str(steps)]
    said = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout
    found: dict[str, int] = json.loads(said)
    return found


@pytest.mark.deep
@pytest.mark.parametrize("width", [784, 8])
def test_little_memory_for_a_large_file(width: int, tmp_path: Path) -> None:
    """A sparse file of 1 GB, which takes no disk; of narrow rows the order alone would take 256 MB."""
    count = 2**28 // width
    path = tmp_path / "large.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (count, width))
    array[:2] = [[-1], [1]]
    array.flush()
    found = peak_of(path)
    assert found["samples"] == count
    assert found["peak"] - found["before"] < 250 * 2**20, found
