"""The classic tutorial GAN of 28 x 28 images, as its users have it: as written, with `fuse` alone, as a `TrainStep`.

The networks, the loop and the hyperparameters are those of Linder-Norén's PyTorch-GAN (gan.py): BatchNorm1d in the
generator, a Sigmoid at the discriminator's end, BCELoss, Adam as it comes, batches of 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, pairwise

import torch
from torch import Tensor, nn

import fastgan

from .configurations import Configuration
from .step import check, inputs
from .timing import Case
from .training import Training, adam

NAME = "tutorial GAN float32 step"
# Widths and batch; what a step multiplies at the least is counted from them.
TUTORIAL = Configuration(
    "tutorial", (100, 128, 256, 512, 1024, 784), "leaky_relu", "tanh", (784, 512, 256, 1), batch=64
)


def generator_layers(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear, BatchNorm1d (its second argument, 0.8, is eps) and LeakyReLU; no BatchNorm in the first block."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths[:-1])):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after, 0.8)] if i else [])]
        layers.append(nn.LeakyReLU(0.2, inplace=True))
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]), nn.Tanh())


class Generator(nn.Module):
    """Noise (batch, latent) to images (batch, 1, 28, 28); without a shape, to rows of pixels."""

    def __init__(self, widths: tuple[int, ...] = TUTORIAL.generator, shape: tuple[int, ...] = (1, 28, 28)) -> None:
        super().__init__()
        self.shape = shape
        self.model = generator_layers(widths)

    def forward(self, z: Tensor) -> Tensor:
        return self.model(z).view(len(z), *self.shape)


class Discriminator(nn.Module):
    """Images to probabilities (batch, 1)."""

    def __init__(self, widths: tuple[int, ...] = TUTORIAL.discriminator) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2, inplace=True)]
        self.model = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]), nn.Sigmoid())

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image.view(len(image), -1))


def cases() -> Iterator[Case]:
    """A training step."""
    yield case(TUTORIAL, (1, 28, 28))


def case(configuration: Configuration, shape: tuple[int, ...]) -> Case:
    """A step of the networks of these widths, with images of this shape."""
    trainings = {
        "fastgan": train_step(configuration, shape),
        "fastgan modules": as_written(configuration, shape, change=fastgan.nn.fuse),
        "torch fused Adam": as_written(configuration, shape, best=True),
        "torch": as_written(configuration, shape),
    }
    reals, noises = inputs(configuration)

    def turns_of(training: Training) -> Callable[[], object]:
        turns = cycle(zip(reals, noises, strict=True))
        return lambda: training.step(*next(turns))

    return Case(
        NAME,
        {label: turns_of(training) for label, training in trainings.items()},
        lambda: check(trainings, configuration, reals[0], noises[0]),
        flops=configuration.step_flops,
        capturable=False,  # it steps optimizers
        facts={"batch": configuration.batch},
    )


def networks(configuration: Configuration, shape: tuple[int, ...]) -> tuple[Generator, Discriminator]:
    """The same for every contender."""
    torch.manual_seed(0)
    return Generator(configuration.generator, shape), Discriminator(configuration.discriminator)


def as_written(
    configuration: Configuration,
    shape: tuple[int, ...],
    change: Callable[[nn.Module], nn.Module] = lambda network: network,
    best: bool = False,
) -> Training:
    """The tutorial's loop, D's update after G's fakes, and G's on the same ones.

    Args:
        configuration: of the networks.
        shape: of an image.
        change: what is done to both networks beforehand.
        best: with the fused Adam, and no weight gradients of D where G learns.
    """
    generator, discriminator = map(change, networks(configuration, shape))
    criterion = nn.BCELoss()
    g_optimizer, d_optimizer = (
        adam(**({"fused": True} if best else {}))(network.parameters()) for network in (generator, discriminator)
    )

    def step(real: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        images = real.view(len(real), *shape)
        valid = torch.ones(len(images), 1, device=images.device)
        wrong = torch.zeros(len(images), 1, device=images.device)
        fakes = generator(noise)
        d_optimizer.zero_grad()
        d_loss = (criterion(discriminator(images), valid) + criterion(discriminator(fakes.detach()), wrong)) / 2
        d_loss.backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        g_loss = criterion(discriminator(fakes), valid)
        g_loss.backward(inputs=list(generator.parameters()) if best else None)
        g_optimizer.step()
        return d_loss.detach(), g_loss.detach()

    compared = _compared(generator, discriminator)
    return Training(step, lambda: compared)


def train_step(configuration: Configuration, shape: tuple[int, ...]) -> Training:
    """`fastgan.TrainStep` over the Sequentials within both networks, whose parameters are theirs."""
    generator, discriminator = networks(configuration, shape)
    g_optimizer, d_optimizer = (adam()(network.parameters()) for network in (generator, discriminator))
    # The tutorial halves D's loss. Adam sees a factor by its eps alone.
    d_optimizer.param_groups[0]["eps"] *= 2
    step = fastgan.TrainStep(generator.model, discriminator.model, g_optimizer, d_optimizer, reuse_fake=True)

    def run(real: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        stats = step.step(real, noise=noise[None])
        return stats.d_loss / 2, stats.g_loss

    compared = _compared(generator, discriminator)
    return Training(run, lambda: compared)


def _compared(generator: Generator, discriminator: Discriminator) -> list[Tensor]:
    """All parameters but the biases right before BatchNorm: their gradients are rounding, which Adam scales up."""
    pairs = pairwise(generator.model)
    rounding = {id(layer.bias) for layer, after in pairs if isinstance(after, nn.BatchNorm1d)}
    return [p for network in (generator, discriminator) for p in network.parameters() if id(p) not in rounding]
