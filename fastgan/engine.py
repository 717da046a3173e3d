"""Plans of the whole-step engine: what `TrainStep` runs as one native call, and why where it cannot.

A plan reads the two networks, their optimizers and the average once. All that it has read is watched, in C++: each step
compares it with the objects as they are, and where anything has changed the plan is made anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from fastgan import backend, functional, gate, layers, plan_checks, plan_layers, plan_optimizers, plan_ways, reference
from fastgan.plan_layers import DROPOUT, LINEAR, SEGMENTED, CannotPlan, Layer
from fastgan.plan_ways import Way
from fastgan.processes import Processes
from fastgan.statistics import DiscriminatorStats, StepStats
from fastgan.step_options import DiscriminatorOptions, DiscriminatorParts, StepOptions, StepParts, names_of

__all__ = ["CannotPlan", "Plan", "Undecided"]


class Undecided(Exception):
    """A step is possible, but no way was decided on for its size of batch; nothing was done."""


class Plan:
    """A step as one native call: a whole one, or D's half alone.

    Attributes:
        text: what it runs, in a few words.
        penalizes: whether it runs the steps in which R1 or R2 is due, too.
        device: that it runs on.
        asks: whether a size of batch for which no way was decided on is Undecided; else it takes the default.
        weights: how many elements the weights of both networks have.
        ways: those that were decided on, by the size of batch and whether float products are rounded to tf32.
    """

    def __init__(
        self,
        parts: StepParts | DiscriminatorParts,
        options: StepOptions | DiscriminatorOptions,
        attributes: dict[str, Any],
        processes: Processes | None = None,
        draws_bits: bool = False,
    ) -> None:
        """Read the networks, optimizers and average.

        Args:
            parts: what is trained.
            options: how.
            attributes: of the step that has both, by name; when one of them is replaced, the plan is out of date.
            processes: that take each step together; None for this one alone.
            draws_bits: whether the masks of dropout on a CPU may be other ones than torch would draw, in less time.

        Raises:
            CannotPlan: with the reason.
        """
        plan_checks.check_process(options)
        self._draws_bits = draws_bits
        self._watch = backend.module.Watch()
        self._watch.items(vars(backend), ("_name", "module"))
        self._watch.items(vars(gate), ("known",))
        for space, names in layers.FUNCTIONS.items():
            self._watch.items(vars(space), names)
        for hooks in layers.global_hooks():
            self._watch.empty(hooks)
        self._watch.items(attributes, (*names_of(type(parts)), *names_of(type(options))))
        self._layers = [
            [] if parts.generator is None else plan_layers.read(parts.generator, "generator", self._watch),
            plan_layers.read(parts.discriminator, "discriminator", self._watch),
        ]
        dtype, self.device = plan_layers.common_kind(self._layers)
        self._processes = processes
        if processes is not None:
            plan_checks.check_processes(processes, self._layers, self.device)
        # A Sigmoid at D's end is the loss's own: cross-entropy with logits is BCELoss of its output.
        folds = reference.GAN_LOSSES[options.loss].discriminator == "bce" and plan_layers.fold_sigmoid(self._layers[1])
        plan_checks.check_precision(options.precision, dtype, self.device)
        optimizers = parts.optimizers()
        self._optimizers = tuple(optimizers.values())
        self._groups = [
            group
            for (name, optimizer), network in zip(optimizers.items(), self._layers[-len(optimizers) :], strict=True)
            for group in plan_optimizers.read(name, optimizer, network, self._watch)
        ]
        self._averages, self._copies = _read_average(parts.generator, parts.ema, self._watch)
        self.penalizes = plan_checks.check_penalties(options, self._layers[1], self.device)
        for group, parameter in self._updated():
            plan_optimizers.state(group, parameter)
        self._check_memory()
        latent, data = _check_widths(options, self._layers)
        draws = any(layer.kind in (DROPOUT, SEGMENTED) for network in self._layers for layer in network)
        if reason := gate.step_refusal(
            self.device, torch.bfloat16 if plan_checks.IS_BF16[options.precision] else dtype, draws
        ):
            raise CannotPlan(reason)
        self._arguments = {
            "latent": latent,
            "data": data,
            "classes": options.num_classes,
            "pac": options.pac,
            "d_steps": getattr(options, "d_steps", 1),
            "reuse_fake": getattr(options, "reuse_fake", False),
            "real_target": options.real_target,
            "fake_target": options.fake_target,
            "loss": options.loss,
            "r1": options.r1_gamma * options.r1_every if self.penalizes else 0.0,
            "r2": options.r2_gamma * options.r1_every if self.penalizes else 0.0,
            "gp": options.gp_weight,
            "gp_center": options.gp_center,
            "of_probability": folds,
            "clip_norm": options.clip_grad_norm or 0.0,
            "average_rate": 1.0 - getattr(options, "ema_decay", 0.0),
            "has_noise": getattr(options, "instance_noise", 0.0) > 0,
            "bf16": plan_checks.IS_BF16[options.precision],
            "least_batch": _least_batch(options.pac, self._layers),
            "condition_weight": getattr(options, "condition_weight", 0.0),
        }
        self.asks = False
        self.ways: dict[tuple[int, bool], Way] = {}
        self.weights = sum(
            layer.width_in * layer.width_out for n in self._layers for layer in n if layer.kind == LINEAR
        )
        updated = {id(parameter) for _, parameter in self._updated()}
        facts = {
            "device": self.device.type,
            "dtype": dtype,
            **{name: self._arguments[name] for name in ("classes", "d_steps", "reuse_fake", "bf16")},
            "average": parts.ema is not None,
            **_facts_of(options, self.penalizes),
        }
        self._signature = plan_ways.signature(self._layers, updated, facts)
        self._engine: Any = None
        self._fresh: dict[int, dict[str, Any]] = {}  # state that the optimizers do not have yet, by parameter
        what = "update of D" if parts.generator is None else "step"
        self.text = (
            f"the whole {what} as one native call on {self.device.type}, real and fake through D as one batch, "
            f"{options.precision}"
        )
        if folds:
            self.text += "; D's last Sigmoid is folded into the loss"
        lazy = plan_checks.lazy_penalties(options)
        if lazy and not self.penalizes:
            self.text += (
                f"; 1 step in {options.r1_every}, with the {lazy}, composed of fused ops under autograd, because "
                f"{plan_checks.unpenalized(options, self._layers[1], self.device)}"
            )

    def run(
        self,
        real: Tensor,
        labels: Tensor | None,
        noise: Tensor | None,
        are_due: bool = False,
        noise_scale: float = 0.0,
    ) -> StepStats | None:
        """The statistics of a step; or None, and nothing is done, where the plan is out of date, or the inputs are not
        such as the engine takes.

        Args:
            real: as `TrainStep.step` takes it.
            labels: likewise.
            noise: likewise.
            are_due: whether R1 and R2 are part of it; only where `penalizes`.
            noise_scale: standard deviation of the noise on D's inputs.

        Raises:
            CannotPlan: the optimizers' state is not such as the engine takes; nothing was done.
            Undecided: see `asks`.
        """
        if self._engine is None:
            if not self.is_current():
                return None
            self._bind()
        statistics = self._handed_over(self._engine.step(real, labels, noise, self.asks, are_due, noise_scale))
        return None if statistics is None else StepStats(*statistics)

    def run_discriminator(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, fake_labels: Tensor | None, are_due: bool
    ) -> DiscriminatorStats | None:
        """As `run`, of D alone; inputs as `DiscriminatorStep.step` takes them."""
        if self._engine is None:
            if not self.is_current():
                return None
            self._bind()
        statistics = self._handed_over(
            self._engine.step_discriminator(real, fake, labels, fake_labels, self.asks, are_due)
        )
        return None if statistics is None else DiscriminatorStats(*statistics)

    def accepts(self, *inputs: Any) -> bool:
        """Whether `run`, or `run_discriminator`, of these inputs would take its step.

        Raises:
            CannotPlan: as `run`.
        """
        if self._engine is None:
            if not self.is_current():
                return False
            self._bind()
        *tensors, last = inputs
        of_both = isinstance(last, float)  # the scale of the noise
        found: bool = self._engine.accepts(*tensors[:3]) if of_both else self._engine.accepts_discriminator(*tensors)
        return found

    def _handed_over(self, statistics: Any) -> Any:
        """What a native call returned, after the optimizers were given what it made for them."""
        if statistics is False:
            raise Undecided
        if statistics is not None and self._fresh:
            self._hand_over()
        return statistics

    def is_current(self) -> bool:
        """Whether everything that the plan was made of is still in its place."""
        current: bool = self._watch.is_current()
        return current

    def signature(self, batch: int) -> str:
        """What its time depends on, with so many samples in a batch; once it has run, or was Undecided."""
        return f"{self._signature} | batch {batch}{' tf32' if self._engine.rounds_to_tf32() else ''}"

    def take(self, batch: int, way: Way) -> None:
        """Decide on the way for a size of batch.

        Raises:
            CannotPlan: the optimizers' state is not such as the engine takes.
        """
        if self._engine is None:
            self._bind()
        tf32 = self._engine.rounds_to_tf32()
        self.ways[batch, tf32] = way
        self._engine.set_choice(batch, tf32, bool(way.composed), way.narrow, dict(way.products))

    def way(self, batch: int) -> Way:
        """The way that was decided on for a size of batch, or else the default."""
        if not self.ways:
            return Way()
        return self.ways.get((batch, self._engine.rounds_to_tf32()), Way())

    def runs_cuda_kernels(self) -> bool:
        """Whether it runs on the kernels of csrc/cuda/; once it has run, or was Undecided."""
        found: bool = self._engine.is_on_cuda()
        return found

    def taken(self) -> tuple[bool, dict[plan_ways.Product, bool]]:
        """What the last step launched on CUDA: whether narrow networks took a launch each, and the products that were
        launches of their own, each with whether it was the library's."""
        narrow, products = self._engine.taken()
        return narrow, products

    def profile(self, *inputs: Any) -> dict[str, float] | None:
        """Run one step; the seconds of each phase, or None as `run`.

        Raises:
            RuntimeError: the step does not run on the CPU's kernels.
        """
        if self._engine is None and self.is_current():
            self._bind()
        if self._engine is None:
            return None
        if not hasattr(self._engine, "set_timed") or self.device.type != "cpu":
            raise RuntimeError("profile is of the CPU's engine; on CUDA torch.profiler shows the kernels of a step")
        asks, self.asks = self.asks, False
        self._engine.set_timed(True)
        try:
            if self.run(*inputs) is None:
                return None
            return {phase.replace("_", " "): seconds for phase, seconds in self._engine.seconds().items()}
        finally:
            self.asks = asks
            self._engine.set_timed(False)

    def _group_of(self) -> dict[int, plan_optimizers.Group]:
        return {id(p): group for group in self._groups for p in group.options["params"]}

    def _updated(self) -> list[tuple[plan_optimizers.Group, nn.Parameter]]:
        """The parameters that a step updates, each with its group."""
        groups = self._group_of()
        parameters = [p for network in self._layers for layer in network for _, p in layer.parameters()]
        return [(groups[id(p)], p) for p in parameters if p.requires_grad and id(p) in groups]

    def _check_memory(self) -> None:
        if self._watch.overlaps():
            raise CannotPlan("tensors that a step writes share memory")

    def _hand_over(self) -> None:
        """Give the optimizers the state that a step has made, in their order; a refused step gives them none."""
        for group in self._groups:
            for parameter in group.options["params"]:
                state = self._fresh.pop(id(parameter), None)
                if state is not None:
                    group.optimizer.state[parameter] = state
                    self._watch.dict(state)
            self._watch.again(group.optimizer.state)

    def _bind(self) -> None:
        """Hand the tensors to the engine; the optimizers' state is made where there is none yet, as they would."""
        for group in self._groups:
            plan_optimizers.check(group)  # its numbers are not watched
        states = {}
        for group, parameter in self._updated():
            state, states[id(parameter)] = plan_optimizers.state(group, parameter)
            if group.optimizer.state.get(parameter) is state:
                self._watch.dict(state)
            else:
                self._fresh[id(parameter)] = state
            for tensor in states[id(parameter)].values():
                self._watch.tensor(tensor)
        for optimizer in self._optimizers:
            self._watch.dict(optimizer.state)
        self._check_memory()
        engine = backend.module.StepEngine(**self._arguments, watch=self._watch, device_mode=DeviceContext)
        groups = self._group_of()
        for network, found in enumerate(self._layers):
            for layer in found:
                engine.add_layer(network, layer.kind, layer.width_in, layer.width_out, *layer.activation)
                module: Any = layer.module
                if layer.kind == plan_layers.BATCH_NORM:
                    buffers = module.running_mean, module.running_var, module.num_batches_tracked
                    engine.set_batch_norm(network, *buffers, layer.uses_batch_statistics(), module.momentum, module.eps)
                elif layer.kind == DROPOUT:
                    if module.training:
                        engine.set_dropout(network, module.p, self._draws_bits)
                elif layer.kind == SEGMENTED:
                    kinds = [functional.SEGMENT_KIND[kind] for kind in module.kinds]
                    engine.set_segments(network, module.widths, kinds, module.tau)
                elif layer.kind not in (LINEAR, plan_layers.IDENTITY):
                    raise AssertionError(f"the engine is told nothing of what a {layer.kind} has")
                for is_bias, parameter in layer.parameters():
                    own = groups.get(id(parameter))
                    engine.add_parameter(
                        network,
                        is_bias,
                        parameter,
                        average=self._averages.get(id(parameter)),
                        is_in_optimizer=own is not None,
                        group=self._groups.index(own) if own and parameter.requires_grad else None,
                        state=states.get(id(parameter), {}),
                    )
        for average, buffer in self._copies:
            engine.add_copied_buffer(average, buffer)
        for group in self._groups:
            rate = group.options["lr"]
            on_device = (
                isinstance(rate, Tensor)
                and rate.device == self.device
                and (rate.dtype, rate.numel()) == (torch.float32, 1)
            )
            if isinstance(rate, Tensor):
                if not backend.module.is_plain(rate):
                    raise CannotPlan(f"{group.name} has a learning rate that is no plain Tensor")
                self._watch.items(group.options, ("lr",))
                self._watch.tensor(rate)
            engine.add_group(group.options, group.decoupled, rate if on_device else None)
        if self._processes is not None:
            many = self._processes
            engine.set_exchange(many.begin_sum, many.meet, many.size, many.shared, many.part_bytes)
        self._engine = engine


