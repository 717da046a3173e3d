"""Drop-in modules: the losses, `MLP`, and `fuse`/`unfuse` for any module tree.

Only `forward` differs from PyTorch's own modules: runs of Linear + activation inside a Sequential become one fused call
of `fastgan.functional.mlp`. Everything else (parameters, state_dict, initialisation, pickling, deepcopy,
parametrizations, DDP) is torch.nn's, because the modules are torch.nn's.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastgan import backend, checks, functional, layers, other_tools, reference
from fastgan.layers import computes_linear, fused_activation, global_hooks
from fastgan.loss_modules import BCEWithLogitsLoss, DiscriminatorLoss, GeneratorLoss

__all__ = [
    "MLP",
    "BCEWithLogitsLoss",
    "DiscriminatorLoss",
    "FusedSequential",
    "GeneratorLoss",
    "SegmentedActivation",
    "fuse",
    "unfuse",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _ordinary_segments(self: SegmentedActivation, input: Tensor, noise: Tensor | None = None) -> Tensor:
    """The forward of a SegmentedActivation in ordinary ops and in TorchScript's Python; the same draws of a seed."""
    columns = 0
    gumbel = 0
    for width, kind in zip(self.widths, self.kinds):  # noqa: B905  # TorchScript knows no strict
        columns += width
        if kind == "gumbel_softmax":
            gumbel += width
    if input.size(-1) != columns:
        raise RuntimeError(f"input must have {columns} columns, as widths say, not {input.size(-1)}")
    if noise is not None and noise.size(-1) != gumbel:
        raise RuntimeError(f"noise must have {gumbel} columns, those of gumbel_softmax, not {noise.size(-1)}")
    wide = input.dtype
    if wide == torch.float16 or wide == torch.bfloat16:
        wide = torch.float32
    draws = noise
    if draws is None:
        uniform = torch.rand(list(input.shape[:-1]) + [gumbel], dtype=wide, device=input.device)  # noqa: RUF005
        draws = -(-uniform.clamp_min(2.0**-126 if wide == torch.float32 else 2.0**-1022).log()).log()
    outputs: list[Tensor] = []
    start = 0
    used = 0
    for width, kind in zip(self.widths, self.kinds):  # noqa: B905
        part = input.narrow(-1, start, width)
        start += width
        if kind == "gumbel_softmax":
            scaled = (part.to(wide) + draws.narrow(-1, used, width).to(wide)) / self.tau
            outputs.append(torch.softmax(scaled, -1).to(input.dtype))
            used += width
        elif kind == "softmax":
            outputs.append(torch.softmax(part, -1))
        elif kind == "tanh":
            outputs.append(torch.tanh(part))
        else:
            outputs.append(part)
    return torch.cat(outputs, -1)


class SegmentedActivation(nn.Module):
    """`fastgan.functional.segmented_activation` as a module, the last one of a generator of tables.

    It has no parameters. Its gumbel_softmax segments are samples: they are drawn afresh at each call, in `eval()` too,
    as CTGAN does, since a generator that is evaluated is one that is sampled.

    Args:
        widths: of each segment, in columns, at least 1.
        kinds: of each segment: `tanh`, `identity`, `softmax` or `gumbel_softmax`.
        tau: the temperature of the gumbel_softmax segments, greater than 0.

    Raises:
        TypeError, ValueError: widths, kinds or tau are not such.
    """

    def __init__(self, widths: Sequence[int], kinds: Sequence[str], tau: float = 0.2) -> None:
        super().__init__()
        checks.segments(widths, kinds)
        checks.number("tau", tau, 0.0, low_open=True)
        self.widths, self.kinds, self.tau = tuple(map(int, widths)), tuple(kinds), float(tau)

    def forward(self, input: Tensor, noise: Tensor | None = None) -> Tensor:
        """Each segment of input through its activation.

        Args:
            input: (..., the sum of widths), floating.
            noise: the Gumbel draws, (..., the columns of the gumbel_softmax segments alone), or None to draw them from
                PyTorch's generator.

        Returns:
            A tensor of input's shape and dtype.

        Raises:
            RuntimeError: input or noise has another number of columns, a dtype that is not floating, or another device.
        """
        if torch.compiler.is_exporting():  # what torch.export records is to run without fastgan
            return _ordinary_segments(self, input, noise)
        return functional.segmented_activation(input, self.widths, self.kinds, tau=self.tau, noise=noise)

    # torch.jit.script compiles the source of what a function wraps.
    forward.__wrapped__ = _ordinary_segments  # type: ignore[attr-defined]

    def extra_repr(self) -> str:
        return f"widths={self.widths}, kinds={self.kinds}, tau={self.tau:g}"


# Reads plain layers and runs them in C++, which takes a third of the time that the Python below takes (9 us of 28).
_reader: Any = (backend.module if layers.PATCHED_EARLY is None else None) and backend.module.LayerReader(
    nn.Linear,
    nn.LeakyReLU,
    {
        kind: functional.ACTIVATION[read.name]
        for kind, read in layers.ACTIVATIONS.items()
        if not read.has_slope and not read.fixed
    },
    functional.ACTIVATION["leaky_relu"],
    layers.is_unpatched,
    (*layers.CALL, *layers.TENSORS, "__iter__"),
    layers.HOOKS,
    layers.OWN_FUNCTIONS,
    layers.GLOBAL_HOOKS,
)


