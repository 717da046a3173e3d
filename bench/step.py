"""One step of alternating training: fastgan against PyTorch in its several forms, and others (peers.py).

Of the four configurations, and of a sweep over the batch and one over the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle

import torch
from torch import Tensor

from .agreement import assert_agree
from .configurations import CONFIGURATIONS, Configuration, batch_sweep, width_sweep
from .pairs import INPUT_SETS
from .peers import BASELINE, contenders
from .timing import Case
from .training import Training

SWEEPS = {"batch": batch_sweep, "width": width_sweep}
SWEPT = ("torch.compile", "CUDA graph of torch", "CUDA graph of torch.compile")  # the peers of a sweep, where chosen

# Largest norm of the difference between two updates of all parameters, over that of the update, after the steps of the
# check. A tolerance for the parameters themselves would say little: Adam's first updates are near lr times the
# gradient's sign, so that each moves by 2e-4 whatever the gradient is; and where a gradient is all rounding its sign
# may go either way. Of `wide` that is 1 % of the update's norm, of the others 0.0003 %.
UPDATE_TOLERANCE = 0.05
# In bfloat16, whose gradients have two or three digits, more signs differ: 8 % of the update's norm in `mnist`, 11 % in
# `wide`. A wrong derivative or optimizer gives over 100 %.
UPDATE_TOLERANCE_BF16 = 0.3
LOSS_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 5e-3}


def cases(peers: Sequence[str] = ()) -> Iterator[Case]:
    """Each configuration with data and noise given to every contender; then with the noise drawn inside the step.

    Args:
        peers: labels of bench.peers.PEERS.
    """
    for configuration in CONFIGURATIONS:
        ours = ["fastgan", *(["fastgan bf16"] if configuration.name in ("mnist", "wide") else []), "fastgan modules"]
        trainings = {label: build(configuration) for label, build in contenders(ours, peers).items()}
        yield case(configuration, trainings)
        inside = {label: trainings[label] for label in ("fastgan", BASELINE)}
        del trainings
        yield case(configuration, inside, noise_inside=True)


def sweep(name: str, peers: Sequence[str] = ()) -> Iterator[Case]:
    """The cells of a sweep, `batch` or `width`, against eager PyTorch and those of `peers` that are in SWEPT."""
    for configuration in SWEEPS[name]():
        builds = contenders(["fastgan", "fastgan modules"], [label for label in peers if label in SWEPT])
        trainings = {label: build(configuration) for label, build in builds.items()}
        yield case(configuration, trainings, facts={"sweep": name})


def case(
    configuration: Configuration,
    trainings: Mapping[str, Training],
    *,
    noise_inside: bool = False,
    facts: Mapping[str, object] | None = None,
) -> Case:
    """A configuration's case; each turn of a contender takes the next of several sets of data and noise."""
    reals, noises = inputs(configuration)
    runs: dict[str, Callable[[], object]] = {}
    for label, training in trainings.items():
        sets = [
            (training.load(x), None if noise_inside else training.load(z)) for x, z in zip(reals, noises, strict=True)
        ]
        turns = cycle(sets)
        runs[label] = lambda step=training.step, turns=turns: step(*next(turns))

    def compare() -> None:
        if not noise_inside:  # each draws its own; the arithmetic is that of the case before
            check(trainings, configuration, reals[0], noises[0])

    name = f"step {configuration.name} float32"
    return Case(
        f"{name}, noise inside" if noise_inside else name,
        runs,
        compare,
        flops=configuration.step_flops,
        capturable=False,  # it steps optimizers; what can be captured whole is a contender of its own
        dtypes={label: training.dtype for label, training in trainings.items()},
        synchronize={label: training.synchronize for label, training in trainings.items() if training.synchronize},
        facts={
            "configuration": configuration.name,
            "batch": configuration.batch,
            "width": max(configuration.generator[1:-1]),
            "flops_per_byte": configuration.step_flops / configuration.step_bytes,
            **(facts or {}),
        },
    )


def inputs(configuration: Configuration) -> tuple[list[Tensor], list[Tensor]]:
    """Sets of real data and of noise, the same for every contender."""
    torch.manual_seed(1)
    reals = [torch.randn(configuration.batch, configuration.generator[-1]) for _ in range(INPUT_SETS)]
    return reals, [torch.randn(configuration.batch, configuration.generator[0]) for _ in range(INPUT_SETS)]


def check(trainings: Mapping[str, Training], configuration: Configuration, real: Tensor, noise: Tensor) -> None:
    """Raise AssertionError unless all give the last one's losses and move the parameters as it does.

    Each takes its first 3 steps, or one where a step is long, so none may have been stepped before.
    """
    steps = first_steps(configuration.step_flops)
    check_first_steps(
        {label: (t, lambda t=t: t.step(t.load(real), t.load(noise))) for label, t in trainings.items()}, steps
    )


def first_steps(step_flops: float) -> int:
    """How many steps a check takes."""
    return 1 if step_flops > 5e10 else 3


def check_first_steps(
    ways: Mapping[str, tuple[Training, Callable[[], Sequence[object]]]], steps: int, updates: int = 1
) -> None:
    """The same of any kind of step.

    Args:
        ways: by label, what trains, and one step of it on the data that all take.
        steps: how many of them.
        updates: of D in a step; its losses are those of the last.
    """
    *others, (_, reference) = ((label, _trained(t, run, steps)) for label, (t, run) in ways.items())
    for label, (losses, updates) in others:
        dtype = ways[label][0].dtype
        bf16 = dtype is torch.bfloat16
        if not bf16 and updates == 1:  # a loss before any update holds none of its rounding
            assert_agree(losses[0], reference[0][0])
        torch.testing.assert_close(
            losses, reference[0], rtol=LOSS_TOLERANCE[dtype], atol=0, msg=lambda text, n=label: f"{n}: {text}"
        )
        difference = _norm([a - b for a, b in zip(updates, reference[1], strict=True)]) / _norm(reference[1])
        if not difference <= (UPDATE_TOLERANCE_BF16 if bf16 else UPDATE_TOLERANCE):
            raise AssertionError(f"{label} moves the parameters otherwise: by {difference:.1%} of the update's norm")


def _trained(training: Training, run: Callable[[], Sequence[object]], steps: int) -> tuple[Tensor, list[Tensor]]:
    """The losses, a row a step, and by how much each parameter moved."""
    before = [p.detach().clone().cpu() for p in training.parameters()]
    losses = []
    for _ in range(steps):
        # Read at once: some give them in memory that their next step writes again.
        losses.append([float(loss) for loss in run()])
    after = [p.detach().cpu() for p in training.parameters()]
    return torch.tensor(losses), [new - old for new, old in zip(after, before, strict=True)]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t) for t in tensors]).norm()