def _facts_of(options: DiscriminatorOptions, penalizes: bool) -> dict[str, Any]:
    """What the time of a step depends on beside its networks, where it is not as by default."""
    every_step = bool(plan_checks.lazy_penalties(options)) and options.r1_every == 1
    facts = {
        "pairs": options.is_paired,
        "pac": 0 if options.pac == 1 else options.pac,
        "penalties": every_step and plan_checks.lazy_penalties(options),
        "gp": options.gp_weight > 0,
        "clips": options.clip_grad_norm is not None,
        "noise": getattr(options, "instance_noise", 0.0) > 0,
        "condition": getattr(options, "condition_weight", 0.0) > 0,
    }
    return {name: value for name, value in facts.items() if value}


def _least_batch(pac: int, networks: list[list[Layer]]) -> int:
    """The samples that batch normalisation needs: two inputs of a network."""
    generator, discriminator = (any(layer.uses_batch_statistics() for layer in network) for network in networks)
    return 2 * pac if discriminator else max(pac, 2) if generator else pac


def _check_widths(options: DiscriminatorOptions, networks: list[list[Layer]]) -> tuple[int, int]:
    """The widths of the noise and of the data."""
    generator, discriminator = networks
    if discriminator[-1].width_out != 1:
        raise CannotPlan(f"the discriminator has {discriminator[-1].width_out} outputs")
    width, rest = divmod(discriminator[0].width_in, options.pac)
    data = width - options.num_classes
    if rest or data < 1:
        raise CannotPlan("the discriminator's input does not fit pac and num_classes")
    if not generator:
        return 0, data
    latent = generator[0].width_in - options.num_classes
    if data != generator[-1].width_out:
        raise CannotPlan("the generator's output does not fit the discriminator's input")
    if latent < 1:
        raise CannotPlan("the generator has no input beside the label")
    return latent, data


