"""Where the time of a step goes: `TrainStep.profile` of each configuration, phase by phase."""

from __future__ import annotations

import statistics
from typing import Any

from .configurations import CONFIGURATIONS, Configuration
from .step import inputs
from .training import new_train_step


def profiles(calls: int = 7) -> dict[str, dict[str, Any]]:
    """By configuration: the plan, and the median seconds of each phase; or why there are none."""
    return {configuration.name: profile(configuration, calls) for configuration in CONFIGURATIONS}


def profile(configuration: Configuration, calls: int) -> dict[str, Any]:
    """The plan of a TrainStep and the seconds of its phases.

    Args:
        configuration: of the networks and the batch.
        calls: how many profiled steps; a long step is profiled once.
    """
    step = new_train_step(configuration)
    reals, noises = inputs(configuration)
    step.step(reals[0], noise=noises[0][None])
    taken = []
    try:
        for _ in range(1 if configuration.step_flops > 5e10 else calls):
            taken.append(step.profile(reals[1], noise=noises[1][None]))
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
