"""What a call allocates, by torch's own record."""

from __future__ import annotations

from collections.abc import Callable

import torch


def bytes_allocated(call: Callable[[], object], times: int) -> int:
    """Of CPU memory, by so many calls, whose results are kept meanwhile."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = [call() for _ in range(times)]
    assert len(kept) == times
    return sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0)


def blocks_allocated(call: Callable[[], object], times: int) -> int:
    """Of CUDA memory, whose allocator deals in blocks of 512 bytes, by so many calls."""
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    kept = [call() for _ in range(times)]
    assert len(kept) == times
    return int(torch.cuda.memory_stats()["allocation.all.allocated"] - before)


def assert_statistics_alone_are_allocated(step: Callable[[], object], times: int) -> None:
    """By so many float32 steps of the engine, where tensors are made: one a step, of the four and the penalty."""
    if torch.get_default_device().type == "cuda":
        assert blocks_allocated(step, times) == times
    else:
        assert bytes_allocated(step, times) == times * 5 * 4
