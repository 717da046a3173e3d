"""What a step reports."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepStats(NamedTuple):
    """Statistics of one step: 0-d tensors on the device, so that reading them is what synchronises.

    Attributes:
        d_loss: the discriminator's loss in the last D step, without the penalties.
        g_loss: the generator's loss in the G step.
        real_score: batch mean of sigma(D(x)) in the last D step, in [0, 1]; with the losses `hinge`, `wasserstein` and
            `least_squares` of D(x) itself.
        fake_score: likewise of the fakes.
    """

    d_loss: Tensor
    g_loss: Tensor
    real_score: Tensor
    fake_score: Tensor


class DiscriminatorStats(NamedTuple):
    """Statistics of one step of D alone: 0-d tensors on the device, so that reading them is what synchronises.

    Attributes:
        d_loss: the discriminator's loss, without the penalties.
        penalty: the weighted penalties that were added to it; 0 where none was due.
        real_score: batch mean of sigma(D(x)), in [0, 1]; with the losses `hinge`, `wasserstein` and `least_squares` of
            D(x) itself.
        fake_score: likewise of the fakes.
    """

    d_loss: Tensor
    penalty: Tensor
    real_score: Tensor
    fake_score: Tensor
