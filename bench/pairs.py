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
SETS = 3


def pair(
    name: str,
    ours: Function,
    torchs: Function,
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
        torchs: the same in plain PyTorch.
        shapes: of the inputs.
        dtype: of the inputs.
        constants: how many of the last inputs need no gradient; these are uniform in [0, 1), the others normal.
        scales: standard deviations of the normal inputs, 1 unless given.
        bytes: least bytes of the forward pass, and of both passes.
        flops: floating-point operations likewise.
    """
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    learned = len(shapes) - constants
    scales = scales or [1.0] * learned
    sets = []
    for _ in range(SETS):
        values = [torch.randn(s, generator=generator) * k for s, k in zip(shapes[:learned], scales, strict=True)]
        values += [torch.rand(s, generator=generator) for s in shapes[learned:]]
        sets.append([value.to(dtype) for value in values])
    leaves = [[t.clone().requires_grad_(i < learned) for i, t in enumerate(s)] for s in sets]
    # What reaches the result of a layer from above: of varying sign and size, as in training.
    seeds: dict[torch.Size, Tensor] = {}

    def forward(function: Function) -> Callable[[], Tensor]:
        turns = cycle(sets)

        def run() -> Tensor:
            with torch.no_grad():
                return function(*next(turns))

        return run

    def both(function: Function) -> Callable[[], tuple[Tensor, ...]]:
        turns = cycle(leaves)

        def run() -> tuple[Tensor, ...]:
            inputs = next(turns)
            value = function(*inputs)
            seed = None
            if value.dim():
                if value.shape not in seeds:
                    seeds[value.shape] = torch.randn(value.shape, generator=generator, device=value.device).to(dtype)
                seed = seeds[value.shape]
            return torch.autograd.grad(value, inputs[:learned], seed)

        return run

    suffix = f"{name} {str(dtype).removeprefix('torch.')}"
    for i, (passes, wrap) in enumerate((("forward", forward), ("forward+backward", both))):
        contenders = {"fastgan": wrap(ours), "torch": wrap(torchs)}
        yield Case(f"{suffix} {passes}", contenders, _check(wrap(ours), wrap(torchs)), bytes[i], flops[i], dtype)


def _check(ours: Callable[[], object], torchs: Callable[[], object]) -> Callable[[], None]:
    return lambda: assert_agree(ours(), torchs())
