"""Which way a TrainStep takes: as the clock says, with the same results up to rounding, and nothing else touched."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import tuned_step
from conformance import assert_close_in_float64, assert_within_bound
from conftest import run_on_or_skip
from made_up_clock import MadeUpClock
from plain_step import BATCH, DATA, LATENT, Plain, adam, inputs, networks, state_of, twin
from torch import Tensor, nn
from tuned_step import clear, run, the_choice, trained

import fastgan
from fastgan import TrainStep, choices, device_cache, plan_scratch, plan_ways, tuning
from fastgan.plan_ways import LIBRARY, TILED, Way
from fastgan.step_options import StepParts, read

# The surroundings of every test here: a cache of its own, one thread.
pytestmark = pytest.mark.usefixtures("cache", "one_thread")
cache, clock, no_clock, on_cpu = tuned_step.cache, tuned_step.clock, tuned_step.no_clock, tuned_step.on_cpu

DTYPES = (torch.float32, torch.float64)
# On simt, of the networks of plain_step.
ONE_TILED = "forward 12x8x4 tiled"
COMPOSED = ("composed library", "composed narrow")


@pytest.fixture(params=("auto", "cpu", "simt"))
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    with run_on_or_skip(request.param) as name:
        yield name


def all_ways(place: str, clock: Callable[..., MadeUpClock]) -> list[str]:
    """The names of the ways that were timed, where all of them are alike."""
    made = clock(seconds=lambda name: 1e-5)
    trained(1)
    return list(dict.fromkeys(made.turns))


def layers_launched(place: str) -> dict[Any, bool]:
    """The products of a step, each with whether it is the library's by default."""
    step = trained(1)
    run(step, 1)
    return step._plan.taken()[1]


def test_the_ways_that_are_timed(place: str, clock: Callable[..., MadeUpClock]) -> None:
    ways = all_ways(place, clock)
    assert ways[0] == "default"
    if place != "simt":
        assert ways == ["default", *COMPOSED]
        return
    # In float64 networks do not fit the narrow kernels, and products this small are the library's by default: the ways
    # are to tile all of them, and each.
    products = layers_launched(place)
    assert len(products) == 10  # D's last layer is one launch with the loss, but for its update
    assert all(products.values())
    tiled = {tuple((p, TILED) for p in of) for of in (sorted(products), *([p] for p in products))}
    assert {plan_ways.parse(name) for name in ways[1:]} == {Way(products=of) for of in tiled}


def test_narrow_networks(clock: Callable[..., MadeUpClock]) -> None:
    """In float32 they fit; without clusters the ways are a launch a layer, and of that all products of either kind."""
    with run_on_or_skip("simt", largest_cluster=1):
        made = clock(seconds=lambda name: 1e-5)
        pair = networks(dtype=torch.float32)
        torch.manual_seed(5)
        given = inputs({}, torch.float32)
        narrow = twin(TrainStep, *pair, adam)
        results = [narrow.step(*given)]
        assert narrow._plan.taken() == (True, {})
        ways = list(dict.fromkeys(made.turns))
        assert ways[:2] == ["default", "layered"]
        assert {name.partition("; ")[0] for name in ways[2:]} == {"layered"}
        assert len(ways) == 3  # by default they are the library's
        clear()
        clock("layered")
        layered = twin(TrainStep, *pair, adam)
        results.append(layered.step(*given))
        assert the_choice(layered).way == "layered"
        assert layered._plan.taken()[1]
        plain, exact = (twin(Plain, *(n.to(d) for n in map(copy.deepcopy, pair)), adam) for d in DTYPES)
        torchs, exactly = plain.step(*given), exact.step(given[0].double(), None, given[2].double())
        for result in results:
            assert_within_bound(list(result), list(torchs), list(exactly))


def test_narrow_networks_of_a_device_with_clusters(clock: Callable[..., MadeUpClock]) -> None:
    """A launch a layer is the default there, and the narrow kernels a way of their own."""
    with run_on_or_skip("simt"):
        pair = networks(dtype=torch.float32)
        given = inputs({}, torch.float32)
        for best, is_narrow in (("default", False), ("narrow", True)):
            clear()
            clock(best)
            step = twin(TrainStep, *pair, adam)
            step.step(*given)
            assert the_choice(step).way == best
            assert step._plan.taken()[0] is is_narrow


