"""What a measurement was made on, the ceilings it is held against, and how it is written down."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastgan
from bench.timing import Case, Result, measure


def environment() -> dict[str, Any]:
    """Machine, versions, build and commit."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        **{key: value for key, value in fastgan.info().items() if key not in ("devices", "rebuild")},
    }


def ceilings(rounds: int, seconds: float) -> dict[str, float]:
    """GB/s of a large copy (bytes read plus written), and GFLOP/s of the best of several products, measured now."""
    source = torch.rand(1 << 26)
    target = torch.empty_like(source)
    copy = measure(_alone("copy", lambda: target.copy_(source)), rounds=rounds, seconds=seconds)
    bandwidth = 2 * 4 * source.numel() / min(copy.timings["run"].rounds) / 1e9
    best = 0.0
    for n in (256, 512, 1024, 2048):
        a, b = torch.rand(n, n), torch.rand(n, n)
        product = measure(_alone("product", lambda a=a, b=b: torch.mm(a, b)), rounds=rounds, seconds=seconds)
        best = max(best, 2 * n**3 / min(product.timings["run"].rounds) / 1e9)
    return {"GB/s": bandwidth, "GFLOP/s": best}


def rows(results: Sequence[Result], limits: dict[str, float]) -> list[dict[str, Any]]:
    """One row a contender of a case: medians in microseconds, spread, rate, ratio to the last contender."""
    table = []
    for result in results:
        for label, timing in result.timings.items():
            row: dict[str, Any] = {
                "case": result.case.name,
                "contender": label,
                "median_us": timing.median * 1e6,
                "spread": timing.spread,
                "times_as_fast": result.ratio(label),
            }
            for unit, work in (("GB/s", result.case.bytes), ("GFLOP/s", result.case.flops)):
                if work:
                    row[unit] = work / timing.median / 1e9
                    row["of_ceiling"] = row[unit] / limits[unit]
            table.append(row)
    return table


def write_json(path: Path, table: list[dict[str, Any]], limits: dict[str, float]) -> None:
    """The whole record, readable by a machine."""
    record = {"environment": environment(), "ceilings": limits, "rows": table}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")


def _alone(name: str, work: Any) -> Case:
    return Case(name, {"run": work}, lambda: None)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
