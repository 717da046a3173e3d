"""Combinations of a step's options and networks, and each against the loop in plain PyTorch in float64.

    python tests/step_cases.py [--steps 100] [--backend auto] [--composed] [--part 1/4]

runs the full product of losses, penalties, activations, dropout, packing and labels, and prints what differs; the
other options take their turns in it. The suite has all pairs of everything (test_step_cases.py).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from conformance import ACTIVATIONS, assert_close_in_float64
from plain_step import BATCH, DATA, LATENT, Plain, PlainDiscriminator, adam, in_plain_torch, inputs, state_of, twin
from torch import Tensor, nn

import fastgan
from fastgan import DiscriminatorStep, TrainStep, reference
from fastgan.nn import MLP, fuse

NATIVE = "the whole step as one native call"

# By name: what each adds to the options of the step.
PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "R1": {"r1_gamma": 2.0, "r1_every": 1},
    "lazy R1": {"r1_gamma": 0.5, "r1_every": 3},
    "lazy R2": {"r2_gamma": 0.5, "r1_every": 2},
    "R1, R2": {"r1_gamma": 1.0, "r2_gamma": 0.7, "r1_every": 1},
    "GP": {"gp_weight": 10.0},
    "GP at 0": {"gp_weight": 3.0, "gp_center": 0.0},
    "all": {"r1_gamma": 1.0, "r2_gamma": 0.7, "gp_weight": 1.0, "gp_center": 0.5, "r1_every": 2},
}
NOISES: dict[str, dict[str, Any]] = {
    "none": {},
    "constant": {"instance_noise": 0.2},
    "falling": {"instance_noise": 0.5, "instance_noise_steps": 40},
}
# The first six are those of the full product.
FACTORS: dict[str, Sequence[Any]] = {
    "loss": tuple(reference.GAN_LOSSES),
    "penalty": tuple(PENALTIES),
    "activation": ACTIVATIONS,
    "dropout": (0.0, 0.3),
    "pac": (1, 2, 3),
    "num_classes": (0, 3),
    "d_steps": (1, 2),
    "reuse_fake": (False, True),
    "clip_grad_norm": (None, 0.05),
    "noise": tuple(NOISES),
    "sigmoid": (False, True),
    "ema_decay": (None, 0.9),
}
# Those that DiscriminatorStep has too.
OF_DISCRIMINATOR = ("loss", "penalty", "activation", "dropout", "pac", "num_classes", "clip_grad_norm", "sigmoid")


@dataclasses.dataclass(frozen=True)
class Case:
    """One combination; the fields are the factors."""

    loss: str
    penalty: str
    activation: str
    dropout: float
    pac: int
    num_classes: int
    d_steps: int = 1
    reuse_fake: bool = False
    clip_grad_norm: float | None = None
    noise: str = "none"
    sigmoid: bool = False
    ema_decay: float | None = None

    def options(self) -> dict[str, Any]:
        """Those of a TrainStep."""
        given = {name: getattr(self, name) for name in ("d_steps", "reuse_fake")}
        average = {} if self.ema_decay is None else {"ema_decay": self.ema_decay}
        return {**self.discriminator_options(), **given, **NOISES[self.noise], **average}

    def discriminator_options(self) -> dict[str, Any]:
        """Those of a DiscriminatorStep."""
        given = {name: getattr(self, name) for name in ("loss", "pac", "num_classes", "clip_grad_norm")}
        targets: dict[str, Any] = {}
        if self.loss in ("non_saturating", "minimax"):
            targets = {"real_target": 0.9, "fake_target": 0.1}
        if self.loss == "least_squares":
            targets = {"real_target": 1.5, "fake_target": -1.0}
        return {**given, **targets, **PENALTIES[self.penalty]}

    def networks(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
        """A generator and a discriminator."""
        sizes = [LATENT + self.num_classes, 8, DATA], [self.pac * (DATA + self.num_classes), 8, 5, 1]
        last = "tanh", "sigmoid" if self.sigmoid else None
        pair = [MLP(s, self.activation, end, dtype=dtype) for s, end in zip(sizes, last, strict=True)]
        if self.loss in SHIFT_INVARIANT:
            next(m for m in reversed(pair[1]) if isinstance(m, nn.Linear)).register_parameter("bias", None)
        if self.dropout:
            pair = [fuse(nn.Sequential(*n[:2], nn.Dropout(self.dropout), *n[2:])) for n in pair]
        return pair[0], pair[1]

    def __str__(self) -> str:
        values = {name: getattr(self, name) for name in FACTORS}
        changed = [f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}" for n, v in values.items() if n not in FIRST]
        return "-".join([*(str(values[n]) for n in FIRST), *(c for c in changed if not c.endswith(OFF))])


# Losses of differences of D (hinge: where nothing is beyond a margin), of which D's last bias has no gradient. What
# rounding leaves of it is another number in each loop, which Adam scales up.
SHIFT_INVARIANT = ("relativistic", "wasserstein", "hinge")
FIRST = ("loss", "penalty", "activation")
OFF = ("=0", "=1", "=False", "=None", "=none")


def all_pairs(factors: Mapping[str, Sequence[Any]] = FACTORS) -> list[Case]:
    """Cases among which each value of a factor meets each value of every other one.

    A case at a time: it starts from a pair that is still missing, and each other factor takes the value that meets
    most of what is missing.
    """
    names = list(factors)
    missing = {
        ((a, x), (b, y)): None
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(factors[a], factors[b])
    }

    def met(chosen: dict[str, Any], name: str, value: Any) -> int:
        pairs = [sorted([(name, value), other], key=lambda each: names.index(each[0])) for other in chosen.items()]
        return sum(tuple(pair) in missing for pair in pairs)

    cases: list[Case] = []
    while missing:
        chosen: dict[str, Any] = dict(next(iter(missing)))
        for name in names:
            if name not in chosen:
                turned = [*factors[name][len(cases) % len(factors[name]) :], *factors[name]]  # for ties
                chosen[name] = max(turned, key=lambda value, n=name: met(chosen, n, value))
        for pair in itertools.combinations([(name, chosen[name]) for name in names], 2):
            missing.pop(pair, None)
        cases.append(Case(**chosen))
    return cases


def full_product() -> Iterator[Case]:
    """Every combination of the first six factors; the others take their values in turn."""
    names = list(FACTORS)
    turns = [itertools.cycle(FACTORS[name]) for name in names[6:]]
    for i, values in enumerate(itertools.product(*(FACTORS[name] for name in names[:6]))):
        for turn, name in zip(turns, names[6:], strict=True):
            if i % (1 + names.index(name)) == 0:  # so that they do not go in step
                next(turn)
        others = [next(turn) for turn in turns]
        yield Case(*values, *others)


@functools.lru_cache(maxsize=512)
def plain_results(
    case: Case, steps: int, device: str, composes: bool = False
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Of the loop in plain PyTorch: the statistics of each step, and all that was trained.

    composes: with the masks of a step without the engine, where those are others.
    """
    if steps in SHORT[:-1]:
        plain_results(case, SHORT[-1], device, composes)
        return kept[case, steps, device, composes]
    return run(Plain, case, steps, composes)


