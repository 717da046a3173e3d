"""What a measurement was made on, the ceilings it is held against, and how it is written down."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastgan

from .timing import Case, Result, measure, single


def environment() -> dict[str, Any]:
    """Machine, how busy it is, versions, build and commit; `dirty` ends the commit of a changed checkout.

    The commit is FASTGAN_COMMIT where that is set, else what git says.
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


# (batch, in, out) of the products that set the ceiling: square ones, and layers of the configurations.
SHAPES = [(n, n, n) for n in (128, 256, 512, 1024, 2048)] + [(256, 128, 128), (128, 1024, 784), (1024, 2048, 2048)]


def copy_bandwidth(rounds: int = 9, seconds: float = 0.06) -> float:
    """GB/s of the fastest copy of 256 MiB, bytes read plus written."""
    source = torch.rand(1 << 26)
    target = torch.empty_like(source)
    copy = measure(single("copy", lambda: target.copy_(source)), rounds=rounds, seconds=seconds)
    return 2 * 4 * source.numel() / min(copy.timings["run"].rounds) / 1e9


def ceilings(rounds: int, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """What the machine reaches now, measured in the same way as what is held against it.

    Returns:
        GB/s of a large copy (bytes read plus written) and GFLOP/s of the best of all products, by dtype; and GFLOP/s of
        each product, by dtype, library and shape. at::mm is MKL's in float32; mkldnn is oneDNN.
    """
    limits = {"GB/s": copy_bandwidth(rounds, seconds)}
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for m, k, n in SHAPES:
            x, weight = torch.rand(m, k).to(dtype), torch.rand(n, k).to(dtype)
            for library, product in _libraries(dtype).items():
                # A third of the usual rounds and time: the ceiling is the best of many.
                work = single("product", lambda product=product, x=x, weight=weight: product(x, weight))
                result = measure(work, rounds=max(2, rounds // 3), seconds=seconds / 2)
                rate = 2 * m * k * n / min(result.timings["run"].rounds) / 1e9
                products[f"{kind} {library} {m}x{k}x{n}"] = rate
        limits[_product_ceiling(dtype)] = max(rate for name, rate in products.items() if name.startswith(kind))
    return limits, products


def beside_best_product(case: Case, products: Mapping[str, float]) -> Case:
    """A case of arithmetic with the fastest of the products that `ceilings` found, of its dtype, beside it."""
    kind = str(case.dtype).removeprefix("torch.")
    best = max((name for name in products if name.startswith(f"{kind} ")), key=products.__getitem__)
    _, library, shape = best.split()
    m, k, n = map(int, shape.split("x"))
    x, weight = torch.rand(m, k).to(case.dtype), torch.rand(n, k).to(case.dtype)
    product = _libraries(case.dtype)[library]
    return dataclasses.replace(case, beside=lambda: product(x, weight), beside_flops=2.0 * m * k * n)


def _libraries(dtype: torch.dtype) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Products of x (m, k) and weight (n, k) to (m, n)."""
    found = {"at::mm": lambda x, weight: torch.mm(x, weight.t())}
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        linear = torch.ops.mkldnn._linear_pointwise
        found["mkldnn"] = lambda x, weight: linear(x, weight, None, "none", [], "")
    return found


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
            **result.case.facts,
        }
        if len(result.timings) > 2:
            row["against"] = {peer: result.ratio(label, peer) for peer in result.timings if peer != label}
        if result.timed_by:
            row["timing"] = result.timed_by
        dtype = result.case.dtypes.get(label, result.case.dtype)
        product = _product_ceiling(dtype)
        if "GFLOP/s tf32" in limits and dtype is torch.float32 and _uses_tf32():
            product = "GFLOP/s tf32"
        for unit, work, limit in (("GB/s", result.case.bytes, "GB/s"), ("GFLOP/s", result.case.flops, product)):
            if work:
                row[unit] = work / timing.median / 1e9
                row["of_ceiling"] = row[unit] / limits[limit]
        if result.beside is not None and dtype is result.case.dtype:
            row["of_product_beside"] = result.share_of_beside(label)
        table.append(row)
    return table


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """The whole record, readable by a machine."""
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")


def write_csv(path: Path, record: Mapping[str, Any]) -> None:
    """A line a case and contender, the environment's main facts in front; the rows of `memory` are at the end."""
    facts = record["environment"]
    environment = {key: facts[key] for key in ("date", "commit", "cpu", "threads", "torch", "device")}
    environment["device"] = facts.get("gpu", {}).get("name", facts["device"])
    lines = []
    for row in (*record["rows"], *record.get("memory", ())):
        flat = {**environment, **row}
        flat |= {f"times_as_fast_as {peer}": ratio for peer, ratio in flat.pop("against", {}).items()}
        lines.append(flat)
    columns = dict.fromkeys(column for line in lines for column in line)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(lines)


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
    if given := os.environ.get("FASTGAN_COMMIT"):
        return given
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():  # installed: another project's repository may be around it
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
