"""What a run costs beside its steps: `python -m bench.runs [--json FILE.json]`.

The diagnosis: its share of the seconds of whole runs with the default options. Mapped data: samples a second of a .npy
file that is mapped, in the cache of the system, beside those of the same file in memory, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fastgan.data import load, mapped
from fastgan.dataset import Dataset
from fastgan.trainer import Trainer

from .record import environment

# Of a file: bytes, and pixels a sample.
SIZE, WIDTH = 2**30, 784
_NETWORKS: dict[str, Any] = {"g_hidden": (256, 512, 1024), "d_hidden": (1024, 512, 256), "latent_size": 100}


@contextmanager
def timed(owner: type, name: str) -> Iterator[list[float]]:
    """Within it, the seconds of each call of a method are appended to what it gives."""
    own, taken = getattr(owner, name), []

    def call(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return own(*arguments, **named)
        finally:
            taken.append(time.perf_counter() - began)

    with mock.patch.object(owner, name, call):
        yield taken


def diagnosis(data: str, steps: int) -> dict[str, Any]:
    """Seconds of a run with the default options, and of its diagnosis."""
    with tempfile.TemporaryDirectory() as folder, timed(Trainer, "_diagnose") as taken:
        trainer = Trainer(data, steps=steps, runs=folder)
        began = time.perf_counter()
        trainer.train(quiet=True)
        seconds = time.perf_counter() - began
    return {
        "data": data,
        "steps": steps,
        "seconds": seconds,
        "diagnoses": len(taken),
        "of_diagnosis": sum(taken),
        "share": sum(taken) / seconds,
    }


def write_images(path: Path, size: int, dtype: str) -> None:
    """An array (N, 28, 28) of so many bytes, a part at a time."""
    rows = size // (WIDTH * np.dtype(dtype).itemsize)
    rng, part = np.random.default_rng(0), 10_000
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(rows, 28, 28))
    for at in range(0, rows, part):
        values = rng.integers(0, 256, (min(part, rows - at), 28, 28), dtype=np.uint8)
        array[at : at + part] = values if dtype == "uint8" else values / np.float32(255)
    array.flush()


def rate(dataset: Dataset, batch: int, steps: int, folder: str) -> float:
    """Samples a second of a training, pictures and checkpoints left out."""
    options = {"batch_size": batch, "steps": steps, "log_every": steps, "runs": folder, "report": False}
    trainer = Trainer(dataset, **_NETWORKS, **options, sample_every=steps, checkpoint_every=steps, keep_best=False)
    state, config = trainer.state, trainer.config
    for _ in range(5):
        state.take_step(config, *state.batches.next())
    began = time.perf_counter()
    for _ in range(steps):
        state.take_step(config, *state.batches.next())
    return batch * steps / (time.perf_counter() - began)


def mapped_data(dtype: str, batch: int, steps: int, rounds: int, size: int) -> dict[str, Any]:
    """Samples a second of a file that is mapped, and of the same in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        write_images(path, size, dtype)
        with mock.patch.object(mapped, "MAP_FROM", 0):
            from_file = load(str(path))
        with mock.patch.object(mapped, "MAP_FROM", 2**62):
            in_memory = load(str(path))
        assert isinstance(from_file.samples, mapped.MappedSamples) > isinstance(in_memory.samples, mapped.MappedSamples)
        rates = [[rate(data, batch, steps, folder) for data in (from_file, in_memory)] for _ in range(rounds)]
    ratios = sorted(file / memory for file, memory in rates)
    return {
        "dtype": dtype,
        "bytes": size,
        "batch": batch,
        "mapped": statistics.median(file for file, _ in rates),
        "in_memory": statistics.median(memory for _, memory in rates),
        "ratio": statistics.median(ratios),
        "quartiles": [ratios[rounds // 4], ratios[-1 - rounds // 4]],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.runs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="of the runs whose diagnosis is timed (default: 2000)")
    parser.add_argument("--size", type=int, default=SIZE, help="bytes of a file (default: 2**30)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of mapped data and data in memory (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there too")
    options = parser.parse_args()
    record: dict[str, Any] = {"environment": environment(), "diagnosis": [], "mapped": []}
    for data in ("ring8", "grid25", "digits"):
        row = diagnosis(data, options.steps)
        record["diagnosis"].append(row)
        print(
            f"{data}: {row['diagnoses']} diagnoses took {row['of_diagnosis']:.3f} of {row['seconds']:.1f} s, "
            f"{row['share']:.2%}"
        )
    for dtype in ("uint8", "float32"):
        for batch in (128, 1024):
            row = mapped_data(dtype, batch, max(5, 12_800 // batch), options.rounds, options.size)
            record["mapped"].append(row)
            low, high = row["quartiles"]
            print(
                f"{dtype}, {batch} a batch: mapped {row['mapped']:,.0f}, in memory {row['in_memory']:,.0f} samples/s, "
                f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
            )
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
