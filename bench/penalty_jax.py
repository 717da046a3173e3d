"""A step with gradient penalties in JAX: one jitted function with donated buffers, in its best form.

One forward pass serves the loss and a penalty at the same samples; real data and fakes are one batch where the penalty
is at both or at neither. A lazy penalty is a second jitted function. The points of the WGAN-GP penalty are given.
"""

from __future__ import annotations

from typing import Any

import torch

from .jax_training import forward, layers_of, load, parameters, precision, update, zeros
from .penalty_problems import Objective, Problem
from .penalty_training import networks
from .training import Training


def train(problem: Problem) -> Training:
    """The step on real data, noise (of a discriminator alone: fakes) and points, each as `load` gives them."""
    import jax
    import jax.numpy as jnp

    objective, configuration = problem.objective, problem.configuration

    def score(layers: list[Any], x: Any) -> Any:
        return forward(layers, x, problem.d_activation, None)

    def score_and_slopes(layers: list[Any], x: Any) -> tuple[Any, Any]:
        scores, vjp_of_x = jax.vjp(lambda x: score(layers, x), x)
        return scores, vjp_of_x(jnp.ones_like(scores))[0]

    def d_loss_of(layers: list[Any], real: Any, fake: Any, u: Any, due: bool) -> tuple[Any, Any]:
        weights = objective.slopes_of if due else (0.0, 0.0)
        penalty = jnp.zeros(())
        if all(weights):
            scores, slopes = score_and_slopes(layers, jnp.concatenate([real, fake]))
            real_scores, fake_scores = jnp.split(scores, 2)
            for weight, part in zip(weights, jnp.split(slopes, 2), strict=True):
                penalty += weight * (part**2).sum(1).mean()
        elif weights[0]:
            (real_scores, slopes), fake_scores = score_and_slopes(layers, real), score(layers, fake)
            penalty += weights[0] * (slopes**2).sum(1).mean()
        else:
            real_scores, fake_scores = jnp.split(score(layers, jnp.concatenate([real, fake])), 2)
        if objective.gp_weight:
            _, slopes = score_and_slopes(layers, u * real + (1 - u) * fake)
            penalty += objective.gp_weight * ((jnp.sqrt((slopes**2).sum(1)) - 1) ** 2).mean()
        d_loss = _d_loss(objective, real_scores, fake_scores)
        return d_loss + penalty, (d_loss, penalty)

    def update_d(layers: list[Any], moments: Any, count: Any, *batches: Any) -> Any:
        (_, losses), gradients = jax.value_and_grad(d_loss_of, has_aux=True)(layers, *batches)
        return *update(layers, gradients, moments, count), losses

    def step_alone(due: bool, state: Any, real: Any, fake: Any, u: Any) -> Any:
        layers, moments, count = state
        layers, moments, losses = update_d(layers, moments, count + 1, real, fake, u, due)
        return (layers, moments, count + 1), losses

    def step(due: bool, state: Any, real: Any, noise: Any, u: Any) -> Any:
        d_layers, d_moments, d_count, g_layers, g_moments, g_count = state

        def generate(layers: list[Any], z: Any) -> Any:
            return forward(layers, z, configuration.activation, configuration.output_activation)

        def g_loss_of(layers: list[Any], fake: Any) -> Any:
            real_scores = score(layers, real[-1]) if objective.loss == "relativistic" else None
            return _g_loss(objective, score(layers, fake), real_scores)

        last = objective.d_steps - 1
        for i in range(objective.d_steps):
            if i < last:
                fake = generate(g_layers, noise[i])
            else:
                fake, vjp_of_g = jax.vjp(lambda layers: generate(layers, noise[last]), g_layers)
            d_count = d_count + 1
            points = u[i] if objective.gp_weight else None
            d_layers, d_moments, losses = update_d(d_layers, d_moments, d_count, real[i], fake, points, due)
        g_loss, fake_gradient = jax.value_and_grad(g_loss_of, argnums=1)(d_layers, fake)
        g_count = g_count + 1
        g_layers, g_moments = update(g_layers, *vjp_of_g(fake_gradient), g_moments, g_count)
        return (d_layers, d_moments, d_count, g_layers, g_moments, g_count), (losses[0], g_loss)

    compiled = jax.jit(step if problem.trains_generator else step_alone, static_argnums=0, donate_argnums=1)
    generator, discriminator = networks(problem)
    state: tuple[Any, ...] = ()
    for network in (discriminator, generator):
        if network is not None:
            layers = layers_of(network)
            state += (layers, zeros(layers), load(torch.zeros(())))
    count = 0

    def run(real: Any, noise: Any, u: Any = None) -> Any:
        nonlocal state, count
        with precision():
            state, losses = compiled(count % objective.r1_every == 0, state, real, noise, u)
        count += 1
        return losses

    return Training(
        run,
        lambda: parameters(state[i] for i in (3, 0) if i < len(state)),
        load=load,
        synchronize=lambda: jax.block_until_ready(state),
        takes_points=True,
    )


def _d_loss(objective: Objective, real: Any, fake: Any) -> Any:
    from jax.nn import softplus

    if objective.loss == "wasserstein":
        return fake.mean() - real.mean()
    if objective.loss == "relativistic":
        return softplus(fake - real).mean()
    if objective.loss == "least_squares":
        return (((real - 1) ** 2).mean() + ((fake - objective.fake_target) ** 2).mean()) / 2
    return softplus(-real).mean() + softplus(fake).mean()


def _g_loss(objective: Objective, fake: Any, real: Any) -> Any:
    from jax.nn import softplus

    if objective.loss == "wasserstein":
        return -fake.mean()
    return softplus(-fake if real is None else real - fake).mean()
