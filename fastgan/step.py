"""One step of alternating training (Goodfellow et al. 2014, algorithm 1), over the user's modules and optimizers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import checks, composed, condition, discriminator_output, tuning
from fastgan.engine import CannotPlan, Plan, Undecided
from fastgan.labels import LabelCheck
from fastgan.layers import first_weight
from fastgan.planned import Planned
from fastgan.statistics import StepStats
from fastgan.step_inputs import check_batch, check_dtype, check_fit, check_labels, check_trainable, latent_size
from fastgan.step_options import StepOptions, StepParts, read

__all__ = ["StepStats", "TrainStep", "average_of"]


class TrainStep(Planned[StepOptions]):
    """A whole step of alternating GAN training in one call.

    `d_steps` times: sample z, G(z) detached, the discriminator's loss on real and fake, backward, update D alone. Then
    sample z, the generator's loss through the just-updated D, backward, update G alone. The losses are those of
    `fastgan.functional.discriminator_loss` and `generator_loss`. D's loss and its penalties R1 and R2 share one forward
    pass on real data and one on fakes; the WGAN-GP penalty has a pass of its own, at its own points.

    Where both networks are Sequentials of Linear, BatchNorm1d, Dropout and activations (`fastgan.nn.MLP` is one) and
    both optimizers Adam or AdamW, the whole step is one native call on memory set aside once, which updates the
    parameters and the optimizers' state in place. Gradients are not kept: `Parameter.grad` is None afterwards. Anything
    else runs composed, of fused ops under autograd; so does a penalty on a discriminator with BatchNorm1d. G may have a
    `fastgan.nn.SegmentedActivation` in the native call. `plan` says in one line which path runs and, when it is not the
    fastest, why.

    A Linear's bias right before a BatchNorm1d, in a tree of nn.Sequential, has no gradient, since BatchNorm subtracts
    the batch mean; every path sets it to zero. In a plain loop rounding leaves a small remainder, which Adam scales up
    to full steps, different ones on each machine.

    The first step with a size of batch measures which of several ways that give the same results up to rounding is the
    fastest on this machine, on copies, in less than two seconds, and keeps that in the cache folder; `FASTGAN_TUNE=0`
    takes the default. `plan` names the way and by how much it is faster.

    D's last layer. With the losses `hinge`, `wasserstein` and `least_squares` it may be any. With the others D's output
    is taken for a logit; but with `non_saturating` and `minimax` it may be nn.Sigmoid, the tutorials' form with
    BCELoss: the step then is the loop with BCELoss on D's own output. The Sigmoid is folded into the loss, which is
    computed from its input. BCELoss sees a probability that rounds to 0 or 1 at logits beyond about 17 (in float32;
    its gradient is 0 from there on, as is the Sigmoid's); the folded loss stays finite and keeps its gradient. The
    penalties differentiate D's own output, Sigmoid included. A Sigmoid that cannot be folded, because it or a module
    around it has hooks or is wrapped (torch.compile, DataParallel), is trained with BCELoss on D's output, as is a D
    of one's own class where autograd says that a Sigmoid made its output. A probability that D computes in another
    way cannot be told from a logit: such a D must return the logit. nn.LogSigmoid, nn.Hardsigmoid, nn.Softmax,
    nn.Softmin and nn.LogSoftmax as the last layer of an nn.Sequential are refused where a logit is needed. Any layer
    may be G's last.
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
        r2_gamma: float = 0.0,
        gp_weight: float = 0.0,
        gp_center: float = 1.0,
        pac: int = 1,
        clip_grad_norm: float | None = None,
        instance_noise: float = 0.0,
        instance_noise_steps: int = 0,
        condition_weight: float = 0.0,
        process_group: Any = None,
        sync_batch_norm: bool = True,
    ) -> None:
        """Bind the step to two modules and their optimizers.

        Args:
            generator: maps (batch, latent [+ num_classes]) to (batch, data).
            discriminator: maps (batch, data [+ num_classes]) to one logit a sample, or, where it ends in nn.Sigmoid,
                to one probability; with `pac`, (batch / pac, pac (data [+ num_classes])) to one for each pack.
            g_optimizer: updates the generator's parameters alone.
            d_optimizer: updates the discriminator's parameters alone.
            loss: `non_saturating`, `minimax`, `relativistic`, `hinge`, `wasserstein` or `least_squares`.
            real_target: the discriminator's target for real data: in [0, 1] with `non_saturating` and `minimax`, any
                number with `least_squares`; other losses have none.
            fake_target: likewise for fakes.
            d_steps: discriminator updates a step, at least 1.
            reuse_fake: the last D step's fake batch serves the G step too.
            r1_gamma: weight of the R1 penalty, on real data (Mescheder et al. 2018); 0 is off.
            r1_every: apply R1 and R2 every so many steps, scaled up by as much ("lazy": Karras et al. 2020, appendix
                B).
            num_classes: of a conditional GAN (Mirza & Osindero 2014): one-hot labels are concatenated to z and to x.
            ema: a copy of the generator that follows it as an exponential moving average, updated in place.
            ema_decay: its decay a step, in [0, 1).
            precision: `fp32` (the parameters' own dtype), or `bf16` for autocast with full-precision parameters.
            engine: whether the step may run as one native call; False composes it of the fused ops.
            r2_gamma: weight of the R2 penalty, the same on fakes; 0 is off.
            gp_weight: weight of the WGAN-GP penalty (Gulrajani et al. 2017), in each update of D; 0 is off.
            gp_center: the norm of the gradient that costs nothing: 1, or 0 for the zero-centred penalty; at least 0.
            pac: so many consecutive samples are one input of D ("packing": Lin et al. 2018); the batch must be a
                multiple of it.
            clip_grad_norm: the largest norm of all of an optimizer's gradients together, over 0; a longer gradient is
                scaled down to it, as by torch.nn.utils.clip_grad_norm_. None is off.
            instance_noise: standard deviation of Gaussian noise on whatever D is given, drawn anew for each pass
                (Sønderby et al. 2017); 0 is off. Penalties are taken at the noised points.
            instance_noise_steps: steps over which it falls linearly to 0; 0 keeps it constant.
            condition_weight: weight of the condition's cross-entropy in G's loss (CTGAN: Xu et al. 2019, section 4.3);
                0 is off. G must be an nn.Sequential that ends in `fastgan.nn.SegmentedActivation`, whose
                gumbel_softmax columns, in their order, are the num_classes classes, all of them or those of the last
                segments: a label asks for one level of one of these. `StepStats.g_loss` is without it.
            process_group: of torch.distributed, such as torch.distributed.group.WORLD after init_process_group: its
                processes take each step together, each with a batch of its own, as large as the others'. What N
                processes with a batch of B do follows one process with a batch of N B: gradients and statistics are
                the means over all. Every process makes the step at the same place of its program; parameters, buffers
                and optimizers' state become those of rank 0, and processes that were seeded alike are seeded anew by
                their ranks, so that noise and masks differ. None is this process alone.
            sync_batch_norm: of several processes, whether BatchNorm's statistics are of all their samples, which runs
                composed; False keeps those of each process's own, as torch does.

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
        self.r2_gamma, self.gp_weight, self.gp_center, self.pac = r2_gamma, gp_weight, gp_center, pac
        self.clip_grad_norm = clip_grad_norm
        self.instance_noise, self.instance_noise_steps = instance_noise, instance_noise_steps
        self.condition_weight = condition_weight
        self._options()
        discriminator_output.warn_of_hidden_sigmoid(discriminator, loss)
        self.real_target, self.fake_target, self.ema_decay = float(real_target), float(fake_target), float(ema_decay)
        self.r1_gamma, self.r2_gamma = float(r1_gamma), float(r2_gamma)
        self.gp_weight, self.gp_center = float(gp_weight), float(gp_center)
        self.clip_grad_norm = None if clip_grad_norm is None else float(clip_grad_norm)
        self.instance_noise, self.condition_weight = float(instance_noise), float(condition_weight)
        self._labels = LabelCheck()
        self._begin_without_plan(StepOptions())
        self._choices: tuning.Choices | None = tuning.Choices()
        self._join(process_group, sync_batch_norm)
        self._current_plan()

    def __getstate__(self) -> dict[str, object]:
        self._refuse_copies()
        # A copy or a pickle plans anew, and hears nothing of the labels of others.
        return {**vars(self), "_plan": None, "_plan_again": 0, "_labels": LabelCheck()}

    def __setstate__(self, state: dict[str, object]) -> None:
        # One that was pickled before steps chose their ways, heard of labels, or had all options, has none of it.
        later = {"_labels": LabelCheck(), "_choices": tuning.Choices(), "_planned_options": StepOptions()}
        self.__dict__.update({**asdict(StepOptions()), **later, **state})

    def _options(self) -> StepOptions:
        """The options in force. They are public attributes, which may have been set since: each path refuses the same
        ones."""
        options = read(StepOptions, self)
        discriminator_output.check(self.discriminator, options.loss)
        condition.check(self.generator, options)
        return options

    @property
    def plan(self) -> str:
        """One line: which path runs and, when it is not the fastest, why."""
        self._plan_again = 0
        plan = self._current_plan()
        if plan is not None:
            ways = "" if self._choices is None else self._choices.text(plan)
            return (f"{plan.text}; {ways}" if ways else plan.text) + self._of_processes()
        return composed.text(self.discriminator, self, self._no_plan) + self._of_processes()

    def _parts_in_force(self) -> StepParts:
        return read(StepParts, self)

    def _is_planned(self, plan: Plan) -> None:
        # Of several processes none waits for another that measures: all take the default.
        plan.asks = self._processes is None and self._choices is not None and self._choices.are_wanted()

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
            ProcessesError: another process refused its inputs, and nothing was updated; or it has ended.
        """
        if self._processes is not None:
            return self._step_of_many(real, labels, noise)
        self._labels.hear()
        statistics = self._planned_step(real, labels, noise)
        if statistics is None:
            # The plan is out of date, or there is something about the inputs.
            real, labels, noise = self._check_inputs(real, labels, noise)
            if self._current_plan() is not None:
                statistics = self._planned_step(real, labels, noise)
        if statistics is None:
            way = "" if self._plan is None else self._plan.way(real.shape[1]).composed
            with tuning.layers_of_ops(way):
                statistics = self._composed_step(real, labels, noise)
        self.steps_done += 1
        return statistics

    def _step_of_many(self, real: Tensor, labels: Tensor | None, noise: Tensor | None) -> StepStats:
        """A step that several processes take together, if none of them has anything against it."""
        problem, can_plan, batch = None, False, 0
        try:
            self._labels.hear()
            real, labels, noise = self._check_inputs(real, labels, noise)
            batch = real.shape[1]
            plan = self._current_plan()
            plan, are_due = (None, False) if plan is None else self._plan_for_now()
            inputs = real, labels, noise, are_due, self._planned_options.noise_scale(self.steps_done)
            can_plan = plan is not None and self._accepts(plan, *inputs)
        except Exception as error:
            problem = error
        if self._agree(problem, {"real's batch": batch, "noise's being given": int(noise is not None)}, can_plan):
            assert plan is not None
            statistics = plan.run(*inputs)
            if statistics is None:
                raise RuntimeError("a step's parts were changed by another thread while its processes agreed on it")
        else:
            statistics = self._composed_step(real, labels, noise)
        self.steps_done += 1
        return statistics

    def _planned_step(self, real: Tensor, labels: Tensor | None, noise: Tensor | None) -> StepStats | None:
        """A step of the plan; None, and nothing is done, without one, or where it or the inputs do not fit."""
        plan, are_due = self._plan_for_now()
        if plan is None:
            return None
        inputs = real, labels, noise, are_due, self._planned_options.noise_scale(self.steps_done)
        try:
            try:
                return plan.run(*inputs)
            except Undecided:
                return self._decided_step(plan, *inputs)
        except CannotPlan as reason:  # what it learns when the optimizers' state is made
            self._cannot_run(reason)
            return None

    def _decided_step(
        self,
        plan: Plan,
        real: Tensor,
        labels: Tensor | None,
        noise: Tensor | None,
        are_due: bool,
        noise_scale: float,
    ) -> StepStats | None:
        """A step of a plan, after its way was decided on for this size of batch."""
        parts, options = read(StepParts, self), self._options()
        is_told = self._choices is None or self._choices.decide(plan, _copy_of, (real, labels, noise), parts, options)
        asks, plan.asks = plan.asks, plan.asks and is_told
        try:
            return plan.run(real, labels, noise, are_due, noise_scale)
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
            `steps_done`, of which the phase of the lazy penalties and the decay of the instance noise follow; and
            `choices`, which way was measured to be the fastest (see `plan`), by what each was measured for. All of it
            is of what JSON has.
        """
        return {"steps_done": self.steps_done, "choices": {} if self._choices is None else self._choices.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave. Choices that it holds are not measured again, on whatever machine.

        Args:
            state: of a step with the same options.

        Raises:
            TypeError, ValueError: it is no such state; nothing was changed.
        """
        steps_done = self._steps_done_of(state, ("steps_done", "choices"))
        loaded = tuning.Choices()
        loaded.load(state["choices"])
        self.steps_done, self._choices = steps_done, loaded
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
        plan, are_due = self._plan_for_now() if self._current_plan() is not None else (None, False)
        noise_scale = self._planned_options.noise_scale(self.steps_done)
        try:
            seconds = None if plan is None else plan.profile(*inputs, are_due, noise_scale)
        except CannotPlan as reason:
            raise RuntimeError(f"only a step that is one native call has a profile, but {reason}") from None
        if seconds is None:
            raise RuntimeError(f"only a step that is one native call has a profile, but the plan is {self.plan}")
        self.steps_done += 1
        return seconds

    def _composed_step(self, real: Tensor, labels: Tensor | None, noise: Tensor | None) -> StepStats:
        """A step of fused ops under autograd, of inputs that were checked."""
        parts, options = read(StepParts, self), self._options()
        conditions = None if labels is None else self._labels.one_hot(labels, options.num_classes, real.dtype)
        if noise is None:
            shape = self._noise_rows(), real.shape[1], latent_size(self.generator, self.num_classes)
            noise = torch.randn(shape, device=real.device, dtype=real.dtype)
        statistics = composed.train_step(parts, options, real, conditions, noise, self.steps_done, self._processes)
        return statistics if labels is None else StepStats(*map(self._labels.marked, statistics))

    def _noise_rows(self) -> int:
        return self.d_steps + (0 if self.reuse_fake else 1)

    def _check_inputs(
        self, real: Tensor, labels: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Real data and labels with a leading dimension of one entry a D step; noise as given."""
        options = self._options()
        check_trainable("g_optimizer", self.g_optimizer)
        check_trainable("d_optimizer", self.d_optimizer)
        checks.floating("real", real)
        if real.dim() == 2:
            real = real.expand(self.d_steps, *real.shape)
        if real.dim() != 3 or real.shape[0] != self.d_steps:
            raise ValueError(
                f"real must have shape (batch, data) or ({self.d_steps}, batch, data), one batch a D step, not "
                f"{tuple(real.shape)}"
            )
        batch = real.shape[1]
        check_batch("real", batch, options)
        # Before G has run: its BatchNorm would have taken note of the batch.
        check_fit("real", real, self.discriminator, "discriminator", options, options.pac)
        labels = check_labels("labels", labels, real, options)
        if noise is None:  # it is drawn after every check: a refused call leaves the random state as it was
            check_dtype("real", real, "generator", first_weight(self.generator), options)
            return real, labels, noise
        checks.floating("noise", noise)
        checks.same_device("noise", noise, "real", real)
        if noise.dim() != 3 or noise.shape[:2] != (self._noise_rows(), batch):
            raise ValueError(f"noise must have shape ({self._noise_rows()}, {batch}, latent), not {tuple(noise.shape)}")
        check_fit("noise", noise, self.generator, "generator", options)
        return real, labels, noise


def average_of(generator: nn.Module) -> nn.Module:
    """A frozen copy of a generator, to be handed to TrainStep as `ema`."""
    return copy.deepcopy(generator).requires_grad_(False)


def _copy_of(parts: StepParts, options: StepOptions) -> TrainStep:
    """A step over copies of another's parts, which measures nothing."""
    networks_and_optimizers = parts.generator, parts.discriminator, parts.g_optimizer, parts.d_optimizer
    step = TrainStep(*networks_and_optimizers, ema=parts.ema, **asdict(options))
    step._take_the_default()
    return step
