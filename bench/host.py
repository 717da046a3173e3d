"""What a call costs on the host: every op on tensors so small that no arithmetic tells, against plain PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.functional import (
    binary_cross_entropy_with_logits,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    linear_act,
    mlp,
    r1_penalty,
)

from .agreement import assert_agree
from .logits_loss import torch_discriminator_loss, torch_generator_loss
from .mlp import fused_and_plain
from .pairs import pair
from .timing import Case

SAMPLES = 64


def cases() -> Iterator[Case]:
    """Forward, and forward with backward, of 64 samples of one value."""
    column = (SAMPLES, 1)
    yield from pair(
        "host bce 64x1", binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, [column] * 2, constants=1
    )
    yield from pair("host discriminator_loss 64x1", discriminator_loss, torch_discriminator_loss, [column] * 2)
    yield from pair("host generator_loss 64x1", generator_loss, torch_generator_loss, [column])
    yield from pair(
        "host linear_act 64x1x1",
        functools.partial(linear_act, activation="leaky_relu", negative_slope=0.2),
        lambda x, w, b: F.leaky_relu(F.linear(x, w, b), 0.2),
        [column, (1, 1), (1,)],
    )
    yield from pair("host mlp 64x1x1x1", _stack, _torch_stack, [column, (1, 1), (1,), (1, 1), (1,)])
    for name, penalty in (("gradient_penalty", _one_center), ("r1_penalty", r1_penalty)):
        yield _penalty(f"host {name} 64x1x8x1 float32 forward+backward", penalty)


def _stack(x: Tensor, w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
    return mlp(x, [w, v], [b, c], ["leaky_relu", "identity"], [0.2, 0.0])


def _torch_stack(x: Tensor, w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
    return F.linear(F.leaky_relu(F.linear(x, w, b), 0.2), v, c)


def _one_center(critic: nn.Module, real: Tensor) -> Tensor:
    return gradient_penalty(critic, real, -real)


def _penalty(name: str, penalty: Callable[[nn.Module, Tensor], Tensor]) -> Case:
    """Second derivatives: the gradients of a penalty, through a fused critic and through the equal nn.Sequential."""
    fused, plain = fused_and_plain((1, 8, 1))
    real = torch.randn(SAMPLES, 1)

    def gradients(critic: nn.Module) -> tuple[Tensor, ...]:
        weights = [
            p for p in critic.parameters() if p.dim() == 2
        ]  # through leaky_relu biases have no second derivative
        return torch.autograd.grad(penalty(critic, real), weights)

    def check() -> None:
        results = []
        for critic in (fused, plain):
            torch.manual_seed(1)  # the same interpolates
            results.append(gradients(critic))
        assert_agree(*results)

    contenders = {"fastgan": lambda: gradients(fused), "torch": lambda: gradients(plain)}
    return Case(name, contenders, check, capturable=False)
