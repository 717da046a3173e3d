"""Cases made of one function of tensors and its PyTorch twin: forward alone, and forward with backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import torch
from torch import Tensor

from .agreement import assert_agree
from .timing import Case

Function = Callable[..., Tensor]

# Input sets taken in turn, so that a cache does not hold what a real loop would have to fetch.
INPUT_SETS = 3


def pair(
    name: str,
    ours: Function,
    baseline: Function,
    shapes: Sequence[Sequence[int]],
    *,
    dtype: torch.dtype = torch.float32,
    constants: int = 0,
    scales: Sequence[float] | None = None,
    bytes: tuple[float, float] = (0.0, 0.0),
    flops: tuple[float, float] = (0.0, 0.0),
) -> Iterator[Case]:
    """The two cases of a function: its forward pass without gradients, and forward with backward.

    Args:
        name: of the op and its size.
        ours: fastgan's function of tensors of the given shapes, to a tensor.
        baseline: the same in plain PyTorch.
        shapes: of the inputs.
        dtype: of the inputs.
        constants: how many of the last inputs need no gradient; these are uniform in [0, 1), the others normal.
        scales: standard deviations of the normal inputs, 1 unless given.
        bytes: least bytes of the forward pass, and of both passes.
        flops: floating-point operations likewise.
    """
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    differentiable = len(shapes) - constants
    scales = scales or [1.0] * differentiable
    sets = []
    for _ in range(INPUT_SETS):
        values = [torch.randn(s, generator=generator) * k for s, k in zip(shapes[:differentiable], scales, strict=True)]
        values += [torch.rand(s, generator=generator) for s in shapes[differentiable:]]
        sets.append([value.to(dtype) for value in values])
    leaves = [[t.clone().requires_grad_(i < differentiable) for i, t in enumerate(s)] for s in sets]
    # What reaches the result of a layer from above: of varying sign and size, as in training.
    grad_outputs: dict[torch.Size, Tensor] = {}

    def forward(function: Function) -> Callable[[], Tensor]:
        turns = cycle(sets)

        def run() -> Tensor:
            with torch.no_grad():
                return function(*next(turns))

        return run

    def forward_backward(function: Function) -> Callable[[], tuple[Tensor, ...]]:
        turns = cycle(leaves)

        def run() -> tuple[Tensor, ...]:
            inputs = next(turns)
            value = function(*inputs)
            grad_output = None
            if value.dim():
                shape, device = value.shape, value.device
                if shape not in grad_outputs:
                    grad_outputs[shape] = torch.randn(shape, generator=generator, device=device).to(dtype)
                grad_output = grad_outputs[shape]
            return torch.autograd.grad(value, inputs[:differentiable], grad_output)

        return run

    suffix = f"{name} {str(dtype).removeprefix('torch.')}"
    for i, (passes, wrap) in enumerate((("forward", forward), ("forward+backward", forward_backward))):
        contenders = {"fastgan": wrap(ours), "torch": wrap(baseline)}
        yield Case(f"{suffix} {passes}", contenders, _check(wrap(ours), wrap(baseline)), bytes[i], flops[i], dtype)


def _check(ours: Callable[[], object], baseline: Callable[[], object]) -> Callable[[], None]:
    return lambda: assert_agree(ours(), baseline())
