"""Critic steps with gradient penalties, so second derivatives, through an MLP and through the equal nn.Sequential.

Both contenders call `fastgan.functional`'s penalties, which are plain PyTorch: what differs is the critic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.functional import gradient_penalty, r1_penalty

from .agreement import KINKS, assert_agree
from .configurations import CONFIGURATIONS
from .mlp import fused_and_plain
from .timing import Case

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cases() -> Iterator[Case]:
    """Loss and gradients of a WGAN-GP critic step, and of a GAN's D step with R1, for two of the discriminators."""
    for configuration in CONFIGURATIONS:
        if configuration.name in ("digits", "mnist"):
            sizes = configuration.discriminator
            real, fake = torch.randn(2, configuration.batch, sizes[0])
            for name, loss in (("WGAN-GP", _wgan_gp), ("R1", _r1)):
                yield _case(f"penalties {name} {configuration.name} D float32 step", loss, sizes, real, fake)


def _case(name: str, loss: Loss, sizes: tuple[int, ...], real: Tensor, fake: Tensor) -> Case:
    fused, plain = fused_and_plain(sizes)

    def gradients(critic: nn.Module) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(critic, real, fake), list(critic.parameters()))

    def check() -> None:
        results = []
        for critic in (fused, plain):
            torch.manual_seed(1)  # the same interpolates
            results.append(gradients(critic)[:-1])  # the last bias cancels out of WGAN-GP: its gradient is 0
        assert_agree(*results, at_least=KINKS)

    contenders = {"fastgan": lambda: gradients(fused), "torch": lambda: gradients(plain)}
    return Case(name, contenders, check, capturable=False)


def _wgan_gp(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    return critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty(critic, real, fake)


def _r1(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    adversarial = F.softplus(-critic(real)).mean() + F.softplus(critic(fake)).mean()
    return adversarial + 5 * r1_penalty(critic, real)
