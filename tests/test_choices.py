"""How the fastest way is found: of times that are made up, and what becomes of ties, noise and a short time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from made_up_clock import MadeUpClock

from fastgan import choices, plan_ways
from fastgan.choices import Runs, Tournament, Verdict
from fastgan.plan_ways import LIBRARY, TILED, Way

WAYS = ("default", "a", "b", "c")


def tournament(clock: MadeUpClock, prepare: Callable[[str], Any] = lambda name: None, **options: Any) -> Tournament:
    def ready(name: str) -> Runs:
        prepare(name)
        return lambda times: clock.time(name, lambda: None, times)

    return Tournament("default", ready, clock, **options)


def verdict(seconds: Callable[[str], float] | Mapping[str, float], ways: tuple[str, ...] = WAYS) -> Verdict:
    clock = MadeUpClock(seconds if callable(seconds) else seconds.__getitem__)
    found = tournament(clock)
    for name in ways[1:]:
        found.challenge(name)
    return found.verdict()


@pytest.mark.parametrize("best", WAYS)
def test_each_way_wins_where_it_is_the_fastest(best: str) -> None:
    found = verdict({name: 1.0e-3 if name == best else 1.2e-3 for name in WAYS})
    assert (found.name, found.tried) == (best, 3)
    assert found.over == ("a" if best == "default" else "default")
    assert found.ratio == pytest.approx(1.2)
    assert found.spread == pytest.approx(0.0, abs=1e-9)
    assert found.seconds == pytest.approx(1e-3)


@pytest.mark.parametrize("order", list(itertools.permutations([1.0, 1.1, 1.2])))
def test_the_best_of_several_that_are_better(order: tuple[float, ...]) -> None:
    times = dict(zip("abc", (1e-3 * t for t in order), strict=True))
    found = verdict({"default": 1.5e-3, **times})
    assert found.name == min(times, key=times.__getitem__)
    assert (found.over, round(found.ratio, 6)) == ("default", 1.5)


@pytest.mark.parametrize("faster", [1.0, 1.005, 0.999])
def test_ties_keep_the_default(faster: float) -> None:
    found = verdict({"default": 1e-3, **dict.fromkeys("abc", 1e-3 / faster)})
    assert found.name == "default"
    assert found.ratio == pytest.approx(1 / faster)


@pytest.mark.parametrize("seed", range(20))
def test_noise_keeps_the_default(seed: int) -> None:
    """Of the same speed, but for noise of 30 %, as on a shared machine."""
    draw = random.Random(seed)
    assert verdict(lambda name: 1e-3 * draw.uniform(1, 1.3)).name == "default"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_clearly_faster_wins_in_spite_of_noise(seed: int) -> None:
    draw = random.Random(seed)
    times = {"default": 1e-3, "a": 1e-3, "b": 0.6e-3, "c": 0.95e-3}
    assert verdict(lambda name: times[name] * draw.uniform(1, 1.2)).name == "b"


@pytest.mark.parametrize("seed", range(10))
def test_never_slower_than_the_best_by_more_than_3_percent_beyond_the_spread(seed: int) -> None:
    draw = random.Random(seed)
    ways = ("default", *(f"way {i}" for i in range(12)))
    times = {name: 1e-3 * draw.uniform(0.8, 1.2) for name in ways}
    noise = draw.choice([0.0, 0.01, 0.05])
    found = verdict(lambda name: times[name] * draw.uniform(1, 1 + noise), ways)
    assert times[found.name] <= min(times.values()) * (1.03 + max(noise, found.spread))


def test_many_small_wins_must_add_up() -> None:
    """Each way looks 2 % faster than the one before it, and the last is no faster than the default."""
    ran: list[str] = []

    def drifting(name: str) -> float:
        ran.append(name)
        is_confirming = "c" in ran and "default" in ran[ran.index("c") :]
        return 1e-3 if is_confirming else {"default": 1e-3, "a": 0.98e-3, "b": 0.96e-3, "c": 0.94e-3}[name]

    found = verdict(drifting)
    assert (found.name, found.over) == ("default", "c")


def test_the_turns_alternate_and_few_are_enough_for_what_is_clear() -> None:
    clock = MadeUpClock({"default": 1.9e-3, "a": 2.5e-3, "b": 2e-3, "c": 5e-3}.__getitem__)
    found = tournament(clock)
    found.challenge("a")
    assert clock.turns == ["default", "a", "a", "default", "default", "a"]
    clock.turns.clear()
    found.challenge("b")
    assert clock.turns.count("b") == clock.turns.count("default") == 3
    clock.turns.clear()
    found.challenge("c")  # far behind
    assert clock.turns == ["default", "c"]


def test_short_runs_take_turns_of_many_and_long_ones_of_one() -> None:
    for seconds, least in ((1e-5, 50), (5e-4, 4), (0.1, 1)):
        counts: list[int] = []

        class Counting(MadeUpClock):
            def time(self, name: str, run: Callable[[], object], times: int, counts: list[int] = counts) -> float:
                counts.append(times)
                return super().time(name, run, times)

        clock = Counting(lambda name, seconds=seconds: seconds)
        tournament(clock).challenge("a")
        assert max(counts) == least


@pytest.mark.parametrize("seconds", [1e-5, 1e-3, 0.01, 0.05, 0.1, 0.3, 1.0])
def test_the_budget_is_kept(seconds: float) -> None:
    """However long a run: the default's own first one, what was begun in time, and the race that confirms."""
    for best in ("default", "way 39"):
        clock = MadeUpClock(lambda name, best=best: seconds * (1 if name == best else 1.05))
        found = tournament(clock)
        for i in range(40):
            found.challenge(f"way {i}")
        result = found.verdict()
        assert result.took <= choices.BUDGET * (1 + 1 / 3) + 5 * seconds
        assert result.took == pytest.approx(clock.now())


