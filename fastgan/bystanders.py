"""Whether another tool watches or changes what modules compute, so that each module has to run as torch runs it.

A fused forward leaves out the calls that such tools live on: of the modules, of `F.linear`, of aten's ops. Patches of
classes and of instances are in the list of fastgan.layers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._device import DeviceContext

from fastgan.layers import global_hooks


def _functions() -> tuple[Callable[..., Any], ...]:
    """What the forwards of the modules that are fused call, as it is bound at this moment."""
    return (
        F.linear,
        F.relu,
        F.leaky_relu,
        F.elu,
        F.softplus,
        F.silu,
        F.gelu,
        torch.relu,
        torch.tanh,
        torch.sigmoid,
    )


def _is_torchs_own(function: Callable[..., Any]) -> bool:
    """Whether a function is torch's: written in C++, or in the namespace of torch.nn.functional."""
    if isinstance(function, FunctionType):  # which carries the namespace it was written in, whatever wraps it
        return function.__globals__ is vars(F)
    return isinstance(function, BuiltinFunctionType)


_torchs_functions = _functions()
# Patched before fastgan was imported: what torch's own were is not known then.
_patched_early = not all(map(_is_torchs_own, _torchs_functions))


def functions_are_patched() -> bool:
    """Whether someone has put a function of theirs in the place of one that a fused forward stands for."""
    return _patched_early or _functions() != _torchs_functions


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
    return torch._C._get_tracing_state() is not None or modes_are_on() or functions_are_patched()
