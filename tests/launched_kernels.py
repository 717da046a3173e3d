"""The kernels that a call launches on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch


def kernels_of(call: Callable[[], object]) -> list[str]:
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    events = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in events if "emcpy" not in name]
