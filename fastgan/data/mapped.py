"""Samples of a file that is mapped into memory: data that is larger than memory, gathered batch by batch."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Files from this size on are mapped. A smaller one is read: in memory its samples are scaled once, not in each batch.
MAP_FROM = 2**28
# Values that are scaled at a time, in float64: 32 MB.
_VALUES = 2**22


class MappedSamples:
    """The samples of an array that lies in a file, scaled as they are asked for; stands in for a Tensor (N, data).

    Attributes:
        shape: (N, data).
        dtype: float32, as what is asked for is.
    """

    dtype = torch.float32

    def __init__(self, array: np.ndarray, scale: np.ndarray | None, offset: np.ndarray | None) -> None:
        """Stand for an array.

        Args:
            array: (N, ...), a view of a mapped file.
            scale: 0-d or (data,): a sample is (value - offset) / scale; None for 8-bit values, x / 127.5 - 1.
            offset: see scale.
        """
        self._rows = array.reshape(len(array), -1)
        self._scale, self._offset = scale, offset
        self.shape = torch.Size(self._rows.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def dim(self) -> int:
        """2, as of the Tensor that this stands for."""
        return 2

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Samples (..., data), float32, on the CPU: of a slice of rows, or of indices (...) int64 there."""
        rows = self._rows[index.numpy() if isinstance(index, Tensor) else index]
        if self._scale is None or self._offset is None:
            return torch.from_numpy(np.array(rows)).float() / 127.5 - 1
        values = rows.astype(np.float64)
        values -= self._offset
        values /= self._scale
        return torch.from_numpy(values.astype(np.float32))

    def chunks(self) -> Iterator[Tensor]:
        """All samples in order, some rows at a time."""
        for rows in chunks_of(self._rows):
            yield self[rows]


def chunks_of(array: np.ndarray) -> Iterator[slice]:
    """Slices of an array's rows, of a bounded number of values each."""
    step = max(1, _VALUES // max(1, array[:1].size))
    for first in range(0, len(array), step):
        yield slice(first, first + step)


def map_npy(path: Path) -> np.ndarray | None:
    """The array of a large .npy file as a view of the mapped file.

    None where it is small, in Fortran's order, of objects, or not what it should be: then it has to be read.
    """
    size = path.stat().st_size
    if size < MAP_FROM:
        return None
    readers: dict[Any, Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, is_fortran, dtype = readers[version](file)
        except (ValueError, KeyError):
            return None
        start = file.tell()
        if is_fortran or dtype.hasobject or dtype.itemsize == 0 or size != start + dtype.itemsize * _count(shape):
            return None
        return np.frombuffer(_mapped(file), dtype, offset=start).reshape(shape)


def map_bytes(path: Path) -> bytes:
    """All of a file: read, or, of a large one, mapped, which serves as bytes do."""
    if path.stat().st_size < MAP_FROM:
        return path.read_bytes()
    with path.open("rb") as file:
        content: Any = _mapped(file)
        return content  # type: ignore[no-any-return]


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array is a view of a mapped file."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def _mapped(file: Any) -> mmap.mmap:
    # To be read alone: a private copy counts against memory, and a file that is larger than it would be refused.
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
