"""Copies of what a step trains, on which it can be timed while the user's own tensors stay as they are."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.step_options import StepParts

# Of the learning rates of the copies: the same steps follow one another, and no weight runs away.
_SLOWED = 1e-6


def copies(parts: StepParts) -> StepParts:
    """Networks, optimizers and average that share no tensor with those given.

    They must be such as a plan was made of: modules that hold nothing else that a step could change, and no hooks.
    """
    twins: dict[int, Any] = {}
    return StepParts(
        generator=_module(parts.generator, twins),
        discriminator=_module(parts.discriminator, twins),
        g_optimizer=_optimizer(parts.g_optimizer, twins),
        d_optimizer=_optimizer(parts.d_optimizer, twins),
        ema=None if parts.ema is None else _module(parts.ema, twins),
    )


def _module(module: nn.Module, twins: dict[int, Any]) -> Any:
    """What else lies in a module, whatever it is, is shared, not copied: a plan reads none of it."""
    if id(module) not in twins:
        twin = twins[id(module)] = copy.copy(module)
        own = vars(twin)
        own["_parameters"] = {name: _tensor(p, twins) for name, p in module._parameters.items()}
        own["_buffers"] = {name: _tensor(b, twins) for name, b in module._buffers.items()}
        own["_modules"] = {name: None if m is None else _module(m, twins) for name, m in module._modules.items()}
    return twins[id(module)]


def _tensor(tensor: Tensor | None, twins: dict[int, Any]) -> Any:
    if tensor is None:
        return None
    if id(tensor) not in twins:
        twin = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
        twins[id(tensor)] = twin
    return twins[id(tensor)]


def _optimizer(optimizer: Optimizer, twins: dict[int, Any]) -> Any:
    groups = []
    for group in optimizer.param_groups:
        options = {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items()}
        options["params"] = [_tensor(parameter, twins) for parameter in group["params"]]
        options["lr"] = options["lr"] * _SLOWED
        groups.append(options)
    kind: Any = type(optimizer)
    twin = kind(groups)
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, Tensor) and id(parameter) in twins:
            twin.state[twins[id(parameter)]] = {
                key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in state.items()
            }
    return twin