@pytest.mark.parametrize("best", ["default", *COMPOSED])
def test_each_way_on_the_cpu(best: str, on_cpu: None, clock: Callable[..., MadeUpClock]) -> None:
    clock(best)
    follows_the_plain_loop(best)


TILED_ALONE = pytest.param("tiled", marks=pytest.mark.deep)


@pytest.mark.parametrize("best", ["default", "library and tiled", TILED_ALONE, "one product", "one in 4 parts"])
def test_each_way_on_cuda(best: str, clock: Callable[..., MadeUpClock]) -> None:
    with run_on_or_skip("simt"):
        clock("default")
        products = sorted(layers_launched("simt"))
        one = max(products, key=lambda p: p[1] * p[2] * p[3])
        all_tiled = Way(products=tuple((p, TILED) for p in products))
        one_tiled = Way(products=((one, TILED),))
        way = {
            "default": Way(),
            "tiled": all_tiled,
            "library and tiled": all_tiled.with_product(one, LIBRARY),
            "one product": one_tiled,
            "one in 4 parts": one_tiled.with_product(one, 4),
        }[best]
        # On the way there, each is a little better than the one before it.
        times = {"default": 2e-3, way.name: 1e-3}
        if "parts" in best or "and" in best:
            times[(one_tiled if "parts" in best else all_tiled).name] = 1.5e-3
        clear()
        clock(seconds=lambda name: times.get(name, 2e-3 if best == "default" else 3e-3))
        follows_the_plain_loop(way.name)


def follows_the_plain_loop(best: str) -> None:
    torch.manual_seed(2)
    pair = networks()
    ours, plain = (twin(kind, *pair, adam, ema_decay=0.9) for kind in (TrainStep, Plain))
    results = [run(trainer, ema_decay=0.9) for trainer in (ours, plain)]
    assert_close_in_float64(*results, bound=1e-9)
    assert_close_in_float64(state_of(ours), state_of(plain), bound=1e-8)
    choice = the_choice(ours)
    assert choice.way == best
    assert choice.over == "default" if best != "default" else choice.over != "default"
    assert choice.ratio == pytest.approx(2.0, rel=0.1)
    words = plan_ways.parse(best).words()
    assert f"; at batch {BATCH} {words} ({choice.ratio:.2f} times as fast as " in ours.plan
    assert ours.plan.endswith(", measured here)")


def test_bitwise_the_same_with_a_cache(place: str, clock: Callable[..., MadeUpClock], request: Any) -> None:
    """Whatever another measurement would have said, also in another process's step, of another batch first."""
    best = "composed library" if place != "simt" else ONE_TILED
    clock(best)
    first = trained()
    request.getfixturevalue("no_clock")
    second = trained()
    assert the_choice(second) == the_choice(first)
    assert the_choice(second).way == best
    assert all(map(torch.equal, state_of(first), state_of(second)))
    assert first.plan == second.plan


def test_the_ways_differ_in_bits(clock: Callable[..., MadeUpClock], on_cpu: None) -> None:
    """Else the test above could not tell whether a choice is kept."""
    pair = networks(dtype=torch.float32)
    states = []
    for best in ("default", *COMPOSED):
        clock(best)
        step = twin(TrainStep, *pair, adam)
        torch.manual_seed(4)
        for _ in range(20):
            step.step(*inputs({}, torch.float32))
        states.append(state_of(step))
        clear()
    assert not all(map(torch.equal, states[0], states[1]))


