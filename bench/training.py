"""Ways to train a configuration: `fastgan.TrainStep`, fastgan's modules in a user's own loop, and eager PyTorch.

All start from the same parameters and compute the same step, on the same data and noise: Adam, 2e-4 (0.5, 0.999), the
fake batch serving both halves. PyTorch is given its best form: G's backward pass computes no weight gradients of D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import fastgan
from fastgan.functional import discriminator_loss, generator_loss
from fastgan.nn import MLP, unfuse

from .configurations import Configuration
from .logits_loss import torch_discriminator_loss, torch_generator_loss

LEARNING_RATE, BETA1, BETA2, EPS = 2e-4, 0.5, 0.999, 1e-8

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]


@dataclass(frozen=True)
class Training:
    """One way to train both networks of a configuration.

    Attributes:
        step: one step on real data and noise as `load` gives them (noise None: drawn inside); returns the losses of D
            and of G.
        parameters: all of G's and then all of D's, weights (out, in).
        load: a tensor of data or noise as the step takes it.
        synchronize: waits for the steps under way; None where a step returns when it is done, or is queued on the GPU.
        reset: puts the parameters and the optimizers' state back to the start, in place.
        dtype: of the matrix products.
        takes_points: whether the step takes a third argument, the u of the points of a WGAN-GP penalty, where others
            draw them.
    """

    step: Callable[..., Sequence[Any]]
    parameters: Callable[[], list[Tensor]]
    load: Callable[[Tensor], Any] = lambda tensor: tensor
    synchronize: Callable[[], None] | None = None
    reset: Callable[[], None] | None = None
    dtype: torch.dtype = torch.float32
    takes_points: bool = False


Build = Callable[[Configuration], Training]


def networks(configuration: Configuration) -> tuple[MLP, MLP]:
    """G and D, the same for every contender."""
    torch.manual_seed(0)
    generator = MLP(configuration.generator, configuration.activation, configuration.output_activation)
    return generator, MLP(configuration.discriminator)


def plain_networks(configuration: Configuration) -> tuple[nn.Module, nn.Module]:
    """The same as nn.Sequential, which PyTorch alone runs."""
    generator, discriminator = networks(configuration)
    return unfuse(generator), unfuse(discriminator)


def adam(**options: Any) -> OptimizerFactory:
    """torch.optim.Adam with the configurations' hyperparameters; `options` choose its implementation."""
    return lambda parameters: Adam(parameters, lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPS, **options)


def train_step(configuration: Configuration, precision: str = "fp32") -> Training:
    """`fastgan.TrainStep`."""
    step = new_train_step(configuration, precision)

    def run(real: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        stats = step.step(real, noise=None if noise is None else noise[None])
        return stats.d_loss, stats.g_loss

    parameters = [*step.generator.parameters(), *step.discriminator.parameters()]
    return Training(run, lambda: parameters, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)


def new_train_step(configuration: Configuration, precision: str = "fp32") -> fastgan.TrainStep:
    """A TrainStep over fresh networks."""
    generator, discriminator = networks(configuration)
    make_optimizer = adam(fused=True)
    optimizers = make_optimizer(generator.parameters()), make_optimizer(discriminator.parameters())
    return fastgan.TrainStep(generator, discriminator, *optimizers, reuse_fake=True, precision=precision)


def modules(configuration: Configuration) -> Training:
    """fastgan's modules and losses in the loop of `eager`: what a user has who swaps the imports."""
    return _loop(networks(configuration), adam(fused=True), discriminator_loss, generator_loss)


def eager(
    configuration: Configuration, make_optimizer: OptimizerFactory | None = None, *, one_batch: bool = False
) -> Training:
    """Plain PyTorch; `one_batch` takes real and fake through D at once."""
    make_optimizer = make_optimizer or adam(fused=True)
    criteria = torch_discriminator_loss, torch_generator_loss
    return _loop(plain_networks(configuration), make_optimizer, *criteria, one_batch=one_batch)


def _loop(
    modules: tuple[nn.Module, nn.Module],
    make_optimizer: OptimizerFactory,
    d_criterion: Callable[[Tensor, Tensor], Tensor],
    g_criterion: Callable[[Tensor], Tensor],
    *,
    one_batch: bool = False,
) -> Training:
    generator, discriminator = modules
    g_params, d_params = list(generator.parameters()), list(discriminator.parameters())
    latent = generator[0].in_features
    g_optimizer, d_optimizer = make_optimizer(g_params), make_optimizer(d_params)

    def step(real: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        if noise is None:
            noise = torch.randn(len(real), latent, device=real.device)
        fake = generator(noise)
        if one_batch:
            real_logits, fake_logits = discriminator(torch.cat([real, fake.detach()])).split(len(real))
        else:
            real_logits, fake_logits = discriminator(real), discriminator(fake.detach())
        d_loss = d_criterion(real_logits, fake_logits)
        d_optimizer.zero_grad(set_to_none=True)
        d_loss.backward()
        d_optimizer.step()
        g_loss = g_criterion(discriminator(fake))
        g_optimizer.zero_grad(set_to_none=True)
        g_loss.backward(inputs=g_params)
        g_optimizer.step()
        return d_loss.detach(), g_loss.detach()

    parameters = g_params + d_params
    start = [p.detach().clone() for p in parameters]

    def reset() -> None:
        states = [s for o in (g_optimizer, d_optimizer) for s in o.state.values()]
        restore(parameters, start, [value for state in states for value in state.values()])

    return Training(step, lambda: parameters, reset=reset)


@torch.no_grad()
def restore(parameters: Sequence[Tensor], start: Sequence[Tensor], state: Sequence[Any]) -> None:
    """Copy the parameters back and set Adam's state, moments and step counts, to the zeros that it starts from."""
    torch._foreach_copy_(list(parameters), list(start))
    for value in state:
        if isinstance(value, Tensor):
            value.zero_()
