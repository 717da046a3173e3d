"""Ways to train with gradient penalties: fastgan's steps, its modules in a user's own loop, and eager PyTorch.

All start from the same parameters and take the same data and noise, and where they draw the points of the WGAN-GP
penalty themselves, they draw the same. PyTorch's loop comes in three forms. `as_written` is what people write: D is
called on real data and on fakes for the loss, and again for each penalty. In `shared_pass` one forward pass serves the
loss and the penalty at the same samples. `one_batch` takes real data and fakes through D together besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.functional import discriminator_loss, generator_loss, gradient_penalty, r1_penalty
from fastgan.nn import MLP, unfuse

from .logits_loss import TORCH_KINDS, torch_discriminator_loss, torch_generator_loss
from .penalty_problems import Objective, Problem
from .training import Training, adam

Discriminator = Callable[[Tensor], Tensor]
# D's scores of real data and of fakes, and the weighted penalties that are due.
Evaluate = Callable[[Discriminator, Objective, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]

TORCH_G_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "non_saturating": lambda fake, real: torch_generator_loss(fake),
    "relativistic": lambda fake, real: F.softplus(real - fake).mean(),
    "wasserstein": lambda fake, real: -fake.mean(),
}


def networks(problem: Problem) -> tuple[MLP | None, MLP]:
    """G, where there is one, and D, the same for every contender."""
    c = problem.configuration
    torch.manual_seed(0)
    generator = MLP(c.generator, c.activation, c.output_activation) if problem.trains_generator else None
    return generator, MLP(c.discriminator, problem.d_activation)


def plain_networks(problem: Problem) -> tuple[nn.Module | None, nn.Module]:
    """The same as nn.Sequential, which PyTorch alone runs."""
    generator, discriminator = networks(problem)
    return None if generator is None else unfuse(generator), unfuse(discriminator)


def train_step(problem: Problem, engine: bool = True) -> Training:
    """`fastgan.TrainStep`, or `fastgan.DiscriminatorStep` where there is no generator."""
    step = new_step(problem, engine)

    def run(real: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(step, fastgan.DiscriminatorStep):
            alone = step.step(real, noise)
            return alone.d_loss, alone.penalty
        both = step.step(real, noise=noise)
        return both.d_loss, both.g_loss

    parameters = list(step.discriminator.parameters())
    if isinstance(step, fastgan.TrainStep):
        parameters = [*step.generator.parameters(), *parameters]
    return Training(run, lambda: parameters)


def new_step(problem: Problem, engine: bool = True) -> fastgan.TrainStep | fastgan.DiscriminatorStep:
    """A step over fresh networks."""
    generator, discriminator = networks(problem)
    make_optimizer, o = adam(fused=True), problem.objective
    d_optimizer = make_optimizer(discriminator.parameters())
    penalties = {"r1_gamma": o.r1_gamma, "r2_gamma": o.r2_gamma, "r1_every": o.r1_every, "gp_weight": o.gp_weight}
    options = {"loss": o.loss, "fake_target": o.fake_target, "engine": engine, **penalties}
    if generator is None:
        return fastgan.DiscriminatorStep(discriminator, d_optimizer, **options)
    optimizers = make_optimizer(generator.parameters()), d_optimizer
    return fastgan.TrainStep(generator, discriminator, *optimizers, d_steps=o.d_steps, reuse_fake=True, **options)


def modules(problem: Problem) -> Training:
    """fastgan's modules, losses and penalties in the loop as people write it."""
    o = problem.objective
    kind = "bce" if o.loss == "non_saturating" else o.loss

    def g_criterion(fake: Tensor, real: Tensor | None) -> Tensor:
        return generator_loss(fake, real, kind=o.loss)

    def d_criterion(real: Tensor, fake: Tensor) -> Tensor:
        return discriminator_loss(real, fake, kind=kind, fake_target=o.fake_target)

    return _loop(problem, networks(problem), d_criterion, g_criterion, _as_written(r1_penalty, gradient_penalty))


def eager(problem: Problem, evaluate: Evaluate | None = None) -> Training:
    """Plain PyTorch; `evaluate` is the form, as people write it unless given."""
    o = problem.objective
    evaluate = evaluate or _as_written(torch_r1_penalty, torch_gradient_penalty)
    return _loop(problem, plain_networks(problem), torch_d_loss(o), TORCH_G_LOSSES.get(o.loss), evaluate)


def shared_pass(problem: Problem) -> Training:
    """PyTorch, one forward pass for the loss and a penalty at the same samples."""
    return eager(problem, _evaluate_shared)


def one_batch(problem: Problem) -> Training:
    """The same, real data and fakes as one batch."""
    return eager(problem, _evaluate_one_batch)


