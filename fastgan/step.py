"""One step of alternating training (Goodfellow et al. 2014, algorithm 1), over the user's modules and optimizers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import checks, discriminator_output, functional, layers, tuning
from fastgan.engine import CannotPlan, Plan, Undecided
from fastgan.labels import LabelCheck
from fastgan.nn import is_fully_fused
from fastgan.statistics import StepStats
from fastgan.step_options import AUTOCAST_DTYPES, StepOptions, StepParts, read

__all__ = ["StepStats", "TrainStep", "average_of"]

# Steps between two attempts at a plan where there was none: a hook may have been removed, a module replaced.
_PLAN_AGAIN = 100


class TrainStep:
    """A whole step of alternating GAN training in one call.

    `d_steps` times: sample z, G(z) detached, the discriminator's loss on real and fake, backward, update D alone. Then
    sample z, the generator's loss through the just-updated D, backward, update G alone. The losses are those of
    `fastgan.functional.discriminator_loss` and `generator_loss`.

    Where both networks are Sequentials of Linear, BatchNorm1d, Dropout and activations (`fastgan.nn.MLP` is one) and
    both optimizers Adam or AdamW, the whole step is one native call on memory set aside once, which updates the
    parameters and the optimizers' state in place. Gradients are not kept: `Parameter.grad` is None afterwards. Anything
    else runs composed, of fused ops under autograd; so does each step with the R1 penalty. `plan` says in one line
    which path runs and, when it is not the fastest, why.

    A Linear's bias right before a BatchNorm1d, in a tree of nn.Sequential, has no gradient, since BatchNorm subtracts
    the batch mean; every path sets it to zero. In a plain loop rounding leaves a small remainder, which Adam scales up
    to full steps, different ones on each machine.

    The first step with a size of batch measures which of several ways that give the same results up to rounding is the
    fastest on this machine, on copies, in less than two seconds, and keeps that in the cache folder; `FASTGAN_TUNE=0`
    takes the default. `plan` names the way and by how much it is faster.

    D's last layer. Whatever it is, its output is taken for a logit, but for nn.Sigmoid, the tutorials' form with
    BCELoss: the step then is the loop with BCELoss on D's own output. The Sigmoid is folded into the loss, which is
    computed from its input. BCELoss sees a probability that rounds to 0 or 1 at logits beyond about 17 (in float32;
    its gradient is 0 from there on, as is the Sigmoid's); the folded loss stays finite and keeps its gradient. The R1
    penalty differentiates D's own output, Sigmoid included. A Sigmoid that cannot be folded, because it or a module
    around it has hooks or is wrapped (torch.compile, DataParallel), is trained with BCELoss on D's output, as is a D
    of one's own class where autograd says that a Sigmoid made its output. A probability that D computes in another
    way cannot be told from a logit: such a D must return the logit. nn.LogSigmoid, nn.Hardsigmoid,
    nn.Softmax, nn.Softmin and nn.LogSoftmax as the last layer of an nn.Sequential are refused. Any layer may be G's
    last.
    """

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
        engine: bool = True,
    ) -> None:
        """Bind the step to two modules and their optimizers.

        Args:
            generator: maps (batch, latent [+ num_classes]) to (batch, data).
            discriminator: maps (batch, data [+ num_classes]) to one logit a sample, or, where it ends in nn.Sigmoid,
                to one probability.
            g_optimizer: updates the generator's parameters alone.
            d_optimizer: updates the discriminator's parameters alone.
            loss: `non_saturating` or `minimax`.
            real_target: the discriminator's target for real data, in [0, 1].
            fake_target: the discriminator's target for fakes, in [0, 1].
            d_steps: discriminator updates a step, at least 1.
            reuse_fake: the last D step's fake batch serves the G step too.
            r1_gamma: weight of the R1 penalty (Mescheder et al. 2018); 0 is off.
            r1_every: apply it every so many steps, scaled up by as much ("lazy": Karras et al. 2020, appendix B).
            num_classes: of a conditional GAN (Mirza & Osindero 2014): one-hot labels are concatenated to z and to x.
            ema: a copy of the generator that follows it as an exponential moving average, updated in place.
            ema_decay: its decay a step, in [0, 1).
            precision: `fp32` (the parameters' own dtype), or `bf16` for autocast with full-precision parameters.
            engine: whether the step may run as one native call; False composes it of the fused ops.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or out of range; the message names it.
        """
        StepParts(generator, discriminator, g_optimizer, d_optimizer, ema).check()
        self.generator, self.discriminator = generator, discriminator
        self.g_optimizer, self.d_optimizer = g_optimizer, d_optimizer
        self.loss, self.real_target, self.fake_target = loss, real_target, fake_target
        self.d_steps, self.reuse_fake = d_steps, bool(reuse_fake)
        self.r1_gamma, self.r1_every = r1_gamma, r1_every
        self.num_classes = num_classes
        self.ema, self.ema_decay = ema, ema_decay
        self.precision, self.engine = precision, bool(engine)
        self._options()
        discriminator_output.warn_of_hidden_sigmoid(discriminator)
        self.real_target, self.fake_target = float(real_target), float(fake_target)
        self.r1_gamma, self.ema_decay = float(r1_gamma), float(ema_decay)
        self.steps_done = 0
        self._labels = LabelCheck()
        self._has_updated = False  # whether the composed step under way has called an optimizer
        self._plan: Plan | None = None
        self._no_plan, self._plan_again = "", 0
        self._choices: tuning.Choices | None = tuning.Choices()
        self._current_plan()

    def __del__(self) -> None:
        # The plan holds the dictionary of this step, which holds the plan; and no collector sees into the plan.
        self.__dict__.pop("_plan", None)

    def __getstate__(self) -> dict[str, object]:
        # A copy or a pickle plans anew, and hears nothing of the labels of others.
        return {**vars(self), "_plan": None, "_plan_again": 0, "_labels": LabelCheck()}

    def __setstate__(self, state: dict[str, object]) -> None:
        # One that was pickled before steps chose their ways, or heard of labels, has neither.
        self.__dict__.update({"_labels": LabelCheck(), "_choices": tuning.Choices(), **state})

    def _options(self) -> StepOptions:
        """The options in force. They are public attributes, which may have been set since: each path refuses the same
        ones."""
        options = read(StepOptions, self)
        discriminator_output.check(self.discriminator)
        return options

    @property
    def plan(self) -> str:
        """One line: which path runs and, when it is not the fastest, why."""
        self._plan_again = 0
        plan = self._current_plan()
        if plan is not None:
            ways = "" if self._choices is None else self._choices.text(plan)
            return f"{plan.text}; {ways}" if ways else plan.text
        halves = "one batch" if is_fully_fused(self.discriminator) else "two batches (D is not one fused MLP)"
        last = discriminator_output.DiscriminatorOutput(self.discriminator).text
        return (
            f"composed: fused ops under autograd, real and fake through D as {halves}, {self.precision}; "
            f"{last + '; ' if last else ''}not one call, because {self._no_plan}"
        )

    def _current_plan(self) -> Plan | None:
        """The plan for the networks and optimizers as they are, or None."""
        if self._plan is not None and self._plan.is_current():
            return self._plan
        if self._plan is None and self.steps_done < self._plan_again:
            return None
        self._plan = None
        self._plan_again = self.steps_done + _PLAN_AGAIN
        if not self.engine:
            self._no_plan = "engine is False"
            return None
        try:
            self._plan = Plan(read(StepParts, self), self._options(), vars(self))
            self._plan.asks = self._choices is not None and self._choices.are_wanted()
        except (CannotPlan, ValueError, TypeError) as reason:
            self._no_plan = str(reason)
        return self._plan

    def step(self, real: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> StepStats:
        """Run one step: `d_steps` updates of D, then one of G.

        Args:
            real: (batch, data), used by every D step, or (d_steps, batch, data), one batch a D step.
            labels: (batch,) or (d_steps, batch), integers in [0, num_classes): of the real samples, and asked of the
                fakes. Needed exactly when num_classes > 0. Labels on a GPU are looked at there: a sample with one that
                is not in this range is of no class, the statistics of its step are NaN, and a later step raises.
            noise: (d_steps + 1, batch, latent), one batch for each D step and one for G; with reuse_fake
                (d_steps, batch, latent). None draws it from torch's generator of real's device.

        Returns:
            The StepStats of the last D step and the G step.

        Raises:
            ValueError, TypeError, RuntimeError: a shape, dtype, label or device does not fit, or labels of an earlier
                step on a GPU did not; nothing was updated.
        """
        self._labels.hear()
        penalize = self.r1_gamma > 0 and self.steps_done % self.r1_every == 0
        statistics = None if penalize else self._planned_step(real, labels, noise)
        if statistics is None:
            # The plan is out of date, or there is something about the inputs.
            real, labels, noise = self._check_inputs(real, labels, noise)
            if not penalize and self._current_plan() is not None:
                statistics = self._planned_step(real, labels, noise)
        if statistics is None:
            way = "" if penalize or self._plan is None else self._plan.way(real.shape[1]).composed
            with tuning.layers_of_ops(way):
                statistics = self._composed_or_undone(real, labels, noise, penalize)
        self.steps_done += 1
        return statistics

    def _composed_or_undone(
        self, real: Tensor, labels: Tensor | None, noise: Tensor | None, penalize: bool
    ) -> StepStats:
        """The composed step. Where a network refuses its input, the statistics of layers before are as they were."""
        networks = (self.generator, self.discriminator)
        buffers = [b for network in networks for b in network.buffers() if layers.is_plain_tensor(b)]
        before = [buffer.clone() for buffer in buffers]
        self._has_updated = False
        try:
            return self._composed_step(real, labels, noise, penalize)
        except BaseException:
            if not self._has_updated:
                with contextlib.suppress(RuntimeError), torch.no_grad():
                    for buffer, old in zip(buffers, before, strict=True):
                        buffer.copy_(old)
            raise

    def _planned_step(self, real: Tensor, labels: Tensor | None, noise: Tensor | None) -> StepStats | None:
        """A step of the plan; None, and nothing is done, without one, or where it or the inputs do not fit."""
        if self._plan is None:
            return None
        try:
            try:
                return self._plan.run(real, labels, noise)
            except Undecided:
                return self._decided_step(self._plan, real, labels, noise)
        except CannotPlan as reason:  # what it learns when the optimizers' state is made
            self._plan, self._no_plan = None, str(reason)
            self._plan_again = self.steps_done + _PLAN_AGAIN
            return None

    def _decided_step(self, plan: Plan, real: Tensor, labels: Tensor | None, noise: Tensor | None) -> StepStats | None:
        """A step of a plan, after its way was decided on for this size of batch."""
        parts, options = read(StepParts, self), self._options()
        is_told = self._choices is None or self._choices.decide(plan, _copy_of, (real, labels, noise), parts, options)
        asks, plan.asks = plan.asks, plan.asks and is_told
        try:
            return plan.run(real, labels, noise)
        finally:
            plan.asks = asks

    def _take_the_default(self) -> None:
        """Neither measure a way nor take one from the cache, from now on."""
        self._choices = None
        if self._plan is not None:
            self._plan.asks = False

    def state_dict(self) -> dict[str, Any]:
        """What the step itself keeps, beside networks and optimizers: a run that loads it goes on exactly.

        Returns:
            `steps_done`, the phase of the lazy R1 penalty; and `choices`, which way was measured to be the fastest (see
            `plan`), by what each was measured for. All of it is of what JSON has.
        """
        return {"steps_done": self.steps_done, "choices": {} if self._choices is None else self._choices.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave. Choices that it holds are not measured again, on whatever machine.

        Args:
            state: of a step with the same options.

        Raises:
            TypeError, ValueError: it is no such state; nothing was changed.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, not {type(state).__name__}")
        if set(state) != {"steps_done", "choices"}:
            names = ", ".join(map(str, state)) or "nothing"
            raise ValueError(f"state must have steps_done and choices, but it has {names}")
        checks.integer("steps_done of the state", state["steps_done"], 0)
        loaded = tuning.Choices()
        loaded.load(state["choices"])
        self.steps_done, self._choices = int(state["steps_done"]), loaded
        self._plan, self._plan_again = None, 0

    def profile(self, real: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> dict[str, float]:
        """Run one step and say where its time went.

        Args:
            real: as `step` takes it.
            labels: likewise.
            noise: likewise.

        Returns:
            The seconds of each phase, by name.

        Raises:
            RuntimeError: the step is not one native call; see `plan`.
            ValueError, TypeError: as `step`.
        """
        inputs = self._check_inputs(real, labels, noise)
        plan = self._current_plan()
        try:
            seconds = None if plan is None else plan.profile(*inputs)
        except CannotPlan as reason:
            raise RuntimeError(f"only a step that is one native call has a profile, but {reason}") from None
        if seconds is None:
            raise RuntimeError(f"only a step that is one native call has a profile, but the plan is {self.plan}")
        self.steps_done += 1
        return seconds

    def _composed_step(self, real: Tensor, labels: Tensor | None, noise: Tensor | None, penalize: bool) -> StepStats:
        last = discriminator_output.DiscriminatorOutput(self.discriminator)
        conditions = None if labels is None else self._labels.one_hot(labels, self.num_classes, real.dtype)
        if noise is None:
            rows = self.d_steps + (0 if self.reuse_fake else 1)
            noise = torch.randn(rows, real.shape[1], self._latent_size(), device=real.device, dtype=real.dtype)
        for i in range(self.d_steps):
            condition = conditions[i] if conditions is not None else None
            # The reused fake keeps its graph for G's backward; any other needs none.
            with torch.set_grad_enabled(bool(self.reuse_fake and i == self.d_steps - 1)), self._autocast(real):
                fake = self.generator(_conditioned(noise[i], condition))
            d_loss, real_logits, fake_logits = self._update_discriminator(
                last, real[i], fake.detach(), condition, penalize
            )
        if not self.reuse_fake:
            with self._autocast(real):
                fake = self.generator(_conditioned(noise[-1], condition))
        g_loss = self._update_generator(last, fake, condition)
        if self.ema is not None:
            self._update_ema(self.ema)
        with torch.no_grad():
            statistics = d_loss.detach(), g_loss.detach(), last.score(real_logits), last.score(fake_logits)
            return StepStats(*(statistics if labels is None else map(self._labels.marked, statistics)))

    def _autocast(self, like: Tensor) -> torch.autocast:
        # Uncached: a cached 16-bit copy of a weight would outlive the weight's update within the step.
        dtype = AUTOCAST_DTYPES[self.precision]
        return torch.autocast(like.device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False)

    def _update_discriminator(
        self,
        last: discriminator_output.DiscriminatorOutput,
        real: Tensor,
        fake: Tensor,
        condition: Tensor | None,
        penalize: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with self._autocast(real):
            real_input, fake_input = _conditioned(real, condition), _conditioned(fake, condition)
            if is_fully_fused(self.discriminator):
                # Nothing in such a D looks across the batch, so both halves go through it at once.
                logits = last.run(torch.cat([real_input, fake_input.to(real_input.dtype)]))
                real_logits, fake_logits = logits[: len(real)], logits[len(real) :]
            else:
                real_logits, fake_logits = last.run(real_input), last.run(fake_input)
            d_loss = last.discriminator_loss(real_logits, fake_logits, self.real_target, self.fake_target)
            total = d_loss
            if penalize:
                penalty = functional.r1_penalty(lambda x: self.discriminator(_conditioned(x, condition)), real)
                total = d_loss + (0.5 * self.r1_gamma * self.r1_every) * penalty
        self._has_updated = True
        _update(self.d_optimizer, total, layers.cancelled_biases(self.discriminator))
        return d_loss, real_logits, fake_logits

    def _update_generator(
        self, last: discriminator_output.DiscriminatorOutput, fake: Tensor, condition: Tensor | None
    ) -> Tensor:
        with self._autocast(fake):
            g_loss = last.generator_loss(last.run(_conditioned(fake, condition)), self.loss)
        _update(self.g_optimizer, g_loss, layers.cancelled_biases(self.generator))
        return g_loss

    @torch.no_grad()
    def _update_ema(self, ema: nn.Module) -> None:
        averages: list[Tensor] = list(ema.parameters())
        currents: list[Tensor] = list(self.generator.parameters())
        if averages:
            torch._foreach_lerp_(averages, currents, 1.0 - self.ema_decay)
        for average, current in zip(ema.buffers(), self.generator.buffers(), strict=True):
            average.copy_(current)

    def _check_inputs(
        self, real: Tensor, labels: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Real data and labels with a leading dimension of one entry a D step; noise as given."""
        self._options()
        for name, optimizer in (("g_optimizer", self.g_optimizer), ("d_optimizer", self.d_optimizer)):
            if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
                raise ValueError(f"{name} must hold a parameter that requires grad, but all of its are frozen")
        checks.floating("real", real)
        if real.dim() == 2:
            real = real.expand(self.d_steps, *real.shape)
        if real.dim() != 3 or real.shape[0] != self.d_steps:
            raise ValueError(
                f"real must have shape (batch, data) or ({self.d_steps}, batch, data), one batch a D step, not "
                f"{tuple(real.shape)}"
            )
        batch = real.shape[1]
        if batch == 0:
            raise ValueError("real must hold at least one sample, but its batch is empty")
        # Before G has run: its BatchNorm would have taken note of the batch.
        self._check_fit("real", real, self.discriminator, "discriminator", real.shape[2])
        labels = self._check_labels(labels, real)
        if noise is not None:  # it is drawn after every check: a refused call leaves the random state as it was
            rows = self.d_steps + (0 if self.reuse_fake else 1)
            checks.floating("noise", noise)
            checks.same_device("noise", noise, "real", real)
            if noise.dim() != 3 or noise.shape[:2] != (rows, batch):
                raise ValueError(f"noise must have shape ({rows}, {batch}, latent), not {tuple(noise.shape)}")
        self._check_fit(
            *(("real", real) if noise is None else ("noise", noise)),
            self.generator,
            "generator",
            None if noise is None else noise.shape[2],
        )
        return real, labels, noise

    def _check_fit(self, name: str, value: Tensor, module: nn.Module, network: str, width: int | None) -> None:
        """RuntimeError unless a value has the dtype and the width of a network's first Linear layer, where that can be
        known."""
        weight = layers.first_weight(module)
        if weight is None:
            return
        if width is not None and width != weight.shape[1] - self.num_classes:
            labels = f" with its {self.num_classes} columns of labels" if self.num_classes else ""
            raise RuntimeError(
                f"the {network}'s first weight of shape {tuple(weight.shape)} must have {width + self.num_classes} "
                f"columns, as wide as {name}{labels}"
            )
        if AUTOCAST_DTYPES[self.precision] is None:
            checks.same_dtype(name, value, f"the {network}'s parameters", weight)

    def _check_labels(self, labels: Tensor | None, real: Tensor) -> Tensor | None:
        if self.num_classes == 0:
            if labels is not None:
                raise ValueError("labels were given, but num_classes is 0: the step is not conditional")
            return None
        if labels is None:
            raise ValueError(f"labels are needed: the step is conditional on num_classes={self.num_classes}")
        checks.tensor("labels", labels)
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            raise TypeError(f"labels must be integers, not {labels.dtype}")
        checks.same_device("labels", labels, "real", real)
        if labels.shape == real.shape[1:2]:
            labels = labels.expand(real.shape[:2])
        if labels.shape != real.shape[:2]:
            raise ValueError(
                f"labels must have shape ({real.shape[1]},) or {tuple(real.shape[:2])}, not {tuple(labels.shape)}"
            )
        # On a device the comparison below would wait for it; there LabelCheck or the engine's kernels look.
        labels = labels.long()
        if labels.device.type == "cpu" and (labels.min() < 0 or labels.max() >= self.num_classes):
            raise ValueError(
                f"labels must be in [0, {self.num_classes}), but they span [{labels.min()}, {labels.max()}]"
            )
        return labels

    def _latent_size(self) -> int:
        for module in self.generator.modules():
            if isinstance(module, nn.Linear):
                # A parametrized weight is not looked at: that would compute it, and move spectral_norm's iteration on.
                weight = module._parameters.get("weight", module.__dict__.get("weight"))
                return (module.in_features if weight is None else weight.shape[1]) - self.num_classes
        raise ValueError("the latent size cannot be read off the generator (it has no nn.Linear): pass noise")


def average_of(generator: nn.Module) -> nn.Module:
    """A frozen copy of a generator, to be handed to TrainStep as `ema`."""
    return copy.deepcopy(generator).requires_grad_(False)


def _copy_of(parts: StepParts, options: StepOptions) -> TrainStep:
    """A step over copies of another's parts, which measures nothing."""
    networks_and_optimizers = parts.generator, parts.discriminator, parts.g_optimizer, parts.d_optimizer
    step = TrainStep(*networks_and_optimizers, ema=parts.ema, **asdict(options))
    step._take_the_default()
    return step


def _conditioned(value: Tensor, condition: Tensor | None) -> Tensor:
    return value if condition is None else torch.cat([value, condition.to(value.dtype)], dim=1)


def _trainable(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _update(optimizer: Optimizer, loss: Tensor, without_gradient: list[Tensor]) -> None:
    """One optimizer step. `inputs` keeps backward from computing gradients of the other network's parameters."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=_trainable(optimizer))
    for parameter in without_gradient:  # whose gradient is zero, but for rounding
        if parameter.grad is not None:
            parameter.grad.mul_(0)  # NaN and infinity stay to be seen
    optimizer.step()
