"""Whether contenders compute the same thing, judged on the scale of what they compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Largest difference over the largest value. An absolute tolerance would let anything pass: the gradients of a mean
# over 4096 x 1024 logits are near 1e-7.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


# Of networks with relu or leaky_relu: where rounding puts an activation on the other side of the kink, its sample's
# gradient changes by a step. PyTorch's own gradients of `wide` in float32 are up to 8e-4 from those in float64.
KINKS = 5e-3

# Of float32 products that a GPU rounds to tf32 (10 bits), where PyTorch is told to: those of PyTorch itself then differ
# by so much from its strict ones.
TF32 = 2e-2


def assert_agree(
    actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor], *, at_least: float = 0.0
) -> None:
    """Raise AssertionError unless two results are the same to rounding.

    Args:
        actual: a tensor or a sequence of tensors, of any shapes.
        expected: as many of the same shapes and dtypes, by PyTorch alone.
        at_least: the tolerance where that of the dtype is less; KINKS for a whole network.

    Raises:
        AssertionError: naming the result that differs and by how much.
    """
    actual, expected = ([value] if isinstance(value, Tensor) else list(value) for value in (actual, expected))
    if len(actual) != len(expected):
        raise AssertionError(f"{len(actual)} results against {len(expected)}")
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise AssertionError(
                f"result {i} is {tuple(a.shape)} of {a.dtype}, PyTorch's {tuple(b.shape)} of {b.dtype}"
            )
        difference, tolerance = relative_difference(a, b), max(TOLERANCE[a.dtype], at_least)
        if a.is_cuda and a.dtype is torch.float32 and torch.get_float32_matmul_precision() == "high":
            tolerance = max(tolerance, TF32)
        if not difference <= tolerance:
            raise AssertionError(
                f"result {i} of shape {tuple(a.shape)} differs by {difference:.1e} of its largest value, "
                f"more than {tolerance:.0e}"
            )


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value; NaN where either is not finite, 0 for empty tensors."""
    if not actual.numel():
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = expected.abs().max()
    if scale == 0:
        raise AssertionError("PyTorch's result is zero everywhere, so that agreeing with it shows nothing")
    return float((actual - expected).abs().max() / scale)
