"""What every fastgan op means, in plain PyTorch.

This file is the definition: the tests hold each compiled backend against it, and it is what runs where nothing is
compiled. It imports nothing of the rest of fastgan and checks no arguments (`fastgan.functional` does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# The one table of activations. Its order is the order of `enum Activation` in csrc/core/activation.h.
ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda x, slope: x,
    "relu": lambda x, slope: torch.relu(x),
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope),
    "elu": lambda x, slope: F.elu(x),
    "tanh": lambda x, slope: torch.tanh(x),
    "sigmoid": lambda x, slope: torch.sigmoid(x),
    "softplus": lambda x, slope: F.softplus(x),
    "silu": lambda x, slope: F.silu(x),
    "gelu": lambda x, slope: F.gelu(x),
}


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """weight * ((1 - target) input + (1 + (pos_weight - 1) target) softplus(-input)), reduced."""
    return F.binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)


def logits_loss(logits: Tensor, target: float, sign: float, reduction: str) -> Tensor:
    """sign times the binary cross-entropy of the logits against one constant target, reduced."""
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction=reduction)
    return loss if sign == 1.0 else -loss


def discriminator_loss(
    real_logits: Tensor, fake_logits: Tensor, real_target: float, fake_target: float, reduction: str
) -> Tensor:
    """The sum of both reduced halves: real against real_target, fake against fake_target."""
    return logits_loss(real_logits, real_target, 1.0, reduction) + logits_loss(fake_logits, fake_target, 1.0, reduction)


def linear_act(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """activation(input @ weight.T + bias)."""
    return ACTIVATIONS[activation](F.linear(input, weight, bias), negative_slope)


def mlp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    negative_slopes: Sequence[float],
) -> Tensor:
    """linear_act applied layer after layer."""
    for layer in zip(weights, biases, activations, negative_slopes, strict=True):
        input = linear_act(input, *layer)
    return input
