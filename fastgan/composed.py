"""Steps composed of fused ops under autograd: what runs where a step is not one native call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import layers
from fastgan.condition import cross_entropy
from fastgan.condition import run as run_condition
from fastgan.discriminator_output import DiscriminatorOutput
from fastgan.nn import is_fully_fused
from fastgan.processes import Processes
from fastgan.statistics import DiscriminatorStats, StepStats
from fastgan.step_options import AUTOCAST_DTYPES, DiscriminatorOptions, DiscriminatorParts, StepOptions, StepParts

Pair = tuple[Tensor, Tensor]
Conditions = tuple[Tensor | None, Tensor | None]


class Progress:
    """A `with` block around a composed step. Where a network refuses its input before the first update, the statistics
    of layers that ran before it are as they were.

    Attributes:
        has_updated: whether an optimizer was called.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self._buffers = [b for network in networks for b in network.buffers() if layers.is_plain_tensor(b)]
        self._before = [buffer.clone() for buffer in self._buffers]
        self.has_updated = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None or self.has_updated:
            return
        with contextlib.suppress(RuntimeError), torch.no_grad():
            for buffer, old in zip(self._buffers, self._before, strict=True):
                buffer.copy_(old)


class Updated(NamedTuple):
    """What an update of D leaves for the statistics: two 0-d tensors, and what D returned, both halves."""

    d_loss: Tensor
    penalty: Tensor
    real: Tensor
    fake: Tensor


