"""How a first layer of units of many slopes begins: what varies within a hundredth of the domain is learned, too.

A unit sees `slope * (direction . (x - zero))`. Networks learn low frequencies first (Rahaman et al. 2019,
arXiv:1806.08734), and on few inputs high ones so late that a discriminator does not see how wide a narrow mode is. With
steep units, as with Fourier features of a wide band (Tancik et al. 2020, arXiv:2006.10739), it does; flat ones beside
them see where the modes lie.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Zeros of a discriminator's units lie somewhat beyond the data's range, too: at the border of a box there are half as
# many.
_BEYOND = 1.1


def spread(layer: nn.Linear, steepest: float, zeros: Tensor) -> None:
    """Draw a first layer's weights and biases from torch's random state, in place.

    Directions are uniform; the logarithms of slopes, the norms of weights, are uniform from 0 to that of the steepest.

    Args:
        layer: (inputs) to (units), float32.
        steepest: the largest slope, at least 1.
        zeros: (units, inputs), a point for each unit at which it is 0.
    """
    units, inputs = layer.weight.shape
    slopes = (torch.rand(units, 1, device="cpu", dtype=torch.float32) * math.log(steepest)).exp()
    directions = torch.randn(units, inputs, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        layer.weight.copy_(directions / directions.norm(dim=1, keepdim=True) * slopes)
        layer.bias.copy_(-(layer.weight * zeros).sum(dim=1))


def in_a_box(units: int, pac: int, width: int, scale: float) -> Tensor:
    """(units, pac, width) points, uniform over the range of data in [-scale, scale] and somewhat beyond."""
    return (torch.rand(units, pac, width, device="cpu", dtype=torch.float32) * 2 - 1) * (_BEYOND * scale)
