"""Cases made of one function of tensors and its PyTorch twin: forward alone, and forward with backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import torch
from torch import Tensor

from bench.timing import Case

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
        constants: how many of the last inputs need no gradient.
        bytes: least bytes of the forward pass, and of both passes.
        flops: floating-point operations likewise.
    """
    generator = torch.Generator().manual_seed(0)
    sets = [[torch.rand(s, generator=generator).to(dtype) for s in shapes] for _ in range(SETS)]
    leaves = [[t.clone().requires_grad_(i < len(s) - constants) for i, t in enumerate(s)] for s in sets]

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
            return torch.autograd.grad(
                value if value.dim() == 0 else value.sum(), [t for t in inputs if t.requires_grad]
            )

        return run

    suffix = f"{name} {str(dtype).removeprefix('torch.')}"
    for i, (passes, wrap) in enumerate((("forward", forward), ("forward+backward", both))):
        contenders = {"fastgan": wrap(ours), "torch": wrap(torchs)}
        yield Case(f"{suffix} {passes}", contenders, _agree(wrap(ours), wrap(torchs), dtype), bytes[i], flops[i])


def _agree(ours: Callable[[], object], torchs: Callable[[], object], dtype: torch.dtype) -> Callable[[], None]:
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.05}
    return lambda: torch.testing.assert_close(ours(), torchs(), **tolerance)
