"""What may be computed in a module's stead: the one list of what must hold before anything is read from a layer.

A fused forward and a plan of the engine run layers that are not called. That is right only where calling them would
compute what their torch.nn class computes, of the parameters that this class knows. `refusal` says why it would not.
The engine asks it once and then watches what was read (csrc/bindings/watch.h); the reader of a fused forward
(csrc/bindings/direct_calls.cpp) asks it of each class and holds each instance to the lists here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from fastgan import reference

# What calling a module runs; each may be set on an instance, on a class or on a base of it.
CALL = (
    "forward",
    "__call__",
    "_wrapped_call_impl",
    "_call_impl",
    "_slow_forward",
    "_compiled_call_impl",
    "__getattr__",
    "__getattribute__",
)
# What the layers' own forwards read of the module, beside plain attributes.
TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Hooks that a call or its backward runs; `_forward_hooks_with_kwargs` and the like only qualify these.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What walks over a tree of modules go through.
WALKS = ("parameters", "named_parameters", "buffers", "named_buffers", "modules", "named_modules", "_named_members")


class _Read(NamedTuple):
    """How an activation's module is read."""

    name: str
    has_slope: bool
    fixed: tuple[tuple[str, Any], ...]  # attributes that must have these values, the only ones that fused layers have


def _read_as(name: str, options: dict[str, Any]) -> _Read:
    return _Read(
        name,
        "negative_slope" in options,
        tuple((option, value) for option, value in options.items() if option not in ("negative_slope", "inplace")),
    )


# Activation modules by exact type: a subclass may compute anything.
ACTIVATIONS = {a.module: _read_as(name, a.options) for name, a in reference.ACTIVATIONS.items()}

# The parameters and buffers that a class knows, None among them; an activation knows none.
PARAMETERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight", "bias"),
    nn.BatchNorm1d: ("weight", "bias"),
}
BUFFERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.BatchNorm1d: ("running_mean", "running_var", "num_batches_tracked"),
}

# The attributes that a class's forward reads, beside its tensors.
READ: dict[type[nn.Module], tuple[str, ...]] = {
    nn.BatchNorm1d: ("training", "momentum", "eps", "track_running_stats"),
    nn.Dropout: ("training", "p", "inplace"),
    **{a.module: tuple(a.options) for a in reference.ACTIVATIONS.values() if a.options},
}
# What a module keeps its parts in.
PARTS = ("_parameters", "_buffers", "_modules")
# The functions that the forwards call.
FUNCTIONS = {
    space: (*own, *(name for a in reference.ACTIVATIONS.values() for where, name in a.calls if where is space))
    for space, own in ((nn.functional, ("linear", "batch_norm", "dropout")), (torch, ("batch_norm",)))
}
# (namespace, name, function), as they were when fastgan was imported.
OWN_FUNCTIONS = [(vars(space), name, getattr(space, name)) for space, names in FUNCTIONS.items() for name in names]


def _is_torchs_own(function: Any) -> bool:
    """Whether a function is torch's: written in C++, or in a namespace of torch."""
    if isinstance(function, FunctionType):  # which carries the namespace it was written in, whatever wraps it
        return bool(function.__globals__.get("__name__", "").partition(".")[0] == "torch")
    return isinstance(function, BuiltinFunctionType)


# Patched before fastgan was imported: what torch's own was is not known then.
PATCHED_EARLY = next((f"{s['__name__']}.{n}" for s, n, own in OWN_FUNCTIONS if not _is_torchs_own(own)), None)

_KINDS = (nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.Sequential, *ACTIVATIONS)
_MISSING = object()


def _torchs_own(kind: type[nn.Module], name: str) -> Any:
    """What a class of torch.nn has under a name, where that is torch's own; else something that nothing else is.

    A function carries the namespace that it was written in, whatever it is assigned to or wrapped as.
    """
    value: Any = getattr(kind, name, _MISSING)
    if value is _MISSING or value is None or type(value) is type(object.__init__):  # a slot of object's
        return value
    written_in = getattr(value, "__globals__", {}).get("__name__", "")
    is_own = (
        written_in.startswith("torch.nn.modules.")
        and value.__globals__ is vars(sys.modules[written_in])
        and value.__qualname__.rpartition(".")[2] in (name, "_wrapped_call_impl")
    )
    return value if is_own else object()


