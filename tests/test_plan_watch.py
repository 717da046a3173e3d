"""A plan believes nothing: whatever is done to the user's objects, the engine, the composed step and plain PyTorch
agree, in float64; where one refuses, so do the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conformance import assert_close_in_float64
from conftest import run_on_or_skip
from surgery import networks, outcome, run, trainer
from surgery_of_training import SURGERIES

NATIVE = "the whole step as one native call"


@pytest.fixture(params=("auto", "cpu", "reference", "simt"))
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    with run_on_or_skip(request.param) as name:
        yield name


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.deep_on("cpu", "simt", "reference")
@pytest.mark.full_on("cpu")  # whose engine is that of auto
@pytest.mark.parametrize("before", [True, False], ids=["first", "between"])
@pytest.mark.parametrize("name", SURGERIES)
def test_three_ways_agree(place: str, name: str, before: bool) -> None:
    results = {}
    for way in ("engine", "composed", "plain"):
        results[way] = outcome(way, SURGERIES[name], before)
        torch.set_default_dtype(torch.float32)
    state, error = results["engine"]
    assert error == results["composed"][1]
    # torch.optim raises from within; what TrainStep checks first has its own sentence.
    assert bool(error) == bool(results["plain"][1]), (error, results["plain"][1])
    # An average in the generator's own memory depends on how it is written.
    others = ("composed",) if error or name == "average_is_the_generators_memory" else ("composed", "plain")
    for way in others:
        assert len(state) == len(results[way][0])
        for ours, theirs in zip(state, results[way][0], strict=True):
            assert_close_in_float64(ours, theirs, 1e-9)


def test_a_plan_is_made_at_all(place: str) -> None:
    """Without a surgery, or after one that means nothing, the step is one native call."""
    if place == "reference":
        pytest.skip("the reference has no engine")
    for name in ("attribute_of_no_meaning", "learning_rate", "average_is_loaded", "weights_are_views_of_one_buffer"):
        step = trainer("engine")
        run(step, 2, 5)
        assert step.plan.startswith(NATIVE), name
        SURGERIES[name](step)
        run(step, 2, 5)
        assert step.plan.startswith(NATIVE), name
    assert networks()[0][1].num_batches_tracked == 0
