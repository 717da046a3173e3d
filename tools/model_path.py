"""From the launches of a step to its modelled time: the longest chain of those that wait for each other.

While a step is captured its branches run beside each other. A launch begins where all that it waits for is done, as if
it had the whole device to itself; and all of them together take no less than the device does for their work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .model_time import Time


class Path(NamedTuple):
    """Microseconds of a step, and the places of the launches of its longest chain, in order."""

    total: float
    chain: list[int]


def waits_of(launches: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """What each launch waits for, by place; where its count does not say it is the launch before.

    Raises:
        ValueError: a launch waits for itself or for one that comes later.
    """
    waits = []
    for place, launch in enumerate(launches):
        after = list(launch.get("after", [place - 1] if place > 0 else []))
        if any(not 0 <= other < place for other in after):
            raise ValueError(f"launch {place} ({launch['name']}) waits for {after}, not for launches before it")
        waits.append(after)
    return waits


def path_of(launches: Sequence[Mapping[str, Any]], times: Sequence[Time]) -> Path:
    """The longest chain, which takes no less than all work does."""
    ends: list[float] = []
    before: list[int | None] = []
    for time, after in zip(times, waits_of(launches), strict=True):
        last = max(after, key=ends.__getitem__, default=None)
        before.append(last)
        ends.append(time.total + (0.0 if last is None else ends[last]))
    chain: list[int] = []
    place = max(range(len(ends)), key=ends.__getitem__, default=None)
    while place is not None:
        chain.append(place)
        place = before[place]
    works = [sum(of) for of in zip(*(time.work for time in times), strict=True)]
    return Path(max([0.0, *ends, *works]), chain[::-1])
