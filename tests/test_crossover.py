"""The crossover's arithmetic and its header; measuring it takes a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools import crossover

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("ratios", "size"),
    [([1.5, 1.2, 0.9, 1.1], 2.0), ([0.5, 2.0, 2.0, 2.0], 0.0), ([1.0, 0.99, 1.0, 1.0], 4.0), ([], 0)],
)
def test_the_last_size_before_one_that_is_slower(ratios: list[float], size: float) -> None:
    assert crossover.largest_faster_size([1.0, 2.0, 3.0, 4.0][: len(ratios)], ratios) == size


def test_the_header_is_written_as_it_stands_in_the_sources() -> None:
    values = {"float32": 1.5e8, "tf32": 3e8, "half": 3e8, "float64": 1e8, "narrow_batch": 1024}
    written, committed = (
        [line for line in text.splitlines() if not line.startswith("//")]
        for text in (crossover.header(values, "a test"), crossover.HEADER.read_text())
    )
    names = [line.split(" = ")[0] for line in written]
    assert names == [line.split(" = ")[0] for line in committed]
    assert "constexpr double half = 3e+08;" in written


@pytest.mark.deep
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_a_sentence() -> None:
    done = subprocess.run([sys.executable, "-m", "tools.crossover"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("the crossover is measured on a GPU: ")
