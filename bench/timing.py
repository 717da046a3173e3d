"""Timing contenders in alternation, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Contender = Callable[[], object]


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
    """

    name: str
    contenders: dict[str, Contender]
    check: Callable[[], None]
    bytes: float = 0.0
    flops: float = 0.0


@dataclass
class Result:
    """What was measured of a case."""

    case: Case
    timings: dict[str, Timing] = field(default_factory=dict)

    def ratio(self, label: str) -> float:
        """How many times faster than the last contender: the median over rounds of that round's ratio."""
        *_, peer = self.timings.values()
        pairs = zip(peer.rounds, self.timings[label].rounds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def measure(
    case: Case,
    *,
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Check a case, then time its contenders in alternation.

    Args:
        case: what to measure.
        rounds: how often each contender has its turn.
        seconds: how long a turn should take; at least one call.
        clock: monotonic, in seconds.

    Raises:
        AssertionError: the contenders do not compute the same thing; the message names the case.
    """
    try:
        case.check()
    except AssertionError as error:
        raise AssertionError(f"{case.name}: the contenders disagree: {error}") from error
    calls = {label: _calls_in(contender, seconds, clock) for label, contender in case.contenders.items()}
    times: dict[str, list[float]] = {label: [] for label in case.contenders}
    for i in range(rounds):
        for label in _rotated(list(case.contenders), i):
            start = clock()
            for _ in range(calls[label]):
                case.contenders[label]()
            times[label].append((clock() - start) / calls[label])
    return Result(case, {label: Timing(tuple(values)) for label, values in times.items()})


def _calls_in(contender: Contender, seconds: float, clock: Callable[[], float]) -> int:
    """How many calls fill the time; the calls made to find out are the warm-up."""
    calls, spent = 0, 0.0
    start = clock()
    while spent < seconds / 2 and calls < 100_000:
        contender()
        calls += 1
        spent = clock() - start
    return max(1, int(seconds * calls / spent)) if spent > 0 else calls


def _rotated(labels: Sequence[str], by: int) -> list[str]:
    """Another contender goes first in each round."""
    by %= len(labels)
    return [*labels[by:], *labels[:by]]
