"""What a plan reads of a network: its layers, each with the activation after it, and the reason where it cannot run.

Sizes are those of the tensors; `in_features` and the like are never read, as the modules' own forwards never do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import backend, functional, layers
from fastgan.nn import SegmentedActivation

LINEAR, BATCH_NORM, DROPOUT, IDENTITY = "linear", "batch_norm", "dropout", "identity"  # as the engine calls them
SEGMENTED = "segmented"
_KINDS = {nn.Linear: LINEAR, nn.BatchNorm1d: BATCH_NORM, nn.Dropout: DROPOUT, SegmentedActivation: SEGMENTED}
_segmented_activation = functional.segmented_activation
layers.add(SegmentedActivation, ("widths", "kinds", "tau"))
_DTYPES = (torch.float32, torch.float64)


class CannotPlan(Exception):
    """The engine cannot run this; the message says why, as the end of a sentence."""


class Layer:
    """A layer and the activation after it."""

    def __init__(self, kind: str, path: str, module: nn.Module | None) -> None:
        self.kind, self.path, self.module = kind, path, module
        self.activation = ("identity", 0.0)
        self.width_in = self.width_out = 0

    def parameters(self) -> list[tuple[bool, nn.Parameter]]:
        """(whether it is the bias, the Parameter)."""
        if self.module is None:
            return []
        return [(name == "bias", p) for name, p in self.module._parameters.items() if p is not None]

    def buffers(self) -> list[tuple[str, Tensor]]:
        """(its name, the buffer)."""
        return [] if self.module is None else [(n, b) for n, b in self.module._buffers.items() if b is not None]

    def uses_batch_statistics(self) -> bool:
        """Of a batch_norm: whether it looks at the batch."""
        module: Any = self.module
        return self.kind == BATCH_NORM and (bool(module.training) or module.running_mean is None)

    def segments(self) -> str:
        """Of a segmented one: how many there are, and how many columns are drawn; else empty."""
        module: Any = self.module
        if self.kind != SEGMENTED:
            return ""
        drawn = sum(w for w, kind in zip(module.widths, module.kinds, strict=True) if kind == "gumbel_softmax")
        return f" in {len(module.widths)}, {drawn} drawn"


def read(module: nn.Module, name: str, watch: Any) -> list[Layer]:
    """The layers of a network.

    Args:
        module: the network.
        name: what messages call it.
        watch: takes note of all that is read.

    Raises:
        CannotPlan: with the reason.
    """
    found: list[Layer] = []
    in_place_from: str | None = name  # what an in-place layer would overwrite; None: nothing that is needed
    for path, child in leaves(module, name, watch):
        if getattr(child, "inplace", False) and in_place_from is not None:
            raise CannotPlan(f"{path} works in place on the output of {in_place_from}")
        activation = layers.fused_activation(child)
        if activation is not None:
            if activation[0] == "identity":
                continue
            if getattr(child, "inplace", False) and activation[1] < 0:
                raise CannotPlan(f"{path} works in place with a negative slope")
            in_place_from = path
            if not found or found[-1].kind == SEGMENTED or found[-1].activation != ("identity", 0.0):
                found.append(Layer(IDENTITY, path, None))
            found[-1].activation = activation
            continue
        kind = _KINDS.get(type(child))
        if kind is None:
            raise CannotPlan(f"{path} is a {type(child).__name__}")
        if kind == SEGMENTED:
            watch.items(vars(functional), ("segmented_activation",))
        layer = Layer(kind, path, child)
        _check(layer)
        if layers.is_idle_dropout(child):
            continue
        if kind == SEGMENTED and name != "generator":
            raise CannotPlan(f"{path} is a SegmentedActivation, which the engine has in a generator alone")
        in_place_from = path if kind == SEGMENTED else None
        found.append(layer)
        for _, parameter in layer.parameters():
            watch.tensor(parameter, True)
            for hooks in (getattr(parameter, n, None) for n in ("_backward_hooks", "_post_accumulate_grad_hooks")):
                if hooks is not None:
                    watch.empty(hooks)
        for _, buffer in layer.buffers():
            watch.tensor(buffer)
    if not any(layer.kind == LINEAR for layer in found):
        raise CannotPlan(f"the {name} has no Linear layer")
    _set_widths(found)
    return found


def leaves(module: nn.Module, path: str, watch: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a tree of nn.Sequential calls one after another."""
    reason = layers.refusal(module)
    if reason is not None:
        raise CannotPlan(f"{path} {reason}")
    watch.type(type(module))
    watch.object(module, {*layers.PARTS, *layers.HOOKS, *layers.READ.get(type(module), ())})
    for hooks in layers.HOOKS:
        watch.empty(getattr(module, hooks))
    for part in layers.PARTS:
        watch.dict(getattr(module, part))
    if not isinstance(module, nn.Sequential):
        yield path, module
        return
    for name, child in module._modules.items():
        if child is None:
            raise CannotPlan(f"{path}[{name}] is None")
        yield from leaves(child, f"{path}[{name}]", watch)


