"""Hooks of every kind, added and removed."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

from .statements import WORLD, pick, statement
from .worlds import World


def keep(world: World, handle: Any) -> None:
    world.kept.setdefault("handles", []).append(handle)


def counted(world: World, name: str, change: Any = None) -> Any:
    """A hook that counts its calls, which the picture compares, and returns what `change` makes of its arguments.

    The loop in plain PyTorch runs the same hooks at other times: it computes gradients that nobody asked for.
    """
    counts = world.kept.setdefault("counts", {})

    def hook(*arguments: Any, **keywords: Any) -> Any:
        counts[name] = counts.get(name, 0) + 1
        return None if change is None else change(*arguments)

    return hook


def scaled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value * 1.25
    return tuple(scaled(v) for v in value) if isinstance(value, tuple) else value


@statement(WORLD)
def module_hook(world: World, r: random.Random) -> str:
    path, module = pick(r, world.modules())
    kind = r.choice(["forward_pre", "forward", "full_backward", "full_backward_pre", "backward"])
    changes = {
        "forward_pre": lambda module, inputs: scaled(inputs),
        "forward": lambda module, inputs, output: scaled(output),
        "full_backward": lambda module, inputs, outputs: scaled(inputs),
        "full_backward_pre": lambda module, outputs: scaled(outputs),
        "backward": None,
    }
    change = changes[kind] if r.random() < 0.7 else None
    hook = counted(world, f"{kind} hook of {path}", change)
    if kind in ("forward_pre", "forward") and r.random() < 0.3:
        register = getattr(module, f"register_{kind}_hook")
        keep(world, register(lambda m, i, *rest: hook(m, i, *rest[1:]), with_kwargs=True))
    else:
        keep(world, getattr(module, f"register_{kind}_hook")(hook))
    return f"{path}.register_{kind}_hook(...), {'scales' if change else 'watches'}"


@statement(WORLD)
def tensor_hook(world: World, r: random.Random) -> str:
    path, module, name = pick(r, world.slots())
    parameter = module._parameters[name]
    kind = r.choice(["hook", "post_accumulate_grad_hook", "node", "node_pre"])
    scales = r.random() < 0.7
    if kind == "hook":
        handle = parameter.register_hook(counted(world, f"hook of {path}", scaled if scales else None))
    elif kind == "post_accumulate_grad_hook":

        def double(of: Tensor) -> None:
            if scales and of.grad is not None:
                of.grad.mul_(1.25)

        handle = parameter.register_post_accumulate_grad_hook(counted(world, f"post hook of {path}", double))
    else:
        node = parameter.view_as(parameter).grad_fn.next_functions[0][0]
        world.kept.setdefault("nodes", []).append(node)
        if kind == "node":
            handle = node.register_hook(counted(world, f"node of {path}"))
        else:
            handle = node.register_prehook(counted(world, f"node of {path}", scaled if scales else None))
    keep(world, handle)
    return f"{path}: {kind}, {'scales' if scales else 'watches'}"


@statement(WORLD)
def optimizer_hook(world: World, r: random.Random) -> str:
    name, optimizer = r.choice(world.optimizers)
    kind = r.choice(["pre", "post"])

    def change(of: Any, *rest: Any) -> None:
        for group in of.param_groups:
            group["weight_decay"] = 0.01

    hook = counted(world, f"{kind} hook of {name}", change if r.random() < 0.5 else None)
    keep(world, getattr(optimizer, f"register_step_{kind}_hook")(hook))
    return f"{name}.register_step_{kind}_hook(...)"


@statement(WORLD)
def remove_hook(world: World, r: random.Random) -> str:
    handles = world.kept.get("handles", [])
    at = pick(r, range(len(handles)))
    handles.pop(at).remove()
    return f"hook {at} removed"


@statement(WORLD)
def remove_all_hooks(world: World, r: random.Random) -> str:
    for handle in world.kept.pop("handles", []):
        handle.remove()
    return "all hooks removed"
