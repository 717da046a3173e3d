"""The training loop that TrainStep stands for, as a PyTorch user writes it by hand (Goodfellow et al. 2014, alg. 1)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fastgan.nn import MLP, FusedSequential, unfuse


class DrawnDropout(nn.Dropout):
    """Dropout whose mask torch draws as it draws any: on CUDA nn.Dropout has a kernel that draws its own.

    That kernel is what runs where the step is composed.
    """

    composed = False

    def forward(self, value: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return value
        if self.composed:
            return F.dropout(value, self.p)
        return value * torch.empty_like(value).bernoulli_(1 - self.p) / (1 - self.p)


LATENT, DATA, BATCH = 3, 4, 6

adam = functools.partial(Adam, lr=2e-3, betas=(0.5, 0.999))


class Plain:
    """What TrainStep does, with its arguments, in torch alone."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        g_optimizer: Optimizer,
        d_optimizer: Optimizer,
        *,
        loss: str = "non_saturating",
        real_target: float = 1.0,
        fake_target: float = 0.0,
        d_steps: int = 1,
        reuse_fake: bool = False,
        r1_gamma: float = 0.0,
        r1_every: int = 16,
        num_classes: int = 0,
        ema: nn.Module | None = None,
        ema_decay: float = 0.999,
        precision: str = "fp32",
    ) -> None:
        self.generator, self.discriminator, self.ema = generator, discriminator, ema
        self.g_optimizer, self.d_optimizer = g_optimizer, d_optimizer
        self.loss, self.real_target, self.fake_target = loss, real_target, fake_target
        self.d_steps, self.reuse_fake, self.num_classes = d_steps, reuse_fake, num_classes
        self.r1_gamma, self.r1_every = r1_gamma, r1_every
        self.ema_decay, self.precision = ema_decay, precision
        self.count = 0

    def step(self, real: Tensor, labels: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of training; the loss of D, the loss of G, the score of real data and of fakes."""
        for module in (*self.generator.modules(), *self.discriminator.modules()):
            if isinstance(module, DrawnDropout):
                module.composed = bool(self.r1_gamma) and self.count % self.r1_every == 0
        # Uncached, since the weights change inside the block.
        with torch.autocast(
            torch.get_default_device().type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False
        ):
            for i in range(self.d_steps):
                x = real[i] if real.dim() == 3 else real
                y = labels[i] if labels is not None and labels.dim() == 2 else labels
                fake = self.generator(self.with_label(noise[i], y))
                real_logits = self.discriminator(self.with_label(x, y))
                fake_logits = self.discriminator(self.with_label(fake.detach(), y))
                d_loss = self.criterion(real_logits, self.real_target) + self.criterion(fake_logits, self.fake_target)
                total = d_loss
                if self.r1_gamma and self.count % self.r1_every == 0:
                    at = x.clone().requires_grad_()
                    scores = self.discriminator(self.with_label(at, y))
                    (slope,) = torch.autograd.grad(scores.sum(), at, create_graph=True)
                    total = d_loss + self.r1_every * self.r1_gamma / 2 * slope.pow(2).sum(1).mean()
                self.d_optimizer.zero_grad()
                total.backward()
                self.d_optimizer.step()
            if not self.reuse_fake:
                fake = self.generator(self.with_label(noise[-1], y))
            logits = self.discriminator(self.with_label(fake, y))
            g_loss = self.criterion(logits, 1.0) if self.loss == "non_saturating" else -self.criterion(logits, 0.0)
            self.g_optimizer.zero_grad()
            g_loss.backward()
            self.g_optimizer.step()
        self.count += 1
        if self.ema is not None:
            with torch.no_grad():
                for average, value in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                    average.lerp_(value, 1 - self.ema_decay)
                for average, value in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
                    average.copy_(value)
        scores = [d if self.is_probability(d) else torch.sigmoid(d) for d in (real_logits, fake_logits)]
        return d_loss.detach(), g_loss.detach(), *(score.detach().mean() for score in scores)

    def criterion(self, output: Tensor, target: float) -> Tensor:
        """The loss of D's output, with BCELoss where it is a probability, as the tutorials have it."""
        if self.is_probability(output):
            return F.binary_cross_entropy(output, torch.full_like(output, target))
        return F.binary_cross_entropy_with_logits(output, torch.full_like(output, target))

    def is_probability(self, output: Tensor) -> bool:
        """Whether D ends in a Sigmoid, or autograd says that one made its output."""
        return isinstance(last_layer(self.discriminator), nn.Sigmoid) or "Sigmoid" in type(output.grad_fn).__name__

    def with_label(self, value: Tensor, label: Tensor | None) -> Tensor:
        """Mirza & Osindero 2014: the one-hot label beside the value."""
        if self.num_classes == 0:
            return value
        return torch.cat([value, F.one_hot(label, self.num_classes).to(value.dtype)], dim=1)


def last_layer(module: nn.Module) -> nn.Module | None:
    """The last that changes values, where the modules are held in Sequentials."""
    if not isinstance(module, nn.Sequential):
        return None if isinstance(module, (nn.Identity, nn.Flatten)) else module
    return next(filter(None, map(last_layer, reversed(module._modules.values()))), None)


def networks(num_classes: int = 0, dtype: torch.dtype = torch.float64) -> tuple[MLP, MLP]:
    """A generator and a discriminator that fuse entirely."""
    generator = MLP([LATENT + num_classes, 8, DATA], "relu", "tanh", dtype=dtype)
    return generator, MLP([DATA + num_classes, 8, 1], dtype=dtype)


def inputs(
    options: dict[str, Any], dtype: torch.dtype = torch.float64, lead: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Real data, labels and noise for one step; `lead` is (d_steps,) for one batch a D step."""
    rows = options.get("d_steps", 1) + (not options.get("reuse_fake", False))
    classes = options.get("num_classes", 0)
    labels = torch.randint(classes, (*lead, BATCH)) if classes else None
    return torch.randn(*lead, BATCH, DATA, dtype=dtype), labels, torch.randn(rows, BATCH, LATENT, dtype=dtype)


def twin(
    kind: Callable[..., Any],
    generator: nn.Module,
    discriminator: nn.Module,
    make: Callable[..., Optimizer],
    **options: Any,
) -> Any:
    """A trainer over copies of the networks, with an average of G where `ema_decay` is given; Plain fuses nothing."""
    generator, discriminator = copy.deepcopy(generator), copy.deepcopy(discriminator)
    if kind is Plain:
        generator, discriminator = unfuse(generator), unfuse(discriminator)
        if torch.get_default_device().type == "cuda":
            for module in (*generator.modules(), *discriminator.modules()):
                if type(module) is nn.Dropout:
                    module.__class__ = DrawnDropout
        assert not any(isinstance(m, FusedSequential) for n in (generator, discriminator) for m in n.modules())
    if "ema_decay" in options:
        options["ema"] = copy.deepcopy(generator).requires_grad_(False)
    return kind(generator, discriminator, make(generator.parameters()), make(discriminator.parameters()), **options)


def state_of(trainer: Any) -> list[Tensor]:
    """Every tensor that training changes: parameters and buffers, the average's too, and the optimizers' state."""
    modules = [m for m in (trainer.generator, trainer.discriminator, trainer.ema) if m is not None]
    tensors = [t.detach() for m in modules for t in m.state_dict().values()]
    for optimizer in (trainer.g_optimizer, trainer.d_optimizer):
        for state in optimizer.state_dict()["state"].values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return tensors
