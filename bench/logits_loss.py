"""discriminator_loss and generator_loss against the PyTorch expressions of the same; of each other kind one size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.functional import discriminator_loss, generator_loss

from .pairs import pair
from .timing import Case

SIZES = [(64, 1), (4096, 1), (1024, 256), (4096, 1024)]


def torch_generator_loss(fake: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def torch_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    on_real = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
    return on_real + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


# D's loss by kind, as people write it.
TORCH_KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relativistic": lambda real, fake: F.softplus(fake - real).mean(),
    "hinge": lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    "wasserstein": lambda real, fake: fake.mean() - real.mean(),
    "least_squares": lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
}


def cases() -> Iterator[Case]:
    """Each size in float32, one in bfloat16; least bytes as in bce.py, without targets."""
    for dtype, sizes in ((torch.float32, SIZES), (torch.bfloat16, SIZES[2:3])):
        for size in sizes:
            n = size[0] * size[1] * dtype.itemsize
            label = f"{size[0]}x{size[1]}"
            yield from pair(
                f"discriminator_loss {label}",
                discriminator_loss,
                torch_discriminator_loss,
                [size, size],
                dtype=dtype,
                bytes=(2 * n, 6 * n),
            )
            yield from pair(
                f"generator_loss {label}",
                generator_loss,
                torch_generator_loss,
                [size],
                dtype=dtype,
                bytes=(n, 3 * n),
            )
    for kind, torchs in TORCH_KINDS.items():
        for size in SIZES[:3:2]:
            n = size[0] * size[1] * torch.float32.itemsize
            yield from pair(
                f"{kind} discriminator_loss {size[0]}x{size[1]}",
                functools.partial(discriminator_loss, kind=kind),
                torchs,
                [size, size],
                bytes=(2 * n, 6 * n),
            )