_PLAIN_TENSORS = (Tensor, nn.Parameter)  # a subclass may compute anything


def _is_fusable_call(input: Any, weights: list[Tensor], biases: list[Tensor | None]) -> bool:
    """Whether the tensors are such as the fused layers take; with any other the modules run as they are."""
    if not layers.is_plain_tensor(input) or not input.dtype.is_floating_point or input.dim() == 0:
        return False
    for weight, bias in zip(weights, biases, strict=True):
        if not layers.is_plain_tensor(weight):
            return False
        if bias is not None and (not layers.is_plain_tensor(bias) or bias.shape != weight.shape[:1]):
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
        if computes_linear(module):
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
        input = module(flush(input))
    output: Tensor = flush(input)
    return output


def run_in_turn(of: nn.Module, modules: list[nn.Module], input: Any) -> Any:
    """Run some of the modules of an nn.Sequential as it would itself: fused, where it is fused."""
    if isinstance(of, _Fused):
        return _run_fused(modules, input)
    for module in modules:
        input = module(input)
    return input


class _Fused:
    """What fusing adds to a class of Sequential: a fused forward, and the way to pickle and to undo it."""

    _plain_class: type[nn.Module]  # that the fused class is made from

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Of a fused twin, the class that it is made from is not told: to that it is no new subclass."""
        if "_plain_class" not in cls.__dict__:
            super().__init_subclass__(**keywords)

    def forward(self, input: Any) -> Any:
        """Run the modules in turn, each run of Linear + activation fused; shapes as the modules have them."""
        if _reader is not None and backend.direct() is not None:
            output = _reader.run(self, input)
            if output is not None:
                return output
        if type(input) not in _PLAIN_TENSORS or other_tools.are_there():
            return self._plain_class.forward(self, input)
        if self._plain_class.forward not in layers.SEQUENTIAL_FORWARDS:  # patched since, on the class
            return self._plain_class.forward(self, input)
        return _run_fused(self, input)  # type: ignore[arg-type]

    # torch.jit.script compiles the source of what a function wraps: it is given that of nn.Sequential.
    forward.__wrapped__ = nn.Sequential.forward  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild_fused, (self._plain_class,), self.__getstate__()


layers.SEQUENTIAL_FORWARDS.append(_Fused.forward)


class FusedSequential(_Fused, nn.Sequential):
    """An `nn.Sequential` whose runs of Linear + activation are computed by fused kernels.

    `fuse` makes one of a plain `nn.Sequential`. Modules that are not fused (BatchNorm, Dropout, Conv, anything with
    hooks or of an own class) run as they are. Shapes, derivatives and errors are those of the modules.
    """

    _plain_class = nn.Sequential
    __reduce_ex__ = nn.Sequential.__reduce_ex__  # type: ignore[assignment]

    def _get_name(self) -> str:
        return "Sequential" if type(self) is FusedSequential else super()._get_name()  # type: ignore[no-untyped-call]


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
                modules.append(layers.activation_module(name, negative_slope))
        super().__init__(*modules)

    def __getitem__(self, idx: slice | int | str) -> Any:
        """A module, or for a slice a FusedSequential of the same modules."""
        if isinstance(idx, slice):
            return FusedSequential(OrderedDict(list(self._modules.items())[idx]))
        return super().__getitem__(idx)  # type: ignore[index]  # torch refuses a str with its own error


@functools.cache
def _fused_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The fused twin of a class of Sequential."""
    if kind is nn.Sequential:
        return FusedSequential
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (_Fused, kind), {**names, "_plain_class": kind})


def _rebuild_fused(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(_fused_class(kind))  # type: ignore[arg-type]


def _is_plain_sequential(module: nn.Module) -> bool:
    kind = type(module)
    return (
        isinstance(module, nn.Sequential)
        and kind.forward is nn.Sequential.forward
        and layers.is_unpatched(kind)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and "forward" not in module.__dict__
    )


def _is_looked_up_by_class(kind: type[nn.Module]) -> bool:
    """Whether tables of torch have a class as a key: the intrinsic modules of torch.ao, which it swaps for others."""
    return kind is not nn.Sequential and kind.__module__.partition(".")[0] == "torch"


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
        if _is_plain_sequential(child) and not _is_looked_up_by_class(type(child)):
            child.__class__ = _fused_class(type(child))  # type: ignore[arg-type]
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
            child.__class__ = child._plain_class  # type: ignore[assignment]
    return module


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")


def is_fused(module: nn.Module) -> bool:
    """Whether a module is an nn.Sequential with a fused forward."""
    return isinstance(module, _Fused)


def is_fully_fused(module: nn.Module) -> bool:
    """Whether a module is one run of fused layers, with nothing in it that looks across the batch or keeps state.

    A parametrized Linear may keep some: spectral_norm advances its power iteration each time the weight is read.
    """
    if not isinstance(module, _Fused) or backend.current_backend() == "reference":
        return False
    if type(module).forward is not _Fused.forward or layers.refusal(module) is not None or any(global_hooks()):
        return False
    children = list(module.children())
    return bool(children) and all(
        (type(child) is nn.Linear and computes_linear(child)) or fused_activation(child) is not None
        for child in children
    )
