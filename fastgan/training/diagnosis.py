"""What goes wrong in training, told from the statistics of its steps: each fault in one line, once a run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import reference
from fastgan.training.config import TrainConfig

# The discriminator's loss, as a share of what it is where real and fake cannot be told apart, below which it is
# saturated. On digits, ring8 and grid25 with the default options it stays above 0.2.
_SATURATED = 0.02
# The norm of the generator's gradient, as a share of the largest that it had, below which it has vanished.
_VANISHED = 1e-3
# The same of how far samples lie from each other, beside that of the data; and of the modes that are reached.
_COLLAPSED, _MODES = 0.2, 0.5
# How far the discriminator's loss swings, as a share as above: within a reading, and from reading to reading.
_SWINGS, _DRIFTS = 0.5, 0.25
# So many readings in a row must show a fault; of samples, which are looked at with each picture, so many.
_PATIENCE, _PATIENCE_OF_SAMPLES = 5, 3
# And so many steps: at first a discriminator is ahead, and a generator spreads from a point.
_STEPS = {"saturated": 100, "swings": 100, "vanished": 100, "collapsed": 500}
_WINDOW, _CROSSINGS = 10, 4


class Diagnosis:
    """Looks at each reading of the statistics; what it knows is in its `state`, so that a resumed run warns alike.

    Attributes:
        warnings: those given, each with its step and its text.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Look at a run with these options."""
        self._config = config
        self._least, self._indifferent = _bounds(config)
        self._since: dict[str, int] = {}
        self._count: dict[str, int] = {}
        self._levels: list[list[float]] = []
        self._largest_gradient = 0.0
        self.warnings: list[dict[str, Any]] = []

    def look(self, step: int, values: Tensor, gradient: float | None = None) -> list[str]:
        """What a reading shows for the first time.

        Args:
            step: steps done.
            values: (n, 4), the StepStats of the last n steps, on the CPU.
            gradient: the norm of the generator's gradient, or None where it is not known.

        Returns:
            The lines of new warnings.
        """
        found = []
        since = step - len(values) + 1
        if self._indifferent is not None:
            levels = (values[:, 0] - self._least) / (self._indifferent - self._least)
            level, swing = float(levels.mean()), float(levels.std(correction=0))
            found += self._judge(
                "saturated",
                level < _SATURATED,
                since,
                step,
                f"the discriminator is saturated: its loss is {max(level, 0.0):.1%} of what it is where it cannot tell "
                "real from fake",
                "a smaller --d-lr, --r1-gamma 1, --instance-noise 0.1 or --real-target 0.9",
            )
            self._levels = [*self._levels, [step, level]][-_WINDOW:]
            recent = [each[1] for each in self._levels]
            found += self._judge(
                "swings",
                swing > _SWINGS,
                since,
                step,
                f"training oscillates: from step to step the discriminator's loss swings by {swing:.0%} of what it is "
                "where it cannot tell real from fake",
                "smaller --g-lr and --d-lr, --r1-gamma 1, --beta1 0 or --clip-grad-norm 1",
            )
            if len(recent) == _WINDOW and _oscillates(recent):
                found += self._warn(
                    "swings",
                    step,
                    int(self._levels[0][0]),
                    f"training oscillates: the discriminator's loss goes up and down between {min(recent):.0%} and "
                    f"{max(recent):.0%} of what it is where it cannot tell real from fake",
                    "smaller --g-lr and --d-lr, --r1-gamma 1, or --beta1 0",
                )
        if gradient is not None and math.isfinite(gradient):
            self._largest_gradient = max(self._largest_gradient, gradient)
            share = gradient / self._largest_gradient if self._largest_gradient else 1.0
            found += self._judge(
                "vanished",
                share < _VANISHED,
                since,
                step,
                f"the generator's gradient has vanished: its norm is {gradient:.1e}, {share:.1e} of the largest it had",
                ("--loss non_saturating, " if self._config.loss == "minimax" else "")
                + "a smaller --d-lr, --r1-gamma 1 or --loss relativistic",
            )
        return found

    def look_at_samples(self, step: int, diversity: float, modes: tuple[int, int] | None = None) -> list[str]:
        """What some samples show for the first time.

        Args:
            step: steps done.
            diversity: of the samples, as a share of that of the data; see `fastgan.training.diversity`.
            modes: how many of the data's modes they reach, and how many there are.
        """
        told = f"samples lie {diversity:.0%} as far from each other as the data's do"
        few = modes is not None and 0 < modes[0] < _MODES * modes[1]  # one that reaches none is still on its way
        if few and modes is not None:
            told = f"samples reach {modes[0]} of the {modes[1]} modes of the data"
        return self._judge(
            "collapsed",
            few or diversity < _COLLAPSED,
            step,
            step,
            f"the generator has collapsed: {told}",
            "--pac 10, --loss relativistic with --r1-gamma 1 and --r2-gamma 1, or a smaller --g-lr",
            _PATIENCE_OF_SAMPLES,
        )

    def state(self) -> dict[str, Any]:
        """All that it knows, as JSON has it."""
        return {
            "since": dict(self._since),
            "count": dict(self._count),
            "levels": [list(each) for each in self._levels],
            "largest_gradient": self._largest_gradient,
            "warnings": [dict(each) for each in self.warnings],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; of a run from before there was one, from nothing."""
        self._since, self._count = dict(state.get("since", {})), dict(state.get("count", {}))
        self._levels = [list(each) for each in state.get("levels", [])]
        self._largest_gradient = state.get("largest_gradient", 0.0)
        self.warnings = [dict(each) for each in state.get("warnings", [])]

    def _judge(
        self, kind: str, is_bad: bool, since: int, step: int, told: str, option: str, patience: int = _PATIENCE
    ) -> list[str]:
        """Warn where a fault was there in so many readings one after another."""
        if not is_bad:
            self._count[kind] = 0
            return []
        if self._count.get(kind, 0) == 0:
            self._since[kind] = since
        self._count[kind] = self._count.get(kind, 0) + 1
        is_long = self._count[kind] >= patience and step - self._since[kind] >= _STEPS[kind]
        return self._warn(kind, step, self._since[kind], told, option) if is_long else []

    def _warn(self, kind: str, step: int, since: int, told: str, option: str) -> list[str]:
        if any(warning["kind"] == kind for warning in self.warnings):
            return []
        text = f"{told}, since step {since}; try {option}"
        self.warnings.append({"kind": kind, "step": step, "text": text})
        return [f"warning: {text}"]