class DiscriminatorPart:
    """D in one composed step: what it is given, its loss and its update."""

    def __init__(
        self,
        discriminator: nn.Module,
        options: DiscriminatorOptions,
        progress: Progress,
        are_due: bool,
        noise_scale: float = 0.0,
        processes: Processes | None = None,
    ) -> None:
        """Look at how D ends.

        Args:
            discriminator: D.
            options: of the step.
            progress: is told of the update.
            are_due: whether R1 and R2 are part of the step.
            noise_scale: standard deviation of the instance noise.
            processes: that take the step together, or None.
        """
        self._processes, self._cancelled = processes, layers.cancelled_biases(discriminator)
        self._discriminator, self._options, self._progress = discriminator, options, progress
        self._noise_scale = noise_scale
        lazy = 0.5 * options.r1_every if are_due else 0.0
        self._weights = lazy * options.r1_gamma, lazy * options.r2_gamma
        self._output = DiscriminatorOutput(discriminator, options.loss)

    def update(self, optimizer: Optimizer, real: Tensor, fake: Tensor, conditions: Conditions) -> Updated:
        """One update of D by its loss and penalties.

        Args:
            optimizer: of D's parameters.
            real: (batch, data).
            fake: (batch, data), perhaps of another size.
            conditions: the labels of each as one-hot columns, or None.

        Returns:
            The loss without the penalties, these, and what D returned.
        """
        with autocast(self._options.precision, real):
            samples = self._noised(real.detach(), real), self._noised(fake.detach(), real)
            inputs = self._packed(samples[0], conditions[0]), self._packed(samples[1], conditions[1])
            (of_real, of_fake), gradients = self._run(inputs)
            d_loss = self._output.discriminator_loss(of_real, of_fake, self._options)
            terms = [
                weight * gradient.square().sum(1).mean()
                for weight, gradient in zip(self._weights, gradients, strict=True)
                if gradient is not None
            ]
            if self._options.gp_weight > 0:
                terms.append(self._options.gp_weight * self._interpolates(samples, conditions[0]))
            penalty = sum(terms[1:], start=terms[0]) if terms else torch.zeros_like(d_loss)
        self._progress.has_updated = True
        update(
            optimizer,
            d_loss + penalty if terms else d_loss,
            self._cancelled,
            self._options.clip_grad_norm,
            self._processes,
        )
        return Updated(d_loss.detach(), penalty.detach(), of_real, of_fake)

    def generator_loss(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        """G's loss of its fakes, and of real data with the same labels, where the loss pairs them."""
        with autocast(self._options.precision, fake):
            of_real = None
            noised_real = self._noised(real.detach(), real) if self._options.is_paired else None
            fake = self._noised(fake, real)
            if noised_real is not None:
                with torch.no_grad():
                    of_real = self._output.run(self._packed(noised_real, condition))
            return self._output.generator_loss(self._output.run(self._packed(fake, condition)), of_real)

    def score(self, output: Tensor) -> Tensor:
        """The score of what D returned."""
        return self._output.score(output)

    def _noised(self, value: Tensor, like: Tensor) -> Tensor:
        if self._noise_scale == 0:
            return value
        return value + self._noise_scale * torch.randn(value.shape, dtype=like.dtype, device=like.device)

    def _packed(self, value: Tensor, condition: Tensor | None) -> Tensor:
        """D's input (batch / pac, pac (data + classes)): each sample beside its label, so many samples a row."""
        value, pac = conditioned(value, condition), self._options.pac
        return value if pac == 1 else value.reshape(len(value) // pac, -1)

    def _run(self, inputs: Pair) -> tuple[Pair, tuple[Tensor | None, Tensor | None]]:
        """What D returns for real data and for fakes, and of either the gradient by the data where R1 or R2 needs it.

        Loss and penalty share the pass: its dropout masks, and one update of BatchNorm's statistics.
        """
        real, fake = inputs
        needs_real, needs_fake = (weight > 0 for weight in self._weights)
        fake = fake.to(real.dtype) if needs_fake else fake
        if needs_real != needs_fake or not is_fully_fused(self._discriminator):
            of_real, of_real_by_input = self._differentiated(real, needs_real)
            of_fake, of_fake_by_input = self._differentiated(fake, needs_fake)
            return (of_real, of_fake), (of_real_by_input, of_fake_by_input)
        # Nothing in such a D looks across the batch, so both halves go through it at once; but where one alone has a
        # penalty, whose passes would be of twice the rows.
        rows = len(real)
        output, gradient = self._differentiated(torch.cat([real, fake.to(real.dtype)]), needs_real)
        by_input = (None, None) if gradient is None else (gradient[:rows], gradient[rows:])
        return (output[:rows], output[rows:]), by_input

    def _differentiated(self, input: Tensor, is_wanted: bool) -> tuple[Tensor, Tensor | None]:
        if not is_wanted:
            return self._output.run(input), None
        input = input.detach().requires_grad_()
        output = self._output.run(input)
        return output, self._gradient(output, input)

    def _gradient(self, output: Tensor, input: Tensor) -> Tensor:
        """The gradient of D's own output, summed, by the data in its input: (batch / pac, pac data), differentiable."""
        gradient = None
        if output.requires_grad:
            total = self._output.own(output).sum()
            (gradient,) = torch.autograd.grad(total, input, create_graph=True, allow_unused=True)
        if gradient is None:
            raise RuntimeError(
                "the discriminator must give outputs that depend on its input, of which a penalty takes the gradient, "
                "but autograd finds no path from them to it"
            )
        classes, pac = self._options.num_classes, self._options.pac
        if classes > 0:
            gradient = gradient.unflatten(1, (pac, -1))[..., :-classes]
        return gradient.flatten(1)

    def _interpolates(self, samples: Pair, condition: Tensor | None) -> Tensor:
        """E(||grad D|| - gp_center)^2 between real data and fakes (Gulrajani et al. 2017, algorithm 1)."""
        real, fake = samples
        pac = self._options.pac
        u = torch.rand(len(real) // pac, 1, dtype=real.dtype, device=real.device).expand(-1, pac).reshape(-1, 1)
        points = self._packed(u * real + (1 - u) * fake.to(real.dtype), condition)
        _, gradient = self._differentiated(points, True)
        assert gradient is not None
        norms: Tensor = torch.linalg.vector_norm(gradient, dim=1)
        return (norms - self._options.gp_center).square().mean()


def train_step(
    parts: StepParts,
    options: StepOptions,
    real: Tensor,
    conditions: Tensor | None,
    noise: Tensor,
    steps_done: int,
    processes: Processes | None = None,
) -> StepStats:
    """One step of alternating training.

    Args:
        parts: what is trained.
        options: how.
        real: (d_steps, batch, data).
        conditions: (d_steps, batch, classes), one-hot labels; None without classes.
        noise: (d_steps + 1, batch, latent), with reuse_fake (d_steps, batch, latent).
        steps_done: so many steps were before.
        processes: that take the step together, each with a batch of its own; None for this one alone.

    Returns:
        The statistics of the last D step and the G step.
    """
    generator = parts.generator
    before: Tensor | None = None  # what G's last activation was given, where the condition's cross-entropy needs it

    def generate(noise: Tensor, condition: Tensor | None, is_for_generator: bool) -> Tensor:
        nonlocal before
        input = conditioned(noise, condition)
        if not (is_for_generator and options.condition_weight > 0):
            output: Tensor = generator(input)
            return output
        output, before = run_condition(generator, input)
        return output

    networks = generator, parts.discriminator
    progress, cancelled = Progress(networks), layers.cancelled_biases(generator)
    due = options.penalties_are_due(steps_done)
    part = DiscriminatorPart(
        parts.discriminator, options, progress, due, options.noise_scale(steps_done), processes=processes
    )
    with progress, together(processes, networks):
        for i in range(options.d_steps):
            condition = conditions[i] if conditions is not None else None
            # The reused fake keeps its graph for G's backward; any other needs none.
            keeps = bool(options.reuse_fake and i == options.d_steps - 1)
            with torch.set_grad_enabled(keeps), autocast(options.precision, real):
                fake = generate(noise[i], condition, keeps)
            updated = part.update(parts.d_optimizer, real[i], fake, (condition, condition))
        if not options.reuse_fake:
            with autocast(options.precision, real):
                fake = generate(noise[-1], condition, True)
        g_loss = part.generator_loss(real[-1], fake, condition)
        total = g_loss
        if before is not None and condition is not None:
            total = g_loss + options.condition_weight * cross_entropy(generator, before, condition)
        update(parts.g_optimizer, total, cancelled, options.clip_grad_norm, processes)
        if parts.ema is not None:
            _update_average(parts.ema, generator, options.ema_decay)
        with torch.no_grad():
            scores = part.score(updated.real), part.score(updated.fake)
            statistics = updated.d_loss, g_loss.detach(), *scores
            return StepStats(*(statistics if processes is None else processes.mean_of(statistics)))


def discriminator_step(
    parts: DiscriminatorParts,
    options: DiscriminatorOptions,
    real: Tensor,
    fake: Tensor,
    conditions: Conditions,
    steps_done: int,
    processes: Processes | None = None,
) -> DiscriminatorStats:
    """One update of D alone.

    Args:
        parts: what is trained.
        options: how.
        real: (batch, data).
        fake: (fake batch, data).
        conditions: the labels of each as one-hot columns, or None.
        steps_done: so many steps were before.
        processes: that take the step together, each with a batch of its own; None for this one alone.

    Returns:
        The statistics.
    """
    progress = Progress((parts.discriminator,))
    due = options.penalties_are_due(steps_done)
    part = DiscriminatorPart(parts.discriminator, options, progress, due, processes=processes)
    with progress, together(processes, (parts.discriminator,)):
        updated = part.update(parts.optimizer, real, fake, conditions)
        with torch.no_grad():
            scores = part.score(updated.real), part.score(updated.fake)
            statistics = updated.d_loss, updated.penalty, *scores
            return DiscriminatorStats(*(statistics if processes is None else processes.mean_of(statistics)))


def text(discriminator: nn.Module, options: Any, why: str) -> str:
    """What `plan` says of a composed step.

    Args:
        discriminator: D.
        options: what has them as attributes, which may be wrong.
        why: it is not one native call.

    Returns:
        One line.
    """
    halves = "one batch" if is_fully_fused(discriminator) else "two batches (D is not one fused MLP)"
    if halves == "one batch" and bool(options.r1_gamma) != bool(options.r2_gamma):
        halves += f", but where {'R1' if options.r1_gamma else 'R2'} is due as two"
    last = DiscriminatorOutput(discriminator, options.loss).text
    return (
        f"composed: fused ops under autograd, real and fake through D as {halves}, {options.precision}; "
        f"{last + '; ' if last else ''}not one call, because {why}"
    )


def autocast(precision: str, like: Tensor) -> torch.autocast:
    """The context of a forward pass."""
    # Uncached: a cached 16-bit copy of a weight would outlive the weight's update within the step.
    dtype = AUTOCAST_DTYPES[precision]
    return torch.autocast(like.device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False)


def conditioned(value: Tensor, condition: Tensor | None) -> Tensor:
    """Samples or noise beside their one-hot labels (Mirza and Osindero 2014)."""
    return value if condition is None else torch.cat([value, condition.to(value.dtype)], dim=1)


@contextlib.contextmanager
def together(processes: Processes | None, networks: Iterable[nn.Module]) -> Iterator[None]:
    """A `with` block around what a rank computes of a step of several processes."""
    if processes is None:
        yield
        return
    with processes.in_step(), processes.synchronised(networks):
        yield


def update(
    optimizer: Optimizer,
    loss: Tensor,
    cancelled: Iterable[Tensor],
    clip_norm: float | None,
    processes: Processes | None,
) -> None:
    """One optimizer step. `inputs` keeps backward from computing gradients of the other network's parameters."""
    optimizer.zero_grad(set_to_none=True)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    loss.backward(inputs=[p for p in held if p.requires_grad])
    for parameter in cancelled:  # whose gradient is zero, but for rounding
        if parameter.grad is not None:
            parameter.grad.mul_(0)  # NaN and infinity stay to be seen
    if processes is not None:
        processes.average(held)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(held, clip_norm)
    optimizer.step()


@torch.no_grad()
def _update_average(ema: nn.Module, generator: nn.Module, decay: float) -> None:
    averages: list[Tensor] = list(ema.parameters())
    currents: list[Tensor] = list(generator.parameters())
    if averages:
        torch._foreach_lerp_(averages, currents, 1.0 - decay)
    for average, current in zip(ema.buffers(), generator.buffers(), strict=True):
        average.copy_(current)
