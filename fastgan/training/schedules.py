"""What falls over a run, learning rates and weights of penalties: pure functions of the step, so that a resumed run
follows them exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer

SCHEDULES = ("constant", "cosine", "linear", "exponential")
# Steps between two weights of the penalties: a step with another one is planned anew.
GAMMA_EVERY = 100


def share_of_rate(schedule: str, step: int, steps: int, final: float = 0.0) -> float:
    """What a schedule leaves of the learning rate at a step.

    `cosine` is torch's CosineAnnealingLR with T_max=steps and eta_min=final * lr (Loshchilov & Hutter 2017,
    arXiv:1608.03983, eq. 5, without restarts); `linear` is torch's LinearLR from 1 to final over all steps;
    `exponential` is torch's ExponentialLR whose gamma is final ** (1 / steps).

    Args:
        schedule: one of SCHEDULES.
        step: steps done, from 0.
        steps: of the whole run, at least 1; from there on the share is final.
        final: the share at the end, in [0, 1]; of `exponential` over 0.

    Returns:
        The share, in [final, 1].
    """
    if schedule == "constant":
        return 1.0
    done = min(step / steps, 1.0)
    if schedule == "exponential":
        return math.pow(final, done)
    left = 1.0 - done if schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2
    return final + (1.0 - final) * left


def share_of_gamma(step: int, steps: int, final: float) -> float:
    """What is left of the weights of R1 and R2 at a step: they fall by equal factors, every GAMMA_EVERY steps.

    R3GAN (Huang et al. 2025, arXiv:2501.05441) lets them fall too, by a cosine.

    Args:
        step: steps done, from 0.
        steps: of the whole run, at least 1.
        final: the share at the end, in (0, 1].

    Returns:
        The share, in [final, 1].
    """
    return share_of_rate("exponential", step - step % GAMMA_EVERY, steps, final)


def set_learning_rates(optimizers: Iterable[Optimizer], share: float) -> None:
    """Set each group's learning rate to a share of the one that it began with.

    That one is kept as `initial_lr`, where torch's schedulers keep it, and is saved with the optimizer's state.

    Args:
        optimizers: whose groups are set; a learning rate that is a Tensor is changed in place.
        share: of `share_of_rate`.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["lr"]
            first = group.setdefault("initial_lr", float(rate))
            if isinstance(rate, Tensor):
                rate.fill_(first * share)
            else:
                group["lr"] = first * share
