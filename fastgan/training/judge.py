"""How near a generator's samples are to the data: what `keep_best` goes by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Samples of each side, and directions: at most 0.5 % of a run with a checkpoint every 1,000 steps.
SAMPLES, DIRECTIONS = 1000, 128


def sliced_distance(real: Tensor, fake: Tensor) -> float | None:
    """The sliced Wasserstein-1 distance: the mean over random directions of the distance of the projections.

    (Rabin et al. 2011, "Wasserstein barycenter and its application to texture mixing"; of two samples of one size the
    distance of projections is the mean difference of what is sorted.) The directions are the same in every call.

    Args:
        real: (N, data), on the CPU.
        fake: (N, data), in the same units.

    Returns:
        A number of at least 0; None where a value is not finite.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    directions = torch.randn(real.shape[1], DIRECTIONS, generator=generator, dtype=torch.float32, device="cpu")
    directions /= directions.norm(dim=0)
    sides = [(points.float() @ directions).sort(dim=0).values for points in (real, fake)]
    distance = float((sides[0] - sides[1]).abs().mean())
    return distance if math.isfinite(distance) else None
