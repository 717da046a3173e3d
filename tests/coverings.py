"""Which tests of a product of parameters run: enough of them that any two parameters' values meet."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Hashable, Iterable, Mapping


def covering(cases: Iterable[tuple[str, Mapping[str, Hashable]]], strength: int, salt: str = "") -> set[str]:
    """The names of cases among which each combination of so many parameters' values is that there is among all.

    Args:
        cases: the name of each, and its parameters' values by name.
        strength: 2 for all pairs, 1 for each value. A product of no more parameters is kept whole.
        salt: another one chooses among the cases otherwise, always in the same way.

    Returns:
        The names of those that run. They are taken in a random order, each that has a combination that is new.
    """
    seen: set[tuple[tuple[str, Hashable], ...]] = set()
    kept: set[str] = set()
    for name, values in sorted(cases, key=lambda case: (zlib.crc32((salt + case[0]).encode()), case[0])):
        found = set(itertools.combinations(sorted(values.items()), min(strength, len(values))))
        if not found <= seen:
            seen |= found
            kept.add(name)
    return kept