def _check(layer: Layer) -> None:
    """Raise CannotPlan where a layer's numbers and tensors are not such as its kernels take."""
    module: Any = layer.module
    for _, parameter in layer.parameters():
        if type(parameter) is not nn.Parameter or not backend.module.is_plain(parameter):
            raise CannotPlan(f"{layer.path} has a parameter of another kind than nn.Parameter")
        if not parameter.is_contiguous():
            raise CannotPlan(f"{layer.path} has a parameter that is not contiguous")
        if not parameter.is_leaf:
            raise CannotPlan(f"{layer.path} has a parameter that is computed from others")
        if parameter.numel() == 0:
            raise CannotPlan(f"{layer.path} has a parameter without elements")
        if (
            parameter._backward_hooks
            or parameter._post_accumulate_grad_hooks
            or backend.module.has_node_hooks(parameter)
        ):
            raise CannotPlan(f"{layer.path} has a parameter with hooks")
    if layer.kind == LINEAR:
        if module.weight is None or module.weight.dim() != 2:
            raise CannotPlan(f"{layer.path} has no weight of shape (out, in)")
        layer.width_out, layer.width_in = module.weight.shape
        if module.bias is not None and module.bias.shape != (layer.width_out,):
            raise CannotPlan(f"{layer.path} has a bias of shape {tuple(module.bias.shape)}, not ({layer.width_out},)")
    elif layer.kind == BATCH_NORM:
        _check_batch_norm(layer)
    elif layer.kind == DROPOUT:
        if not _is_number(module.p) or not 0 <= module.p <= 1 or type(module.training) is not bool:
            raise CannotPlan(f"{layer.path} has p={module.p!r}, training={module.training!r}")
    elif layer.kind == SEGMENTED:
        _check_segments(layer)
    else:
        raise AssertionError(f"what a {layer.kind} must be like is not known")


def _check_segments(layer: Layer) -> None:
    module: Any = layer.module
    if functional.segmented_activation is not _segmented_activation:
        raise CannotPlan("fastgan.functional.segmented_activation is not fastgan's own")
    # Tuples, which nothing can change in place: the watch compares identities.
    if type(module.widths) is not tuple or type(module.kinds) is not tuple:
        raise CannotPlan(f"{layer.path} has widths or kinds that are no tuple")
    if not all(type(width) is int and width > 0 for width in module.widths):
        raise CannotPlan(f"{layer.path} has widths={module.widths!r}")
    if not all(type(kind) is str and kind in functional.SEGMENT_KIND for kind in module.kinds):
        raise CannotPlan(f"{layer.path} has kinds={module.kinds!r}")
    if not module.widths or len(module.widths) != len(module.kinds):
        raise CannotPlan(f"{layer.path} has {len(module.widths)} widths and {len(module.kinds)} kinds")
    if not _is_number(module.tau) or not 0 < module.tau < math.inf:
        raise CannotPlan(f"{layer.path} has tau={module.tau!r}")
    layer.width_in = layer.width_out = sum(module.widths)


