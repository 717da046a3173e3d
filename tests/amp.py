"""The update of the discriminator in skrl's AMP agent, written out, for tests without that package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.integrations.skrl_discriminator import Settings


class Discriminator(nn.Module):
    """With the interface of skrl's models."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def act(self, inputs: dict[str, Tensor], *, role: str = "") -> tuple[Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


def loss(model: Any, settings: Settings, policy: Tensor, replay: Tensor, motion: Tensor) -> Tensor:
    """What skrl.agents.torch.amp.AMP.update adds to the losses of policy and value."""
    motion = motion.detach().requires_grad_()
    of_policy, of_replay, of_motion = (
        model.act({"observations": each}, role="discriminator")[0] for each in (policy, replay, motion)
    )
    of_fakes = torch.cat([of_policy, of_replay])
    total = 0.5 * (
        F.binary_cross_entropy_with_logits(of_fakes, torch.zeros_like(of_fakes))
        + F.binary_cross_entropy_with_logits(of_motion, torch.ones_like(of_motion))
    )
    total = total + settings.logit_regularization * list(model.modules())[-1].weight.square().sum()
    (slope,) = torch.autograd.grad(of_motion.sum(), motion, create_graph=True)
    total = total + settings.gradient_penalty * slope.square().sum(dim=-1).mean()
    weights = [module.weight.square().sum() for module in model.modules() if isinstance(module, nn.Linear)]
    return settings.loss * (total + settings.weight_decay * sum(weights))
