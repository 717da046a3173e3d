"""All pairs of losses, penalties, activations, dropout, packing, labels and the rest, against the plain loop."""

from __future__ import annotations

import copy
import functools
import itertools
import os

import pytest
import torch
from allocations import assert_statistics_alone_are_allocated
from conformance import as_double, overall_error
from extent import extent, one_in
from plain_step import Plain, adam, inputs, state_of, twin
from step_cases import FACTORS, OF_DISCRIMINATOR, Case, all_pairs, check, check_discriminator, full_product
from torch.optim import SGD

from fastgan import DiscriminatorStep, TrainStep

PAIRS = all_pairs()
PAIRS_OF_DISCRIMINATOR = all_pairs({name: FACTORS[name] for name in OF_DISCRIMINATOR})

# Tensors this small gain nothing from a second thread, and on a busy machine wait for it.
pytestmark = pytest.mark.usefixtures("one_thread")


def on_both_paths(cases: list[Case]) -> pytest.MarkDecorator:
    """Each case on the engine, and one in three composed of ops, which have tests of their own."""
    ways = [pytest.param(case, True, id=f"{case}-engine") for case in cases]
    ways += [
        pytest.param(case, False, id=f"{case}-composed", marks=pytest.mark.full if i % 3 else ())
        for i, case in enumerate(cases)
    ]
    return pytest.mark.parametrize(("case", "engine"), ways)


def steps_on(backend: str) -> int:
    """Two periods of the lazy penalties, whose steps test_all_pairs_in_100_steps goes on from; the host model of CUDA
    takes its time."""
    return 4 if backend == "simt" else 6


@on_both_paths(PAIRS)
def test_all_pairs(backend: str, case: Case, engine: bool) -> None:
    check(case, steps_on(backend), engine=engine)


@pytest.mark.deep
@pytest.mark.parametrize("case", one_in(3, PAIRS), ids=str)
def test_all_pairs_in_100_steps(compiled: None, case: Case) -> None:
    for engine in (True, False):  # of one test, so that the plain loop runs once for both
        check(case, 100, engine=engine)


@functools.cache
def every_case() -> list[Case]:
    return list(full_product())


@pytest.mark.deep
@pytest.mark.parametrize(("loss", "penalty"), list(itertools.product(FACTORS["loss"], FACTORS["penalty"])))
def test_a_sample_of_the_full_product(compiled: None, loss: str, penalty: str) -> None:
    """Two steps of every 54th, in the full extent of every eleventh; `python tests/step_cases.py` runs all of it, in as
    many steps as one likes."""
    cases = [case for case in every_case() if (case.loss, case.penalty) == (loss, penalty)]
    assert len(cases) == 9 * 2 * 3 * 2
    for case in cases[len(loss + penalty) % 11 :: extent(54, full=11)]:
        check(case, 2)


@on_both_paths(PAIRS_OF_DISCRIMINATOR)
def test_all_pairs_of_the_discriminator_alone(backend: str, case: Case, engine: bool) -> None:
    check_discriminator(case, steps_on(backend), engine=engine)


@pytest.mark.parametrize("case", [c for c in PAIRS_OF_DISCRIMINATOR if c.loss != "relativistic"], ids=str)
def test_batches_of_two_sizes(backend: str, case: Case) -> None:
    if "GP" in case.penalty or case.penalty == "all":
        pytest.skip("the WGAN-GP penalty pairs real data and fakes")
    check_discriminator(case, 4, fakes=12)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_a_single_step_in_float32(backend: str, case: Case) -> None:
    """Of gradient descent, which does not magnify rounding as Adam does: at most twice PyTorch's own error."""
    make = functools.partial(SGD, lr=0.5)
    options, pair = case.options(), case.networks(torch.float32)
    given = inputs(options, torch.float32)
    results = []
    for kind, dtype in ((TrainStep, torch.float32), (Plain, torch.float32), (Plain, torch.float64)):
        trainer = twin(kind, *(copy.deepcopy(network).to(dtype) for network in pair), make, **options)
        if kind is Plain:
            trainer.draws, trainer.composes = torch.float32, True  # the engine has no gradient descent
        torch.manual_seed(3)
        stats = trainer.step(*(given if dtype is torch.float32 else as_double(given)))
        results.append([*stats, *state_of(trainer)])
    ours, plain, exact = results
    assert overall_error(ours, exact) <= 2 * overall_error(plain, exact) + 1e-6


@pytest.mark.parametrize("case", one_in(3, PAIRS), ids=str)
def test_nothing_is_allocated_but_the_statistics(engine_backend: str, case: Case) -> None:
    """In twenty steps after the first six, in which every penalty that is lazy has been due; on the host model in six,
    in which each is due again."""
    times = 6 if engine_backend == "simt" else 20
    options = case.options()
    pair = [network.float() for network in case.networks()]
    whole = twin(TrainStep, *copy.deepcopy(pair), adam, **options)
    alone = DiscriminatorStep(pair[1], adam(pair[1].parameters()), **case.discriminator_options())
    real, labels, _ = inputs(options, torch.float32)
    fake = torch.randn_like(real)
    for step, given in ((whole, (real, labels)), (alone, (real, fake, labels))):
        for _ in range(6):
            step.step(*given)
        assert "one native call" in step.plan
        assert_statistics_alone_are_allocated(functools.partial(step.step, *given), times)


def test_the_cases_hold_every_pair() -> None:
    """What is missing would be missed by nobody."""
    found = {
        pair for case in PAIRS for pair in itertools.combinations([(name, getattr(case, name)) for name in FACTORS], 2)
    }
    pairs = itertools.combinations(FACTORS, 2)
    assert len(found) == sum(len(FACTORS[a]) * len(FACTORS[b]) for a, b in pairs)
    assert len(set(map(str, PAIRS))) == len(PAIRS)
    assert len(PAIRS) < 100
    assert os.environ.get("FASTGAN_TEST_BACKENDS") or len(set(full_product())) == 6 * 8 * 9 * 2 * 3 * 2
