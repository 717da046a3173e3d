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


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """weight * ((1 - target) input + (1 + (pos_weight - 1) target) softplus(-input)), reduced."""
    return F.binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)


class LossPart(NamedTuple):
    """One batch's part of a loss: sign times the mean of a term against a target."""

    term: str  # in LOSS_TERMS
    target: float
    sign: float = 1.0


class GanLoss(NamedTuple):
    """A GAN's loss, as a step's `loss` names it."""

    discriminator: str  # the kind of discriminator_loss that its D minimises
    is_paired: bool  # of the differences of the logits of the i-th real and the i-th fake sample, or reversed
    takes_targets: bool  # D's targets are the user's; these are their defaults
    real: LossPart  # of D. Paired: alone, of real - fake
    fake: LossPart
    generator: LossPart  # of G, of the fakes. Paired: of fake - real
    scores_probability: bool  # a score is the mean of sigma(logit), else of the logit

    def generator_target(self, wanted: float) -> float:
        """The target of G's part, where G wants D to answer `wanted`: minus a term is against the opposite."""
        if not self.takes_targets:
            return self.generator.target
        return 1.0 - wanted if self.generator.sign < 0 else wanted


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


# What losses are made of: functions of logits, or of the differences of two batches, of a target and a reduction. Their
# compiled twins are in csrc/core/logits_loss.h.
LOSS_TERMS: dict[str, Callable[[Tensor, float, str], Tensor]] = {
    "cross_entropy": lambda x, t, reduction: F.binary_cross_entropy_with_logits(
        x, torch.full_like(x, t), reduction=reduction
    ),
    "hinge": lambda x, t, reduction: _reduced(torch.relu(1 - t * x), reduction),
    "linear": lambda x, t, reduction: _reduced(-t * x, reduction),
    "square": lambda x, t, reduction: _reduced((x - t).square() / 2, reduction),
}

_LIKELY, _UNLIKELY = LossPart("cross_entropy", 1.0), LossPart("cross_entropy", 0.0)
_NOT_UNLIKELY = LossPart("cross_entropy", 0.0, -1.0)
_ABOVE, _BELOW = LossPart("hinge", 1.0), LossPart("hinge", -1.0)
_UP, _DOWN = LossPart("linear", 1.0), LossPart("linear", -1.0)
_NEAR_ONE, _NEAR_ZERO = LossPart("square", 1.0), LossPart("square", 0.0)

# The one table of losses; its compiled twin is csrc/core/gan_losses.h.
GAN_LOSSES: dict[str, GanLoss] = {
    # discriminator, is_paired, takes_targets, real, fake, generator, scores_probability
    "non_saturating": GanLoss("bce", False, True, _LIKELY, _UNLIKELY, _LIKELY, True),
    "minimax": GanLoss("bce", False, True, _LIKELY, _UNLIKELY, _NOT_UNLIKELY, True),
    "relativistic": GanLoss("relativistic", True, False, _LIKELY, _LIKELY, _LIKELY, True),
    "hinge": GanLoss("hinge", False, False, _ABOVE, _BELOW, _UP, False),
    "wasserstein": GanLoss("wasserstein", False, False, _UP, _DOWN, _UP, False),
    "least_squares": GanLoss("least_squares", False, True, _NEAR_ONE, _NEAR_ZERO, _NEAR_ONE, False),
}
# The same by what their D minimises.
DISCRIMINATOR_LOSSES: dict[str, GanLoss] = {loss.discriminator: loss for loss in GAN_LOSSES.values()}


def logits_loss(logits: Tensor, term: str, target: float, sign: float, reduction: str) -> Tensor:
    """sign times a term of the logits against one constant target, reduced."""
    loss = LOSS_TERMS[term](logits, target, reduction)
    return loss if sign == 1.0 else -loss


def discriminator_loss(
    real_logits: Tensor, fake_logits: Tensor, term: str, real_target: float, fake_target: float, reduction: str
) -> Tensor:
    """The sum of both reduced halves: real against real_target, fake against fake_target."""
    return logits_loss(real_logits, term, real_target, 1.0, reduction) + logits_loss(
        fake_logits, term, fake_target, 1.0, reduction
    )


def paired_loss(logits: Tensor, minus: Tensor, target: float, reduction: str) -> Tensor:
    """The cross-entropy of logits - minus against one constant target, reduced."""
    return logits_loss(logits - minus, "cross_entropy", target, 1.0, reduction)


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


# The kinds of segments; their numbers in the compiled op are their places here (csrc/core/segmented.h).
SEGMENT_KINDS = ("tanh", "identity", "softmax", "gumbel_softmax")


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that segments are computed in: float32 for the 16-bit ones, else their own."""
    return torch.float32 if dtype.itemsize < 4 else dtype  # torch.promote_types would be an op of an exported graph


def gumbel_noise(input: Tensor, width: int) -> Tensor:
    """Draws g = -log(-log u), input's shape with `width` columns.

    Of uniform numbers, a quarter of the time that torch takes for its exponential ones (0.36 ms of 1.47 for 500 x 135).
    A u of zero, of probability 2^-24, would be a draw of minus infinity, and one column of it a NaN of the softmax.
    """
    dtype = arithmetic_dtype(input.dtype)
    uniform = torch.rand((*input.shape[:-1], width), dtype=dtype, device=input.device)
    return uniform.clamp_min_(torch.finfo(dtype).tiny).log_().neg_().log_().neg_()


def segmented_activation(
    input: Tensor, widths: Sequence[int], kinds: Sequence[str], tau: float, noise: Tensor | None
) -> Tensor:
    """Each run of columns through its own activation; `noise` has the columns of the gumbel_softmax runs alone."""
    outputs = []
    used = 0
    for part, width, kind in zip(input.split(list(widths), -1), widths, kinds, strict=True):
        if kind == "gumbel_softmax":
            assert noise is not None
            wide = arithmetic_dtype(input.dtype)
            draws = noise.narrow(-1, used, width).to(wide)
            used += width
            part = torch.softmax((part.to(wide) + draws) / tau, -1).to(input.dtype)
        elif kind == "softmax":
            part = torch.softmax(part, -1)
        elif kind == "tanh":
            part = torch.tanh(part)
        outputs.append(part)
    return torch.cat(outputs, -1)