def _all_of(kind: type[nn.Module]) -> tuple[tuple[str, Any], ...]:
    own = ("_check_input_dim",) if kind is nn.BatchNorm1d else ("__iter__",) if kind is nn.Sequential else ()
    return tuple((name, _torchs_own(kind, name)) for name in (*CALL, *TENSORS, *own))


# As they were when fastgan was imported: what is patched later, or was before, is somebody else's.
_OWN = {kind: _all_of(kind) for kind in _KINDS}
# The forwards that run the children of an nn.Sequential in turn; fastgan.nn adds its fused one.
SEQUENTIAL_FORWARDS = [dict(_OWN[nn.Sequential])["forward"]]


def add(kind: type[nn.Module], attributes: tuple[str, ...]) -> None:
    """Add a class of this package: it has a forward of its own and otherwise nothing that nn.Identity has not.

    Args:
        kind: the class.
        attributes: those that its forward reads.
    """
    READ[kind] = attributes
    _OWN[kind] = tuple((name, kind.forward if name == "forward" else own) for name, own in _OWN[nn.Identity])


_OWN_WALKS = {name: _torchs_own(nn.Module, name) for name in WALKS}


def has_own_walk(module: nn.Module) -> bool:
    """Whether walking over a module's parameters and buffers is not what torch.nn.Module does."""
    return any(name in module.__dict__ or getattr(type(module), name) is not own for name, own in _OWN_WALKS.items())


def patched_function() -> str | None:
    """A function of torch that the layers' forwards call and that is no longer torch's; or None."""
    if PATCHED_EARLY is not None:
        return PATCHED_EARLY
    for space, name, own in OWN_FUNCTIONS:
        if space[name] is not own:
            return f"{space['__name__']}.{name}"
    return None


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own that a call of it, or the backward of one, would run."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


# (namespace, name) of the hooks of all modules, of each kind.
GLOBAL_HOOKS = [(vars(torch_module), f"_global{name}") for name in HOOKS]


def global_hooks() -> tuple[dict[int, Any], ...]:
    """The hooks of all modules, of each kind."""
    return tuple(space[name] for space, name in GLOBAL_HOOKS)


def is_unpatched(kind: type[nn.Module]) -> bool:
    """Whether a class of the list, nn.Sequential's subclasses and nn.Linear's included, computes what torch's does.

    Of a subclass: whether it inherits all that a call reads; a property over a parameter, as parametrize makes it, is
    looked up as a call would and may differ.
    """
    base = kind if kind in _OWN else nn.Sequential if issubclass(kind, nn.Sequential) else nn.Linear
    if base is nn.Linear and not issubclass(kind, nn.Linear):
        return False
    if torch.compiler.is_compiling():  # which guards what it reads, and cannot read all of it
        forwards = SEQUENTIAL_FORWARDS if base is nn.Sequential else [base.forward]
        return kind.forward in forwards and kind.__call__ is nn.Module.__call__
    for name, own in _OWN[base]:
        value = getattr(kind, name, _MISSING)
        if value is own or (name == "forward" and value in SEQUENTIAL_FORWARDS and base is nn.Sequential):
            continue
        if kind is base or name not in TENSORS:
            return False
    # A fused twin's forward is above that of the class that it was made from, which may be patched since.
    return base is not nn.Sequential or all(
        vars(k).get("forward", SEQUENTIAL_FORWARDS[0]) in SEQUENTIAL_FORWARDS
        for k in kind.__mro__
        if issubclass(k, nn.Sequential)
    )


def refusal(module: nn.Module, base: type[nn.Module] | None = None) -> str | None:
    """Why a module must be called rather than computed, as the end of a sentence that begins with it; None: need not.

    Args:
        module: any module.
        base: take it as a layer of this class, of which its own is a subclass; None takes its own.
    """
    kind = type(module)
    base = base or (nn.Sequential if isinstance(module, nn.Sequential) else kind)
    if base not in _OWN:
        return f"is a {kind.__name__}"
    own = module.__dict__
    if has_hooks(module):
        return "has hooks"
    if "forward" in own:
        return "has a forward of its own"
    if torch.compiler.is_compiling():
        return None if is_unpatched(kind) else f"is a {kind.__name__}"
    if not is_unpatched(kind):
        return f"is a {kind.__name__} of which a method is not torch's own"
    for name in (*CALL, *TENSORS, "__iter__"):
        if name in own:
            return f"has {'an' if name[0] in 'aeiou' else 'a'} {name} of its own"
    if tuple(module._parameters) != PARAMETERS.get(base, ()) and not _is_parametrized(module, base):
        return "has other parameters than its class"
    if tuple(module._buffers) != BUFFERS.get(base, ()):
        return "has other buffers than its class"
    if module._modules and base is not nn.Sequential and not _is_parametrized(module, base):
        return "has modules inside"
    return None


