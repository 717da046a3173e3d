"""The one argument checker: every backend is asked the same questions and gives the same sentences.

Exception types are those that the PyTorch twin of each function raises for the same fault.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from fastgan import reference

REDUCTIONS = ("none", "mean", "sum")
GENERATOR_LOSSES = tuple(reference.GAN_LOSSES)
DISCRIMINATOR_LOSSES = tuple(reference.DISCRIMINATOR_LOSSES)


def choice(name: str, value: Any, allowed: Collection[str]) -> None:
    """ValueError unless value is one of the allowed strings."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def decay(name: str, value: Any) -> None:
    """TypeError unless value is a real number; ValueError unless it is in [0, 1)."""
    number(name, value, 0.0, 1.0)
    if value == 1.0:
        raise ValueError(f"{name} must be in [0, 1), not 1: the average would never move")


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, low_open: bool = False) -> None:
    """TypeError unless value is a real number; ValueError unless it is finite and in [low, high] or (low, high]."""
    # The type first: an isinstance of an abstract class takes longer than the rest of a call's checks.
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__} {value!r}")
    # Comparisons alone, which torch.compile can trace with a symbolic number; NaN fails them all.
    if -math.inf < value < math.inf and (low < value if low_open else low <= value) and value <= high:  # type: ignore[operator]
        return
    if high < math.inf:
        wanted = f"in {'(' if low_open else '['}{low:g}, {high:g}]"
    elif low > -math.inf:
        wanted = f"finite and {'greater than' if low_open else 'at least'} {low:g}"
    else:
        wanted = "finite"
    raise ValueError(f"{name} must be {wanted}, not {value!r}")


def loss_target(name: str, value: Any, default: float, of: str, loss: reference.GanLoss) -> None:
    """A target of a loss: TypeError unless it is a number, ValueError unless it is one that the loss takes.

    `of` names the loss, in messages, as the caller was given it: kind 'hinge'.
    In [0, 1] of a cross-entropy, any finite number of other terms; the default of a kind that takes no targets.
    """
    if loss.takes_targets and loss.real.term == "cross_entropy":
        return number(name, value, 0.0, 1.0)
    number(name, value)
    if not loss.takes_targets and value != default:
        raise ValueError(f"{name} must be {default}, its default, for {of}, which takes no targets, not {value!r}")


def integer(name: str, value: Any, low: int) -> None:
    """TypeError unless value is an integer, NumPy's included (bool is not); ValueError unless it is at least low."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__} {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}")


def tensor(name: str, value: Any) -> None:
    """TypeError unless value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, not {type(value).__name__}")


def floating(name: str, value: Any) -> None:
    """TypeError unless value is a tensor, RuntimeError unless its dtype is a real floating one."""
    tensor(name, value)
    if not value.dtype.is_floating_point:
        raise RuntimeError(f"{name} must have a floating-point dtype, not {value.dtype}")


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """RuntimeError unless both tensors are on one device."""
    if value.device != other.device:
        raise RuntimeError(
            f"{name} must be on the same device as {other_name}, but {name} is on {value.device} and {other_name} is "
            f"on {other.device}"
        )


