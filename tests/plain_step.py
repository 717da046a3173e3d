"""The loops that TrainStep and DiscriminatorStep stand for, as written by hand (Goodfellow et al. 2014, alg. 1)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fastgan.nn import MLP, FusedSequential, unfuse


class DrawnDropout(nn.Dropout):
    """Dropout whose masks are those of the step that it is held against.

    On a CPU torch draws each as it draws any. On CUDA nn.Dropout has a kernel that draws its own, which is what runs
    where the step is composed; the engine draws there as on a CPU, by bernoulli_.

    Attributes:
        composed: whether the step is.
        draws: the dtype that the masks are drawn in, where that is not the input's: two dtypes draw other masks.
    """

    composed = False
    draws: torch.dtype | None = None

    def forward(self, value: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1):
            return super().forward(value)
        if self.composed and self.draws in (None, value.dtype):
            return F.dropout(value, self.p)
        ones = torch.ones_like(value, dtype=self.draws or value.dtype)
        kept = F.dropout(ones, self.p) != 0 if self.composed else ones.bernoulli_(1 - self.p)
        return value * kept.to(value.dtype) / (1 - self.p)


def in_plain_torch(network: nn.Module) -> nn.Module:
    """A network without fused modules, and on CUDA with the masks of the step that it is held against."""
    network = unfuse(network)
    if torch.get_default_device().type == "cuda":
        for module in network.modules():
            if type(module) is nn.Dropout:
                module.__class__ = DrawnDropout
    assert not any(isinstance(module, FusedSequential) for module in network.modules())
    return network


LATENT, DATA, BATCH = 3, 4, 6

adam = functools.partial(Adam, lr=2e-3, betas=(0.5, 0.999))


class PlainDiscriminator:
    """What DiscriminatorStep does, with its arguments, in torch alone.

    Attributes:
        draws: the dtype of what is drawn, where that is not the data's: two dtypes draw other numbers.
        composes: whether the step that this is held against does without the engine.
    """

    draws: torch.dtype | None = None
    composes = False
    ema = None

    def __init__(
        self,
        discriminator: nn.Module,
        optimizer: Optimizer,
        *,
        loss: str = "non_saturating",
        real_target: float = 1.0,
        fake_target: float = 0.0,
        r1_gamma: float = 0.0,
        r2_gamma: float = 0.0,
        gp_weight: float = 0.0,
        gp_center: float = 1.0,
        r1_every: int = 1,
        num_classes: int = 0,
        pac: int = 1,
        clip_grad_norm: float | None = None,
        precision: str = "fp32",
    ) -> None:
        self.discriminator, self.optimizer = discriminator, optimizer
        self.loss, self.real_target, self.fake_target = loss, real_target, fake_target
        self.r1_gamma, self.r2_gamma, self.r1_every = r1_gamma, r2_gamma, r1_every
        self.gp_weight, self.gp_center = gp_weight, gp_center
        self.num_classes, self.pac, self.clip_grad_norm, self.precision = num_classes, pac, clip_grad_norm, precision
        self.sigma, self.count = 0.0, 0

    def step(
        self, real: Tensor, fake: Tensor, labels: Tensor | None = None, fake_labels: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """One update; the loss, the penalties, the score of real data and of fakes."""
        self.set_masks(self.discriminator)
        with self.autocast():
            result = self.update(self.optimizer, real, fake, labels, labels if fake_labels is None else fake_labels)
        self.count += 1
        return result

    def autocast(self) -> torch.autocast:
        """Uncached, since the weights change inside the block."""
        device = torch.get_default_device().type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def is_due(self) -> bool:
        """Whether R1 and R2 are part of this step."""
        return self.count % self.r1_every == 0

    def set_masks(self, *networks: nn.Module) -> None:
        """Whose masks this step has: those of the engine, but where that has no such step, or is not to take it."""
        is_penalized = bool(self.gp_weight) or (bool(self.r1_gamma or self.r2_gamma) and self.is_due())
        has_batch_norm = any(isinstance(module, nn.BatchNorm1d) for module in self.discriminator.modules())
        for network in networks:
            for module in network.modules():
                if isinstance(module, DrawnDropout):
                    module.composed = self.composes or (is_penalized and has_batch_norm)
                    module.draws = self.draws

    def update(
        self, optimizer: Optimizer, real: Tensor, fake: Tensor, y: Tensor | None, fake_y: Tensor | None
    ) -> tuple[Tensor, ...]:
        """One update of D: real data goes first, in whatever is drawn."""
        gammas = [gamma if gamma and self.is_due() else 0.0 for gamma in (self.r1_gamma, self.r2_gamma)]
        real, fake = (
            self.noised(value.detach()).requires_grad_(bool(gamma))
            for value, gamma in zip((real, fake), gammas, strict=True)
        )
        r, f = self.discriminator(self.pack(real, y)), self.discriminator(self.pack(fake, fake_y))
        d_loss, penalty = self.d_loss(r, f), torch.zeros((), dtype=real.dtype)
        for gamma, output, at in zip(gammas, (r, f), (real, fake), strict=True):
            if gamma:
                penalty = penalty + gamma / 2 * self.r1_every * self.slopes(output, at).pow(2).sum(1).mean()
        if self.gp_weight:
            packs = len(real) // self.pac
            u = torch.rand(packs, 1, dtype=self.draws or real.dtype).to(real.dtype)
            mixed = u * real.detach().reshape(packs, -1) + (1 - u) * fake.detach().reshape(packs, -1)
            at = mixed.view(real.shape).requires_grad_()
            norms = self.slopes(self.discriminator(self.pack(at, y)), at).norm(dim=1)
            penalty = penalty + self.gp_weight * (norms - self.gp_center).pow(2).mean()
        self.descend(optimizer, d_loss + penalty)
        return d_loss.detach(), penalty.detach(), self.score(r), self.score(f)

    def noised(self, value: Tensor) -> Tensor:
        """With instance noise."""
        if not self.sigma:
            return value
        return value + self.sigma * torch.randn(value.shape, dtype=self.draws or value.dtype).to(value.dtype)

    def slopes(self, output: Tensor, at: Tensor) -> Tensor:
        """The gradient of D's output by the data of each of its inputs, a row for each."""
        (gradient,) = torch.autograd.grad(output.sum(), at, create_graph=True)
        return gradient.reshape(len(at) // self.pac, -1)

    def descend(self, optimizer: Optimizer, loss: Tensor) -> None:
        """Backward and one step of an optimizer."""
        optimizer.zero_grad()
        loss.backward()
        if self.clip_grad_norm is not None:
            held = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(held, self.clip_grad_norm)
        optimizer.step()

    def d_loss(self, r: Tensor, f: Tensor) -> Tensor:
        """The loss of D, of what it returned."""
        if self.loss == "relativistic":
            return F.softplus(-(r - f)).mean()
        if self.loss == "hinge":
            return F.relu(1 - r).mean() + F.relu(1 + f).mean()
        if self.loss == "wasserstein":
            return f.mean() - r.mean()
        if self.loss == "least_squares":
            return (r - self.real_target).pow(2).mean() / 2 + (f - self.fake_target).pow(2).mean() / 2
        return self.criterion(r, self.real_target) + self.criterion(f, self.fake_target)

    def g_loss(self, r: Tensor | None, f: Tensor) -> Tensor:
        """The loss of G, of what D returned."""
        if self.loss == "relativistic":
            return F.softplus(-(f - r)).mean()
        if self.loss in ("hinge", "wasserstein"):
            return -f.mean()
        if self.loss == "least_squares":
            return (f - 1).pow(2).mean() / 2
        return self.criterion(f, 1.0) if self.loss == "non_saturating" else -self.criterion(f, 0.0)

    def score(self, output: Tensor) -> Tensor:
        """The mean of D's probability, or of its output where the loss is of no probability."""
        is_score = self.loss in ("hinge", "wasserstein", "least_squares") or self.is_probability(output)
        return (output if is_score else torch.sigmoid(output)).detach().mean()

    def criterion(self, output: Tensor, target: float) -> Tensor:
        """The loss of D's output, with BCELoss where it is a probability, as the tutorials have it."""
        if self.is_probability(output):
            return F.binary_cross_entropy(output, torch.full_like(output, target))
        return F.binary_cross_entropy_with_logits(output, torch.full_like(output, target))

    def is_probability(self, output: Tensor) -> bool:
        """Whether D ends in a Sigmoid, or autograd says that one made its output, and the loss is of logits."""
        ends = isinstance(last_layer(self.discriminator), nn.Sigmoid) or "Sigmoid" in type(output.grad_fn).__name__
        return ends and self.loss in ("non_saturating", "minimax")

    def with_label(self, value: Tensor, label: Tensor | None) -> Tensor:
        """Mirza & Osindero 2014: the one-hot label beside the value."""
        if self.num_classes == 0:
            return value
        return torch.cat([value, F.one_hot(label, self.num_classes).to(value.dtype)], dim=1)

    def pack(self, value: Tensor, label: Tensor | None) -> Tensor:
        """Lin et al. 2018: consecutive samples, each beside its label, side by side."""
        value = self.with_label(value, label)
        return value.reshape(len(value) // self.pac, -1)


class Plain(PlainDiscriminator):
    """What TrainStep does, with its arguments, in torch alone."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        g_optimizer: Optimizer,
        d_optimizer: Optimizer,
        *,
        d_steps: int = 1,
        reuse_fake: bool = False,
        r1_every: int = 16,
        ema: nn.Module | None = None,
        ema_decay: float = 0.999,
        instance_noise: float = 0.0,
        instance_noise_steps: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(discriminator, d_optimizer, r1_every=r1_every, **options)
        self.generator, self.ema = generator, ema
        self.g_optimizer, self.d_optimizer = g_optimizer, d_optimizer
        self.d_steps, self.reuse_fake, self.ema_decay = d_steps, reuse_fake, ema_decay
        self.instance_noise, self.instance_noise_steps = instance_noise, instance_noise_steps

    def step(self, real: Tensor, labels: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of training; the loss of D, the loss of G, the score of real data and of fakes."""
        self.set_masks(self.generator, self.discriminator)
        left = 1 - self.count / self.instance_noise_steps if self.instance_noise_steps else 1
        self.sigma = self.instance_noise * max(0, left)
        with self.autocast():
            for i in range(self.d_steps):
                x = real[i] if real.dim() == 3 else real
                y = labels[i] if labels is not None and labels.dim() == 2 else labels
                fake = self.generator(self.with_label(noise[i], y))
                d_loss, _, *scores = self.update(self.d_optimizer, x, fake, y, y)
            if not self.reuse_fake:
                fake = self.generator(self.with_label(noise[-1], y))
            if self.loss == "relativistic":
                x, fake = self.noised(x), self.noised(fake)
                with torch.no_grad():
                    r = self.discriminator(self.pack(x, y))
            else:
                r, fake = None, self.noised(fake)
            g_loss = self.g_loss(r, self.discriminator(self.pack(fake, y)))
            self.descend(self.g_optimizer, g_loss)
        self.count += 1
        if self.ema is not None:
            with torch.no_grad():
                for average, value in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                    average.lerp_(value, 1 - self.ema_decay)
                for average, value in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
                    average.copy_(value)
        return d_loss, g_loss.detach(), *scores


def last_layer(module: nn.Module) -> nn.Module | None:
    """The last that changes values, where the modules are held in Sequentials."""
    if not isinstance(module, nn.Sequential):
        return None if isinstance(module, (nn.Identity, nn.Flatten)) else module
    return next(filter(None, map(last_layer, reversed(module._modules.values()))), None)


def networks(num_classes: int = 0, dtype: torch.dtype = torch.float64, pac: int = 1) -> tuple[MLP, MLP]:
    """A generator and a discriminator that fuse entirely."""
    generator = MLP([LATENT + num_classes, 8, DATA], "relu", "tanh", dtype=dtype)
    return generator, MLP([pac * (DATA + num_classes), 8, 1], dtype=dtype)


def step_in_another_thread(trainer: Any, given: Sequence[Any]) -> None:
    """A step for each of `given`, in a thread that has of torch's thread-local modes the default device alone.

    What goes wrong there is raised here.
    """
    device = torch.get_default_device()

    def work() -> None:
        with torch.device(device):
            for each in given:
                trainer.step(*each)

    with ThreadPoolExecutor(1) as other:
        other.submit(work).result()


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
        generator, discriminator = in_plain_torch(generator), in_plain_torch(discriminator)
    if "ema_decay" in options:
        options["ema"] = copy.deepcopy(generator).requires_grad_(False)
    return kind(generator, discriminator, make(generator.parameters()), make(discriminator.parameters()), **options)


def state_of(trainer: Any) -> list[Tensor]:
    """Every tensor that training changes: parameters and buffers, the average's too, and the optimizers' state."""
    held = [getattr(trainer, name, None) for name in ("generator", "discriminator", "ema")]
    tensors = [t.detach() for m in held if m is not None for t in m.state_dict().values()]
    optimizers = [getattr(trainer, name, None) for name in ("g_optimizer", "d_optimizer")]
    for optimizer in [o for o in optimizers if o is not None] or [trainer.optimizer]:
        for state in optimizer.state_dict()["state"].values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return tensors
