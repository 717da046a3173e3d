"""One step of alternating training, of the four configurations: fastgan against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.optim import Adam

import fastgan
from bench.agreement import assert_agree
from bench.configurations import CONFIGURATIONS, Configuration
from bench.logits_loss import torch_discriminator_loss, torch_generator_loss
from bench.pairs import SETS
from bench.timing import Case
from fastgan.functional import discriminator_loss, generator_loss
from fastgan.nn import MLP, unfuse

Step = Callable[[Tensor, Tensor], Tensor]
Build = Callable[[Configuration], tuple[Step, list[Tensor]]]

# Adam's first updates are near lr times the gradient's sign: where a gradient is all rounding they may go either way.
# Of `wide` that is 1 % of the update's norm, of the others 0.0003 %.
UPDATE_TOLERANCE = 0.05


def cases() -> Iterator[Case]:
    """TrainStep, fastgan's modules in a hand-written loop, and PyTorch's (eager, fused Adam); the fake batch reused."""
    for configuration in CONFIGURATIONS:
        reals = [torch.randn(configuration.batch, configuration.generator[-1]) for _ in range(SETS)]
        noise = torch.randn(configuration.batch, configuration.generator[0])
        contenders: dict[str, Callable[[], object]] = {}
        for label, build in BUILDS.items():
            step, turns = build(configuration)[0], cycle(reals)
            contenders[label] = lambda step=step, turns=turns, z=noise: step(next(turns), torch.randn_like(z))

        def check(configuration: Configuration = configuration, real: Tensor = reals[0], noise: Tensor = noise) -> None:
            check_builds(BUILDS, configuration, real, noise)

        name = f"step {configuration.name} float32"
        yield Case(name, contenders, check, flops=configuration.step_flops, capturable=False)


def check_builds(builds: dict[str, Build], configuration: Configuration, real: Tensor, noise: Tensor) -> None:
    """Raise AssertionError unless all builds give the last one's losses and move the parameters as it does.

    Each build takes 3 steps, or one where a step is long, from the same parameters on the same data.
    """
    steps = 1 if configuration.step_flops > 5e10 else 3
    results = []
    for build in builds.values():
        step, parameters = build(configuration)
        before = [p.detach().clone() for p in parameters]
        losses = [step(real, noise).detach() for _ in range(steps)]
        results.append((losses, [p.detach() - old for p, old in zip(parameters, before, strict=True)]))
    torch_losses, torch_updates = results[-1]
    for label, (losses, updates) in zip(builds, results[:-1], strict=False):
        # The loss after one update on holds all the updates before it, and their rounding.
        assert_agree(losses[:1], torch_losses[:1])
        torch.testing.assert_close(losses, torch_losses, rtol=2e-3, atol=0)
        difference = _norm([a - b for a, b in zip(updates, torch_updates, strict=True)]) / _norm(torch_updates)
        if not difference <= UPDATE_TOLERANCE:
            raise AssertionError(f"{label} moves the parameters otherwise: by {difference:.1%} of the update's norm")


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t) for t in tensors]).norm()


def networks(configuration: Configuration) -> tuple[nn.Module, nn.Module, Adam, Adam]:
    """Both networks, the same for every contender, and their optimizers."""
    torch.manual_seed(0)
    generator = MLP(configuration.generator, configuration.activation, configuration.output_activation)
    discriminator = MLP(configuration.discriminator)
    optimizers = [Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True) for m in (generator, discriminator)]
    return generator, discriminator, optimizers[0], optimizers[1]


def train_step(configuration: Configuration) -> tuple[Step, list[Tensor]]:
    """`fastgan.TrainStep`, which reads no statistic on the host."""
    generator, discriminator, g_optimizer, d_optimizer = networks(configuration)
    step = fastgan.TrainStep(generator, discriminator, g_optimizer, d_optimizer, reuse_fake=True)
    parameters = [*generator.parameters(), *discriminator.parameters()]
    return lambda real, noise: step.step(real, noise=noise[None]).g_loss, parameters


def drop_in(configuration: Configuration) -> tuple[Step, list[Tensor]]:
    """fastgan's modules and losses in the loop that a PyTorch user writes."""
    return _loop(configuration, lambda module: module, discriminator_loss, generator_loss)


def lean(configuration: Configuration) -> tuple[Step, list[Tensor]]:
    """Plain PyTorch by a user who knows that the G step needs no weight gradients of D; TrainStep omits them too."""
    return _loop(configuration, unfuse, torch_discriminator_loss, torch_generator_loss, lean=True)


def plain(configuration: Configuration) -> tuple[Step, list[Tensor]]:
    """Plain PyTorch, in the loop of its own GAN tutorial."""
    return _loop(configuration, unfuse, torch_discriminator_loss, torch_generator_loss)


def _loop(configuration: Configuration, convert, d_criterion, g_criterion, lean=False) -> tuple[Step, list[Tensor]]:
    generator, discriminator, g_optimizer, d_optimizer = networks(configuration)
    generator, discriminator = convert(generator), convert(discriminator)
    of_g = list(generator.parameters()) if lean else None

    def step(real: Tensor, noise: Tensor) -> Tensor:
        fake = generator(noise)
        d_loss = d_criterion(discriminator(real), discriminator(fake.detach()))
        d_optimizer.zero_grad(set_to_none=True)
        d_loss.backward()
        d_optimizer.step()
        g_loss = g_criterion(discriminator(fake))
        g_optimizer.zero_grad(set_to_none=True)
        g_loss.backward(inputs=of_g)
        g_optimizer.step()
        return g_loss

    return step, [*generator.parameters(), *discriminator.parameters()]


BUILDS: dict[str, Build] = {
    "fastgan TrainStep": train_step,
    "fastgan modules": drop_in,
    "torch lean": lean,
    "torch": plain,
}