def _read_average(
    generator: nn.Module | None, ema: nn.Module | None, watch: Any
) -> tuple[dict[int, Tensor], list[tuple[Tensor, Tensor]]]:
    """The average of each of the generator's parameters, by its id, and the pairs of buffers: average, current.

    Raises:
        CannotPlan: the average no longer mirrors the generator, or is not such as the engine takes.
    """
    if ema is None or generator is None:
        return {}, []
    for module in ema.modules():
        watch.type(type(module))
        watch.object(module, set(layers.PARTS))
        for part in layers.PARTS:
            watch.dict(getattr(module, part))
    if any(layers.has_own_walk(m) for network in (generator, ema) for m in network.modules()):
        raise CannotPlan("the generator or its average has a parameters() or buffers() of its own")
    pairs: list[list[tuple[Tensor, Tensor]]] = []
    for averages, currents in (
        (list(ema.parameters()), list(generator.parameters())),
        (list(ema.buffers()), list(generator.buffers())),
    ):
        if len(averages) != len(currents):
            raise CannotPlan("ema has other parameters or buffers than the generator")
        pairs.append(list(zip(averages, currents, strict=True)))
    for average, current in pairs[0] + pairs[1]:
        if type(average) not in (Tensor, nn.Parameter) or not backend.module.is_plain(average):
            raise CannotPlan("ema has a parameter or buffer that is no plain Tensor")
        if (average.dtype, average.device, average.shape) != (current.dtype, current.device, current.shape):
            raise CannotPlan("ema has a parameter or buffer of another shape, dtype or device than the generator's")
        if not average.is_contiguous() or not average.is_leaf:
            raise CannotPlan("ema has a parameter or buffer that is not contiguous or no leaf")
        watch.tensor(average)
    return {id(current): average for average, current in pairs[0]}, pairs[1]