def _is_parametrized(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether what a module has beside its class's own is what torch.nn.utils.parametrize keeps there."""
    return (
        base is nn.Linear
        and type(module) is not base
        and tuple(module._modules) == ("parametrizations",)
        and set(module._parameters) <= set(PARAMETERS[base])
    )


def computes_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling a module computes nn.Linear's product of its `weight` and `bias`.

    Subclasses that leave alone what a call reads do, parametrized Linears (spectral_norm) among them.
    """
    return isinstance(module, nn.Linear) and refusal(module, nn.Linear) is None


def is_sequential(module: nn.Module) -> bool:
    """Whether calling a module calls its children in turn, and nothing else."""
    return isinstance(module, nn.Sequential) and refusal(module) is None


def activation_module(name: str, negative_slope: float) -> nn.Module:
    """A new torch.nn module of an activation, by its name in `reference.ACTIVATIONS`."""
    kind = reference.ACTIVATIONS[name].module
    return kind(negative_slope) if ACTIVATIONS[kind].has_slope else kind()


def fused_activation(module: nn.Module) -> tuple[str, float] | None:
    """The activation (name, negative slope) that a module computes, or None where the fused layers have no such one."""
    read = ACTIVATIONS.get(type(module))
    if read is None or refusal(module) is not None:
        return None
    for option, value in read.fixed:
        if getattr(module, option) != value:
            return None
    if not read.has_slope:
        return read.name, 0.0
    slope: Any = module.negative_slope
    return (read.name, slope) if type(slope) in (float, int) else None


def is_idle_dropout(module: nn.Module | None) -> bool:
    """Whether a module is a Dropout that hands on what it is given."""
    return type(module) is nn.Dropout and (module.training is False or module.p == 0)


def first_weight(module: nn.Module) -> Tensor | None:
    """The weight of the first Linear layer of a tree of nn.Sequential; None where what comes before it may change the
    width or the dtype, or the tree is of other modules."""
    for leaf in _leaves(module):
        if leaf is None or refusal(leaf) is not None:
            return None
        if type(leaf) is nn.Linear:
            return leaf.weight if is_plain_tensor(leaf.weight) and leaf.weight.dim() == 2 else None
    return None


def cancelled_biases(network: nn.Module) -> list[Tensor]:
    """The biases that a BatchNorm1d right behind their Linear takes off again with the mean of the batch.

    Their gradient is zero. What rounding leaves of it Adam scales up to whole steps, another one on each machine and
    path, so the training step sets it to zero. Of a tree of nn.Sequential alone, whose layers see (batch, width).
    """
    if not any(type(module) is nn.BatchNorm1d for module in network.modules()):
        return []
    found: list[Tensor] = []
    before: Any = None
    for leaf in _leaves(network):
        kind = type(leaf)
        if leaf is None or refusal(leaf) is not None or (kind not in ACTIVATIONS and kind not in READ | PARAMETERS):
            break
        if kind is nn.BatchNorm1d and before is not None and (leaf.training or leaf.running_mean is None):
            found.append(before.bias)
        if kind is not nn.Identity and not is_idle_dropout(leaf):
            before = leaf if kind is nn.Linear and leaf.bias is not None else None
    uses = [id(p) for _, p in network.named_parameters(remove_duplicate=False)]
    return [p for p in found if uses.count(id(p)) == 1 and not (p._backward_hooks or p._post_accumulate_grad_hooks)]


def _leaves(module: nn.Module | None) -> Iterator[nn.Module | None]:
    if module is None or not is_sequential(module):
        yield module
        return
    for child in module._modules.values():
        yield from _leaves(child)


def is_plain_tensor(value: Any) -> bool:
    """Whether a tensor is one whose elements lie in memory as its sizes and strides say, of no class that may compute
    something of its own."""
    if type(value) is not Tensor and type(value) is not nn.Parameter:
        return False
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        return False
    return torch.compiler.is_compiling() or not (value.is_neg() or value.is_conj() or value._is_zerotensor())
