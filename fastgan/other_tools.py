"""Whether another tool watches or changes what modules compute, so that each module has to run as torch runs it.

A fused forward leaves out the calls that such tools live on: of the modules, of `F.linear`, of aten's ops. Patches are
in the list of fastgan.layers. The reader of a fused forward (csrc/bindings/direct_calls.cpp) asks the same in C++.
"""

from __future__ import annotations

import torch
from torch.utils._device import DeviceContext

from fastgan.layers import global_hooks, patched_function


def modes_are_on() -> bool:
    """Whether a mode sees each call of torch: counters of operations, tracers, shims. A default device is none."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return True
    stack = range(torch._C._len_torch_function_stack())
    return any(not isinstance(torch._C._get_function_stack_at(i), DeviceContext) for i in stack)


def are_there() -> bool:
    """Whether to run modules one by one, for someone watches or records them, or has changed them all."""
    if any(global_hooks()):
        return True
    if torch.compiler.is_compiling():  # what torch.export records is to run without fastgan
        return torch.compiler.is_exporting()
    return torch._C._get_tracing_state() is not None or modes_are_on() or patched_function() is not None
