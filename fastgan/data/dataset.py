"""What a data set is to the trainer: samples scaled to [-1, 1], labels, shape, and the way back."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastgan.data.errors import DataError
from fastgan.data.mapped import MappedSamples, chunks_of, is_mapped
from fastgan.data.order import random_order
from fastgan.data.table import Table
from fastgan.data.units import Levels, Scaled, scale_and_offset, scale_array, unscale

__all__ = ["DataError", "Dataset", "check_labels", "fits_float64", "from_array"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in memory, or in a file that is mapped into it.

    Attributes:
        name: short name, used for run folders.
        samples: (N, data), float32, scaled; of a mapped file a `fastgan.data.mapped.MappedSamples`, whose slices and
            whose rows by indices are Tensors.
        labels: (N,) int64 in [0, num_classes), or None.
        num_classes: number of classes; 0 without labels.
        image_shape: (height, width) or (height, width, 3) where samples are flattened images, else None.
        scale: original = samples * scale + offset; 0-d, or (data,) for one a column; float64.
        offset: see scale.
        levels: where that is not exact, the values of the data and their samples: of each column, or one for all.
        modes: (M, data) centres of a Gaussian mixture in scaled units, else None.
        mode_std: standard deviation of each of its modes in scaled units.
        table: of a table of words, dates and numbers, how its columns became segments of the samples; else None.
        layout: of a .csv of numbers that were scaled column by column, how it is written; else None.
    """

    name: str
    samples: Tensor
    labels: Tensor | None = None
    num_classes: int = 0
    image_shape: tuple[int, ...] | None = None
    scale: Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.float64, device="cpu"))
    offset: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64, device="cpu"))
    levels: tuple[Levels | None, ...] = field(default=(), kw_only=True)
    modes: Tensor | None = None
    mode_std: float = 0.0
    table: Table | None = field(default=None, kw_only=True)
    layout: Table | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """TypeError or ValueError where the fields do not fit each other, for data sets built by hand."""
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name must be of letters, digits and . _ - only, not {self.name!r}")
        is_mapped = isinstance(self.samples, MappedSamples)
        if not (isinstance(self.samples, Tensor) or is_mapped) or self.samples.dtype != torch.float32:
            raise TypeError("samples must be a float32 Tensor")
        if self.samples.dim() != 2 or 0 in self.samples.shape:
            raise ValueError(f"samples must have shape (N, data), not empty, not {tuple(self.samples.shape)}")
        if not is_mapped and not bool(self.samples.isfinite().all()):
            raise ValueError("samples must be finite")
        if (self.labels is None) != (self.num_classes == 0):
            raise ValueError(f"num_classes must be 0 without labels and positive with them, not {self.num_classes}")
        if self.labels is not None:
            if self.labels.dtype != torch.int64 or self.labels.shape != self.samples.shape[:1]:
                raise ValueError(
                    f"labels must be int64 of shape ({len(self.samples)},), not {self.labels.dtype} of shape "
                    f"{tuple(self.labels.shape)}"
                )
            if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
                raise ValueError(
                    f"labels must be in [0, {self.num_classes}), but they span "
                    f"[{int(self.labels.min())}, {int(self.labels.max())}]"
                )
        if self.image_shape is not None and int(np.prod(self.image_shape)) != self.samples.shape[1]:
            raise ValueError(f"image_shape {self.image_shape} does not hold {self.samples.shape[1]} values")
        for name in ("scale", "offset"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                value = torch.tensor(value, dtype=torch.float64, device="cpu")
            value = value.to("cpu", torch.float64)
            if value.shape not in ((), self.samples.shape[1:]):
                raise ValueError(f"{name} must be 0-d or of shape ({self.width},), not {tuple(value.shape)}")
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def width(self) -> int:
        """Values a sample."""
        return self.samples.shape[1]

    @property
    def conditions(self) -> int:
        """Classes that a conditional run may ask for: those of the labels, or all levels of a table's columns."""
        return self.num_classes if self.table is None else self.table.num_classes

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that samples have, ascending: not all of [0, num_classes), where labels begin at 1."""
        return () if self.labels is None else tuple(self.labels.unique().tolist())

    def unscale(self, samples: Tensor) -> Tensor:
        """Map scaled samples (..., data) to the units of the data's source, in float64.

        The data set's own samples give the very values that were loaded, where float32 tells them apart: two that are
        closer than the column's range times 2^-24 may share a sample, and come back as one of them. Between them,
        samples resolve as much.

        Args:
            samples: (..., data), scaled as the data set's are.

        Returns:
            (..., data), float64, in the units of the data's source.
        """
        return unscale(samples, self.scale, self.offset, self.levels)

    def examples(self, count: int, seed: int, by_class: bool) -> Tensor:
        """Some of the samples in random order.

        Args:
            count: how many, where there are so many.
            seed: of the order.
            by_class: whether the classes take turns; then samples may come twice.

        Returns:
            (count, data), or fewer rows where the data has fewer and the classes take no turns.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        order = random_order(len(self), generator)[: len(self) if by_class else count]
        if by_class and self.labels is not None:
            turns = [order[self.labels[order] == label] for label in self.classes]
            picks = [divmod(i, len(turns)) for i in range(count)]
            order = torch.stack([turns[turn][row % len(turns[turn])] for row, turn in picks])
        return self.samples[order]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of samples and labels: tells whether a resumed run sees the data that it began with."""
        if self.table is not None:  # whose samples hang on the mixtures that were fitted
            return self.table.fingerprint
        digest = hashlib.sha256()
        parts = self.samples.chunks() if isinstance(self.samples, MappedSamples) else (self.samples,)
        for part in parts:
            digest.update(np.ascontiguousarray(part.cpu().numpy()).data)
        if self.labels is not None:
            digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """All but the samples and labels, as JSON has it: what drawing new samples needs."""
        tables = {"table": self.table, "layout": self.layout}
        return {
            "name": self.name,
            "count": len(self),
            "width": self.width,
            "num_classes": self.num_classes,
            "labels": list(self.classes),
            "image_shape": list(self.image_shape) if self.image_shape else None,
            "scale": self.scale.tolist(),
            "offset": self.offset.tolist(),
            "fingerprint": self.fingerprint,
            **{name: table.as_json() for name, table in tables.items() if table is not None},
        }


def from_array(array: np.ndarray, labels: np.ndarray | None, name: str, source: str, label_source: str = "") -> Dataset:
    """A Dataset of an array of samples, checked and scaled to [-1, 1].

    8-bit values are mapped by x / 127.5 - 1. Other images are mapped by their common minimum and maximum,
    tables column by column; a column of one value becomes 0. `Dataset.unscale` leads back.

    Args:
        array: (N, data) a table, (N, h, w) or (N, h, w, 1 or 3) images; integers or real floats.
        labels: (N,) whole numbers from 0 (or 1) up without gaps, or None.
        name: the Dataset's name.
        source: what errors call the samples, such as "data.npz: array 'x'".
        label_source: what errors call the labels.

    Returns:
        The Dataset.

    Raises:
        DataError: a shape, dtype or value is not usable, masked, or one that float64 would change.
    """
    if np.ma.is_masked(array):
        raise DataError(f"{source} has masked values, but finite numbers are needed")
    in_file = is_mapped(array)
    array = np.asarray(array)
    if array.dtype.kind not in "uif":
        raise DataError(f"{source} has dtype {array.dtype}, but integers or real floating-point numbers are needed")
    if array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise DataError(
            f"{source} has shape {array.shape}, but (N, data) for a table or (N, height, width[, 1 or 3]) "
            "for images is needed"
        )
    if 0 in array.shape:
        raise DataError(f"{source} has shape {array.shape}: it holds no values, and at least one sample is needed")
    for rows in chunks_of(array):
        _check_finite(array[rows], source, rows.start)
        _check_float64(array[rows], source, rows.start)
    image_shape = None
    if array.ndim > 2:
        image_shape = array.shape[1:3] if array.shape[3:] in ((), (1,)) else array.shape[1:]
    try:
        scale = _scale_mapped if in_file else scale_array
        scaled = scale(array.reshape(len(array), -1), by_column=image_shape is None)
    except ValueError as error:
        raise DataError(f"{source} {error}") from error
    checked = None if labels is None else check_labels(labels, len(array), label_source)
    return Dataset(
        name=name,
        labels=checked,
        num_classes=0 if checked is None else int(checked.max()) + 1,
        image_shape=image_shape,
        **scaled._asdict(),
    )


def _scale_mapped(array: np.ndarray, by_column: bool) -> Scaled:
    """As `scale_array`, of an array (N, data) in a mapped file: its samples stay there, and the way back is the formula
    alone, since the values themselves would take more memory than the data."""
    if array.dtype == np.uint8:
        known = scale_array(array[:1].copy(), by_column)
        return known._replace(samples=cast(Tensor, MappedSamples(array, None, None)))
    axis = 0 if by_column else None
    bounds = [(array[rows].min(axis=axis), array[rows].max(axis=axis)) for rows in chunks_of(array)]
    low = np.min(np.array([low for low, _ in bounds], np.float64), axis=0)
    high = np.max(np.array([high for _, high in bounds], np.float64), axis=0)
    scale, offset = scale_and_offset(low, high)
    samples = cast(Tensor, MappedSamples(array, scale, offset))
    return Scaled(samples, torch.from_numpy(np.asarray(scale)), torch.from_numpy(np.asarray(offset)), ())


def check_labels(labels: np.ndarray, count: int, source: str) -> Tensor:
    """Labels as int64 (N,), or a DataError that names the first one that cannot be right."""
    if labels.dtype.kind not in "uif":
        raise DataError(f"{source} has dtype {labels.dtype}, but labels must be whole numbers")
    if labels.shape != (count,):
        raise DataError(f"{source} has shape {labels.shape}, but one label for each of the {count} samples is needed")
    # Compared as they are: a NaN or an infinity fails too, before any cast could hide it.
    bad = ~((labels >= 0) & (labels < 2**31) & (labels == np.floor(labels)))
    if bad.any():
        i = int(bad.argmax())
        raise DataError(f"{source} has label {labels[i]} at index {i}, but labels must be whole numbers from 0 up")
    values = torch.from_numpy(labels.astype(np.int64))
    present = torch.unique(values)
    # A stray label such as a corrupted 200 among ten classes would silently ask for 201 of them.
    gaps = torch.nonzero(present[1:] - present[:-1] > 1)
    first_missing = 0 if present[0] > 1 else int(present[int(gaps[0])]) + 1 if len(gaps) else None
    if first_missing is not None:
        i = int((values > first_missing).nonzero()[0])
        raise DataError(
            f"{source} has label {int(values[i])} at index {i}, out of range: no sample has label "
            f"{first_missing}, and labels must run from 0 (or 1) up without gaps"
        )
    return values


def _check_finite(array: np.ndarray, source: str, start: int = 0) -> None:
    if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
        if array.dtype.kind != "f" or np.abs(array).max() <= np.finfo(np.float32).max:
            return
        fault, bad = "is too large for float32", ~(np.abs(array) <= np.finfo(np.float32).max)
    else:
        fault, bad = "is not finite", ~np.isfinite(array)
    i, place = _first(bad, array, start)
    raise DataError(f"{source} has {array[i]} at {place}, which {fault}, but finite numbers are needed")


def _check_float64(array: np.ndarray, source: str, start: int = 0) -> None:
    """DataError at the first number that float64, in which data is scaled, would change."""
    if array.dtype.kind == "f":
        if array.dtype.itemsize <= 8:
            return
        bad = array.astype(np.float64) != array
    else:
        if array.dtype.itemsize < 8:
            return
        bad = ~fits_float64(array)
    if bad.any():
        i, place = _first(bad, array, start)
        raise DataError(
            f"{source} has {array[i]} at {place}, which float64 cannot hold exactly; take an offset off first, or "
            "round it yourself"
        )


def fits_float64(array: np.ndarray) -> np.ndarray:
    """Which 64-bit integers float64 holds exactly: those of at most 53 bits before their trailing zeros."""
    size = array.astype(np.uint64)
    if array.dtype.kind == "i":
        size = np.where(array < 0, ~size + np.uint64(1), size)
    lowest = np.maximum(size & (~size + np.uint64(1)), np.uint64(1))
    return size // lowest < np.uint64(2**53)


def _first(bad: np.ndarray, array: np.ndarray, start: int) -> tuple[tuple[int, ...], str]:
    """The index of the first bad value, and in words that of it in the whole, of which the array begins at a row."""
    i = tuple(int(at) for at in np.unravel_index(int(bad.argmax()), array.shape))
    of_all = (start + i[0], *i[1:])
    return i, f"row {of_all[0]}, column {i[1]} (counted from 0)" if array.ndim == 2 else f"index {of_all}"
