"""Choosing the fastest of several ways that give the same results up to rounding, by timing them in turns.

The first way is the one of the default table. Another takes its place only where it is faster by more than the turns
differ among themselves, so that noise decides nothing. `FASTGAN_TUNE=0` leaves it at the default.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_value = os.environ.get("FASTGAN_TUNE", "").strip() or "1"
if _value not in ("0", "1"):
    raise ValueError(f"FASTGAN_TUNE must be one of 0, 1, not {_value!r}")
_is_on = _value == "1"

# Seconds that the timing of all ways may take together.
BUDGET = 1.5
# By how much more than its spread a way must be faster than the one that it replaces.
MARGIN = 0.01
_MARGIN_OF_TWO_TURNS = 0.1  # whose spread says little
_LEAST_TURNS, _FEW_TURNS, _SEVERAL_TURNS, _MOST_TURNS = 2, 3, 5, 9
_AHEAD, _FAR_AHEAD = 1.1, 1.3  # in each of several turns, or of a few: no more are needed
_HOPELESS = 0.5  # so many times as fast
_TURN = 2e-3  # seconds that a turn takes, of as many runs as that needs
_MOST_RUNS = 50
_RUNS_OF_A_RACE = 1 + 2 * _LEAST_TURNS  # at least; the one warms up
_RACES = 6  # for as many there is time, where runs are long


def is_on() -> bool:
    """Whether ways are timed, and choices read from the cache: `FASTGAN_TUNE` is not 0."""
    return _is_on


class Clock:
    """The wall clock, for work that is done when a call returns.

    Attributes:
        counts_first: whether the first run of the default belongs to the time that the choice takes.
    """

    counts_first = True

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def time(self, name: str, run: Callable[[], object], times: int) -> float:
        """Seconds that so many runs of the way with this name take."""
        start = time.perf_counter()
        for _ in range(times):
            run()
        return time.perf_counter() - start


class CudaClock(Clock):
    """Events on the current stream, for work that a call only launches."""

    counts_first = False  # it loads kernels and libraries that the step itself would load

    def time(self, name: str, run: Callable[[], object], times: int) -> float:
        """Seconds from the begin of the first run to the end of the last one, on the device."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


Runs = Callable[[int], float]  # the seconds that so many runs of a way take


@dataclass(frozen=True)
class Race:
    """What came of two ways that had turns in alternation.

    Attributes:
        ratio: how many times as fast the second is as the first, the median over the turns.
        spread: the distance between the quartiles of that, of less than 5 turns between the extremes, over the median.
        turns: that each had.
        least: the ratio of the turn that was worst for the second.
        most: of the one that was best.
        seconds: of a run of the first and of the second, the medians.
    """

    ratio: float = 1.0
    spread: float = 0.0
    turns: int = 0
    least: float = 1.0
    most: float = 1.0
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def is_won(self) -> bool:
        """Whether the second is to replace the first."""
        margin = MARGIN if self.turns >= _FEW_TURNS else _MARGIN_OF_TWO_TURNS
        return self.is_clear or self.ratio > 1 + max(margin, self.spread)

    @property
    def is_clear(self) -> bool:
        """Whether the second was ahead in every turn, by an amount that a busy machine may not let be known."""
        return self.turns >= _FEW_TURNS and self.least > (_AHEAD if self.turns >= _SEVERAL_TURNS else _FAR_AHEAD)


def race(clock: Clock, first: Runs, second: Runs, deadline: float) -> Race:
    """Time two ways in alternation.

    Until the second is clearly ahead, or far behind, or behind in each of the first few turns, or both have had all
    their turns, or the clock has reached the deadline and they have had two.
    """
    seconds: list[tuple[float, float]] = []
    runs = 1
    pair = [max(way(1), 1e-9) for way in (first, second)]
    if max(pair) < _TURN:  # a single run says little: what it has taken says how many a turn is of
        runs = max(1, min(_MOST_RUNS, round(_TURN / max(pair))))
    else:
        seconds.append((pair[0], pair[1]))
    while not _is_decided(seconds, clock.now() >= deadline):
        in_turn = (1, 0) if len(seconds) % 2 else (0, 1)  # what disturbs the machine disturbs neither more
        for i in in_turn:
            pair[i] = max((first, second)[i](runs), 1e-9) / runs
        seconds.append((pair[0], pair[1]))
    return _race(seconds)


