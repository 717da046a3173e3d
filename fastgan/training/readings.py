"""The statistics of a run's steps: on the device until a row of metrics.jsonl is due, and then read at once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.step import StepStats


class Readings:
    """The statistics of the steps since the last regular row, and the seconds that they took.

    A row is regular where a period of the run ends. One that is written where a run stops between two is not: a run
    that goes on takes its steps into the next regular one, so that its rows are those of a run that did not stop.
    """

    def __init__(
        self, length: int, device: torch.device, pending: Sequence[Sequence[float]] = (), seconds: float = 0.0
    ) -> None:
        """Begin an interval.

        Args:
            length: the most steps of one.
            device: where the statistics are.
            pending: (n, 4), those of steps of this interval that an earlier process took.
            seconds: that those took.
        """
        self._values = torch.empty(length + len(pending), len(StepStats._fields), dtype=torch.float64, device=device)
        if pending:
            self._values[: len(pending)] = torch.tensor(pending, dtype=torch.float64, device="cpu").to(device)
        self._filled, self._before = len(pending), seconds
        self._since = time.perf_counter()

    def add(self, stats: StepStats) -> None:
        """Keep the statistics of a step, without waiting for the device."""
        self._values[self._filled] = torch.stack(stats)
        self._filled += 1

    def read(self) -> tuple[Tensor, float, float]:
        """The statistics (n, 4) on the CPU, which waits for the device; the seconds of their steps; and those of them
        that passed here since the last call, below 0 where the clock went back."""
        values = self._values[: self._filled].cpu()
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        self._before += max(passed, 0.0)
        return values, self._before, passed

    def begin(self) -> None:
        """Begin the next interval: what was done since `read`, such as pictures, counts for none."""
        self._filled, self._before = 0, 0.0
        self._since = time.perf_counter()
