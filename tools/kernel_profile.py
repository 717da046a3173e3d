"""`python -m tools.kernel_profile`: where the time of a `TrainStep` goes on a GPU, kernel by kernel.

As torch.profiler sees it, for each configuration: the time of a step in a loop of calls, the span of one step on the
GPU from the first kernel's begin to the last one's end, the time within kernels, the gaps between them, and the kernels
in their order.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench import cuda
from bench.configurations import CONFIGURATIONS, Configuration
from bench.step import inputs
from bench.training import new_train_step
from fastgan import backend

_CALLS = 20


def profile(configuration: Configuration, precision: str = "fp32") -> dict[str, Any]:
    """Microseconds of a step of one configuration, and of each of its launches (the median over several steps)."""
    with torch.device("cuda"):
        step = new_train_step(configuration, precision)
        reals, noises = inputs(configuration)
    for _ in range(5):
        step.step(reals[0], noise=noises[0][None])
    torch.cuda.synchronize()
    start, begin, end = time.perf_counter(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(_CALLS):
        step.step(reals[0], noise=noises[0][None])
    host = (time.perf_counter() - start) / _CALLS
    end.record()
    torch.cuda.synchronize()
    loop = begin.elapsed_time(end) / _CALLS * 1e3
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        for _ in range(_CALLS):
            step.step(reals[0], noise=noises[0][None])
            torch.cuda.synchronize()
    events = [e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda e: e.time_range.start)
    count = len(events) // _CALLS
    steps = [events[i * count : (i + 1) * count] for i in range(1, _CALLS)]
    spans = [s[-1].time_range.end - s[0].time_range.start for s in steps]
    launches = []
    for k in range(count):
        times = sorted(s[k].time_range.elapsed_us() for s in steps)
        launches.append({"kernel": _short(steps[0][k].name), "us": times[len(times) // 2]})
    within = sum(launch["us"] for launch in launches)
    gaps = sorted(b.time_range.start - a.time_range.end for s in steps for a, b in pairwise(s))
    return {
        "configuration": configuration.name,
        "precision": precision,
        "plan": step.plan,
        "loop_us": loop,
        "host_us": host * 1e6,
        "span_us": sorted(spans)[len(spans) // 2],
        "kernels_us": within,
        "median_gap_us": gaps[len(gaps) // 2] if gaps else 0.0,
        "launches": launches,
    }


def _short(name: str) -> str:
    """A kernel's name without namespaces, return type and arguments."""
    name = re.sub(r"\(anonymous namespace\)|<unnamed>|fastgan::(cuda::)?|at::native::|^void ", "", name)
    return re.sub(r"\(.*", "", name).replace("::", "")[:110]


def lines(measured: dict[str, Any]) -> list[str]:
    """One profile as text; equal launches that follow one another in a line."""
    text = [
        f"{measured['configuration']} {measured['precision']}: loop {measured['loop_us']:.1f} us "
        f"(host {measured['host_us']:.1f}), span {measured['span_us']:.1f}, in {len(measured['launches'])} launches "
        f"{measured['kernels_us']:.1f}, median gap {measured['median_gap_us']:.2f}"
    ]
    return text + [f"  {launch['us']:8.2f}  {launch['kernel']}" for launch in measured["launches"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.kernel_profile", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the profiles there too")
    parser.add_argument(
        "--path", default="automatic", help="kernels of the layers: automatic, narrow, tiled or library"
    )
    parser.add_argument("--tf32", action="store_true", help="float32 products rounded to tf32")
    options = parser.parse_args(arguments)
    if reason := cuda.unavailable_reason():
        print(f"tools.kernel_profile: {reason}", file=sys.stderr)
        return 2
    backend.module.set_layer_path(options.path)
    if options.tf32:
        torch.set_float32_matmul_precision("high")
    profiles = []
    for configuration in CONFIGURATIONS:
        for precision in ("fp32", "bf16"):
            profiles.append(profile(configuration, precision))
            print(*lines(profiles[-1]), sep="\n", flush=True)
            if options.json:
                options.json.write_text(json.dumps(profiles, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
