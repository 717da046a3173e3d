"""What a training step reports."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepStats(NamedTuple):
    """Statistics of one step: 0-d tensors on the device, so that reading them is what synchronises.

    Attributes:
        d_loss: the discriminator's loss in the last D step, without the R1 term.
        g_loss: the generator's loss in the G step.
        real_score: batch mean of sigma(D(x)) in the last D step, in [0, 1].
        fake_score: batch mean of sigma(D(G(z))) in the last D step, in [0, 1].
    """

    d_loss: Tensor
    g_loss: Tensor
    real_score: Tensor
    fake_score: Tensor
