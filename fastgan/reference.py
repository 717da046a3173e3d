"""What every fastgan op means, in plain PyTorch.

This file is the definition: the tests hold each compiled backend against it, and it is what runs where nothing is
compiled. It imports nothing of the rest of fastgan and checks no arguments (`fastgan.functional` does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Activation(NamedTuple):
    """An activation: what it computes, and how torch.nn spells it."""

    function: Callable[[Tensor, float], Tensor]  # of the pre-activation and the negative slope, which only some heed
    module: type[nn.Module]  # the same with its default parameters, its `negative_slope` being the slope
    # (namespace, name) of the functions of torch that the module's forward calls, one through the other
    calls: tuple[tuple[ModuleType, str], ...]
    # the module's options, which are its attributes too, with their defaults: what its own signature says may have been
    # wrapped by somebody before this file is read
    options: dict[str, Any]

    def __call__(self, x: Tensor, negative_slope: float = 0.01) -> Tensor:
        return self.function(x, negative_slope)


# The one table of activations; its compiled twin is csrc/core/activation.h, which has the same names.
ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda x, slope: x, nn.Identity, (), {}),
    "relu": Activation(lambda x, slope: torch.relu(x), nn.ReLU, ((F, "relu"), (torch, "relu")), {"inplace": False}),
    "leaky_relu": Activation(
        lambda x, slope: F.leaky_relu(x, slope),
        nn.LeakyReLU,
        ((F, "leaky_relu"),),
        {"negative_slope": 0.01, "inplace": False},
    ),
    "elu": Activation(lambda x, slope: F.elu(x), nn.ELU, ((F, "elu"),), {"alpha": 1.0, "inplace": False}),
    "tanh": Activation(lambda x, slope: torch.tanh(x), nn.Tanh, ((torch, "tanh"),), {}),
    "sigmoid": Activation(lambda x, slope: torch.sigmoid(x), nn.Sigmoid, ((torch, "sigmoid"),), {}),
    "softplus": Activation(
        lambda x, slope: F.softplus(x), nn.Softplus, ((F, "softplus"),), {"beta": 1.0, "threshold": 20.0}
    ),
    "silu": Activation(lambda x, slope: F.silu(x), nn.SiLU, ((F, "silu"),), {"inplace": False}),
    "gelu": Activation(lambda x, slope: F.gelu(x), nn.GELU, ((F, "gelu"),), {"approximate": "none"}),
}


class GanLoss(NamedTuple):
    """A loss of a training step."""

    discriminator: str  # the kind of discriminator_loss that D minimises
    is_paired: bool  # of the difference of the logits of the i-th real and the i-th fake sample
    takes_targets: bool
    scores_probability: bool  # a score is the mean of sigma(logit), else of the logit


# The one table of losses; its compiled twin is csrc/core/gan_losses.h, which has the same names.
GAN_LOSSES = {
    "non_saturating": GanLoss("bce", False, True, True),
    "minimax": GanLoss("bce", False, True, True),
    "relativistic": GanLoss("relativistic", True, False, True),
    "hinge": GanLoss("hinge", False, False, False),
    "wasserstein": GanLoss("wasserstein", False, False, False),
    "least_squares": GanLoss("least_squares", False, True, False),
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
    return ACTIVATIONS[activation].function(F.linear(input, weight, bias), negative_slope)


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