def test_nothing_is_touched(place: str, clock: Callable[..., MadeUpClock]) -> None:
    """Neither a tensor, a gradient, an optimizer's state nor a random state; modules are not called."""
    generator = nn.Sequential(nn.Linear(LATENT, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, DATA))
    discriminator = nn.Sequential(nn.Linear(DATA, 8), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(8, 1), nn.Sigmoid())
    pair = generator.double(), discriminator.double()
    made = clock("default")
    for has_state in (False, True):
        step = twin(TrainStep, *pair, adam, ema_decay=0.9)
        if has_state:
            step._choices = None
            step._plan, step._plan_again = None, 0
            run(step, 2)
            step._choices = tuning.Choices()
            step._plan, step._plan_again = None, 0
        modules = (step.generator, step.discriminator, step.ema)
        for parameter in step.generator.parameters():
            parameter.grad = torch.ones_like(parameter)
        tensors = [*state_of(step), *(p.grad for p in step.generator.parameters())]
        real, labels, noise = inputs({})
        tensors += [real, noise]
        before = [(t.clone(), t._version, t.data_ptr()) for t in tensors]
        held = [list(m.parameters()) for m in modules]
        states = [len(o.state) for o in (step.g_optimizer, step.d_optimizer)]
        groups = copy.deepcopy([o.state_dict()["param_groups"] for o in (step.g_optimizer, step.d_optimizer)])
        random_state = torch.get_rng_state()
        plan = step._current_plan()
        with pytest.raises(fastgan.step.Undecided):
            plan.run(real, labels, noise)
        made.turns.clear()
        assert step._choices.decide(
            plan, fastgan.step._copy_of, (real, labels, noise), read(StepParts, step), step._options()
        )
        assert len(made.turns) > 4
        after = [*state_of(step), *(p.grad for p in step.generator.parameters()), real, noise]
        for (value, version, place_of), tensor in zip(before, after, strict=True):
            assert torch.equal(value, tensor)
            assert (version, place_of) == (tensor._version, tensor.data_ptr())
        assert all(a is b for m, ps in zip(modules, held, strict=True) for a, b in zip(m.parameters(), ps, strict=True))
        assert states == [len(o.state) for o in (step.g_optimizer, step.d_optimizer)]
        assert groups == [o.state_dict()["param_groups"] for o in (step.g_optimizer, step.d_optimizer)]
        assert torch.equal(random_state, torch.get_rng_state())
        assert plan.is_current()
        clear()


def test_a_measured_run_is_the_run_without(place: str, clock: Callable[..., MadeUpClock], monkeypatch: Any) -> None:
    """Where the default is the fastest, with dropout and noise that the step draws."""

    def results() -> list[Tensor]:
        torch.manual_seed(0)
        drop = nn.Sequential(nn.Linear(DATA, 8), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(8, 1)).double()
        step = twin(TrainStep, networks()[0], drop, adam)
        for _ in range(3):
            step.step(torch.randn(BATCH, DATA, dtype=torch.float64))
        return [*state_of(step), torch.get_rng_state()]

    clock("default")
    tuned = results()
    monkeypatch.setattr(choices, "_is_on", False)
    assert all(map(torch.equal, tuned, results()))


def test_what_lies_in_a_module_is_not_copied(on_cpu: None, clock: Callable[..., MadeUpClock]) -> None:
    clock("default")
    generator, discriminator = networks()
    generator.owner = threading.Lock()  # which cannot be copied
    step = TrainStep(generator, discriminator, adam(generator.parameters()), adam(discriminator.parameters()))
    run(step, 1)
    assert the_choice(step).over


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.Adam, lr=1e-3, amsgrad=True, weight_decay=0.1, maximize=True),
        functools.partial(torch.optim.AdamW, lr=1e-3, fused=True),
        functools.partial(torch.optim.Adam, lr=torch.tensor(1e-3)),
        lambda ps: (lambda p: torch.optim.Adam([{"params": p[:1], "lr": 1e-2}, {"params": p[1:]}]))(list(ps)),
    ],
    ids=["amsgrad", "AdamW, fused", "lr a tensor", "two groups"],
)
def test_optimizers(make: Any, place: str, clock: Callable[..., MadeUpClock]) -> None:
    clock("default")
    step = twin(TrainStep, *networks(), make)
    run(step, 2)
    assert the_choice(step).over
    copied = plan_scratch.copies(read(StepParts, step))
    for ours, theirs in ((step.g_optimizer, copied.g_optimizer), (step.d_optimizer, copied.d_optimizer)):
        own = [t for s in ours.state_dict()["state"].values() for t in s.values()]
        other = [t for s in theirs.state_dict()["state"].values() for t in s.values()]
        assert all(map(torch.equal, own, other))
        assert not {t.data_ptr() for t in own} & {t.data_ptr() for t in other}
        options = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in ours.param_groups]
        assert options == [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in theirs.param_groups]


