"""What verification compares: numbers that every dtype has, derivatives, errors, and the bounds that no sound device
exceeds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def grid(generator: torch.Generator, shape: Sequence[int], steps: int) -> Tensor:
    """Float64 multiples of 1 / steps in [-1, 1], which every dtype has where steps is a power of two up to 64.

    From integers: the normal distribution's last bits depend on the processor.
    """
    return torch.randint(-steps, steps + 1, tuple(shape), generator=generator, device="cpu").double() / steps


def layer_parameters(
    generator: torch.Generator, width_in: int, width_out: int, is_first: bool = False
) -> tuple[Tensor, Tensor]:
    """A weight and a bias, in float64, that keep numbers near one.

    Those of a first layer give pre-activations that no rounding brings to the other side of zero, where ReLU has its
    kink: for inputs that are multiples of 1/2 their sums are multiples of 2^-(2 + s), computed without an error, and
    the biases are odd multiples of 2^-(3 + s).
    """
    s = round(0.5 * math.log2(width_in))
    if not is_first:
        return grid(generator, (width_out, width_in), 16) / 2**s, grid(generator, (width_out,), 8)
    weight = grid(generator, (width_out, width_in), 2) / 2**s
    odd = 2 * torch.randint(-(2 ** (2 + s)), 2 ** (2 + s), (width_out,), generator=generator, device="cpu") + 1
    return weight, odd.double() / 2 ** (3 + s)


def derivatives(function: Function, inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """Value, gradients and second gradients, as float64 on the CPU.

    Args:
        function: of `inputs`.
        inputs: any shapes.
        cotangents: of the value, then of the gradient by each input.

    Returns:
        The value; the gradients by each input, against the first cotangent; and the gradients of those against the
        others, by the first cotangent and by each input. What autograd reports as unconnected is zero.
    """
    inputs = [x.detach().requires_grad_() for x in inputs]
    at = cotangents[0].detach().requires_grad_()
    value = function(*inputs)
    first = torch.autograd.grad(value, inputs, at, create_graph=True)
    seed = sum(((g * c).sum() for g, c in zip(first, cotangents[1:], strict=True)), torch.zeros_like(value.sum()))
    second: Sequence[Tensor | None] = [None] * (1 + len(inputs))
    if seed.requires_grad:
        second = torch.autograd.grad(seed, [at, *inputs], allow_unused=True)
    dense = [torch.zeros_like(x) if g is None else g for g, x in zip(second, [at, *inputs], strict=True)]
    return as_exact([value, *first, *dense])


def as_exact(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().to("cpu", torch.float64) for t in tensors]


def largest_error(value: Tensor, exact: Tensor) -> float:
    """The largest difference, relative to the largest exact element; infinite where other elements are finite."""
    if value.shape != exact.shape:
        return math.inf
    finite = exact.isfinite()
    if not torch.equal(value.isfinite(), finite):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    size = exact[finite].abs().max().item()
    return (value - exact)[finite].abs().max().item() / (size or 1.0)


def allowance(dtype: torch.dtype, terms: int, device: torch.device) -> float:
    """What rounding may add to twice PyTorch's own error on any sound device.

    Args:
        dtype: of the kernel; of a step in precision bf16, bfloat16.
        terms: of the longest sum. Those of 16-bit numbers are summed up in float32: their error is that of rounding
            what goes in and what comes out.
        device: where float32 products may be of a lower precision, that counts.
    """
    epsilon = torch.finfo(dtype).eps
    if dtype is torch.float64:
        return 1e-10  # 2,000 times what was seen, and a millionth of what any mistake makes
    if dtype in (torch.bfloat16, torch.float16):
        return 8 * epsilon
    if dtype is torch.float32 and _is_reduced(device):
        return 8 * torch.finfo(torch.bfloat16).eps
    return 32 * epsilon * math.sqrt(max(terms, 1))


def _is_reduced(device: torch.device) -> bool:
    """Whether the user lets float32 products round their operands, to tf32 or bfloat16."""
    backends: Any = torch.backends
    # PyTorch refuses to answer in the one way where it was set in the other, and older ones know but the last: 2.8 has
    # no mkldnn.matmul.
    for ask in (
        lambda: (backends.cuda if device.type == "cuda" else backends.mkldnn).matmul.fp32_precision,
        lambda: backends.fp32_precision,
        lambda: "tf32" if device.type == "cuda" and backends.cuda.matmul.allow_tf32 else "ieee",
        lambda: "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
    ):
        with contextlib.suppress(AttributeError, RuntimeError):
            if ask() not in ("ieee", "none"):
                return True
    return False
