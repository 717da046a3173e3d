"""Steps whose generator ends in a SegmentedActivation, and the loop in plain PyTorch that they stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from plain_step import Plain, in_plain_torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import TrainStep
from fastgan.condition import asked_segments
from fastgan.nn import MLP, SegmentedActivation

NATIVE = "the whole step as one native call"
WIDTHS = (1, 3, 2, 1, 3, 4, 5)
KINDS = ("tanh", "gumbel_softmax", "identity", "tanh", "softmax", "gumbel_softmax", "gumbel_softmax")
LATENT, DATA, CLASSES, EVERY_CLASS = 5, sum(WIDTHS), 9, 12
BATCH = 66  # three panels, the last of two samples; of packs of two two panels, of three one


class InPlainTorch(nn.Module):
    """The same in torch's own ops, drawn by torch's generator in the order of the calls.

    Attributes:
        draws: the dtype of what is drawn, where that is not the input's.
        given: the last input.
    """

    draws: torch.dtype | None = None
    given: Tensor

    def __init__(self, widths: tuple[int, ...] = WIDTHS, kinds: tuple[str, ...] = KINDS, tau: float = 0.2) -> None:
        super().__init__()
        self.widths, self.kinds, self.tau = widths, kinds, tau

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        drawn = [w for w, kind in zip(self.widths, self.kinds, strict=True) if kind == "gumbel_softmax"]
        parts = []
        if drawn:
            uniform = torch.rand(len(x), sum(drawn), dtype=self.draws or x.dtype).to(x.dtype)
            gumbel = iter((-torch.log(-torch.log(uniform))).split(drawn, 1))
        for part, kind in zip(x.split(list(self.widths), 1), self.kinds, strict=True):
            if kind == "gumbel_softmax":
                part = ((part + next(gumbel)) / self.tau).softmax(1)
            parts.append({"tanh": torch.tanh, "softmax": lambda z: z.softmax(1)}.get(kind, lambda z: z)(part))
        return torch.cat(parts, 1)


class Conditioned(Plain):
    """With the condition's cross-entropy in G's loss."""

    def __init__(self, *parts: Any, condition_weight: float = 0.0, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.condition_weight = condition_weight

    def step(self, real: Tensor, labels: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.asked = labels[-1] if labels is not None and labels.dim() == 2 else labels
        return super().step(real, labels, noise)

    def descend(self, optimizer: Optimizer, loss: Tensor) -> None:
        if optimizer is self.g_optimizer and self.condition_weight:
            loss = loss + self.condition_weight * self.cross_entropy()
        super().descend(optimizer, loss)

    def cross_entropy(self) -> Tensor:
        """A sample at a time: F.cross_entropy of its segment against its level."""
        last = self.generator[-1]
        runs = list(zip(last.given.split(list(last.widths), 1), last.widths, strict=True))
        segments = asked_segments(last.widths, last.kinds, self.num_classes)
        terms = []
        for i, label in enumerate(self.asked.tolist()):
            for logits, width in (runs[k] for k in segments):
                if 0 <= label < width:
                    terms.append(F.cross_entropy(logits[i], torch.tensor(label)))
                label -= width
        return torch.stack(terms).mean()


def networks(
    classes: int = CLASSES,
    pac: int = 1,
    activation: str = "leaky_relu",
    dropout: float = 0.0,
    has_last_bias: bool = True,
) -> tuple[nn.Sequential, nn.Sequential]:
    """A generator without its last activation, and a discriminator, in float64."""
    generator, discriminator = (
        nn.Sequential(*MLP(sizes, activation, dtype=torch.float64))
        for sizes in ([LATENT + classes, 8, DATA], [pac * (DATA + classes), 8, 5, 1])
    )
    if not has_last_bias:
        discriminator[-1].register_parameter("bias", None)
    if dropout:
        for network in (generator, discriminator):
            network.insert(2, nn.Dropout(dropout))
    return generator, discriminator


def trainers(
    pair: tuple[nn.Module, nn.Module],
    make: Callable[..., Optimizer],
    dtype: torch.dtype = torch.float64,
    widths: tuple[int, ...] = WIDTHS,
    kinds: tuple[str, ...] = KINDS,
    **options: Any,
) -> tuple[TrainStep, Conditioned]:
    """A TrainStep and the plain loop over copies of the same networks."""
    made = []
    for kind, end in ((TrainStep, SegmentedActivation(widths, kinds)), (Conditioned, InPlainTorch(widths, kinds))):
        generator, discriminator = (copy.deepcopy(network).to(dtype) for network in pair)
        generator.append(end)
        if kind is Conditioned:
            generator, discriminator = in_plain_torch(generator), in_plain_torch(discriminator)
        own = dict(options)
        if "ema_decay" in options:
            own["ema"] = copy.deepcopy(generator).requires_grad_(False)
        optimizers = make(generator.parameters()), make(discriminator.parameters())
        made.append(kind(generator, discriminator, *optimizers, **own))
    return made[0], made[1]


def inputs(options: dict[str, Any], batch: int = BATCH, data: int = DATA) -> tuple[Tensor, Tensor | None, Tensor]:
    """Real data, labels and noise of one step, a batch a D step, in float64."""
    updates, classes = options.get("d_steps", 1), options.get("num_classes", 0)
    rows = updates + (not options.get("reuse_fake", False))
    labels = torch.randint(classes, (updates, batch)) if classes else None
    real, noise = (torch.randn(n, batch, width).double() for n, width in ((updates, data), (rows, LATENT)))
    return real, labels, noise


def results(trainer: Any, steps: int, given: Callable[[int], tuple[Any, ...]]) -> list[list[Tensor]]:
    """The statistics of so many steps, on inputs and draws that their number alone decides."""
    found = []
    for i in range(steps):
        torch.manual_seed(i)
        drawn = given(i)
        torch.manual_seed(1000 + i)
        found.append(list(trainer.step(*drawn)))
    return found
