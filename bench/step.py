"""One step of alternating training, of the four configurations: fastgan against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

import fastgan
from bench.configurations import CONFIGURATIONS, Configuration
from bench.timing import Case
from fastgan.functional import discriminator_loss, generator_loss
from fastgan.nn import MLP, unfuse

Step = Callable[[Tensor, Tensor], Tensor]


def cases() -> Iterator[Case]:
    """TrainStep, fastgan's modules in a hand-written loop, and PyTorch's (eager, fused Adam); the fake batch reused."""
    for configuration in CONFIGURATIONS:
        real = torch.randn(configuration.batch, configuration.generator[-1])
        noise = torch.randn(configuration.batch, configuration.generator[0])
        contenders: dict[str, Callable[[], object]] = {}
        for label, build in BUILDS.items():
            step = build(configuration)[0]
            contenders[label] = lambda step=step, real=real, noise=noise: step(real, torch.randn_like(noise))

        def check(configuration: Configuration = configuration, real: Tensor = real, noise: Tensor = noise) -> None:
            results = []
            for build in BUILDS.values():
                step, parameters = build(configuration)
                losses = [step(real, noise).detach() for _ in range(3)]
                results.append([*losses, *(p.detach().clone() for p in parameters)])
            for other in results[:-1]:
                torch.testing.assert_close(other, results[-1], rtol=1e-2, atol=1e-3)

        yield Case(f"step {configuration.name}", contenders, check, flops=configuration.step_flops)


def networks(configuration: Configuration) -> tuple[nn.Module, nn.Module, Adam, Adam]:
    """Both networks, the same for every contender, and their optimizers."""
    torch.manual_seed(0)
    generator = MLP(configuration.generator, configuration.activation, configuration.output_activation)
    discriminator = MLP(configuration.discriminator)
    optimizers = [Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True) for m in (generator, discriminator)]
    return generator, discriminator, optimizers[0], optimizers[1]


def train_step(configuration: Configuration) -> tuple[Step, list[Tensor]]:
    generator, discriminator, g_optimizer, d_optimizer = networks(configuration)
    step = fastgan.TrainStep(generator, discriminator, g_optimizer, d_optimizer, reuse_fake=True)
    parameters = [*generator.parameters(), *discriminator.parameters()]
    return lambda real, noise: step.step(real, noise=noise[None]).g_loss, parameters


def drop_in(configuration: Configuration) -> tuple[Step, list[Tensor]]:
    return _loop(configuration, lambda module: module, discriminator_loss, generator_loss)


def plain(configuration: Configuration) -> tuple[Step, list[Tensor]]:
    def torch_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
        on_real = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        return on_real + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))

    def torch_generator_loss(fake: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))

    return _loop(configuration, unfuse, torch_discriminator_loss, torch_generator_loss)


def _loop(configuration: Configuration, convert, d_criterion, g_criterion) -> tuple[Step, list[Tensor]]:
    """The loop that a PyTorch user writes."""
    generator, discriminator, g_optimizer, d_optimizer = networks(configuration)
    generator, discriminator = convert(generator), convert(discriminator)

    def step(real: Tensor, noise: Tensor) -> Tensor:
        fake = generator(noise)
        d_loss = d_criterion(discriminator(real), discriminator(fake.detach()))
        d_optimizer.zero_grad(set_to_none=True)
        d_loss.backward()
        d_optimizer.step()
        g_loss = g_criterion(discriminator(fake))
        g_optimizer.zero_grad(set_to_none=True)
        g_loss.backward()
        g_optimizer.step()
        return g_loss

    return step, [*generator.parameters(), *discriminator.parameters()]


BUILDS = {"fastgan TrainStep": train_step, "fastgan modules": drop_in, "torch": plain}