def test_what_takes_longer_than_there_is_time_is_not_begun() -> None:
    clock = MadeUpClock(lambda name: 0.5)

    def prepare(name: str) -> None:
        assert name == "default"
        clock.time(name, lambda: None, 1)

    found = tournament(clock, prepare)
    assert not found.challenge("a")
    result = found.verdict()
    assert (result.name, result.over, result.tried, result.took) == ("default", "", 0, 0.5)


def test_what_is_far_slower_is_not_timed() -> None:
    """Already its first run, to warm up, takes longer than all turns of the default would."""
    clock = MadeUpClock({"default": 0.01, "a": 0.6, "b": 0.009}.__getitem__)
    found = tournament(clock, lambda name: clock.time(name, lambda: None, 1))
    assert not found.challenge("a")
    assert clock.turns.count("a") == 1
    found.challenge("b")
    assert found.verdict().took < choices.BUDGET


def test_the_first_run_on_a_device_does_not_count() -> None:
    """What it loads, the step itself would have to load."""

    class Device(MadeUpClock):
        counts_first = False

    clock = Device(lambda name: {"cold": 5.0, "default": 1e-3, "a": 0.5e-3}[name])
    found = tournament(clock, lambda name: name == "default" and clock.time("cold", lambda: None, 1))
    assert found.challenge("a")
    assert found.verdict().name == "a"


@pytest.mark.parametrize("error", [RuntimeError("no such kernel"), MemoryError(), AssertionError()])
def test_a_way_that_fails_is_out(error: Exception) -> None:
    clock = MadeUpClock({"default": 2e-3, "a": 1e-3, "b": 1.5e-3}.__getitem__)

    def prepare(name: str) -> None:
        if name == "a":
            raise error

    found = tournament(clock, prepare)
    assert [found.challenge(name) for name in ("a", "b")] == [False, True]
    assert found.verdict().name == "b"


def test_a_way_that_fails_while_it_is_timed_is_out() -> None:
    def seconds(name: str) -> float:
        if name == "a":
            raise RuntimeError("out of memory")
        return 2e-3

    clock = MadeUpClock(seconds)
    found = tournament(clock)
    assert not found.challenge("a")
    assert found.verdict().name == "default"


PRODUCTS = (((0, 64, 8, 3), LIBRARY), ((1, 64, 3, 8), TILED), ((2, 8, 3, 64), 4))


@pytest.mark.parametrize(
    "way",
    [
        Way(),
        Way(composed="library"),
        Way(composed="narrow"),
        Way(narrow=True),
        Way(narrow=False, products=PRODUCTS),
        Way(products=PRODUCTS[:1]),
    ],
)
def test_the_name_of_a_way_tells_it(way: Way) -> None:
    assert plan_ways.parse(way.name) == way
    assert way.words()


def test_names_and_words() -> None:
    way = Way(narrow=False, products=PRODUCTS)
    assert way.name == ("layered; forward 64x8x3 library; input gradient 64x3x8 tiled; weight gradient 8x3x64 in 4")
    assert way.words() == "a launch a layer and 2 products tiled and 1 product by the library"
    assert Way().words() == "the default kernels"
    changed = way.with_product((0, 64, 8, 3), 16)
    assert dict(changed.products) == {**dict(PRODUCTS), (0, 64, 8, 3): 16}


@pytest.mark.parametrize(
    "text",
    ["", "fast", "composed", "composed tiled", "forward 1x2x3", "forward 1x2 library", "forward 1x2x3 in 0",
     "forward 1x2x3 in -1", "forward axbxc tiled", "backward 1x2x3 tiled", "narrow;layered", "forward 1x2x3 in 04"],
)  # fmt: skip
def test_what_names_no_way_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a way that a step can take"):
        plan_ways.parse(text)
