"""One step of a discriminator alone, for fakes that come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import checks, composed, discriminator_output
from fastgan.engine import CannotPlan
from fastgan.labels import LabelCheck
from fastgan.layers import first_weight
from fastgan.planned import Planned
from fastgan.statistics import DiscriminatorStats
from fastgan.step_inputs import check_batch, check_dtype, check_fit, check_labels, check_trainable
from fastgan.step_options import AUTOCAST_DTYPES, DiscriminatorOptions, DiscriminatorParts, read

__all__ = ["DiscriminatorStats", "DiscriminatorStep"]


class DiscriminatorStep(Planned[DiscriminatorOptions]):
    """One update of a discriminator, on real data and fakes, in one call.

    It is the discriminator's half of a `fastgan.TrainStep`: the same losses, penalties, packing and clipping, without a
    generator. The fakes come from anywhere: a policy in adversarial imitation (Ho and Ermon 2016, arXiv:1606.03476;
    Peng et al. 2021, arXiv:2104.02180), a convolutional generator, a file. They are constants: no gradient goes into
    them. A discriminator of one Linear layer is logistic regression.

    Where D is a Sequential of Linear, BatchNorm1d, Dropout and activations (`fastgan.nn.MLP` is one) and the optimizer
    Adam or AdamW, the whole update, penalties included, is one native call; anything else runs composed, of fused ops
    under autograd. What D may end in is said at `fastgan.TrainStep`. `plan` says in one line which path runs and why.
    """

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
        engine: bool = True,
        process_group: Any = None,
        sync_batch_norm: bool = True,
    ) -> None:
        """Bind the step to a discriminator and its optimizer.

        Args:
            discriminator: maps (batch, data [+ num_classes]) to one logit a sample, or, where it ends in nn.Sigmoid,
                to one probability; with `pac`, (batch / pac, pac (data [+ num_classes])) to one for each pack.
            optimizer: updates the discriminator's parameters.
            loss: `non_saturating`, `minimax` (for D the same), `relativistic`, `hinge`, `wasserstein` or
                `least_squares`.
            real_target: the target for real data: in [0, 1] with `non_saturating` and `minimax`, any number with
                `least_squares`; other losses have none.
            fake_target: likewise for fakes.
            r1_gamma: weight of the R1 penalty, on real data (Mescheder et al. 2018); 0 is off.
            r2_gamma: weight of the R2 penalty, the same on fakes; 0 is off.
            gp_weight: weight of the WGAN-GP penalty (Gulrajani et al. 2017), in each step; 0 is off.
            gp_center: the norm of the gradient that costs nothing: 1, or 0 for the zero-centred penalty; at least 0.
            r1_every: apply R1 and R2 every so many steps, scaled up by as much ("lazy": Karras et al. 2020, appendix
                B).
            num_classes: of a conditional discriminator (Mirza & Osindero 2014): one-hot labels are concatenated to the
                samples.
            pac: so many consecutive samples are one input of D ("packing": Lin et al. 2018); each batch must be a
                multiple of it.
            clip_grad_norm: the largest norm of all gradients together, over 0; a longer gradient is scaled down to it,
                as by torch.nn.utils.clip_grad_norm_. None is off.
            precision: `fp32` (the parameters' own dtype), or `bf16` for autocast with full-precision parameters.
            engine: whether the step may run as one native call; False composes it of the fused ops.
            process_group: of torch.distributed, whose processes take each step together; see `fastgan.TrainStep`.
            sync_batch_norm: of several processes, whether BatchNorm's statistics are of all their samples.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or out of range; the message names it.
        """
        DiscriminatorParts(discriminator, optimizer).check()
        self.discriminator, self.optimizer = discriminator, optimizer
        self.loss, self.real_target, self.fake_target = loss, real_target, fake_target
        self.r1_gamma, self.r2_gamma, self.r1_every = r1_gamma, r2_gamma, r1_every
        self.gp_weight, self.gp_center = gp_weight, gp_center
        self.num_classes, self.pac, self.clip_grad_norm = num_classes, pac, clip_grad_norm
        self.precision, self.engine = precision, bool(engine)
        self._options()
        discriminator_output.warn_of_hidden_sigmoid(discriminator, loss)
        self.real_target, self.fake_target = float(real_target), float(fake_target)
        self.r1_gamma, self.r2_gamma = float(r1_gamma), float(r2_gamma)
        self.gp_weight, self.gp_center = float(gp_weight), float(gp_center)
        self.clip_grad_norm = None if clip_grad_norm is None else float(clip_grad_norm)
        self._labels = LabelCheck()
        self._begin_without_plan(DiscriminatorOptions())
        self._join(process_group, sync_batch_norm)
        self._current_plan()

    def __getstate__(self) -> dict[str, object]:
        self._refuse_copies()
        # A copy or a pickle plans anew, and hears nothing of the labels of others.
        return {**vars(self), "_plan": None, "_plan_again": 0, "_labels": LabelCheck()}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update({**asdict(DiscriminatorOptions()), **state})

    def _options(self) -> DiscriminatorOptions:
        """The options in force: public attributes, which may have been set since."""
        options = read(DiscriminatorOptions, self)
        discriminator_output.check(self.discriminator, options.loss)
        return options

    @property
    def plan(self) -> str:
        """One line: which path runs and, when it is not the fastest, why."""
        self._plan_again = 0
        plan = self._current_plan()
        text = composed.text(self.discriminator, self, self._no_plan) if plan is None else plan.text
        return text + self._of_processes()

    def _parts_in_force(self) -> DiscriminatorParts:
        return read(DiscriminatorParts, self)

    def step(
        self, real: Tensor, fake: Tensor, labels: Tensor | None = None, fake_labels: Tensor | None = None
    ) -> DiscriminatorStats:
        """Run one step: the loss and the penalties that are due, backward, one update of D.

        Args:
            real: (batch, data).
            fake: (fake batch, data), of real's dtype and device; with the loss `relativistic` and with `gp_weight` of
                the same batch. It may require a gradient, and is given none.
            labels: (batch,), integers in [0, num_classes), of the real samples. Needed exactly when num_classes > 0.
                Labels on a GPU are looked at there, as `fastgan.TrainStep` does.
            fake_labels: (fake batch,), of the fakes; None where `labels` serve both.

        Returns:
            The DiscriminatorStats.

        Raises:
            ValueError, TypeError, RuntimeError: a shape, dtype, label or device does not fit, or labels of an earlier
                step on a GPU did not; nothing was updated.
            ProcessesError: another process refused its inputs, and nothing was updated; or it has ended.
        """
        if self._processes is not None:
            return self._step_of_many(real, fake, labels, fake_labels)
        self._labels.hear()
        fake = fake.detach() if isinstance(fake, Tensor) else fake
        statistics = self._planned_step(real, fake, labels, fake_labels)
        if statistics is None:
            # The plan is out of date, or there is something about the inputs.
            real, fake, labels, fake_labels = self._check_inputs(real, fake, labels, fake_labels)
            if self._current_plan() is not None:
                statistics = self._planned_step(real, fake, labels, fake_labels)
        if statistics is None:
            statistics = self._composed_step(real, fake, labels, fake_labels)
        self.steps_done += 1
        return statistics

    def _step_of_many(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, fake_labels: Tensor | None
    ) -> DiscriminatorStats:
        """A step that several processes take together, if none of them has anything against it."""
        problem, can_plan, batches = None, False, (0, 0)
        try:
            self._labels.hear()
            fake = fake.detach() if isinstance(fake, Tensor) else fake
            real, fake, labels, fake_labels = self._check_inputs(real, fake, labels, fake_labels)
            batches = len(real), len(fake)
            plan = self._current_plan()
            plan, are_due = (None, False) if plan is None else self._plan_for_now()
            can_plan = plan is not None and self._accepts(plan, real, fake, labels, fake_labels, are_due)
        except Exception as error:
            problem = error
        if self._agree(problem, {"real's batch": batches[0], "fake's batch": batches[1]}, can_plan):
            assert plan is not None
            statistics = plan.run_discriminator(real, fake, labels, fake_labels, are_due)
            if statistics is None:
                raise RuntimeError("a step's parts were changed by another thread while its processes agreed on it")
        else:
            statistics = self._composed_step(real, fake, labels, fake_labels)
        self.steps_done += 1
        return statistics

    def _planned_step(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, fake_labels: Tensor | None
    ) -> DiscriminatorStats | None:
        """A step of the plan; None, and nothing is done, without one, or where it or the inputs do not fit."""
        plan, are_due = self._plan_for_now()
        try:
            return None if plan is None else plan.run_discriminator(real, fake, labels, fake_labels, are_due)
        except CannotPlan as reason:  # what it learns when the optimizers' state is made
            self._cannot_run(reason)
            return None

    def state_dict(self) -> dict[str, Any]:
        """What the step itself keeps, beside D and its optimizer: a run that loads it goes on exactly.

        Returns:
            `steps_done`, the phase of the lazy penalties, as JSON has it.
        """
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave.

        Args:
            state: of a step with the same options.

        Raises:
            TypeError, ValueError: it is no such state; nothing was changed.
        """
        self.steps_done = self._steps_done_of(state, ("steps_done",))

    def _composed_step(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, fake_labels: Tensor | None
    ) -> DiscriminatorStats:
        """A step of fused ops under autograd, of inputs that were checked."""
        options = self._options()
        conditions: composed.Conditions = None, None
        if labels is not None and fake_labels is not None:
            both = labels if fake_labels is labels else torch.cat([labels, fake_labels])
            columns = self._labels.one_hot(both, options.num_classes, real.dtype)
            conditions = columns[: len(real)], columns[len(columns) - len(fake) :]
        parts = read(DiscriminatorParts, self)
        statistics = composed.discriminator_step(
            parts, options, real, fake, conditions, self.steps_done, self._processes
        )
        return statistics if labels is None else DiscriminatorStats(*map(self._labels.marked, statistics))

    def _check_inputs(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, fake_labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Real data and fakes, and the labels of each."""
        options = self._options()
        check_trainable("optimizer", self.optimizer)
        for name, value in (("real", real), ("fake", fake)):
            checks.floating(name, value)
            if value.dim() != 2:
                raise ValueError(f"{name} must have shape (batch, data), not {tuple(value.shape)}")
            check_batch(name, len(value), options)
        checks.same_device("fake", fake, "real", real)
        if fake.shape[1] != real.shape[1]:
            raise ValueError(f"fake must be as wide as real, {real.shape[1]}, not {fake.shape[1]}")
        if AUTOCAST_DTYPES[options.precision] is None:
            checks.same_dtype("fake", fake, "real", real)
        pairs = "the loss is relativistic" if options.is_paired else "gp_weight is over 0" if options.gp_weight else ""
        if pairs and len(fake) != len(real):
            raise ValueError(f"fake must have real's batch of {len(real)}, since {pairs}, not {len(fake)}")
        check_fit("real", real, self.discriminator, "discriminator", options, options.pac)
        check_dtype("fake", fake, "discriminator", first_weight(self.discriminator), options)
        labels = check_labels("labels", labels, real, options)
        if fake_labels is not None:
            fake_labels = check_labels("fake_labels", fake_labels, fake, options, "fake")
        elif labels is not None and len(fake) != len(real):
            raise ValueError(
                f"fake_labels are needed: fake has a batch of {len(fake)}, which the {len(real)} labels of real do not "
                "fit"
            )
        return real, fake, labels, labels if fake_labels is None else fake_labels