def test_other_steps(place: str, clock: Callable[..., MadeUpClock]) -> None:
    """With labels, an average, several D steps; and the steps with the R1 penalty are composed in the usual way."""
    made = clock(seconds=lambda name: 1e-3 if name in COMPOSED or name.count("tiled") == 1 else 2e-3)
    options = {"num_classes": 3, "d_steps": 2, "ema_decay": 0.9, "r1_gamma": 0.5, "r1_every": 2}
    torch.manual_seed(2)
    pair = networks(3)
    ours, plain = (twin(kind, *pair, adam, **options) for kind in (TrainStep, Plain))
    results = [run(trainer, **options) for trainer in (ours, plain)]
    assert_close_in_float64(*results, bound=1e-9)
    assert_close_in_float64(state_of(ours), state_of(plain), bound=1e-8)
    assert made.turns
    assert the_choice(ours).way != "default"


def test_each_size_of_batch_has_its_own(on_cpu: None, clock: Callable[..., MadeUpClock], request: Any) -> None:
    step = trained(0)
    clock("composed library")
    step.step(torch.randn(6, DATA, dtype=torch.float64))
    clock("default")
    step.step(torch.randn(5, DATA, dtype=torch.float64))
    request.getfixturevalue("no_clock")
    for _ in range(2):
        for batch in (6, 5):
            step.step(torch.randn(batch, DATA, dtype=torch.float64))
    assert [c.way for c in step._choices.made.values()] == ["composed library", "default"]
    assert "at batch 6 composed" in step.plan
    assert "at batch 5 the default" in step.plan
    step.discriminator[0].weight.requires_grad_(False)  # another plan, another choice
    clock("composed narrow")
    step.step(torch.randn(6, DATA, dtype=torch.float64))
    assert [c.way for c in step._choices.made.values()] == ["composed library", "default", "composed narrow"]


def test_a_way_that_runs_out_of_memory_is_out(place: str, clock: Callable[..., MadeUpClock]) -> None:
    bad = "composed library" if place != "simt" else ONE_TILED

    def seconds(name: str) -> float:
        if name == bad:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1e-3

    clock(seconds=seconds)
    assert the_choice(trained(2)).way == "default"


def test_no_copies_no_choice(
    place: str, clock: Callable[..., MadeUpClock], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    made = clock("default")

    def fail(parts: StepParts) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(plan_scratch, "copies", fail)
    step = trained(2)
    assert not made.turns
    assert "at batch 6 the default kernels (nothing could be timed: OutOfMemoryError)" in step.plan
    assert device_cache.load(tuning.CACHE, torch.device("cpu")) == {}  # there may be memory next time


def test_deterministic_algorithms(
    on_cpu: None, clock: Callable[..., MadeUpClock], no_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    step = trained(1)
    assert "(nothing is timed where torch.use_deterministic_algorithms is on)" in step.plan
    monkeypatch.undo()


def test_what_a_cuda_graph_is_captured_of_is_not_timed(
    on_cpu: None, no_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trained(0)
    plan = step._current_plan()
    with monkeypatch.context() as patch:
        patch.setattr(plan, "device", torch.device("cuda"))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        run(step, 1)
    assert step._choices.made == {}
    assert step.plan == plan.text


def test_two_threads(on_cpu: None, clock: Callable[..., MadeUpClock]) -> None:
    step = trained(0)
    errors: list[str] = []

    def seconds(name: str) -> float:
        if not errors:
            with pytest.raises(RuntimeError, match="another thread is in this TrainStep") as raised:
                run(step, 1)
            errors.append(str(raised.value))
        return 1e-3

    clock(seconds=seconds)
    run(step, 1)
    assert errors


def test_long_steps_take_the_default(on_cpu: None, no_clock: None) -> None:
    generator, discriminator = nn.Linear(8, 4096), nn.Sequential(nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 1))
    generator = nn.Sequential(generator)
    step = TrainStep(generator, discriminator, adam(generator.parameters()), adam(discriminator.parameters()))
    with torch.no_grad():
        plan = step._current_plan()
    assert 16 * 2048 * plan.weights > tuning._MOST_FLOPS_A_THREAD
    real, noise = torch.randn(2048, 4096), torch.randn(2, 2048, 8)
    with pytest.raises(fastgan.step.Undecided):
        plan.run(real, None, noise)
    step._choices.decide(plan, fastgan.step._copy_of, (real, None, noise), read(StepParts, step), step._options())
    assert "(a step takes too long for others to be timed beside it)" in step.plan
