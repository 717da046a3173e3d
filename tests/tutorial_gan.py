"""The GAN and the conditional GAN of 28 x 28 images that tutorials have, and their training loop, in torch alone.

The networks are those of Linder-Norén's PyTorch-GAN (gan.py and cgan.py), with the names that its checkpoints have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from conformance import here
from torch import Tensor, nn
from torch.optim import Adam

from bench.tutorial import TUTORIAL, Discriminator, Generator, generator_layers

__all__ = ["Discriminator", "Generator"]

LATENT, CLASSES, IMAGE, BATCH = 100, 10, (1, 28, 28), 64
PIXELS = 784


class ConditionalGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.label_emb = nn.Embedding(CLASSES, CLASSES)
        self.model = generator_layers((LATENT + CLASSES, *TUTORIAL.generator[1:]))

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.model(torch.cat((self.label_emb(labels), noise), -1)).view(len(noise), *IMAGE)


class ConditionalDiscriminator(nn.Module):
    def __init__(self, dropout: float = 0.4) -> None:
        super().__init__()
        self.label_embedding = nn.Embedding(CLASSES, CLASSES)
        hidden = [nn.Linear(CLASSES + PIXELS, 512), nn.LeakyReLU(0.2, inplace=True)]
        for _ in range(2):
            hidden += [nn.Linear(512, 512), nn.Dropout(dropout), nn.LeakyReLU(0.2, inplace=True)]
        self.model = nn.Sequential(*hidden, nn.Linear(512, 1))

    def forward(self, image: Tensor, labels: Tensor) -> Tensor:
        return self.model(torch.cat((image.view(len(image), -1), self.label_embedding(labels)), -1))


class Joined(nn.Module):
    """A conditional network as TrainStep calls it: with the values and the one-hot labels side by side."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        values, one_hot = values.split([values.shape[1] - CLASSES, CLASSES], dim=1)
        return self.network(values, one_hot.argmax(dim=1)).flatten(start_dim=1)


def adam(network: nn.Module) -> Adam:
    return Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))


def loop(
    generator: nn.Module,
    discriminator: nn.Module,
    batches: list[tuple[Tensor, Tensor, Tensor]],
    criterion: Callable[[Tensor, Tensor], Tensor],
    conditional: bool = False,
    half: float = 0.5,
) -> list[Tensor]:
    """The tutorials' loop, D's update first, G's on the same fakes; both losses of each step.

    Args:
        generator: one of the two above, or anything that is called like it.
        discriminator: likewise.
        batches: images, noise, and labels.
        criterion: BCELoss; MSELoss in the conditional tutorial.
        conditional: whether both are given the labels.
        half: the weight of each half of D's loss.
    """
    g_optimizer, d_optimizer = adam(generator), adam(discriminator)
    losses = []
    for images, noise, labels in batches:
        given = (labels,) if conditional else ()
        valid, wrong = torch.ones(len(images), 1, dtype=images.dtype), torch.zeros(len(images), 1, dtype=images.dtype)
        fakes = generator(noise, *given)
        d_optimizer.zero_grad()
        real_loss = criterion(discriminator(images, *given), valid)
        d_loss = half * (real_loss + criterion(discriminator(fakes.detach(), *given), wrong))
        d_loss.backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        g_loss = criterion(discriminator(fakes, *given), valid)
        g_loss.backward()
        g_optimizer.step()
        losses += [d_loss.detach(), g_loss.detach()]
    return losses


def batches(steps: int, dtype: torch.dtype = torch.float32, size: int = BATCH) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images in [-1, 1], noise, and labels, for so many steps; in every dtype the same numbers."""
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device="cpu").to(dtype)

    given = [
        (
            normal(size, *IMAGE).tanh(),
            normal(size, LATENT),
            torch.randint(CLASSES, (size,), generator=draw, device="cpu"),
        )
        for _ in range(steps)
    ]
    return list(map(here, given))
