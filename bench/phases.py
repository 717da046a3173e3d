"""Where the time of a step goes: `TrainStep.profile` of each configuration, phase by phase."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from fastgan import TrainStep

from .configurations import CONFIGURATIONS, Configuration
from .penalty_problems import PROBLEMS, Problem
from .penalty_steps import inputs as penalty_inputs
from .penalty_training import new_step
from .step import inputs
from .training import new_train_step


def profiles(calls: int = 7) -> dict[str, dict[str, Any]]:
    """By configuration: the plan, and the median seconds of each phase; or why there are none."""
    return {configuration.name: profile(configuration, calls) for configuration in CONFIGURATIONS}


def penalty_profiles(names: Iterable[str], calls: int = 7) -> dict[str, dict[str, Any]]:
    """The same of steps with penalties, by name; of those that train a generator, and take the same way each time."""
    return {
        problem.name: penalty_profile(problem, calls)
        for problem in PROBLEMS
        if problem.name in names and problem.trains_generator and problem.objective.r1_every == 1
    }


def profile(configuration: Configuration, calls: int) -> dict[str, Any]:
    """The plan of a TrainStep and the seconds of its phases.

    Args:
        configuration: of the networks and the batch.
        calls: how many profiled steps; a long step is profiled once.
    """
    reals, noises = inputs(configuration)
    sets = [(real, noise[None]) for real, noise in zip(reals, noises, strict=True)]
    return _profile(new_train_step(configuration), sets, 1 if configuration.step_flops > 5e10 else calls)


def penalty_profile(problem: Problem, calls: int) -> dict[str, Any]:
    """The same of a step with penalties.

    Args:
        problem: one that trains a generator.
        calls: as of `profile`.
    """
    step = new_step(problem)
    assert isinstance(step, TrainStep)
    sets = [(real, noise) for real, noise, _ in penalty_inputs(problem)]
    return _profile(step, sets, 1 if problem.step_flops > 5e10 else calls)


def _profile(step: TrainStep, sets: Sequence[tuple[Tensor, Tensor]], calls: int) -> dict[str, Any]:
    step.step(sets[0][0], noise=sets[0][1])
    taken = []
    try:
        for _ in range(calls):
            taken.append(step.profile(sets[1][0], noise=sets[1][1]))
    except RuntimeError as error:  # a composed plan has no phases of its own
        return {"plan": step.plan, "reason": str(error)}
    return {"plan": step.plan, "seconds": {name: statistics.median(t[name] for t in taken) for name in taken[0]}}


def lines(measured: dict[str, dict[str, Any]]) -> list[str]:
    """The profiles as text."""
    text = []
    for name, facts in measured.items():
        text.append(f"{name}: {facts['plan']}")
        if "reason" in facts:
            text.append(f"  no phases: {facts['reason']}")
            continue
        total = sum(facts["seconds"].values())
        for phase, seconds in facts["seconds"].items():
            text.append(f"  {phase:<24} {seconds * 1e6:10.1f} us  {seconds / total:4.0%}")
    return text
