"""MLP modules against the equal nn.Sequential."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import cycle, pairwise

import torch
from torch import Tensor, nn

from fastgan.nn import MLP, unfuse

from .agreement import KINKS, assert_agree
from .configurations import CONFIGURATIONS
from .pairs import INPUT_SETS
from .timing import Case


def cases() -> Iterator[Case]:
    """Forward, and forward with backward, of both networks of each configuration; one of them in bfloat16 too."""
    for c in CONFIGURATIONS:
        yield from _network(f"mlp {c.name} G", c.generator, c.activation, c.output_activation, c.batch)
        yield from _network(f"mlp {c.name} D", c.discriminator, "leaky_relu", None, c.batch)
        if c.name == "mnist":
            yield from _network("mlp mnist D", c.discriminator, "leaky_relu", None, c.batch, torch.bfloat16)


def fused_and_plain(
    sizes: tuple[int, ...],
    activation: str = "leaky_relu",
    output_activation: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, nn.Module]:
    """An MLP and the equal nn.Sequential."""
    torch.manual_seed(0)
    fused = MLP(sizes, activation, output_activation, dtype=dtype)
    return fused, unfuse(copy.deepcopy(fused))


def _network(
    name: str,
    sizes: tuple[int, ...],
    activation: str,
    output_activation: str | None,
    batch: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Case]:
    modules = dict(zip(("fastgan", "torch"), fused_and_plain(sizes, activation, output_activation, dtype), strict=True))
    inputs = [torch.randn(batch, sizes[0]).to(dtype) for _ in range(INPUT_SETS)]
    grad_output = torch.randn(batch, sizes[-1]).to(dtype)
    flops = 2.0 * batch * sum(a * b for a, b in pairwise(sizes))
    first = 2.0 * batch * sizes[0] * sizes[1]  # the input gradient of the first layer is not asked for

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return module(x)

    def forward_backward(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x), list(module.parameters()), grad_output)

    for passes, work, operations in (
        ("forward", forward, flops),
        ("forward+backward", forward_backward, 3 * flops - first),
    ):
        contenders = {}
        for label, module in modules.items():
            turns = cycle(inputs)
            contenders[label] = lambda work=work, module=module, turns=turns: work(module, next(turns))

        def check(work=work) -> None:
            assert_agree(work(modules["fastgan"], inputs[0]), work(modules["torch"], inputs[0]), at_least=KINKS)

        title = f"{name} {str(dtype).removeprefix('torch.')} {passes}"
        yield Case(title, contenders, check, flops=operations, dtype=dtype)