def torch_d_loss(objective: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    """D's loss as people write it."""
    if objective.loss == "least_squares":
        return lambda real, fake: ((real - 1).square().mean() + (fake - objective.fake_target).square().mean()) / 2
    return torch_discriminator_loss if objective.loss == "non_saturating" else TORCH_KINDS[objective.loss]


def torch_r1_penalty(critic: Discriminator, real: Tensor) -> Tensor:
    real = real.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(critic(real).sum(), real, create_graph=True)
    return _mean_square(slopes)


def torch_gradient_penalty(critic: Discriminator, real: Tensor, fake: Tensor) -> Tensor:
    u = torch.rand(len(real), 1, device=real.device)
    points = (u * real + (1 - u) * fake).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (slopes.norm(2, dim=1) - 1).square().mean()


def _mean_square(slopes: Tensor) -> Tensor:
    return slopes.square().sum(1).mean()


def _as_written(
    r1: Callable[[Discriminator, Tensor], Tensor], gp: Callable[[Discriminator, Tensor, Tensor], Tensor]
) -> Evaluate:
    def evaluate(
        critic: Discriminator, objective: Objective, real: Tensor, fake: Tensor, due: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = critic(real), critic(fake)
        penalty = real.new_zeros(())
        for weight, samples in zip(objective.slopes_of, (real, fake), strict=True):
            if weight and due:
                penalty = penalty + weight * r1(critic, samples)
        if objective.gp_weight:
            penalty = penalty + objective.gp_weight * gp(critic, real, fake)
        return *scores, penalty

    return evaluate


def _evaluate_shared(
    critic: Discriminator, objective: Objective, real: Tensor, fake: Tensor, due: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weights = objective.slopes_of if due else (0.0, 0.0)
    samples = [x.detach().requires_grad_(w > 0) for w, x in zip(weights, (real, fake), strict=True)]
    scores = [critic(x) for x in samples]
    penalty = real.new_zeros(())
    for weight, x, score in zip(weights, samples, scores, strict=True):
        if weight:
            (slopes,) = torch.autograd.grad(score.sum(), x, create_graph=True)
            penalty = penalty + weight * _mean_square(slopes)
    if objective.gp_weight:
        penalty = penalty + objective.gp_weight * torch_gradient_penalty(critic, real, fake)
    return scores[0], scores[1], penalty


def _evaluate_one_batch(
    critic: Discriminator, objective: Objective, real: Tensor, fake: Tensor, due: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weights = objective.slopes_of if due else (0.0, 0.0)
    samples = torch.cat([real, fake]).requires_grad_(any(weights))
    scores = critic(samples)
    penalty = real.new_zeros(())
    if any(weights):
        (slopes,) = torch.autograd.grad(scores.sum(), samples, create_graph=True)
        for weight, part in zip(weights, slopes.split(len(real)), strict=True):
            if weight:
                penalty = penalty + weight * _mean_square(part)
    if objective.gp_weight:
        penalty = penalty + objective.gp_weight * torch_gradient_penalty(critic, real, fake)
    return *scores.split(len(real)), penalty


def _loop(
    problem: Problem,
    modules: tuple[nn.Module | None, nn.Module],
    d_criterion: Callable[[Tensor, Tensor], Tensor],
    g_criterion: Callable[[Tensor, Tensor | None], Tensor] | None,
    evaluate: Evaluate,
) -> Training:
    """The training loop with fused Adam; of G's backward pass no weight gradients of D."""
    (generator, discriminator), objective = modules, problem.objective
    d_params = list(discriminator.parameters())
    d_optimizer = adam(fused=True)(d_params)
    count = 0

    def update(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        due = count % objective.r1_every == 0
        real_scores, fake_scores, penalty = evaluate(discriminator, objective, real, fake, due)
        d_loss = d_criterion(real_scores, fake_scores)
        d_optimizer.zero_grad(set_to_none=True)
        (d_loss + penalty).backward()
        d_optimizer.step()
        return d_loss.detach(), penalty.detach()

    def step_alone(real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        nonlocal count
        losses = update(real, fake)
        count += 1
        return losses

    if generator is None or g_criterion is None:
        return Training(step_alone, lambda: d_params)
    g_params = list(generator.parameters())
    g_optimizer = adam(fused=True)(g_params)

    def step(real: Tensor, noise: Tensor) -> Sequence[Tensor]:
        nonlocal count
        for i, batch in enumerate(real):
            with torch.set_grad_enabled(i == len(real) - 1):  # the last fakes serve G too
                fake = generator(noise[i])
            d_loss, _ = update(batch, fake.detach())
        real_scores = None
        if objective.loss == "relativistic":
            with torch.no_grad():
                real_scores = discriminator(real[-1])
        g_loss = g_criterion(discriminator(fake), real_scores)
        g_optimizer.zero_grad(set_to_none=True)
        g_loss.backward(inputs=g_params)
        g_optimizer.step()
        count += 1
        return d_loss, g_loss.detach()

    return Training(step, lambda: g_params + d_params)
