"""MLP modules, and gradient penalties through them, against the equal nn.Sequential."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.configurations import CONFIGURATIONS
from bench.timing import Case
from fastgan.functional import gradient_penalty, r1_penalty
from fastgan.nn import MLP, unfuse


def cases() -> Iterator[Case]:
    """Forward, and forward with backward, of each configuration's discriminator; WGAN-GP and R1 steps on digits."""
    for configuration in CONFIGURATIONS:
        sizes, batch = configuration.discriminator, configuration.batch
        ours, torchs = twins(sizes)
        x = torch.randn(batch, sizes[0])
        flops = 2.0 * batch * sum(a * b for a, b in pairwise(sizes))
        yield _case(f"mlp {configuration.name} D forward", _forward, ours, torchs, x, flops)
        first = 2.0 * batch * sizes[0] * sizes[1]
        yield _case(f"mlp {configuration.name} D forward+backward", _both, ours, torchs, x, 3 * flops - first)
    digits = next(c for c in CONFIGURATIONS if c.name == "digits")
    ours, torchs = twins(digits.discriminator)
    x = torch.randn(digits.batch, digits.discriminator[0])
    yield _case("penalty WGAN-GP critic step digits", _wgan_gp, ours, torchs, x, 0.0)
    yield _case("penalty R1 digits", _r1, ours, torchs, x, 0.0)


def twins(sizes: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """An MLP and the equal nn.Sequential."""
    torch.manual_seed(0)
    fused = MLP(sizes)
    return fused, unfuse(copy.deepcopy(fused))


Work = Callable[[nn.Module, Tensor], object]


def _case(name: str, work: Work, ours: nn.Module, torchs: nn.Module, x: Tensor, flops: float) -> Case:
    def check() -> None:
        results = []
        for module in (ours, torchs):
            torch.manual_seed(1)
            results.append(work(module, x))
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)

    return Case(name, {"fastgan": lambda: work(ours, x), "torch": lambda: work(torchs, x)}, check, flops=flops)


def _forward(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def _both(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(module(x).sum(), list(module.parameters()))


def _gradients(loss: Tensor, module: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))


def _wgan_gp(critic: nn.Module, real: Tensor) -> list[Tensor | None]:
    fake = real.flip(0)
    loss = critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty(critic, real, fake)
    return _gradients(loss, critic)


def _r1(critic: nn.Module, real: Tensor) -> list[Tensor | None]:
    return _gradients(r1_penalty(critic, real), critic)
