"""Drop-in modules: the losses, `MLP`, and `fuse`/`unfuse` for any module tree.

Only `forward` differs from PyTorch's own modules: runs of Linear + activation inside a Sequential become one fused call
of `fastgan.functional.mlp`. Everything else (parameters, state_dict, initialisation, pickling, deepcopy,
parametrizations, DDP) is torch.nn's, because the modules are torch.nn's.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from fastgan import backend, checks, functional, reference

__all__ = [
    "MLP",
    "BCEWithLogitsLoss",
    "DiscriminatorLoss",
    "FusedSequential",
    "GeneratorLoss",
    "fuse",
    "unfuse",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """`torch.nn.BCEWithLogitsLoss`, constructor and all, computed in one pass.

    Shapes and errors: see `fastgan.functional.binary_cross_entropy_with_logits`.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (any shape) against targets of the same shape."""
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class DiscriminatorLoss(nn.Module):
    """`fastgan.functional.discriminator_loss` as a module; the arguments are its own."""

    def __init__(self, real_target: float = 1.0, fake_target: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        checks.number("real_target", real_target, 0.0, 1.0)
        checks.number("fake_target", fake_target, 0.0, 1.0)
        checks.choice("reduction", reduction, checks.REDUCTIONS)
        self.real_target, self.fake_target, self.reduction = real_target, fake_target, reduction

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of D(x) and D(G(z)), any shapes; with reduction `none`, the pair of halves."""
        return functional.discriminator_loss(
            real_logits,
            fake_logits,
            real_target=self.real_target,
            fake_target=self.fake_target,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"real_target={self.real_target}, fake_target={self.fake_target}, reduction={self.reduction!r}"


class GeneratorLoss(nn.Module):
    """`fastgan.functional.generator_loss` as a module; the arguments are its own."""

    def __init__(self, kind: str = "non_saturating", target: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        checks.choice("kind", kind, checks.GENERATOR_LOSSES)
        checks.number("target", target, 0.0, 1.0)
        checks.choice("reduction", reduction, checks.REDUCTIONS)
        self.kind, self.target, self.reduction = kind, target, reduction

    def forward(self, fake_logits: Tensor) -> Tensor:
        """The loss of D(G(z)), any shape."""
        return functional.generator_loss(fake_logits, kind=self.kind, target=self.target, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, target={self.target}, reduction={self.reduction!r}"


# Activation modules by exact type (a subclass may compute anything): name and negative slope, or None where the
# module's parameters are not the ones that the fused activation has.
_ACTIVATION_MODULES: dict[type[nn.Module], Callable[[Any], tuple[str, float] | None]] = {
    nn.Identity: lambda m: ("identity", 0.0),
    nn.ReLU: lambda m: ("relu", 0.0),
    nn.LeakyReLU: lambda m: ("leaky_relu", m.negative_slope),
    nn.ELU: lambda m: ("elu", 0.0) if m.alpha == 1.0 else None,
    nn.Tanh: lambda m: ("tanh", 0.0),
    nn.Sigmoid: lambda m: ("sigmoid", 0.0),
    nn.Softplus: lambda m: ("softplus", 0.0) if m.beta == 1.0 and m.threshold == 20.0 else None,
    nn.SiLU: lambda m: ("silu", 0.0),
    nn.GELU: lambda m: ("gelu", 0.0) if m.approximate == "none" else None,
}


# Reads plain layers and runs them in C++, which takes a third of the time that the Python below takes (9 us of 28).
_reader: Any = backend.module and backend.module.LayerReader(
    nn.Linear,
    nn.LeakyReLU,
    {
        kind: functional.ACTIVATION[kind.__name__.lower()]
        for kind in (nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU)
    },
    functional.ACTIVATION["leaky_relu"],
)

# A Tensor subclass may compute anything.
_PLAIN_TENSORS = (Tensor, nn.Parameter)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def global_hooks() -> tuple[dict[int, Any], ...]:
    """The hooks of all modules, of each kind."""
    return (
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
    )


def _computes_linear(kind: type[nn.Module]) -> bool:
    """Whether calling a module of this class computes nn.Linear's product of its `weight` and `bias`, so that it may be
    computed for it. Subclasses that leave forward alone do, parametrized Linears (spectral_norm) among them."""
    return kind is nn.Linear or (
        issubclass(kind, nn.Linear) and kind.forward is nn.Linear.forward and kind.__call__ is nn.Module.__call__
    )


def _is_fusable_linear(module: nn.Module) -> bool:
    return _computes_linear(type(module)) and "forward" not in module.__dict__ and not has_hooks(module)


def fused_activation(module: nn.Module) -> tuple[str, float] | None:
    """The activation (name, negative slope) that a module computes, or None where the fused layers have no such one."""
    rule = _ACTIVATION_MODULES.get(type(module))
    if rule is None or "forward" in module.__dict__ or has_hooks(module):
        return None
    return rule(module)


def _is_fusable_call(input: Any, weights: list[Tensor], biases: list[Tensor | None]) -> bool:
    """Whether the tensors are such as the fused layers take; with any other the modules run as they are."""
    if not isinstance(input, Tensor) or input.is_nested or not input.dtype.is_floating_point or input.dim() == 0:
        return False
    for weight, bias in zip(weights, biases, strict=True):
        if type(weight) not in _PLAIN_TENSORS or weight.layout is not torch.strided:
            return False
        if bias is not None and (type(bias) not in _PLAIN_TENSORS or bias.shape != weight.shape[:1]):
            return False
    return True


def _run_fused(modules: Iterable[nn.Module], input: Tensor) -> Tensor:
    """Run modules one after another, each run of Linear + activation as one call of `functional.mlp`."""
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    activations: list[str] = []
    slopes: list[float] = []
    open_layer = False  # the last layer gathered has no activation yet

    pending: list[nn.Module] = []  # what the gathered layers were read from

    def flush(value: Any) -> Any:
        if not pending:
            return value
        if _is_fusable_call(value, weights, biases):
            value = functional.mlp(value, weights, biases, activations, slopes)
        else:
            for module in pending:
                value = module(value)
        for gathered in (pending, weights, biases, activations, slopes):
            gathered.clear()
        return value

    for module in modules:
        if _is_fusable_linear(module):
            weights.append(module.weight)
            biases.append(module.bias)
            activations.append("identity")
            slopes.append(0.0)
            pending.append(module)
            open_layer = True
            continue
        activation = fused_activation(module) if open_layer else None
        open_layer = False
        if activation is not None:
            activations[-1], slopes[-1] = activation
            pending.append(module)
            continue
        # The fused leaky_relu's backward reads its output, torch's does not: what changes that in place gets a copy.
        copied = getattr(module, "inplace", False) and activations[-1:] == ["leaky_relu"]
        input = flush(input)
        input = module(input.clone() if copied else input)
    return flush(input)


class _Fused:
    """What fusing adds to a class of Sequential: a fused forward, and the way to pickle and to undo it."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Of a fused twin, the class that it is made from is not told: to that it is no new subclass."""

    def forward(self, input: Any) -> Any:
        """Run the modules in turn, each run of Linear + activation fused; shapes as the modules have them."""
        if not isinstance(input, Tensor) or any(global_hooks()):
            return nn.Sequential.forward(self, input)  # type: ignore[arg-type]
        if backend.direct() is not None:
            output = _reader.run(self._modules, input)  # type: ignore[attr-defined]
            if output is not None:
                return output
        return _run_fused(self, input)  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild_fused, (_unfused_class(type(self)),), self.__getstate__()  # type: ignore[attr-defined]


class FusedSequential(_Fused, nn.Sequential):
    """An `nn.Sequential` whose runs of Linear + activation are computed by fused kernels.

    Modules that are not fused (BatchNorm, Dropout, Conv, anything with hooks or of an own class) run as they are.
    """

    __reduce_ex__ = nn.Sequential.__reduce_ex__


class MLP(FusedSequential):
    """A multilayer perceptron: an `nn.Sequential` of `nn.Linear` and activation modules with a fused forward.

    `MLP([64, 256, 1], activation="relu")` holds the modules of
    `nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1))`, initialised alike, under the same names.

    Shape:
        input (..., sizes[0]); output (..., sizes[-1]).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "leaky_relu",
        output_activation: str | None = None,
        negative_slope: float = 0.2,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the layers.

        Args:
            sizes: widths from the input to the output, at least two, each at least 1.
            activation: after every layer but the last; see `fastgan.functional.linear_act` for the names.
            output_activation: after the last layer; None adds no module.
            negative_slope: slope of leaky_relu below zero.
            bias: whether the layers have biases.
            device: where the parameters live, as in nn.Linear.
            dtype: of the parameters, as in nn.Linear.

        Raises:
            ValueError: fewer than two sizes, a size below 1, or an unknown activation.
            TypeError: a size is no integer.
        """
        sizes = list(sizes)
        if len(sizes) < 2:
            raise ValueError(f"sizes must give at least the input and the output width, not {sizes}")
        for i, size in enumerate(sizes):
            checks.integer(f"sizes[{i}]", size, 1)
        checks.choice("activation", activation, reference.ACTIVATIONS)
        if output_activation is not None:
            checks.choice("output_activation", output_activation, reference.ACTIVATIONS)
        checks.number("negative_slope", negative_slope)
        modules: list[nn.Module] = []
        for i, (width_in, width_out) in enumerate(pairwise(sizes)):
            modules.append(nn.Linear(width_in, width_out, bias=bias, device=device, dtype=dtype))
            name = activation if i < len(sizes) - 2 else output_activation
            if name is not None:
                modules.append(_activation_module(name, negative_slope))
        super().__init__(*modules)

    def __getitem__(self, idx: slice | int | str) -> Any:
        """A module, or for a slice a FusedSequential of the same modules."""
        if isinstance(idx, slice):
            return FusedSequential(OrderedDict(list(self._modules.items())[idx]))
        return super().__getitem__(idx)


def _activation_module(name: str, negative_slope: float) -> nn.Module:
    """The torch.nn module of an activation of the table."""
    if name == "leaky_relu":
        return nn.LeakyReLU(negative_slope)
    for kind in _ACTIVATION_MODULES:
        module = kind()
        if fused_activation(module) == (name, 0.0):
            return module
    raise AssertionError(f"the activation {name} has no module")


@functools.cache
def _fused_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The fused twin of a class of Sequential."""
    if kind is nn.Sequential:
        return FusedSequential
    return type(kind.__name__, (_Fused, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _unfused_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of Sequential that a fused class came from."""
    return kind.__mro__[kind.__mro__.index(_Fused) + 1]


def _rebuild_fused(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(_fused_class(kind))


def _is_plain_sequential(module: nn.Module) -> bool:
    kind = type(module)
    return (
        isinstance(module, nn.Sequential)
        and kind.forward is nn.Sequential.forward
        and kind.__call__ is nn.Module.__call__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and "forward" not in module.__dict__
    )


def fuse(module: ModuleT) -> ModuleT:
    """Fuse every run of Linear + activation inside every nn.Sequential of a module tree, in place.

    The modules, their Parameters, buffers, hooks and state_dict keys stay what they are; only the class of each
    Sequential changes, and with it its forward. A Sequential subclass with a forward of its own is left alone.

    Args:
        module: any module; it may itself be an nn.Sequential.

    Returns:
        The same module.

    Raises:
        TypeError: module is no nn.Module.
    """
    _check_module(module)
    for child in list(module.modules()):
        if _is_plain_sequential(child):
            child.__class__ = _fused_class(type(child))
    return module


def unfuse(module: ModuleT) -> ModuleT:
    """Undo `fuse`, in place: every fused Sequential becomes the class it was; an `MLP` becomes an nn.Sequential.

    A subclass of `MLP` or `FusedSequential` is left alone: it would lose what it adds.

    Args:
        module: any module.

    Returns:
        The same module, with the same Parameter objects.

    Raises:
        TypeError: module is no nn.Module.
    """
    _check_module(module)
    for child in list(module.modules()):
        if type(child) in (FusedSequential, MLP):
            child.__class__ = nn.Sequential
        elif isinstance(child, _Fused) and not isinstance(child, FusedSequential):
            child.__class__ = _unfused_class(type(child))
    return module


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")


def is_sequential(module: nn.Module) -> bool:
    """Whether calling a module calls its children in turn, and nothing else."""
    kind = type(module)
    return (
        isinstance(module, nn.Sequential)
        and kind.forward in (nn.Sequential.forward, _Fused.forward)
        and kind.__call__ is nn.Module.__call__
        and "forward" not in module.__dict__
    )


def is_fully_fused(module: nn.Module) -> bool:
    """Whether a module is one run of fused layers, with nothing in it that looks across the batch or keeps state.

    A parametrized Linear may keep some: spectral_norm advances its power iteration each time the weight is read.
    """
    kind = type(module)
    if not isinstance(module, _Fused) or backend.current_backend() == "reference":
        return False
    if kind.forward is not _Fused.forward or kind.__call__ is not nn.Module.__call__ or "forward" in module.__dict__:
        return False
    if has_hooks(module) or any(global_hooks()):
        return False
    children = list(module.children())
    return bool(children) and all(
        (type(child) is nn.Linear and _is_fusable_linear(child)) or fused_activation(child) is not None
        for child in children
    )