def _check_batch_norm(layer: Layer) -> None:
    module: Any = layer.module
    vectors = [p for _, p in layer.parameters()]
    mean, var, batches = module.running_mean, module.running_var, module.num_batches_tracked
    if (mean is None) != (var is None) or (mean is None) == bool(module.track_running_stats):
        raise CannotPlan(f"{layer.path} has running statistics that it does not track, or tracks what it has not")
    vectors += [] if mean is None else [mean, var]
    if len({tuple(v.shape) for v in vectors} | {(len(v.flatten()),) for v in vectors}) > 1:
        raise CannotPlan(f"{layer.path} has parameters or statistics of several shapes")
    for name, buffer in layer.buffers():
        if type(buffer) is not Tensor or not backend.module.is_plain(buffer) or not buffer.is_contiguous():
            raise CannotPlan(f"{layer.path} has a {name} that is no plain contiguous Tensor")
        if buffer.requires_grad:
            raise CannotPlan(f"{layer.path} has a {name} that requires grad")
    if batches is not None and (batches.dtype != torch.int64 or batches.shape != ()):
        raise CannotPlan(f"{layer.path} has a num_batches_tracked of {_name(batches.dtype)}, shape {(*batches.shape,)}")
    if (batches is None) != (mean is None):
        raise CannotPlan(f"{layer.path} has running statistics without num_batches_tracked, or this without them")
    if not _is_number(module.eps) or (module.momentum is not None and not _is_number(module.momentum)):
        raise CannotPlan(f"{layer.path} has momentum={module.momentum!r}, eps={module.eps!r}")
    if vectors:
        layer.width_in = layer.width_out = len(vectors[0])


def _is_number(value: Any) -> bool:
    return type(value) in (float, int)


def _set_widths(found: list[Layer]) -> None:
    """The widths of the layers that have none of their own are those of their neighbours."""
    first = next(i for i, layer in enumerate(found) if layer.width_in)
    for i in range(first - 1, -1, -1):
        found[i].width_in = found[i].width_out = found[i + 1].width_in
    for before, layer in itertools.pairwise(found):
        if not layer.width_in:
            layer.width_in = layer.width_out = before.width_out
        if layer.width_in != before.width_out:
            raise CannotPlan(f"{layer.path} does not fit the layer before it")


def fold_sigmoid(found: list[Layer]) -> bool:
    """Take the Sigmoid off the end of a discriminator, for the loss to compute; whether there was one."""
    if found[-1].activation[0] != "sigmoid":
        return False
    found[-1].activation = ("identity", 0.0)
    if found[-1].kind == IDENTITY:
        found.pop()
    return True


def common_kind(networks: list[list[Layer]]) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of all parameters and buffers.

    Raises:
        CannotPlan: they differ, or the engine has no kernels for them.
    """
    seen: set[int] = set()
    kinds: set[tuple[torch.dtype, torch.device]] = set()
    devices: set[torch.device] = set()
    for network in networks:
        for layer in network:
            for _, parameter in layer.parameters():
                if id(parameter) in seen:
                    raise CannotPlan(f"{layer.path} shares a parameter with another layer")
                seen.add(id(parameter))
                kinds.add((parameter.dtype, parameter.device))
            for name, buffer in layer.buffers():
                devices.add(buffer.device)
                if name != "num_batches_tracked":
                    kinds.add((buffer.dtype, buffer.device))
    if len(kinds) != 1 or not devices <= {device for _, device in kinds}:
        raise CannotPlan("the parameters and buffers differ in dtype or device")
    dtype, device = kinds.pop()
    if dtype not in _DTYPES:
        raise CannotPlan(f"the parameters are {_name(dtype)}")
    if device.type not in backend.module.device_types():
        raise CannotPlan(f"the parameters are on {device.type}")
    if backend.current_backend() not in ("auto", device.type):
        raise CannotPlan(f"the backend is {backend.current_backend()} and the parameters are on {device.type}")
    return dtype, device


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
