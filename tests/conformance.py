"""The error bound of the conformance suite, and the inputs it is held on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ACTIVATIONS = ("identity", "relu", "leaky_relu", "elu", "tanh", "sigmoid", "softplus", "silu", "gelu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("none", "mean", "sum")

Function = Callable[..., Tensor]


def derivatives(function: Function, inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """Value, gradients and second gradients of a function of tensors.

    The first gradients are taken against cotangents[0], the second against cotangents[1:], one for each input. What
    autograd reports as unconnected is zero.
    """
    inputs = [x.detach().requires_grad_() for x in inputs]
    value = function(*inputs)
    first = torch.autograd.grad(value, inputs, cotangents[0].expand_as(value), create_graph=True, allow_unused=True)
    first = [torch.zeros_like(x) if g is None else g for g, x in zip(first, inputs, strict=True)]
    seed = sum((g * c).sum() for g, c in zip(first, cotangents[1:], strict=True))
    second = [None] * len(inputs)
    if seed.requires_grad:
        second = torch.autograd.grad(seed, inputs, allow_unused=True)
    second = [torch.zeros_like(x) if g is None else g for g, x in zip(second, inputs, strict=True)]
    return [value.detach(), *(g.detach() for g in first), *second]


def largest_error(value: Tensor, exact: Tensor) -> float:
    """Largest difference, relative to the largest exact element where that is above one."""
    if exact.numel() == 0:
        return 0.0
    difference = (value.double() - exact).abs().max().item()
    return difference / max(1.0, exact.abs().max().item())


def assert_within_bound(ours: Sequence[Tensor], torchs: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Error against float64 at most twice PyTorch's own on the same input, plus 1e-6 (1e-10 in float64)."""
    for i, (a, b, e) in enumerate(zip(ours, torchs, exact, strict=True)):
        assert a.dtype == b.dtype, i
        assert a.shape == b.shape, i
        slack = 1e-10 if a.dtype == torch.float64 else 1e-6
        bound = 2 * largest_error(b, e) + slack
        assert largest_error(a, e) <= bound, f"result {i}: error {largest_error(a, e):.3g}, bound {bound:.3g}"


def check_against_torch(ours: Function, torchs: Function, inputs: Sequence[Tensor], value_shape: Sequence[int]) -> None:
    """Hold value, gradients and second gradients of `ours` to the error bound against `torchs`."""
    dtype = inputs[0].dtype
    cotangents = [torch.randn(value_shape).to(dtype), *(torch.randn(x.shape).to(dtype) for x in inputs)]
    exact = derivatives(torchs, [x.double() for x in inputs], [c.double() for c in cotangents])
    results = [derivatives(function, inputs, cotangents) for function in (ours, torchs)]
    assert_within_bound(results[0], results[1], exact)
