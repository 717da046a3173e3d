"""A step with gradient penalties through torch.compile.

It rejects double backward: what people write, a penalty by torch.autograd.grad with create_graph=True, cannot be
compiled (`refusal` tries, and says what PyTorch says). What it takes is the whole step on plain tensors, second
derivatives by torch.func inside the graph: `whole`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp

from .compiled import own_code, state, tensors, update
from .penalty_problems import Problem
from .penalty_training import TORCH_G_LOSSES, plain_networks, torch_d_loss, torch_r1_penalty
from .training import Training


@functools.cache
def refusal() -> str | None:
    """Why a discriminator with a penalty, compiled and called by autograd, does not train; None where it does."""
    critic = torch.compile(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)))
    try:
        torch_r1_penalty(critic, torch.randn(3, 2)).backward()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def whole(problem: Problem, mode: str | None = None) -> Training:
    """The whole step as one compiled graph, Adam written out; of a lazy penalty two graphs."""
    generator, discriminator = plain_networks(problem)
    objective = problem.objective
    d_params = {k: p.detach() for k, p in discriminator.named_parameters()}
    g_params = {} if generator is None else {k: p.detach() for k, p in generator.named_parameters()}
    d_state, g_state = state(d_params), state(g_params)
    d_criterion = torch_d_loss(objective)

    def score(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(discriminator, parameters, (x,))

    def score_and_slopes(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        scores, vjp_of_x = vjp(lambda x: score(parameters, x), x)
        return scores, vjp_of_x(torch.ones_like(scores))[0]

    def update_d(real: Tensor, fake: Tensor, u: Tensor | None, due: bool) -> tuple[Tensor, Tensor]:
        weights = objective.slopes_of if due else (0.0, 0.0)

        def d_loss_of(parameters: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            penalty = real.new_zeros(())
            if all(weights):
                scores, slopes = score_and_slopes(parameters, torch.cat([real, fake]))
                scores = scores.split(len(real))
                for weight, part in zip(weights, slopes.split(len(real)), strict=True):
                    penalty = penalty + weight * part.square().sum(1).mean()
            elif weights[0]:
                real_scores, slopes = score_and_slopes(parameters, real)
                scores = real_scores, score(parameters, fake)
                penalty = penalty + weights[0] * slopes.square().sum(1).mean()
            else:
                scores = score(parameters, torch.cat([real, fake])).split(len(real))
            if u is not None:
                _, slopes = score_and_slopes(parameters, u * real + (1 - u) * fake)
                penalty = penalty + objective.gp_weight * (slopes.norm(2, dim=1) - 1).square().mean()
            d_loss = d_criterion(*scores)
            return d_loss + penalty, (d_loss, penalty)

        gradients, losses = grad(d_loss_of, has_aux=True)(d_params)
        update(d_params, gradients, d_state)
        return losses

    def step_alone(real: Tensor, fake: Tensor, u: Tensor | None, due: bool) -> tuple[Tensor, Tensor]:
        return update_d(real, fake, u, due)

    def step(real: Tensor, noise: Tensor, u: Tensor | None, due: bool) -> tuple[Tensor, Tensor]:
        for i in range(objective.d_steps - 1):
            update_d(real[i], functional_call(generator, g_params, (noise[i],)), None if u is None else u[i], due)
        fake, vjp_of_g = vjp(lambda p: functional_call(generator, p, (noise[-1],)), g_params)
        d_loss, _ = update_d(real[-1], fake, None if u is None else u[-1], due)
        real_scores = score(d_params, real[-1]) if objective.loss == "relativistic" else None
        g_criterion = TORCH_G_LOSSES[objective.loss]
        g_loss, vjp_of_fake = vjp(lambda x: g_criterion(score(d_params, x), real_scores), fake)
        (g_grads,) = vjp_of_g(*vjp_of_fake(torch.ones_like(g_loss)))
        update(g_params, g_grads, g_state)
        return d_loss, g_loss

    parameters = [*g_params.values(), *d_params.values()]
    for tensor in (*parameters, *tensors(g_state), *tensors(d_state)):
        torch._dynamo.mark_static_address(tensor)
    own: Callable[..., tuple[Tensor, Tensor]] = own_code(
        step_alone if generator is None else step, f"{problem.name} {mode}"
    )
    compiled = torch.compile(own, mode=mode, fullgraph=True, dynamic=False)
    count = 0

    def run(real: Tensor, noise: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        nonlocal count
        losses = compiled(real, noise, u, count % objective.r1_every == 0)
        count += 1
        return losses

    return Training(run, lambda: parameters, takes_points=True)