# The numbers of steps that the suite takes on one backend and another: the last also leaves what the first does.
SHORT = (4, 6)
kept: dict[tuple[Case, int, str, bool], tuple[list[list[Tensor]], list[Tensor]]] = {}


def run(
    kind: type, case: Case, steps: int, composes: bool = False, **given: Any
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """So many steps of a case, on inputs and masks that the case alone decides."""
    torch.manual_seed(0)
    trainer = twin(kind, *case.networks(), adam, **case.options(), **given)
    if kind is Plain:
        trainer.composes = composes
    statistics = []
    for i in range(steps):
        torch.manual_seed(1 + i)
        drawn = inputs(case.options())
        torch.manual_seed(1000 + i)  # of what is drawn inside
        statistics.append(list(trainer.step(*drawn)))
        if kind is TrainStep and i == 0:
            native = trainer.engine and fastgan.current_backend() != "reference"
            assert trainer.plan.startswith(NATIVE) == native, trainer.plan
        if kind is Plain and steps == SHORT[-1] and i + 1 in SHORT[:-1]:
            result = list(statistics), [t.clone() for t in state_of(trainer)]
            kept[case, i + 1, torch.get_default_device().type, composes] = result
    return statistics, [t.clone() for t in state_of(trainer)]


def check(case: Case, steps: int, **given: Any) -> None:
    """AssertionError unless a TrainStep follows the loop in plain PyTorch, in float64 to 1e-9."""
    device = torch.get_default_device().type
    composes = device == "cuda" and case.dropout > 0 and not given.get("engine", True)
    expected = plain_results(case, steps, device, composes)
    for ours, plain in zip(run(TrainStep, case, steps, **given), expected, strict=True):
        assert_close_in_float64(ours, plain, bound=1e-9)


def check_discriminator(case: Case, steps: int, fakes: int = BATCH, **given: Any) -> None:
    """The same of a DiscriminatorStep, with so many fakes in a batch."""
    network, results = case.networks()[1], []
    for kind in (DiscriminatorStep, PlainDiscriminator):
        discriminator, options = copy.deepcopy(network), case.discriminator_options()
        if kind is PlainDiscriminator:
            discriminator = in_plain_torch(discriminator)
        else:
            options.update(given)
        step = kind(discriminator, adam(discriminator.parameters()), **options)
        if kind is PlainDiscriminator:
            step.composes = not given.get("engine", True)
        statistics = []
        for i in range(steps):
            torch.manual_seed(1 + i)
            sizes = BATCH, fakes
            samples = [torch.randn(n, DATA, dtype=torch.float64) for n in sizes]
            labels = [torch.randint(case.num_classes, (n,)) if case.num_classes else None for n in sizes]
            statistics.append(list(step.step(*samples, *labels)))
        results.append((statistics, state_of(step)))
    assert_close_in_float64(*results, bound=1e-9)


def main() -> None:
    """Run the full product, or a part of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=100, help="of each case")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--composed", action="store_true", help="without the engine")
    parser.add_argument("--part", default="1/1", help="such as 2/4: every fourth case, from the second")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    torch.set_num_threads(1)
    cases, wrong = list(full_product())[part - 1 :: parts], 0
    with fastgan.use_backend(arguments.backend):
        for case in cases:
            try:
                check(case, arguments.steps, engine=not arguments.composed)
            except AssertionError as error:
                wrong += 1
                print(f"{case}: {str(error).splitlines()[0]}")
    print(f"{len(cases)} cases of {arguments.steps} steps, {wrong} of them wrong")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
