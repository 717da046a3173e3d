"""Plans of the whole-step engine: what `TrainStep` runs as one native call, and why where it cannot.

A plan reads the two networks and their optimizers once. It watches what it has read: where a module, a Parameter, the
optimizers' state or an option of theirs has been replaced since, the plan is out of date and made anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as optimizer_module

from fastgan import backend, reference
from fastgan.nn import fused_activation, global_hooks, has_hooks, is_sequential
from fastgan.statistics import StepStats

if TYPE_CHECKING:
    from fastgan.step import TrainStep

_DTYPES = (torch.float32, torch.float64)
_ACTIVATIONS = {name: number for number, name in enumerate(reference.ACTIVATIONS)}
_LINEAR, _BATCH_NORM, _DROPOUT, _IDENTITY = range(4)  # LayerKind of csrc/core/step.h
# Options of TrainStep that a plan is made of.
_OPTIONS = (
    "generator",
    "discriminator",
    "g_optimizer",
    "d_optimizer",
    "loss",
    "real_target",
    "fake_target",
    "d_steps",
    "reuse_fake",
    "r1_gamma",
    "r1_every",
    "num_classes",
    "ema",
    "ema_decay",
    "precision",
    "engine",
)
PHASES = (  # StepPhase of csrc/cpu/step.h
    "inputs",
    "generator forward",
    "discriminator forward",
    "discriminator backward",
    "discriminator update",
    "generator backward",
    "generator update",
)


class CannotPlan(Exception):
    """The engine cannot run this; the message says why, as the end of a sentence."""


class Plan:
    """A step as one native call.

    Attributes:
        text: what it runs, in a few words.
    """

    def __init__(self, step: TrainStep) -> None:
        """Read the step's networks and optimizers.

        Raises:
            CannotPlan: with the reason.
        """
        _check_step(step)
        self._watched: list[tuple[dict[str, Any], str, Any]] = []
        self._sized: list[tuple[Any, int]] = [(hooks, 0) for hooks in _hooks(step)]
        self._watch(vars(step), *_OPTIONS)
        self._groups = _groups(step)
        for optimizer in (step.g_optimizer, step.d_optimizer):
            self._watch(vars(optimizer), "param_groups")
            self._watch_length(optimizer.param_groups)
        for group, _ in self._groups:
            self._watch(group, "params", "amsgrad", "differentiable")
            self._watch_length(group["params"])
        self._layers = [self._read(step.generator, "generator"), self._read(step.discriminator, "discriminator")]
        dtype, device = _common_kind(self._layers)
        self._device = device
        if step.precision == "bf16" and dtype is not torch.float32:
            raise CannotPlan(f"precision is bf16 and the parameters are {str(dtype).removeprefix('torch.')}")
        if step.precision == "bf16" and not backend.module.has_bf16_step(device.type == "cpu"):  # type: ignore[union-attr]
            raise CannotPlan("this processor has no AMX, which precision='bf16' would need")
        latent, data = _check_widths(step, self._layers)
        self._arguments = {
            "latent": latent,
            "data": data,
            "classes": step.num_classes,
            "d_steps": step.d_steps,
            "reuse_fake": step.reuse_fake,
            "real_target": step.real_target,
            "fake_target": step.fake_target,
            "minimax": step.loss == "minimax",
            "average_rate": 1.0 - step.ema_decay,
            "bf16": step.precision == "bf16",
            "least_batch": 2
            if any(layer.uses_batch_statistics() for network in self._layers for layer in network)
            else 1,
        }
        self._engine: Any = None
        self.text = (
            f"the whole step as one native call on {device.type}, real and fake through D as one batch, "
            f"{step.precision}"
        )
        if step.r1_gamma > 0:
            self.text += f"; 1 step in {step.r1_every}, with the R1 penalty, composed of fused ops under autograd"

    def run(self, step: TrainStep, real: Tensor, labels: Tensor | None, noise: Tensor | None) -> StepStats | None:
        """The statistics of a step; or None, and nothing is done, where the plan is out of date, or the inputs are not
        such as the engine takes."""
        if self._engine is None:
            if not self.is_current():
                return None
            self._bind(step)
        statistics = self._run(real, labels, noise)
        if statistics is None:
            return None
        # What torch.optim.lr_scheduler looks for.
        step.g_optimizer._opt_called = step.d_optimizer._opt_called = True  # type: ignore[attr-defined]
        return StepStats(*statistics)

    def is_current(self) -> bool:
        """Whether everything that the plan was made of is still in its place."""
        if self._engine is not None:
            return self._engine.is_current()
        return all(holder.get(name) is value for holder, name, value in self._watched) and all(
            len(sized) == length for sized, length in self._sized
        )

    def profile(self, step: TrainStep, *inputs: Any) -> dict[str, float] | None:
        """Run one step; the seconds of each phase, or None as `run`.

        Raises:
            RuntimeError: the step does not run on the CPU's kernels.
        """
        if self._engine is None and self.is_current():
            self._bind(step)
        if self._engine is None:
            return None
        if not hasattr(self._engine, "set_timed") or self._device.type != "cpu":
            raise RuntimeError("profile is of the CPU's engine; on CUDA torch.profiler shows the kernels of a step")
        self._engine.set_timed(True)
        try:
            if self.run(step, *inputs) is None:
                return None
            return dict(zip(PHASES, self._engine.seconds(), strict=True))
        finally:
            self._engine.set_timed(False)

    def _read(self, module: nn.Module, name: str) -> list[_Layer]:
        """The layers of a network, each with the activation that follows it."""
        layers: list[_Layer] = []
        for path, child in self._leaves(module, name):
            activation = fused_activation(child)
            if activation is not None:
                self._watch(vars(child), "negative_slope", "alpha", "beta", "threshold", "approximate")
                if activation[0] == "identity":
                    continue
                if not layers or layers[-1].activation != ("identity", 0.0):
                    layers.append(_Layer(_IDENTITY, path, None))
                layers[-1].activation = activation
                continue
            if type(child) is nn.Linear:
                layers.append(_Layer(_LINEAR, path, child))
            elif type(child) is nn.BatchNorm1d:
                layers.append(_Layer(_BATCH_NORM, path, child))
                self._watch(vars(child), "training", "momentum", "eps", "track_running_stats")
            elif type(child) is nn.Dropout:
                layers.append(_Layer(_DROPOUT, path, child))
                self._watch(vars(child), "training", "p")
            else:
                raise CannotPlan(f"{path} is a {type(child).__name__}")
            self._watch(child._parameters, *child._parameters)
            for parameter in child._parameters.values():
                for hooks in (getattr(parameter, n, None) for n in ("_backward_hooks", "_post_accumulate_grad_hooks")):
                    if hooks is not None:
                        self._watch_length(hooks)
            self._watch(child._buffers, *child._buffers)
        if not any(layer.kind == _LINEAR for layer in layers):
            raise CannotPlan(f"the {name} has no Linear layer")
        _set_widths(layers, name)
        return layers

    def _leaves(self, module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        if has_hooks(module):
            raise CannotPlan(f"{path} has hooks")
        if "forward" in vars(module):
            raise CannotPlan(f"{path} has a forward of its own")
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            self._watch_length(hooks)
        if not is_sequential(module):
            yield path, module
            return
        self._watch(module._modules, *module._modules)
        self._watch_length(module._modules)
        for name, child in module._modules.items():
            yield from self._leaves(child, f"{path}[{name}]")

    def _watch(self, holder: dict[str, Any], *names: str) -> None:
        self._watched += [(holder, name, holder[name]) for name in names if name in holder]

    def _watch_length(self, sized: Any) -> None:
        self._sized.append((sized, len(sized)))

    def _bind(self, step: TrainStep) -> None:
        """Hand the tensors to the engine; the optimizers' state is made where there is none yet, as they would."""
        engine = backend.module.StepEngine(**self._arguments)  # type: ignore[union-attr]
        groups = {id(p): i for i, (group, _) in enumerate(self._groups) for p in group["params"]}
        averages = (
            {}
            if step.ema is None
            else dict(zip(map(id, step.generator.parameters()), step.ema.parameters(), strict=True))
        )
        for network, layers in enumerate(self._layers):
            optimizer = step.d_optimizer if network else step.g_optimizer
            for layer in layers:
                name, slope = layer.activation
                engine.add_layer(network, layer.kind, layer.width_in, layer.width_out, _ACTIVATIONS[name], slope)
                module: Any = layer.module
                if layer.kind == _BATCH_NORM:
                    buffers = module.running_mean, module.running_var, module.num_batches_tracked
                    engine.set_batch_norm(network, *buffers, layer.uses_batch_statistics(), module.momentum, module.eps)
                if layer.kind == _DROPOUT and module.training:
                    engine.set_dropout(network, module.p)
                for is_bias, parameter in layer.parameters():
                    group = groups.get(id(parameter), -1) if parameter.requires_grad else -1
                    state = [] if group < 0 else self._state(optimizer, self._groups[group][0], parameter)
                    engine.add_parameter(network, is_bias, parameter, averages.get(id(parameter)), group, state)
        if step.ema is not None:
            for average, buffer in zip(step.ema.buffers(), step.generator.buffers(), strict=True):
                engine.add_copied_buffer(average, buffer)
        for optimizer in (step.g_optimizer, step.d_optimizer):
            self._watch(vars(optimizer), "state")
            self._watch_length(optimizer.state)
        for group, decoupled in self._groups:
            rate = group["lr"]
            on_device = (
                isinstance(rate, Tensor)
                and rate.device == self._device
                and (rate.dtype, rate.numel()) == (torch.float32, 1)
            )
            if isinstance(rate, Tensor):
                self._watch(group, "lr")
            engine.add_group(group, decoupled, rate if on_device else None)
        for watched in self._watched:
            engine.watch_value(*watched)
        for sized in self._sized:
            engine.watch_length(*sized)
        self._engine, self._run = engine, engine.step

    def _state(self, optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> list[Tensor]:
        state = optimizer.state[parameter]
        if not state:  # as torch.optim.Adam begins
            dtype = (
                torch.float64 if torch.get_default_dtype() == torch.float64 and not group["fused"] else torch.float32
            )
            on_device = group["fused"] or group["capturable"]
            # On the default device where it is not said, which need not be the CPU.
            state["step"] = torch.zeros((), dtype=dtype, device=parameter.device if on_device else None)
            names = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
            state.update({name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in names})
        names = ["step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        self._watch(state, *names)
        return [state[name] for name in names]


class _Layer:
    """A layer and the activation after it."""

    def __init__(self, kind: int, path: str, module: nn.Module | None) -> None:
        self.kind, self.path, self.module = kind, path, module
        self.activation = ("identity", 0.0)
        self.width_in = self.width_out = 0

    def parameters(self) -> list[tuple[bool, nn.Parameter]]:
        """(whether it is the bias, the Parameter)."""
        if self.module is None:
            return []
        return [(name == "bias", p) for name, p in self.module._parameters.items() if p is not None]

    def uses_batch_statistics(self) -> bool:
        """Of a batch_norm: whether it looks at the batch."""
        module: Any = self.module
        return self.kind == _BATCH_NORM and (module.training or module.running_mean is None)


def _set_widths(layers: list[_Layer], name: str) -> None:
    """The widths of the layers that have none of their own are those of their neighbours."""
    for layer in layers:
        module: Any = layer.module
        if layer.kind == _LINEAR:
            layer.width_in, layer.width_out = module.in_features, module.out_features
        elif layer.kind == _BATCH_NORM:
            layer.width_in = layer.width_out = module.num_features
    first = next(i for i, layer in enumerate(layers) if layer.width_in)
    for i in range(first - 1, -1, -1):
        layers[i].width_in = layers[i].width_out = layers[i + 1].width_in
    for before, layer in itertools.pairwise(layers):
        if not layer.width_in:
            layer.width_in = layer.width_out = before.width_out
        if layer.width_in != before.width_out:
            raise CannotPlan(f"{layer.path} does not fit the layer before it")


def _check_widths(step: TrainStep, layers: list[list[_Layer]]) -> tuple[int, int]:
    """The widths of the noise and of the data."""
    generator, discriminator = layers
    latent, data = generator[0].width_in - step.num_classes, generator[-1].width_out
    if discriminator[-1].width_out != 1:
        raise CannotPlan(f"the discriminator has {discriminator[-1].width_out} outputs")
    if discriminator[0].width_in - step.num_classes != data:
        raise CannotPlan("the generator's output does not fit the discriminator's input")
    if latent < 1:
        raise CannotPlan("the generator has no input beside the label")
    return latent, data


def _hooks(step: TrainStep) -> Iterator[Any]:
    """The hooks of all modules and of the optimizers, which must be empty."""
    yield from global_hooks()
    yield optimizer_module._global_optimizer_pre_hooks
    yield optimizer_module._global_optimizer_post_hooks
    for optimizer in (step.g_optimizer, step.d_optimizer):
        yield optimizer._optimizer_step_pre_hooks
        yield optimizer._optimizer_step_post_hooks


def _check_step(step: TrainStep) -> None:
    if backend.current_backend() == "reference":
        raise CannotPlan("the backend is the reference")
    if backend.module is None:
        raise CannotPlan(backend.missing_reason)
    if step.r1_gamma > 0 and step.r1_every == 1:
        raise CannotPlan("every step has the R1 penalty (r1_gamma is over 0 and r1_every is 1)")
    if any(_hooks(step)):
        raise CannotPlan("an optimizer or all modules have hooks")
    for name in ("g_optimizer", "d_optimizer"):
        optimizer = getattr(step, name)
        if type(optimizer) not in (Adam, AdamW):
            raise CannotPlan(f"{name} is {type(optimizer).__name__}, not Adam or AdamW")
        # A learning-rate scheduler replaces it by one that counts its calls.
        own = vars(optimizer).get("step")
        if own is not None and not hasattr(own, "_wrapped_by_lr_sched"):
            raise CannotPlan(f"{name} has a step of its own")


def _groups(step: TrainStep) -> list[tuple[dict[str, Any], bool]]:
    """The parameter groups of both optimizers, and whether their weight decay is decoupled."""
    found = []
    for name in ("g_optimizer", "d_optimizer"):
        optimizer = getattr(step, name)
        for group in optimizer.param_groups:
            if group["differentiable"]:
                raise CannotPlan(f"{name} is differentiable")
            found.append((group, type(optimizer) is AdamW or bool(group.get("decoupled_weight_decay"))))
    return found


def _common_kind(layers: list[list[_Layer]]) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of all parameters and buffers."""
    seen: set[int] = set()
    kinds: set[tuple[torch.dtype, torch.device]] = set()
    for network in layers:
        for layer in network:
            for _, parameter in layer.parameters():
                if id(parameter) in seen:
                    raise CannotPlan(f"{layer.path} shares a parameter with another layer")
                seen.add(id(parameter))
                if type(parameter) is not nn.Parameter or parameter.layout is not torch.strided:
                    raise CannotPlan(f"{layer.path} has a parameter of another kind than nn.Parameter")
                if not parameter.is_contiguous():
                    raise CannotPlan(f"{layer.path} has a parameter that is not contiguous")
                if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                    raise CannotPlan(f"{layer.path} has a parameter with hooks")
                kinds.add((parameter.dtype, parameter.device))
            for name in ("running_mean", "running_var"):
                buffer = getattr(layer.module, name, None)
                if buffer is not None:
                    kinds.add((buffer.dtype, buffer.device))
    if len(kinds) != 1:
        raise CannotPlan("the parameters and buffers differ in dtype or device")
    dtype, device = kinds.pop()
    if dtype not in _DTYPES:
        raise CannotPlan(f"the parameters are {str(dtype).removeprefix('torch.')}")
    if device.type not in backend.module.device_types():  # type: ignore[union-attr]
        raise CannotPlan(f"the parameters are on {device.type}")
    if backend.current_backend() not in ("auto", device.type):
        raise CannotPlan(f"the backend is {backend.current_backend()} and the parameters are on {device.type}")
    return dtype, device
