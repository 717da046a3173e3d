"""What a measurement was made on, the ceilings it is held against, and how it is written down."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import fastgan
from bench.timing import Result, alone, measure


def environment() -> dict[str, Any]:
    """Machine, how busy it is, versions, build and commit; `dirty` ends the commit of a changed checkout.

    Where git cannot tell the commit, FASTGAN_COMMIT does.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "busy_cores": busy_cores(),
        **{key: value for key, value in fastgan.info().items() if key not in ("devices", "rebuild")},
    }


def busy_cores(interval: float = 0.5) -> float | None:
    """Cores that other processes, or a hypervisor's other guests, hold while this one sleeps; None if not on Linux.

    The load average would count what this user ran up to a minute ago.
    """
    try:
        before = _cpu_ticks()
        time.sleep(interval)
        after = _cpu_ticks()
    except (OSError, ValueError, IndexError):
        return None
    idle, total = (new - old for new, old in zip(after, before, strict=True))
    return round((1 - idle / total) * (os.cpu_count() or 1), 2) if total else None


def busy_warning(busy: float | None) -> str | None:
    """Why the figures would say little, where other processes hold the cores; None where they do not."""
    cores = os.cpu_count() or 1
    if busy is None or busy + torch.get_num_threads() <= cores + 0.3:
        return None
    return (
        f"the machine is busy: others hold {busy:.1f} of {cores} cores. A parallel pass then waits whole time slices "
        "for its last thread, and no figure below can be trusted; wait, or take fewer --threads"
    )


def _cpu_ticks() -> tuple[int, int]:
    """Idle (with waiting for a disk) and all time of all cores since boot; the guests' time is within the user's."""
    ticks = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def ceilings(rounds: int, seconds: float) -> dict[str, float]:
    """GB/s of a large copy (bytes read plus written), and GFLOP/s of the best of several products, measured now."""
    source = torch.rand(1 << 26)
    target = torch.empty_like(source)
    copy = measure(alone("copy", lambda: target.copy_(source)), rounds=rounds, seconds=seconds)
    limits = {"GB/s": 2 * 4 * source.numel() / min(copy.timings["run"].rounds) / 1e9}
    for dtype in (torch.float32, torch.bfloat16):
        best = 0.0
        for n in (256, 512, 1024, 2048):
            a, b = torch.rand(n, n).to(dtype), torch.rand(n, n).to(dtype)
            product = measure(alone("product", lambda a=a, b=b: torch.mm(a, b)), rounds=rounds, seconds=seconds)
            best = max(best, 2 * n**3 / min(product.timings["run"].rounds) / 1e9)
        limits[_product_ceiling(dtype)] = best
    return limits


def rows(result: Result, limits: dict[str, float]) -> list[dict[str, Any]]:
    """One row a contender of a case: medians in microseconds, spread, rate, ratio to the last contender, verdict."""
    table = []
    for label, timing in result.timings.items():
        row: dict[str, Any] = {
            "case": result.case.name,
            "contender": label,
            "median_us": timing.median * 1e6,
            "min_us": min(timing.rounds) * 1e6,
            "max_us": max(timing.rounds) * 1e6,
            "spread": timing.spread,
            "rounds": len(timing.rounds),
            "times_as_fast": result.ratio(label),
            "verdict": "" if label == "torch" else result.verdict(label),
        }
        if result.how:
            row["timing"] = result.how
        product = _product_ceiling(result.case.dtype)
        if "GFLOP/s tf32" in limits and result.case.dtype is torch.float32 and _uses_tf32():
            product = "GFLOP/s tf32"
        for unit, work, limit in (("GB/s", result.case.bytes, "GB/s"), ("GFLOP/s", result.case.flops, product)):
            if work:
                row[unit] = work / timing.median / 1e9
                row["of_ceiling"] = row[unit] / limits[limit]
        table.append(row)
    return table


def write_json(path: Path, facts: dict[str, Any], table: list[dict[str, Any]], limits: dict[str, float]) -> None:
    """The whole record, readable by a machine."""
    record = {"environment": facts, "ceilings": limits, "rows": table}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")


def _product_ceiling(dtype: torch.dtype) -> str:
    return f"GFLOP/s {str(dtype).removeprefix('torch.')}"


def _uses_tf32() -> bool:
    return torch.get_float32_matmul_precision() == "high"


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
        return os.environ.get("FASTGAN_COMMIT") or "unknown"
