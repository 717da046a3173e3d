"""What a training step is made of: the parts that it trains, and its options with their allowed ranges.

A `fastgan.TrainStep` and a `fastgan.DiscriminatorStep` have both as attributes, which the user may set between two
steps; `read` takes and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from fastgan import checks, reference

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16}  # by precision: that of autocast, or None for none
PRECISIONS = tuple(AUTOCAST_DTYPES)

MadeOf = TypeVar("MadeOf", "StepParts", "StepOptions", "DiscriminatorParts", "DiscriminatorOptions")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOptions:
    """The options of a `fastgan.DiscriminatorStep`, where they are documented. Making one checks every value.

    Raises:
        TypeError, ValueError: an option is of the wrong kind or out of range; the message names it.
    """

    loss: str = "non_saturating"
    real_target: float = 1.0
    fake_target: float = 0.0
    r1_gamma: float = 0.0
    r2_gamma: float = 0.0
    gp_weight: float = 0.0
    gp_center: float = 1.0
    r1_every: int = 1
    num_classes: int = 0
    pac: int = 1
    clip_grad_norm: float | None = None
    precision: str = "fp32"
    engine: bool = True

    def __post_init__(self) -> None:
        checks.choice("loss", self.loss, reference.GAN_LOSSES)
        for name, default in (("real_target", 1.0), ("fake_target", 0.0)):
            checks.loss_target(
                name, getattr(self, name), default, f"loss {self.loss!r}", reference.GAN_LOSSES[self.loss]
            )
        for name in ("r1_gamma", "r2_gamma", "gp_weight", "gp_center"):
            checks.number(name, getattr(self, name), 0.0)
        for name, least in (("r1_every", 1), ("num_classes", 0), ("pac", 1)):
            checks.integer(name, getattr(self, name), least)
        if self.clip_grad_norm is not None:
            checks.number("clip_grad_norm", self.clip_grad_norm, 0.0, low_open=True)
        checks.choice("precision", self.precision, PRECISIONS)

    @property
    def is_paired(self) -> bool:
        """Whether the loss is of pairs of a real sample and a fake."""
        return reference.GAN_LOSSES[self.loss].is_paired

    def penalties_are_due(self, steps_done: int) -> bool:
        """Whether R1 or R2, which are lazy, is part of the next step."""
        return (self.r1_gamma > 0 or self.r2_gamma > 0) and steps_done % self.r1_every == 0


@dataclass(frozen=True, kw_only=True)
class StepOptions(DiscriminatorOptions):
    """The options of a `fastgan.TrainStep`, where they are documented. Making one checks every value.

    Raises:
        TypeError, ValueError: an option is of the wrong kind or out of range; the message names it.
    """

    r1_every: int = 16
    d_steps: int = 1
    reuse_fake: bool = False
    ema_decay: float = 0.999
    instance_noise: float = 0.0
    instance_noise_steps: int = 0
    condition_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.integer("d_steps", self.d_steps, 1)
        checks.decay("ema_decay", self.ema_decay)
        checks.number("instance_noise", self.instance_noise, 0.0)
        checks.integer("instance_noise_steps", self.instance_noise_steps, 0)
        checks.number("condition_weight", self.condition_weight, 0.0)

    def noise_scale(self, steps_done: int) -> float:
        """The standard deviation of the instance noise of the next step."""
        if self.instance_noise_steps == 0:
            return float(self.instance_noise)
        return float(self.instance_noise) * max(0.0, 1.0 - steps_done / self.instance_noise_steps)


@dataclass(frozen=True, eq=False)
class StepParts:
    """What a `fastgan.TrainStep` trains: two networks, by their optimizers, and the generator's average."""

    generator: nn.Module
    discriminator: nn.Module
    g_optimizer: Optimizer
    d_optimizer: Optimizer
    ema: nn.Module | None = None

    def optimizers(self) -> dict[str, Optimizer]:
        """By their names as arguments, in the order of the networks."""
        return {"g_optimizer": self.g_optimizer, "d_optimizer": self.d_optimizer}

    def check(self) -> None:
        """TypeError or ValueError where a part is no such thing, or does not belong to the others."""
        for name in ("generator", "discriminator"):
            _check_kind(name, getattr(self, name), nn.Module)
        for name in ("g_optimizer", "d_optimizer"):
            _check_kind(name, getattr(self, name), Optimizer)
        _check_owner("g_optimizer", self.g_optimizer, "discriminator", self.discriminator)
        _check_owner("d_optimizer", self.d_optimizer, "generator", self.generator)
        if self.ema is not None:
            _check_ema(self.ema, self.generator)


@dataclass(frozen=True, eq=False)
class DiscriminatorParts:
    """What a `fastgan.DiscriminatorStep` trains."""

    discriminator: nn.Module
    optimizer: Optimizer
    generator = ema = None  # there are none

    def optimizers(self) -> dict[str, Optimizer]:
        """By their names as arguments, in the order of the networks."""
        return {"optimizer": self.optimizer}

    def check(self) -> None:
        """TypeError where a part is no such thing."""
        _check_kind("discriminator", self.discriminator, nn.Module)
        _check_kind("optimizer", self.optimizer, Optimizer)


_NAMES = {
    kind: tuple(field.name for field in fields(kind))
    for kind in (StepParts, StepOptions, DiscriminatorParts, DiscriminatorOptions)
}


def names_of(kind: type[Any]) -> tuple[str, ...]:
    """The attributes of a step that are its parts or its options."""
    return _NAMES[kind]


def read(kind: type[MadeOf], step: Any) -> MadeOf:
    """The parts or the options of a step as its attributes are now.

    Raises:
        TypeError, ValueError: an option is of the wrong kind or out of range.
    """
    return kind(**{name: getattr(step, name) for name in names_of(kind)})


def _check_kind(name: str, value: Any, kind: type[nn.Module] | type[Optimizer]) -> None:
    if not isinstance(value, kind):
        full = "torch.nn.Module" if kind is nn.Module else "torch.optim.Optimizer"
        raise TypeError(f"{name} must be a {full}, not {type(value).__name__}")


def _check_owner(optimizer_name: str, optimizer: Optimizer, module_name: str, module: nn.Module) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        if id(parameter) in held:
            raise ValueError(f"{optimizer_name} must not hold the {module_name}'s parameters, but it holds {name}")


def _check_ema(ema: nn.Module, generator: nn.Module) -> None:
    if not isinstance(ema, nn.Module):
        raise TypeError(f"ema must be a torch.nn.Module, not {type(ema).__name__}")
    if ema is generator:
        raise ValueError("ema must be a copy of the generator, not the generator itself")
    expected = generator.state_dict()
    for name, value in ema.state_dict().items():
        twin = expected.pop(name, None)
        if twin is None or twin.shape != value.shape:
            raise ValueError(f"ema must be a copy of the generator, but its {name} has shape {tuple(value.shape)}")
        for what in ("dtype", "device"):
            if getattr(twin, what) != getattr(value, what):
                raise ValueError(
                    f"ema must be a copy of the generator, but its {name} has {what} {getattr(value, what)}, not "
                    f"{getattr(twin, what)}"
                )
    if expected:
        raise ValueError(f"ema must be a copy of the generator, but it lacks {next(iter(expected))}")
    own = {id(parameter) for parameter in generator.parameters()}
    for name, parameter in ema.named_parameters():
        if id(parameter) in own:
            raise ValueError(f"ema must be a copy of the generator, but {name} is the generator's own parameter")
