"""What the metrics are given: points (N, data), as Tensors or as numpy arrays."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastgan import checks

Points: TypeAlias = "Tensor | np.ndarray"


def points(name: str, value: Points, like: Tensor | None = None, least: int = 1) -> Tensor:
    """Points as a Tensor; a numpy array's memory is shared.

    Args:
        name: of the argument, for messages.
        value: (N, data), floating-point.
        like: points that must have as many columns.
        least: points that there must be.

    Raises:
        RuntimeError, TypeError: it is no Tensor or array of floating-point numbers.
        ValueError: the shape does not fit.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    checks.floating(name, value)
    if value.dim() != 2 or len(value) < least or value.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, data) with N at least {least}, not {tuple(value.shape)}")
    if like is not None and value.shape[1] != like.shape[1]:
        raise ValueError(f"{name} must have {like.shape[1]} columns, not {value.shape[1]}")
    return value.detach()


def finite(name: str, value: Points, like: Tensor | None = None, least: int = 1) -> Tensor:
    """Points in float64, all finite.

    Raises:
        RuntimeError, TypeError, ValueError: see `points`; or a value is not finite.
    """
    found = points(name, value, like, least)
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} must be finite")
    return found.double()


def labels(name: str, value: Points, count: int) -> np.ndarray:
    """Labels (count,) as an array of integers.

    Raises:
        TypeError, ValueError: they are no integers, or not one for each point.
    """
    found = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {found.dtype}")
    if found.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one for each point, not {found.shape}")
    return found
