"""What a training step is made of: the parts that it trains, and its options with their allowed ranges.

A `fastgan.TrainStep` has both as attributes, which the user may set between two steps; `read` takes and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from fastgan import checks

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16}  # by precision: that of autocast, or None for none
PRECISIONS = tuple(AUTOCAST_DTYPES)
LOSSES = ("non_saturating", "minimax")  # of fastgan.reference.GAN_LOSSES, those that a step trains with

MadeOf = TypeVar("MadeOf", "StepParts", "StepOptions")


@dataclass(frozen=True)
class StepOptions:
    """The options of a `fastgan.TrainStep`, where they are documented. Making one checks every value.

    Raises:
        TypeError, ValueError: an option is of the wrong kind or out of range; the message names it.
    """

    loss: str = "non_saturating"
    real_target: float = 1.0
    fake_target: float = 0.0
    d_steps: int = 1
    reuse_fake: bool = False
    r1_gamma: float = 0.0
    r1_every: int = 16
    num_classes: int = 0
    ema_decay: float = 0.999
    precision: str = "fp32"
    engine: bool = True

    def __post_init__(self) -> None:
        checks.choice("loss", self.loss, LOSSES)
        checks.number("real_target", self.real_target, 0.0, 1.0)
        checks.number("fake_target", self.fake_target, 0.0, 1.0)
        checks.integer("d_steps", self.d_steps, 1)
        checks.number("r1_gamma", self.r1_gamma, 0.0)
        checks.integer("r1_every", self.r1_every, 1)
        checks.integer("num_classes", self.num_classes, 0)
        checks.decay("ema_decay", self.ema_decay)
        checks.choice("precision", self.precision, PRECISIONS)


@dataclass(frozen=True, eq=False)
class StepParts:
    """What a `fastgan.TrainStep` trains: two networks, by their optimizers, and the generator's average."""

    generator: nn.Module
    discriminator: nn.Module
    g_optimizer: Optimizer
    d_optimizer: Optimizer
    ema: nn.Module | None = None

    def check(self) -> None:
        """TypeError or ValueError where a part is no such thing, or does not belong to the others."""
        for name in ("generator", "discriminator"):
            if not isinstance(getattr(self, name), nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, not {type(getattr(self, name)).__name__}")
        for name in ("g_optimizer", "d_optimizer"):
            if not isinstance(getattr(self, name), Optimizer):
                raise TypeError(f"{name} must be a torch.optim.Optimizer, not {type(getattr(self, name)).__name__}")
        _check_owner("g_optimizer", self.g_optimizer, "discriminator", self.discriminator)
        _check_owner("d_optimizer", self.d_optimizer, "generator", self.generator)
        if self.ema is not None:
            _check_ema(self.ema, self.generator)


_NAMES = {kind: tuple(field.name for field in fields(kind)) for kind in (StepParts, StepOptions)}


def names_of(kind: type[MadeOf]) -> tuple[str, ...]:
    """The attributes of a TrainStep that are a StepParts or a StepOptions."""
    return _NAMES[kind]


def read(kind: type[MadeOf], step: Any) -> MadeOf:
    """The StepParts or the StepOptions of a TrainStep as its attributes are now.

    Raises:
        TypeError, ValueError: an option is of the wrong kind or out of range.
    """
    return kind(**{name: getattr(step, name) for name in names_of(kind)})


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
