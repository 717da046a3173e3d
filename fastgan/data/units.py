"""The way from a data set's own units to the samples of training and back: float64, and exact for the data itself.

A sample is float32: of a column of Unix times over a year it tells seconds apart, but no formula leads from it to the
very number that it came from. So the values that the data has are kept beside their samples, and looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# More values than this in [-1, 1] are not told apart by float32 anyway.
_MOST_VALUES = 2**24


class Levels(NamedTuple):
    """The values of a column, or of all images.

    Attributes:
        codes: (K,) the samples that stand for them, ascending, float64 that holds a float32.
        values: (K,) in the data's own units, float64.
    """

    codes: Tensor
    values: Tensor


class Scaled(NamedTuple):
    """Of `scale_array`: float32 samples in [-1, 1], and the way back; see `Dataset` for the fields."""

    samples: Tensor
    scale: Tensor
    offset: Tensor
    levels: tuple[Levels | None, ...]


def scale_array(array: np.ndarray, by_column: bool) -> Scaled:
    """Map (N, data) finite numbers to [-1, 1].

    8-bit values by x / 127.5 - 1; others by their minimum and maximum, of each column or of all. What has one value
    becomes 0.

    Raises:
        ValueError: the values of a column lie closer together than float64 can scale.
    """
    if array.dtype == np.uint8:
        samples = torch.from_numpy(np.array(array)).float() / 127.5 - 1
        middle = torch.tensor(127.5, dtype=torch.float64, device="cpu")
        values = np.arange(256.0)
        levels = Levels((torch.from_numpy(values).float() / 127.5 - 1).double(), torch.from_numpy(values))
        return Scaled(samples, middle, middle, (levels,))
    flat = np.array(array, dtype=np.float64, order="C")
    axis = 0 if by_column else None
    scale, offset = scale_and_offset(flat.min(axis=axis), flat.max(axis=axis))
    samples = ((flat - offset) / scale).astype(np.float32)
    columns = (
        [(flat[:, i], scale[i], offset[i]) for i in range(flat.shape[1])] if by_column else [(flat, scale, offset)]
    )
    found = tuple(_levels(*column) for column in columns)
    return Scaled(torch.from_numpy(samples), torch.from_numpy(scale), torch.from_numpy(offset), found)


def scale_and_offset(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What maps [low, high] to [-1, 1] by (value - offset) / scale, of each column or of all; float64.

    Raises:
        ValueError: the values of a column lie closer together than float64 can scale.
    """
    scale, offset = np.asarray((high - low) / 2), np.asarray((high + low) / 2)
    # Where values are neighbours in float64 the middle falls on one of them; the wider half then sets the scale.
    wider = np.maximum(high - offset, offset - low)
    scale = np.where(wider > scale * (1 + 1e-6), wider, scale)
    if ((scale == 0) & (low < high)).any():
        raise ValueError("has values closer together than float64 can scale")
    scale = np.where(scale > 0, scale, 1.0)
    return scale, offset


def unscale(samples: Tensor, scale: Tensor, offset: Tensor, levels: Sequence[Levels | None] = ()) -> Tensor:
    """Samples (..., data) in the data's own units, float64; the samples of the data's values give those exactly."""
    samples = samples.double()
    units = samples * scale.to(samples.device) + offset.to(samples.device)
    if len(levels) == 1:
        return _snap(samples, units, levels[0])
    if any(levels):
        columns = zip(samples.unbind(-1), units.unbind(-1), levels, strict=True)
        return torch.stack([_snap(*column) for column in columns], dim=-1)
    return units


def _levels(values: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> Levels | None:
    """The values of a column with their samples; None where the formula gives them back, or they are too many."""
    distinct = np.unique(values)
    codes = ((distinct - offset) / scale).astype(np.float32).astype(np.float64)
    if len(distinct) > _MOST_VALUES or (codes * scale + offset == distinct).all():
        return None
    return Levels(torch.from_numpy(codes), torch.from_numpy(distinct))


def _snap(samples: Tensor, units: Tensor, levels: Levels | None) -> Tensor:
    if levels is None:
        return units
    codes, values = (tensor.to(samples.device) for tensor in levels)
    at = torch.searchsorted(codes, samples.detach().contiguous()).clamp(max=len(codes) - 1)
    exact = torch.where(codes[at] == samples, values[at], units.detach())
    # The formula, which autograd can differentiate, takes part with its derivative alone.
    return exact + (units - units.detach())
