"""What a plan reads of the two optimizers: groups and state, and the reason where the engine cannot update them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as optimizer_module

from fastgan import backend
from fastgan.plan_layers import CannotPlan, Layer

# What a step runs of an optimizer; each may be set on an instance or on a class.
_CALLS = ("step", "zero_grad", "_init_group")
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
# Options of a group whose numbers are not read at each step.
_OPTIONS = ("params", "amsgrad", "differentiable", "capturable", "fused", "foreach", "decoupled_weight_decay")


def _is_torchs(function: Any) -> bool:
    """Whether a function is torch's own, all that it wraps included (torch wraps its optimizers' steps)."""
    while function is not None:
        written_in = getattr(function, "__globals__", {}).get("__name__", "")
        if written_in.partition(".")[0] != "torch":
            return False
        function = getattr(function, "__wrapped__", None)
    return True


class Group:
    """One of the param_groups, of the generator's optimizer or the discriminator's."""

    def __init__(self, name: str, optimizer: Optimizer, options: dict[str, Any]) -> None:
        self.name, self.optimizer, self.options = name, optimizer, options
        # Before it was an option, AdamW alone had it.
        self.decoupled = bool(options.get("decoupled_weight_decay", type(optimizer) is AdamW))


def read(name: str, optimizer: Optimizer, network: list[Layer], watch: Any) -> list[Group]:
    """The groups of an optimizer.

    Args:
        name: what messages call it.
        optimizer: of one network.
        network: its layers.
        watch: takes note of all that is read.

    Raises:
        CannotPlan: with the reason.
    """
    kind = type(optimizer)
    if kind not in (Adam, AdamW):
        raise CannotPlan(f"{name} is {kind.__name__}, not Adam or AdamW")
    if not isinstance(optimizer.state, dict) or not isinstance(optimizer.param_groups, list):
        raise CannotPlan(f"{name} keeps its state in no dict, or its groups in no list")
    own = vars(optimizer)
    if any(not _is_torchs(getattr(kind, call)) for call in _CALLS if hasattr(kind, call)):
        raise CannotPlan(f"{name} is of a class of which a method is not torch's own")
    for call in _CALLS:
        # A learning-rate scheduler replaces the step by one that counts its calls.
        if call in own and not (hasattr(own[call], "_wrapped_by_lr_sched") and _is_torchs(own[call])):
            raise CannotPlan(f"{name} has a {call} of its own")
    if "grad_scale" in own or "found_inf" in own:
        raise CannotPlan(f"{name} scales its gradients")
    hooks = (
        optimizer_module._global_optimizer_pre_hooks,
        optimizer_module._global_optimizer_post_hooks,
        *(own[n] for n in _HOOKS),
    )
    if any(hooks):
        raise CannotPlan(f"{name} has hooks")
    for each in hooks:
        watch.empty(each)
    watch.type(kind)
    optimizer._opt_called = True  # type: ignore[attr-defined]  # what torch.optim.lr_scheduler looks for
    watch.object(optimizer, {"state", "param_groups", *_HOOKS, *_CALLS})
    watch.list(optimizer.param_groups)
    groups = [Group(name, optimizer, options) for options in optimizer.param_groups]
    trained = {id(p) for layer in network for _, p in layer.parameters() if p.requires_grad}
    held: set[int] = set()
    for group in groups:
        check(group)
        watch.items(group.options, _OPTIONS)
        watch.list(group.options["params"])
        for parameter in group.options["params"]:
            if id(parameter) in held:
                raise CannotPlan(f"{name} holds a parameter twice")
            held.add(id(parameter))
            if id(parameter) not in trained and parameter.requires_grad:
                raise CannotPlan(f"{name} holds a parameter that is in none of its network's layers")
    if not trained & held:
        raise CannotPlan(f"all that {name} holds is frozen")
    return groups


def check(group: Group) -> None:
    """Raise CannotPlan where torch's own step would refuse a group's options, or do something else with them."""
    name, options = group.name, group.options
    for option in ("params", "lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "capturable", "fused"):
        if option not in options:
            raise CannotPlan(f"{name} has a group without {option}")
    if not isinstance(options["betas"], (tuple, list)) or len(options["betas"]) != 2:
        raise CannotPlan(f"{name} has a group with betas={options['betas']!r}")
    if not isinstance(options["params"], list):
        raise CannotPlan(f"{name} has a group whose params are no list")
    if options.get("differentiable"):
        raise CannotPlan(f"{name} is differentiable")
    if options["fused"] and options.get("foreach"):
        raise CannotPlan(f"{name} is both fused and foreach")
    if isinstance(options["lr"], Tensor) and options.get("foreach") and not options["capturable"]:
        raise CannotPlan(f"{name} is foreach with a learning rate that is a Tensor")
    if options["capturable"] and any(p.device.type == "cpu" for p in options["params"]):
        raise CannotPlan(f"{name} is capturable and has parameters on the CPU")


# A parameter's state, with amsgrad max_exp_avg_sq as well.
_STATE = ("step", "exp_avg", "exp_avg_sq")


def state(group: Group, parameter: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A parameter's state, and of it the tensors that the engine takes.

    Where there is none, it is made as the optimizer would, but not given to it.

    Raises:
        CannotPlan: it is not such as the engine takes.
    """
    name, options = group.name, group.options
    found = group.optimizer.state.get(parameter)
    names = [*_STATE, *(["max_exp_avg_sq"] if options["amsgrad"] else [])]
    on_device = bool(options["fused"] or options["capturable"])
    if not found:
        is_double = torch.get_default_dtype() == torch.float64 and not options["fused"]
        dtype = torch.float64 if is_double else torch.float32
        # On the default device where the options do not say, which need not be the CPU.
        found = {"step": torch.zeros((), dtype=dtype, device=parameter.device if on_device else None)}
        found.update({n: torch.zeros_like(parameter, memory_format=torch.preserve_format) for n in names[1:]})
    if not isinstance(found, dict):
        raise CannotPlan(f"{name} has a state that is no dict")
    for key in names:
        if key not in found:
            raise CannotPlan(f"{name} has a state without {key}")
        value = found[key]
        if type(value) is not Tensor or not backend.module.is_plain(value):
            raise CannotPlan(f"{name} has a state whose {key} is no plain Tensor")
        if value.requires_grad:
            raise CannotPlan(f"{name} has a state whose {key} requires grad")
    count = found["step"]
    places = {parameter.device} if on_device else {parameter.device, torch.device("cpu")}
    if (
        count.shape != ()
        or count.device not in places
        or count.dtype not in ((torch.float32,) if options["fused"] else (torch.float32, torch.float64))
    ):
        raise CannotPlan(
            f"{name} has a state whose step has dtype {str(count.dtype).removeprefix('torch.')}, shape "
            f"{tuple(count.shape)} and is on {count.device}"
        )
    for key in names[1:]:
        value = found[key]
        if (value.dtype, value.device, value.shape) != (parameter.dtype, parameter.device, parameter.shape) or (
            value.stride() != parameter.stride() or not value.is_contiguous()
        ):
            raise CannotPlan(f"{name} has a state whose {key} is laid out otherwise than its parameter")
    return found, {key: found[key] for key in names}
