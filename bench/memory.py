"""Peak memory of a whole training process: plain PyTorch against TrainStep, each in a fresh process.

What counts is what the operating system saw: the most that the process ever had resident, Python, PyTorch and its
libraries included. The process is memory_child.py, which the plain one runs without importing fastgan.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .configurations import CONFIGURATIONS, Configuration

CHILD = Path(__file__).with_name("memory_child.py")
KINDS = ("fastgan", "torch")


def measure_all(
    configurations: Iterable[Configuration] = CONFIGURATIONS,
    show: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """A row a configuration and kind: the peak in MiB, and how many times PyTorch's it is."""
    rows = []
    for configuration in configurations:
        peaks = {}
        for kind in KINDS:
            show(f"memory {configuration.name} {kind}")
            peaks[kind] = peak_mib(kind, configuration)
        for kind, peak in peaks.items():
            row = {"case": f"memory {configuration.name}", "contender": kind, "configuration": configuration.name}
            rows.append({**row, "peak_mib": peak, "of_torch": peak / peaks["torch"]})
    return rows


def peak_mib(kind: str, configuration: Configuration) -> float:
    """Peak resident memory of a process that trains 20 steps, or 3 long ones.

    Args:
        kind: `fastgan` or `torch`.
        configuration: what it trains.

    Raises:
        RuntimeError: the process failed; the message ends with its last line.
    """
    steps = 3 if configuration.step_flops > 5e10 else 20
    options = {**asdict(configuration), "kind": kind, "steps": steps, "threads": torch.get_num_threads()}
    # Run by its text: by its path, the modules beside it would hide others of their names.
    command = [sys.executable, "-c", CHILD.read_text(), json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment["FASTGAN_TUNE"] = "0"  # the copies that a first step is timed on are there for two seconds, once
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip() or "it said nothing").splitlines()[-1]
        raise RuntimeError(f"the process that trains {configuration.name} with {kind} failed: {last}")
    return float(result.stdout)


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as text."""
    return [
        f"{row['case']:<16} {row['contender']:<10} {row['peak_mib']:8.0f} MiB  {row['of_torch']:.2f} of PyTorch's"
        for row in rows
    ]
