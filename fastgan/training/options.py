"""How an option of training is declared: its default, what the command line says of it, and what it may be.

A check is given the option's name and value; it returns the value as it is kept, or raises TypeError or ValueError.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from dataclasses import field
from typing import Any, TypeVar

from fastgan import checks
from fastgan.step_options import StepOptions
from fastgan.training.device import parse_device

T = TypeVar("T")
Check = Callable[[str, Any], Any]
# What torch counts sizes with, and what TOML and torch hold of integers.
MOST_SIZE, MOST_INTEGER = 2**31 - 1, 2**63 - 1


def option(default: T, text: str, check: Check) -> T:
    """A field of TrainConfig.

    Args:
        default: of the option, before the data has its say.
        text: the help of the command line.
        check: of a value.
    """
    declared: Any = field(default=default, metadata={"text": text, "check": check})
    return declared  # type: ignore[no-any-return]  # dataclass makes a default of it, as of field's


def integer(most: int, least: int = 1) -> Check:
    """An integer from least to most."""

    def check(name: str, value: Any) -> Any:
        checks.integer(name, value, least)
        checks.number(name, value, least, most)
        return value

    return check


def number(low: float = -math.inf, *, high: float = math.inf, low_open: bool = False) -> Check:
    """A finite number of at least low, or above it, and of at most high."""

    def check(name: str, value: Any) -> Any:
        checks.number(name, value, low, high, low_open=low_open)
        return value

    return check


def of_step(most: int | None = None, least: int = 1) -> Check:
    """What StepOptions allows for the option of the same name; integers from `least` to `most`."""

    def check(name: str, value: Any) -> Any:
        StepOptions(**{name: value})
        if most is not None:
            checks.number(name, value, least, most)
        return value

    return check


def one_of(allowed: Collection[str]) -> Check:
    """One of some strings."""

    def check(name: str, value: Any) -> Any:
        checks.choice(name, value, allowed)
        return value

    return check


def or_none(of: Check) -> Check:
    """None, or what another check allows."""

    def check(name: str, value: Any) -> Any:
        return None if value is None else of(name, value)

    return check


def zero_or_from_one(name: str, value: Any) -> Any:
    """0, or a finite number of at least 1."""
    checks.number(name, value, 0.0)
    if 0 < value < 1:
        raise ValueError(f"{name} must be 0 or at least 1, not {value}")
    return value


def decay(name: str, value: Any) -> Any:
    """A number in [0, 1)."""
    checks.decay(name, value)
    return value


def switch(name: str, value: Any) -> Any:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def path(name: str, value: Any) -> str:
    """A path, or another string that is not empty."""
    if isinstance(value, (bytes, os.PathLike)):
        value = os.fsdecode(value)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__} {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    return value


def words(name: str, value: Any) -> Any:
    """A string, which may be empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__} {value!r}")
    return value


def widths(name: str, value: Any) -> tuple[int, ...]:
    """The widths of hidden layers."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of widths, not {type(value).__name__} {value!r}")
    for i, width in enumerate(value):
        integer(MOST_SIZE)(f"{name}[{i}]", width)
    return tuple(value)


def device_name(name: str, value: Any) -> Any:
    """The name of a device, which this machine need not have."""
    parse_device(value)
    return value
