"""Timing on a GPU: CUDA events around replays of CUDA graphs, in the same alternating rounds as on a CPU.

A graph leaves out what the host does for each call, which a program that captures its step, or a long queue, hides too.
Where any contender of a case cannot be captured, all of them are timed as a loop of calls.
"""

from __future__ import annotations

import contextlib
import gc
import math
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from .pairs import INPUT_SETS
from .timing import Case, Contender, Result, Timing, check, measure, single

GRAPHS = "events around replays of a CUDA graph"
LOOP = "events around a loop of calls"

# A replay costs the host a few microseconds, which must stay hidden behind the work of one.
_GRAPH_SECONDS = 1e-3
_MOST_CALLS = 20 * INPUT_SETS


class EventClock:
    """Seconds of the current stream, read by events; for `bench.timing.measure`.

    Elapsed times are single precision, so each reading adds what has passed since the one before.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last = self._event()

    def __call__(self) -> float:
        event = self._event()
        event.synchronize()
        self._seconds += self._last.elapsed_time(event) / 1e3
        self._last = event
        return self._seconds

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def unavailable_reason() -> str | None:
    """Why nothing can be timed on a GPU here, in a sentence; None where it can."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return "this machine has no CUDA device that PyTorch can use"
    return None


def on_gpu(cases: Iterable[Case], device: str = "cuda") -> Iterator[Case]:
    """The same cases with their tensors on the GPU.

    Only while a case is built and checked is the GPU the default device: that costs time in every call of PyTorch.
    """
    iterator = iter(cases)
    while True:
        with torch.device(device):
            case = next(iterator, None)
        if case is None:
            return

        def checked(check: Contender = case.check) -> None:
            with torch.device(device):
                check()

        yield replace(case, check=checked)


def measure_on_gpu(case: Case, *, rounds: int, seconds: float, budget: float = math.inf, graphs: bool = True) -> Result:
    """As `bench.timing.measure`, on the GPU.

    Args:
        case: what to measure, its tensors on the GPU.
        rounds: how often each contender has its turn.
        seconds: how long a turn should take.
        budget: seconds that the rounds may take together.
        graphs: whether to capture; the loop then includes what the host does for each call.
    """
    check(case)
    for contender in case.contenders.values():
        for _ in range(INPUT_SETS):  # one that captures a graph for each set of inputs does so now
            contender()
    clock = EventClock()
    captured = _capture_all(case, clock) if graphs and case.capturable else None
    if captured is None:
        captured = {label: (contender, 1) for label, contender in case.contenders.items()}
        timed_by = LOOP
    else:
        timed_by = GRAPHS
    works = {label: work for label, (work, _) in captured.items()}
    stand_in = replace(case, contenders=works, check=lambda: None)
    result = measure(stand_in, rounds=rounds, seconds=seconds, budget=budget, clock=clock)
    timings = {
        label: Timing(tuple(value / captured[label][1] for value in timing.rounds))
        for label, timing in result.timings.items()
    }
    return Result(case, timings, timed_by)


def ceilings(rounds: int, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """What the GPU reaches now, measured in the same way as what is held against it.

    Returns:
        GB/s of a large copy within the GPU (bytes read plus written) and GFLOP/s of the best of several products: of
        float32 ("GFLOP/s float32", strict), of float32 rounded to tf32, and of bfloat16; and GFLOP/s of each product.
    """
    source = torch.rand(1 << 27, device="cuda")
    target = torch.empty_like(source)
    limits = {"GB/s": 2 * 4 * source.numel() / _fastest(lambda: target.copy_(source), rounds, seconds) / 1e9}
    kinds = (("float32", torch.float32, "highest"), ("tf32", torch.float32, "high"), ("bfloat16", torch.bfloat16, None))
    products = {}
    for name, dtype, precision in kinds:
        with _precision(precision):
            for n in (2048, 4096, 8192):
                a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
                rate = 2 * n**3 / _fastest(lambda a=a, b=b: torch.mm(a, b), rounds, seconds) / 1e9
                products[f"{name} at::mm {n}x{n}x{n}"] = rate
        limits[f"GFLOP/s {name}"] = max(rate for label, rate in products.items() if label.startswith(f"{name} "))
    return limits, products


def gpu_facts() -> dict[str, Any]:
    """What the record says of the GPU."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "float32_products": "tf32" if torch.get_float32_matmul_precision() == "high" else "strict",
    }


def _capture_all(case: Case, clock: EventClock) -> dict[str, tuple[Contender, int]] | None:
    """A replay of each contender and how many calls it holds; None unless all can be captured."""
    captured = {}
    for label, contender in case.contenders.items():
        try:
            captured[label] = _capture(contender, clock)
        except RuntimeError as error:
            print(f"note: {case.name}: {label} cannot be captured, so loops are timed: {str(error).splitlines()[0]}")
            return None
    return captured


def _capture(contender: Contender, clock: EventClock) -> tuple[Contender, int]:
    """A graph of several calls: a multiple of the input sets, so that each replay takes every set alike."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(INPUT_SETS):
            contender()  # what is set up at a first call must not be captured
        start = clock()
        for _ in range(INPUT_SETS):
            contender()
        usual = (clock() - start) / INPUT_SETS
        calls = INPUT_SETS * max(1, math.ceil(_GRAPH_SECONDS / max(usual, 1e-7) / INPUT_SETS))
        calls = min(calls, _MOST_CALLS)
        torch.cuda.synchronize()
        # As torch.cuda.graph does, but without emptying the cache of memory: that would be minutes over all cases. No
        # collection may destroy another graph meanwhile.
        gc.collect()
        gc.disable()
        try:
            graph.capture_begin()
            try:
                for _ in range(calls):
                    contender()
            finally:
                graph.capture_end()
        finally:
            gc.enable()
    torch.cuda.current_stream().wait_stream(stream)
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, calls


def _fastest(work: Contender, rounds: int, seconds: float) -> float:
    result = measure(single("ceiling", work), rounds=rounds, seconds=seconds, clock=EventClock())
    return min(result.timings["run"].rounds)


@contextlib.contextmanager
def _precision(name: str | None) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(name or before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.split("\n")[0].strip() or None