def same_dtype(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """RuntimeError unless both tensors have one dtype; under autocast, which will cast them, anything floating goes."""
    if value.dtype != other.dtype and not torch.is_autocast_enabled(value.device.type):
        raise RuntimeError(
            f"{name} must have the same dtype as {other_name}, but {name} is {value.dtype} and {other_name} is "
            f"{other.dtype}"
        )


def broadcastable(name: str, value: Tensor, other_name: str, shape: torch.Size) -> None:
    """RuntimeError unless value broadcasts to the given shape."""
    sizes = value.shape
    fits = len(sizes) <= len(shape) and all(
        a == b or a == 1 for a, b in zip(reversed(sizes), reversed(shape), strict=False)
    )
    if not fits:
        raise RuntimeError(
            f"{name} of shape {tuple(sizes)} must be broadcastable to the shape {tuple(shape)} of {other_name}"
        )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, width: int, layer: int | None = None) -> int:
    """Check one layer's parameters against an input of the given width and return its output width."""
    if isinstance(weight, Tensor) and _agrees(weight, input, 2) and weight.shape[1] == width:
        out: int = weight.shape[0]
        if bias is None or (isinstance(bias, Tensor) and _agrees(bias, input, 1) and bias.shape[0] == out):
            return out
    # Something is unusual: which, and is it wrong?
    weight_name, bias_name = ("weight", "bias") if layer is None else (f"weights[{layer}]", f"biases[{layer}]")
    floating(weight_name, weight)
    same_device(weight_name, weight, "input", input)
    same_dtype(weight_name, weight, "input", input)
    if weight.dim() != 2:
        raise RuntimeError(f"{weight_name} must have shape (out, in), not {tuple(weight.shape)}")
    if weight.shape[1] != width:
        raise RuntimeError(
            f"{weight_name} of shape {tuple(weight.shape)} must have {width} columns, as wide as what it is applied to"
        )
    if bias is not None:
        floating(bias_name, bias)
        same_device(bias_name, bias, "input", input)
        same_dtype(bias_name, bias, "input", input)
        if bias.dim() != 1 or bias.shape[0] != weight.shape[0]:
            raise RuntimeError(f"{bias_name} must have shape ({weight.shape[0]},), not {tuple(bias.shape)}")
    return weight.shape[0]


def _agrees(value: Tensor, input: Tensor, dimensions: int) -> bool:
    return value.dtype == input.dtype and value.device == input.device and value.dim() == dimensions


def layer_input(input: Any) -> None:
    """The input of a layer is a floating tensor of at least one dimension."""
    floating("input", input)
    if input.dim() == 0:
        raise RuntimeError("input must have shape (..., in), not (), a tensor of no dimensions")


def segments(widths: Any, kinds: Any) -> None:
    """The widths and kinds of a segmented activation: as many of each, at least one, widths at least 1, known kinds."""
    for name, value in (("widths", widths), ("kinds", kinds)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(f"{name} must be a list with one entry a segment, not {type(value).__name__} {value!r}")
    if not widths:
        raise ValueError("widths must name at least one segment, not none")
    if len(kinds) != len(widths):
        raise ValueError(f"kinds must have one entry for each of the {len(widths)} widths, not {len(kinds)}")
    for i, (width, kind) in enumerate(zip(widths, kinds, strict=True)):
        if type(width) is not int or width < 1:
            integer(f"widths[{i}]", width, 1)
        if kind not in reference.SEGMENT_KINDS:
            choice(f"kinds[{i}]", kind, reference.SEGMENT_KINDS)


def segmented_input(input: Any, columns: int) -> None:
    """The input of a segmented activation: a floating tensor whose last dimension has the columns of all segments."""
    floating("input", input)
    if input.dim() == 0 or input.shape[-1] != columns:
        raise RuntimeError(
            f"input of shape {tuple(input.shape)} must have {columns} columns, the sum of widths, as its last dimension"
        )


def gumbel_draws(noise: Any, input: Tensor, width: int) -> None:
    """The noise of a segmented activation: input's shape with the columns of its gumbel_softmax segments alone."""
    floating("noise", noise)
    same_device("noise", noise, "input", input)
    wanted = (*input.shape[:-1], width)
    if tuple(noise.shape) != wanted:
        raise RuntimeError(
            f"noise of shape {tuple(noise.shape)} must have shape {wanted}: the rows of input, and one column for each "
            f"of its {width} gumbel_softmax columns"
        )


def same_length(name: str, value: Sequence[Any], count: int) -> None:
    """ValueError unless a per-layer list has one entry a layer."""
    if len(value) != count:
        raise ValueError(f"{name} must have one entry for each of the {count} weights, not {len(value)}")
