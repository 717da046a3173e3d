"""How much of a test runs: what one change needs or, with FASTGAN_TESTS=full (`make check-full`), all that there is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
FULL = os.environ.get("FASTGAN_TESTS") == "full"


def extent(usual: T, full: T) -> T:
    """The size that runs here."""
    return full if FULL else usual


def one_in(number: int, values: Iterable[Any]) -> list[Any]:
    """The values of a parameter, of which the first and each so-manyth one after it run in every extent."""
    return [value if i % number == 0 else rest(value) for i, value in enumerate(values)]


def rest(*values: Any) -> Any:
    """A parameter's values that run in the full extent alone."""
    return pytest.param(*values, marks=pytest.mark.full)
