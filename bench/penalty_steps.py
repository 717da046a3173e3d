"""One step of training with gradient penalties, and of a discriminator alone: fastgan against PyTorch and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from . import penalty_compiled, penalty_jax
from .pairs import INPUT_SETS
from .peers import BASELINE
from .penalty_problems import PROBLEMS, Problem
from .penalty_training import eager, modules, one_batch, shared_pass, train_step
from .step import check_first_steps, first_steps
from .timing import Case
from .training import Training

Build = Callable[[Problem], Training]

OURS: dict[str, Build] = {
    "fastgan": train_step,
    "fastgan composed": lambda problem: train_step(problem, engine=False),
    "fastgan modules": modules,
}
# By label of bench.peers.PEERS: PyTorch's best form is the faster of the last two.
PEERS: dict[str, dict[str, Build]] = {
    "torch.compile": {"torch.compile": penalty_compiled.whole},
    "jax": {"jax": penalty_jax.train},
    "torch one batch": {"torch shared pass": shared_pass, "torch one batch": one_batch},
}
# What users compile, modules under autograd, PyTorch refuses (penalty_compiled.refusal).
REFUSED = "torch.compile halves"
_DRAWS = 3  # the seed of the points


def cases(peers: Sequence[str] = (), match: str = "") -> Iterator[Case]:
    """Each of PROBLEMS.

    Args:
        peers: labels of bench.peers.PEERS; those that have no form with penalties are left out.
        match: only cases whose name contains this are built.
    """
    for problem in PROBLEMS:
        if match not in case_name(problem):
            continue
        yield case(problem, {label: build(problem) for label, build in contenders(peers).items()}, refusals(peers))


def case_name(problem: Problem) -> str:
    """Such as "R1 ring float32 step"."""
    return f"{problem.name} float32 step"


def contenders(peers: Sequence[str]) -> dict[str, Build]:
    """Builds by label: ours first, the baseline last."""
    chosen = {label: build for peer in PEERS if peer in peers for label, build in PEERS[peer].items()}
    return {**OURS, **chosen, BASELINE: eager}


def refusals(peers: Sequence[str]) -> dict[str, str]:
    """Why a chosen peer cannot train with penalties; it is tried."""
    reason = penalty_compiled.refusal() if REFUSED in peers else None
    return {REFUSED: reason} if reason else {}


def case(problem: Problem, trainings: Mapping[str, Training], refused: Mapping[str, str] | None = None) -> Case:
    """A problem's case. A call takes as many steps as pass from one lazy penalty to the next."""
    sets = inputs(problem)
    steps = problem.objective.r1_every

    def turns_of(training: Training) -> Callable[[], None]:
        turns = cycle([_loaded(training, *given) for given in sets])

        def run() -> None:
            for _ in range(steps):
                training.step(*next(turns))

        return run

    return Case(
        case_name(problem),
        {label: turns_of(training) for label, training in trainings.items()},
        lambda: check(trainings, problem, sets[0]),
        flops=problem.step_flops,
        capturable=False,  # it steps optimizers
        synchronize={label: training.synchronize for label, training in trainings.items() if training.synchronize},
        facts={"problem": problem.name, "objective": problem.objective.title, "batch": problem.configuration.batch},
        steps=steps,
        refusals=refused or {},
    )


def inputs(problem: Problem) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Sets of real data, noise and points, the same for every contender, a batch for each update of D.

    Of a discriminator alone: real data and fakes. The points' u are those that the others draw after `_seed`.
    """
    torch.manual_seed(1)
    configuration, updates = problem.configuration, problem.objective.d_steps
    shape = configuration.batch, configuration.discriminator[0]
    if not problem.trains_generator:
        return [(torch.randn(shape), torch.randn(shape), None) for _ in range(INPUT_SETS)]
    pairs = [
        (torch.randn(updates, *shape), torch.randn(updates, configuration.batch, configuration.generator[0]))
        for _ in range(INPUT_SETS)
    ]
    _seed()
    points = None
    if problem.objective.gp_weight:
        points = torch.stack([torch.rand(configuration.batch, 1) for _ in range(updates)])
    return [(real, noise, points) for real, noise in pairs]


def check(trainings: Mapping[str, Training], problem: Problem, given: tuple[Tensor, Tensor, Tensor | None]) -> None:
    """Raise AssertionError unless all give the last one's losses and move the parameters as it does.

    Where D's last bias cancels out of its loss, its gradient is rounding alone, and Adam may move it either way: it is
    not compared, and taken out of the loss of G that holds it.
    """
    objective = problem.objective

    def compared(training: Training) -> tuple[Training, Callable[[], Sequence[Any]]]:
        def run() -> Sequence[Any]:
            _seed()
            losses = training.step(*_loaded(training, *given))
            if objective.loss != "wasserstein" or not problem.trains_generator:
                return losses
            return losses[0], float(losses[1]) + training.parameters()[-1].item()  # -E[D(G(z))] without the bias

        if not objective.cancels_last_bias:
            return training, run
        return replace(training, parameters=lambda: training.parameters()[:-1]), run

    ways = {label: compared(training) for label, training in trainings.items()}
    check_first_steps(ways, first_steps(problem.step_flops), objective.d_steps)


def _seed() -> None:
    torch.manual_seed(_DRAWS)


def _loaded(training: Training, real: Tensor, noise: Tensor, points: Tensor | None) -> tuple[Any, ...]:
    given = training.load(real), training.load(noise)
    if not training.takes_points:
        return given
    return *given, None if points is None else training.load(points)
