"""Timing contenders in alternation, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Contender = Callable[[], object]

_BESIDE = ""  # among the labels of contenders


@dataclass(frozen=True)
class Timing:
    """Seconds a call of one contender, one figure a round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """The distance between the quartiles over the median."""
        if len(self.rounds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return (high - low) / self.median


@dataclass(frozen=True)
class Case:
    """Contenders that compute the same thing.

    Attributes:
        name: such as "discriminator_loss 64x1 float32 forward+backward".
        contenders: label to a callable; the first is fastgan's, the last is what it is compared with.
        check: raises AssertionError unless the contenders agree.
        bytes: least bytes that a call must move, where memory bounds it.
        flops: floating-point operations of a call, where arithmetic does.
        dtype: of the products, whose ceiling depends on it.
        dtypes: by label, of a contender whose products are of another dtype.
        synchronize: by label, what waits for the calls of a contender that returns before its work is done; called
            once a turn, as a loop of training steps waits for its end alone.
        facts: of the case, for the record, such as its batch.
        steps: how many a call takes, where some differ from others; times are given, and work is counted, for one.
        refusals: by label, why a peer that was chosen cannot do it.
        beside: what has a turn in each round too, of so many operations (`beside_flops`): the rate that the machine
            has just then, which the rounds' rates are held against.
        capturable: whether a CUDA graph may stand for the calls; not where they draw random numbers or step an
            optimizer, of which a failed capture would leave the state undefined.
    """

    name: str
    contenders: dict[str, Contender]
    check: Callable[[], None]
    bytes: float = 0.0
    flops: float = 0.0
    dtype: torch.dtype = torch.float32
    capturable: bool = True
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    synchronize: Mapping[str, Contender] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1
    refusals: Mapping[str, str] = field(default_factory=dict)
    beside: Contender | None = None
    beside_flops: float = 0.0


@dataclass
class Result:
    """What was measured of a case; `timed_by`, where there is more than one way to time."""

    case: Case
    timings: dict[str, Timing] = field(default_factory=dict)
    timed_by: str = ""
    beside: Timing | None = None

    def share_of_beside(self, label: str) -> float:
        """The rate of a contender over that of what ran beside it: the median over rounds of that round's share."""
        assert self.beside is not None
        work = self.case.flops / self.case.beside_flops
        pairs = zip(self.beside.rounds, self.timings[label].rounds, strict=True)
        return statistics.median(work * product / ours for product, ours in pairs)

    def ratio(self, label: str, peer: str | None = None) -> float:
        """How many times faster than a peer (the last contender): the median over rounds of that round's ratio."""
        return statistics.median(self._ratios(label, peer))

    def verdict(self, label: str) -> str:
        """`faster` or `slower`; with a question mark where the quartiles of the rounds' ratios lie around 1, or where
        one round alone cannot tell."""
        ratios = self._ratios(label)
        word = "slower" if statistics.median(ratios) < 1 else "faster"
        if len(ratios) > 1:
            low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
            if not low <= 1 <= high:
                return word
        return word + "?"

    def _ratios(self, label: str, peer: str | None = None) -> list[float]:
        *_, last = self.timings
        pairs = zip(self.timings[peer or last].rounds, self.timings[label].rounds, strict=True)
        return [theirs / ours for theirs, ours in pairs]


def single(name: str, work: Contender) -> Case:
    """A case of one contender, `run`, which nothing is compared with."""
    return Case(name, {"run": work}, lambda: None)


def check(case: Case) -> None:
    """Raise AssertionError, with the case's name, unless its contenders compute the same thing."""
    try:
        case.check()
    except AssertionError as error:
        raise AssertionError(f"{case.name}: the contenders disagree: {error}") from error


def measure(
    case: Case,
    *,
    rounds: int,
    seconds: float,
    budget: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Check a case, then time its contenders in alternation.

    Args:
        case: what to measure.
        rounds: how often each contender has its turn.
        seconds: how long a turn should take; at least one call.
        budget: seconds that the rounds may take together; fewer are run where they would take longer, at least one.
        clock: monotonic, in seconds.

    Raises:
        AssertionError: the contenders do not compute the same thing; the message names the case.
    """
    check(case)
    calls: dict[str, int] = {}
    one_round = 0.0
    turns = dict(case.contenders) if case.beside is None else {**case.contenders, _BESIDE: case.beside}
    for label, contender in turns.items():
        synchronize = case.synchronize.get(label, _nothing)
        calls[label], turn = _calls_in(lambda work=contender, end=synchronize: (work(), end()), seconds, clock)
        one_round += turn
    if rounds * one_round > budget:
        rounds = max(1, int(budget / one_round))
    times: dict[str, list[float]] = {label: [] for label in turns}
    for i in range(rounds):
        for label in _rotated(list(turns), i):
            start = clock()
            for _ in range(calls[label]):
                turns[label]()
            case.synchronize.get(label, _nothing)()
            steps = 1 if label == _BESIDE else case.steps
            times[label].append((clock() - start) / (calls[label] * steps))
    timings = {label: Timing(tuple(values)) for label, values in times.items()}
    return Result(case, beside=timings.pop(_BESIDE, None), timings=timings)


def _nothing() -> None: ...


def _calls_in(contender: Contender, seconds: float, clock: Callable[[], float]) -> tuple[int, float]:
    """How many calls fill the time, and what they take; the calls made to find out are the warm-up."""
    calls, spent, first = 0, 0.0, 0.0
    while calls < 100_000:
        start = clock()
        contender()
        last = clock() - start
        calls, spent, first = calls + 1, spent + last, first if calls else last
        # The first call may have set something up; one that outlasts 20 turns would do so without.
        if spent >= seconds / 2 and (calls > 1 or last > 20 * seconds):
            break
    # The mean, not the fastest: where cores are contended, turns of the fastest call's count would never end.
    usual = (spent - first) / (calls - 1) if calls > 1 else first
    filling = max(1, int(seconds / usual)) if usual > 0 else calls
    return filling, filling * usual


def _rotated(labels: Sequence[str], by: int) -> list[str]:
    """Another contender goes first in each round."""
    by %= len(labels)
    return [*labels[by:], *labels[:by]]