def gradient_of(optimizer: Optimizer, network: nn.Module) -> Tensor | None:
    """The norm of a network's recent gradient, on its device: the mean that Adam keeps of it, or else what the last
    step left in `grad`. None where there is neither."""
    kept = [optimizer.state.get(each, {}).get("exp_avg", each.grad) for each in network.parameters()]
    found = [each.detach() for each in kept if each is not None]
    if not found:
        return None
    norm: Tensor = torch.stack(torch._foreach_norm(found)).norm()
    return norm


def _oscillates(levels: list[float]) -> bool:
    mean = sum(levels) / len(levels)
    spread = math.sqrt(sum((level - mean) ** 2 for level in levels) / len(levels))
    above = [level > mean for level in levels]
    crossings = sum(a != b for a, b in itertools.pairwise(above))
    return spread > _DRIFTS and crossings >= _CROSSINGS


def _bounds(config: TrainConfig) -> tuple[float, float | None]:
    """The least that the discriminator's loss can be, and what it is where real and fake cannot be told apart, None
    where it has no bounds."""
    kind = reference.GAN_LOSSES[config.loss].discriminator
    real, fake = config.real_target, config.fake_target
    middle = (real + fake) / 2

    def entropy(target: float, said: float) -> float:
        return -sum(t * math.log(p) for t, p in ((target, said), (1 - target, 1 - said)) if t > 0)

    if kind == "bce" and real != fake:
        return entropy(real, real) + entropy(fake, fake), entropy(real, middle) + entropy(fake, middle)
    if kind == "least_squares" and real != fake:
        return 0.0, (real - fake) ** 2 / 4
    bounds: dict[str, float] = {"relativistic": math.log(2), "hinge": 2.0}
    return 0.0, bounds.get(kind)
