"""The table of statements: what may happen in an example, each by name and by a number that decides the rest.

A statement draws everything from random.Random(f"{name} {number}"), so that (name, number) says all of it: in a log, in
a command line, in every world.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WORLD: dict[str, Callable[..., str]] = {}  # done to each world by itself
PROCESS: dict[str, Callable[..., str]] = {}  # done once, to what all of them share; undone when the example ends
STEPS: dict[str, Callable[..., Any]] = {}  # a training step of each world, on the same inputs


class NotHere(Exception):
    """The statement means nothing for the networks as they are."""


def statement(table: dict[str, Callable[..., Any]]) -> Callable[[Any], Any]:
    """Register a function under its own name."""

    def register(function: Any) -> Any:
        name = function.__name__
        assert name not in {*WORLD, *PROCESS, *STEPS}, name
        table[name] = function
        return function

    return register


def generator_of(name: str, number: int) -> random.Random:
    """The choices of a statement."""
    return random.Random(f"{name} {number}")


def pick(r: random.Random, among: Any) -> Any:
    """One of them, or NotHere where there is none."""
    among = list(among)
    if not among:
        raise NotHere
    return r.choice(among)


def values(r: random.Random, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal values, scaled as weights are."""
    source = torch.Generator().manual_seed(r.randrange(1 << 30))
    return (0.4 * torch.randn(shape, dtype=torch.float64, generator=source)).to(dtype)


def values_like(r: random.Random, tensor: Tensor) -> Tensor:
    """Of the shape and dtype of a tensor; never negative, since it may be a variance."""
    drawn = values(r, *tensor.shape)
    if not tensor.dtype.is_floating_point:
        return (drawn.abs() * 10).to(tensor.dtype)
    return drawn.abs().add(0.1).to(tensor.dtype)