def _is_decided(seconds: list[tuple[float, float]], is_late: bool) -> bool:
    if not seconds:
        return False
    found = _race(seconds)
    if found.most < _HOPELESS or len(seconds) == _MOST_TURNS or found.is_clear:
        return True
    return len(seconds) >= (_LEAST_TURNS if is_late else _FEW_TURNS) and (is_late or found.most < 1)


def _race(seconds: list[tuple[float, float]]) -> Race:
    ratios = [first / second for first, second in seconds]
    ratio = statistics.median(ratios)
    low, high = min(ratios), max(ratios)
    if len(ratios) >= _SEVERAL_TURNS:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    medians = statistics.median(first for first, _ in seconds), statistics.median(second for _, second in seconds)
    return Race(ratio, (high - low) / ratio, len(ratios), min(ratios), max(ratios), medians)


@dataclass(frozen=True)
class Verdict:
    """Which way is best, and by how much.

    Attributes:
        name: of the best.
        over: the name of what it was held against: the default or, where that is best, the next; empty where nothing
            else was timed.
        ratio: how many times as fast the best is as that.
        spread: of the ratio, as a Race has it.
        seconds: of a run of the best; 0 where nothing else was timed.
        tried: how many ways were timed against another.
        took: seconds that all of it took.
    """

    name: str
    over: str
    ratio: float
    spread: float
    seconds: float
    tried: int
    took: float


class Tournament:
    """Ways that challenge, one after another, the best that there is; the default is the first."""

    def __init__(self, default: str, prepare: Callable[[str], Runs], clock: Clock, budget: float = BUDGET) -> None:
        """Prepare the default.

        Args:
            default: the name of the way of the default table.
            prepare: runs a way until it is warm and gives what times it; raises where the way cannot be taken.
            clock: what times are read from.
            budget: seconds for all of it.

        Raises:
            Exception: whatever `prepare` raises of the default.
        """
        self._clock, self._prepare, self._budget = clock, prepare, budget
        self._start = clock.now()
        self.default = self.best = default
        self._runs = {default: prepare(default)}
        self._a_run = clock.now() - self._start
        self._deadline = self._start + budget
        if not clock.counts_first:
            self._deadline += self._a_run
            self._a_run = self._runs[default](1)
        elif budget / _RACES < self._a_run * _RUNS_OF_A_RACE and self._a_run < budget / _RUNS_OF_A_RACE:
            self._a_run = min(self._a_run, self._runs[default](1))  # a first run may be cold
        self._nearest: tuple[str, Race] | None = None  # to the default, of those that lost against it
        self._won: list[Race] = []
        self._tried = 0

    def challenge(self, name: str) -> bool:
        """Whether a way has become the best. One that cannot be taken, or for which there is no time, has not."""
        share = self._budget / _RACES
        start = self._clock.now()
        if start + _RUNS_OF_A_RACE * self._a_run > self._deadline:
            return False
        try:
            runs = self._prepare(name)
            warm_up = self._clock.now() - start
            if self._clock.counts_first and warm_up > max(share, _RUNS_OF_A_RACE * self._a_run):
                return False  # so slow that timing it would take longer than there is time
            deadline = min(self._deadline, self._clock.now() + share)
            found = race(self._clock, self._runs[self.best], runs, deadline)
        except Exception:  # such as no memory: this way is out
            return False
        self._tried += 1
        self._a_run = found.seconds[0]  # it was that of a cold run
        if not found.is_won:
            nearest = self._nearest
            if self.best == self.default and (nearest is None or found.ratio > nearest[1].ratio):
                self._nearest = name, found
            return False
        self.best = name
        self._runs[name] = runs
        self._won.append(found)
        return True

    def verdict(self) -> Verdict:
        """The best way; one that others had to be beaten for must beat the default itself, too."""
        over, found = self.default, self._won[-1] if self._won else Race()
        if len(self._won) > 1:
            # What several small wins add up to is not known without it. However late it is, there is time for this.
            deadline = self._clock.now() + self._budget / _RACES
            found = race(self._clock, self._runs[self.default], self._runs[self.best], deadline)
            if not found.is_won:
                self._nearest = self.best, found
                self.best = self.default
        took = self._clock.now() - self._start
        if self.best != self.default:
            return Verdict(self.best, over, found.ratio, found.spread, found.seconds[1], self._tried, took)
        if self._nearest is None:
            return Verdict(self.default, "", 1.0, 0.0, 0.0, self._tried, took)
        over, found = self._nearest
        return Verdict(self.default, over, 1 / found.ratio, found.spread, found.seconds[0], self._tried, took)
