"""What all of a process shares: class patches, hooks of every module, backend, threads, modes."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import torch
import torch.optim.optimizer as torch_optimizer
from torch import nn
from torch.nn.modules import module as torch_module

import fastgan
from fastgan import backend, layers

from .statements import PROCESS, NotHere, statement


class Process:
    """What was done, to be undone when the example ends."""

    def __init__(self, on_simt: bool) -> None:
        self.on_simt = on_simt
        self.undo = contextlib.ExitStack()

    def set(self, holder: Any, name: str, value: Any) -> None:
        before = getattr(holder, name)
        self.undo.callback(setattr, holder, name, before)
        setattr(holder, name, value)


@statement(PROCESS)
def undo_process(process: Process, r: random.Random) -> str:
    process.undo.close()
    return "all that the process shares as it was"


@statement(PROCESS)
def patch_class(process: Process, r: random.Random) -> str:
    kind, name = r.choice(
        [
            *((kind, "forward") for kind in (nn.Linear, nn.ReLU, nn.LeakyReLU, nn.BatchNorm1d, nn.Dropout, nn.Tanh)),
            *((kind, "forward") for kind in (nn.Sequential, nn.Sigmoid)),
            (torch.optim.Adam, "step"),
            (torch.optim.Optimizer, "zero_grad"),
            (nn.Sequential, "__iter__"),
            (nn.Linear, "__call__"),
            (nn.Linear, "__getattr__"),
            (nn.Module, "__call__"),
            (nn.Module, "_call_impl"),
        ]
    )
    original, same = getattr(kind, name), r.random() < 0.3
    if name == "__iter__":
        value: Any = lambda self: reversed(list(self._modules.values()))  # noqa: E731
        value = original if same else value
    elif name == "__getattr__":

        def value(self: Any, key: str) -> Any:
            found = original(self, key)
            return found * 0.9 if key == "weight" and not same else found
    elif issubclass(kind, torch.optim.Optimizer):

        def value(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if not same and name == "step":
                for group in self.param_groups:
                    group["weight_decay"] = 0.02
            return original(self, *arguments, **keywords)
    else:

        def value(self: Any, *inputs: Any) -> Any:
            output = original(self, *inputs)
            return output if same else output * 0.9

    had = name in vars(kind)
    setattr(kind, name, value)
    process.undo.callback(setattr if had else lambda k, n, _: delattr(k, n), kind, name, original)
    return f"{kind.__name__}.{name} patched{', to the same' if same else ''}"


@statement(PROCESS)
def patch_function(process: Process, r: random.Random) -> str:
    """Of torch's functions, which the layers call."""
    space, name = r.choice([(space, name) for space, names in layers.FUNCTIONS.items() for name in names])
    original = getattr(space, name)
    process.set(space, name, lambda *inputs, **keywords: original(*inputs, **keywords) * 0.9)
    return f"{space.__name__}.{name} patched"


@statement(PROCESS)
def global_hook(process: Process, r: random.Random) -> str:
    kind = r.choice(["forward_pre", "forward", "full_backward", "full_backward_pre", "optimizer pre", "optimizer post"])
    if kind.startswith("optimizer"):
        register = getattr(torch_optimizer, f"register_optimizer_step_{kind.split()[1]}_hook")

        def decay(of: Any, *rest: Any) -> None:
            for group in of.param_groups:
                group["weight_decay"] = 0.02

        process.undo.callback(register(decay).remove)
        return f"a step {kind} hook of all optimizers"
    changes: dict[str, Any] = {
        "forward_pre": lambda m, inputs: tuple(i * 1.1 for i in inputs),
        "forward": lambda m, inputs, output: output * 1.1,
        "full_backward": lambda m, grads, outputs: None,
        "full_backward_pre": lambda m, outputs: tuple(o * 1.1 for o in outputs),
    }
    register = getattr(torch_module, f"register_module_{kind}_hook")
    process.undo.callback(register(changes[kind]).remove)
    return f"a {kind} hook of all modules"


@statement(PROCESS)
def registration_hook(process: Process, r: random.Random) -> str:
    """Hooks that are called when something is registered; training never calls them."""
    kind = r.choice(["parameter", "module", "buffer"])
    register = getattr(torch_module, f"register_module_{kind}_registration_hook")
    process.undo.callback(register(lambda *arguments: None).remove)
    return f"a {kind} registration hook"


@statement(PROCESS)
def set_backend(process: Process, r: random.Random) -> str:
    name = r.choice(["cpu", "reference"] if process.on_simt else ["auto", "cpu", "reference"])
    process.undo.callback(setattr, backend, "_name", backend.current_backend())
    fastgan.set_backend(name)
    return f"set_backend({name!r})"


@statement(PROCESS)
def set_threads(process: Process, r: random.Random) -> str:
    count = r.choice([1, 2, 3])
    process.undo.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(count)
    return f"torch.set_num_threads({count})"


@statement(PROCESS)
def set_default_dtype(process: Process, r: random.Random) -> str:
    dtype = r.choice([torch.float64, torch.float32])
    process.undo.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(dtype)
    return f"torch.set_default_dtype({dtype})"


@statement(PROCESS)
def set_mode(process: Process, r: random.Random) -> str:
    how = r.choice(["deterministic", "anomaly", "flush denormal", "swap parameters", "overwrite parameters"])
    if how == "deterministic":
        process.undo.callback(torch.use_deterministic_algorithms, False)
        torch.use_deterministic_algorithms(True)
    elif how == "anomaly":
        process.undo.enter_context(torch.autograd.set_detect_anomaly(True, check_nan=False))
    elif how == "flush denormal":
        process.undo.callback(torch.set_flush_denormal, False)
        if not torch.set_flush_denormal(True):
            raise NotHere
    elif how == "swap parameters":
        process.undo.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        torch.__future__.set_swap_module_params_on_conversion(True)
    else:
        process.undo.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
    return how
