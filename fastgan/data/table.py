"""A table of words, numbers, dates and missing values as samples of a GAN, and back."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from fastgan.data import numbers
from fastgan.data.columns import Column, Found, find_column, read_kinds
from fastgan.data.csv_text import MISSING, Cells, Rows
from fastgan.data.errors import DataError
from fastgan.data.modes import fit_modes
from fastgan.data.numbers import DateForm, NumberForm

# Of a column: level numbers (N,) int64 of a discrete one; numbers or seconds (N,) float64, NaN where they are missing;
# None of one that is constant or left out.
Values = list[np.ndarray | None]


@dataclass(frozen=True, eq=False)
class Table:
    """How the columns of a table become the columns of samples, and back.

    A real, a whole number or a date is a value of a `tanh` segment and its mode, a `gumbel_softmax` segment (see
    `fastgan.data.modes`); a discrete column is one `gumbel_softmax` segment. Those of the discrete columns are the
    last, so that they are what a condition asks for (`fastgan.TrainStep`, `condition_weight`).

    Attributes:
        columns: those of the file, in its order.
        has_names: whether the file has a line of names.
        encoding: of the file, in which tables are written too.
        separator: likewise.
        fingerprint: SHA-256 of the cells.
    """

    columns: tuple[Column, ...]
    has_names: bool
    encoding: str
    separator: str
    fingerprint: str
    _exact: dict[int, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def order(self) -> tuple[int, ...]:
        """The columns that have segments, as these follow each other: first the reals, then the discrete ones."""
        has = [i for i, column in enumerate(self.columns) if column.widths]
        return tuple(sorted(has, key=lambda i: self.columns[i].kind == "discrete"))

    @functools.cached_property
    def starts(self) -> dict[int, int]:
        """Of each column that has segments, the first column of samples."""
        widths = [sum(self.columns[i].widths) for i in self.order]
        return dict(zip(self.order, itertools.accumulate([0, *widths]), strict=False))

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the segments of a sample."""
        return tuple(width for i in self.order for width in self.columns[i].widths)

    @property
    def segments(self) -> tuple[str, ...]:
        """The generator's activation of each segment."""
        return tuple(
            kind
            for i in self.order
            for kind in (("tanh", "gumbel_softmax") if self.columns[i].modes is not None else ("gumbel_softmax",))
        )

    @property
    def counts(self) -> tuple[tuple[int, ...], ...]:
        """Of each discrete column, the rows of each level: the classes of a conditional run, one after another."""
        return tuple(column.counts for column in self.columns if column.kind == "discrete")

    @property
    def num_classes(self) -> int:
        """Levels of all discrete columns."""
        return sum(map(len, self.counts))

    @property
    def level_columns(self) -> tuple[int, ...]:
        """Of each class, the column of samples that is 1 where it is: the last ones."""
        width = sum(self.widths)
        return tuple(range(width - self.num_classes, width))

    def class_of(self, name: str, level: str) -> int:
        """The class that stands for a level of a discrete column.

        Raises:
            ValueError: there is no such column or level.
        """
        first = 0
        for column in self.columns:
            if column.kind != "discrete":
                continue
            if column.name == name:
                if level in column.levels:
                    return first + column.levels.index(level)
                some = ", ".join(map(repr, column.levels[:20])) + (" and others" if len(column.levels) > 20 else "")
                raise ValueError(f"where must ask for a level that {name} has ({some}), not {level!r}")
            first += len(column.levels)
        names = ", ".join(column.name for column in self.columns if column.kind == "discrete") or "there is none"
        raise ValueError(f"where must name a discrete column ({names}), not {name!r}")

    def segment_of(self, column: int) -> tuple[int, int]:
        """The first column of samples of the segment that one is in, and the first after it."""
        ends = list(itertools.accumulate(self.widths))
        segment = next(i for i, end in enumerate(ends) if end > column)
        return ends[segment] - self.widths[segment], ends[segment]

    def values(self, rows: Rows, source: str) -> Values:
        """The values of a file with the same columns; -1 for a level that is none of a discrete column's.

        Raises:
            DataError: the columns are others, or a cell does not fit its column.
        """
        names = rows.names if rows.names is not None else tuple(f"column {i + 1}" for i in range(len(rows.columns)))
        wanted = tuple(column.name for column in self.columns)
        if names != wanted:
            raise DataError(f"{source} must have the columns {', '.join(wanted)}, not {', '.join(names)}")
        return [_values_of(column, cells, source) for column, cells in zip(self.columns, rows.columns, strict=True)]

    def encode(self, values: Values, seed: int) -> Tensor:
        """Samples (N, data) in float32 of values, every level of which is known; modes are drawn, by the seed."""
        rng = np.random.default_rng(seed)
        parts = []
        for column, of_column in ((self.columns[i], values[i]) for i in self.order):
            assert of_column is not None
            codes = of_column
            if column.modes is not None:
                codes, places = column.modes.encode(of_column, rng)
                parts.append(places.astype(np.float32)[:, None])
            one_hot = np.zeros((len(codes), column.widths[-1]), dtype=np.float32)
            one_hot[np.arange(len(codes)), codes] = 1
            parts.append(one_hot)
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def decode(self, samples: Tensor) -> Values:
        """Values of samples (N, data): of each one-hot segment the largest, numbers rounded as those of the data are
        and within their range. The table's own samples give their own values."""
        array = samples.detach().cpu().numpy()
        values: Values = []
        for i, column in enumerate(self.columns):
            if i not in self.starts:
                values.append(None)
                continue
            start = self.starts[i]
            at = start + sum(column.widths)
            if column.modes is None:
                values.append(array[:, start:at].argmax(axis=1))
                continue
            places, modes = array[:, start].astype(np.float64), array[:, start + 1 : at].argmax(axis=1)
            found = rounded(column, column.modes.decode(modes, places))
            for mode, (codes, own) in enumerate(self._exact.get(i, ())):
                where = np.clip(np.searchsorted(codes, places), 0, max(0, len(codes) - 1))
                hit = (modes == mode) & (codes[where] == places) if len(codes) else np.zeros(len(modes), dtype=bool)
                found[hit] = own[where[hit]]
            values.append(found)
        return values

    def keep_exact(self, samples: Tensor, values: Values) -> None:
        """Keep the values of samples that float32 does not lead back to, to look them up."""
        array = samples.numpy()
        for i, (column, own, found) in enumerate(zip(self.columns, values, self.decode(samples), strict=True)):
            if column.modes is None or own is None or found is None or np.array_equal(own, found, equal_nan=True):
                continue
            start = self.starts[i]
            at = start + sum(column.widths)
            places, modes = array[:, start].astype(np.float64), array[:, start + 1 : at].argmax(axis=1)
            kept = []
            for mode in range(column.modes.count):
                codes, first = np.unique(places[modes == mode], return_index=True)
                kept.append((codes, own[modes == mode][first]))
            self._exact[i] = kept

    def rows(self, values: Values, count: int) -> list[list[str]]:
        """Values as cells, row by row; columns that were left out are not among them."""
        texts = [
            _texts_of(column, of_column, count)
            for column, of_column in zip(self.columns, values, strict=True)
            if column.kind != "drop"
        ]
        return [list(row) for row in zip(*texts, strict=True)]

    def write(self, values: Values, count: int) -> bytes:
        """A .csv file of values, with the names, the separator and the encoding of the table's own."""
        text = io.StringIO()
        self.write_to(text, values, count)
        return text.getvalue().encode(self.encoding)

    def write_to(self, text: TextIO, values: Values, count: int, names: bool = True) -> None:
        """Write values as lines of a .csv file, after the names where the table has them and they are wanted."""
        writer = csv.writer(text, delimiter=self.separator, lineterminator="\n")
        if self.has_names and names:
            writer.writerow([column.name for column in self.columns if column.kind != "drop"])
        writer.writerows(self.rows(values, count))

    def as_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **{name: getattr(self, name) for name in ("has_names", "encoding", "separator", "fingerprint")},
            "columns": [column.as_json() for column in self.columns],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Table:
        """The inverse of `as_json`."""
        return cls(**{**values, "columns": tuple(map(Column.from_json, values["columns"]))})


def rounded(column: Column, values: np.ndarray) -> np.ndarray:
    """Numbers or seconds (N,) as the column has them: within its range, with its decimals."""
    if column.kind == "integer":
        values = np.round(values)
    elif isinstance(column.form, NumberForm):
        values = column.form.round(values)
    elif isinstance(column.form, DateForm):
        values = np.round(values / column.form.unit) * column.form.unit
    kept: np.ndarray = np.clip(values, column.low, column.high)
    return kept


def make_table(path: Any, rows: Rows, columns: str, seed: int) -> tuple[Table, Values]:
    """The Table of a file, and its values.

    Args:
        path: of the file, for messages.
        rows: its cells.
        columns: `name=kind,...` where the user says what a column is, see `fastgan.data.load`.
        seed: of the mixtures.

    Raises:
        DataError: a column cannot be used, or nothing can be learned of any.
    """
    names = rows.names if rows.names is not None else tuple(f"column {i + 1}" for i in range(len(rows.columns)))
    asked = read_kinds(columns, names)
    if len(rows.columns[0].codes) == 1:
        line = rows.columns[0].lines[0]
        raise DataError(
            f"{path}, line {line}, is the only row of the table, and nothing can be learned of one: give it rows that "
            "differ"
        )
    found = [
        find_column(path, i, names[i], cells, rows.separator, asked.get(i, "")) for i, cells in enumerate(rows.columns)
    ]
    if all(each.column.kind in ("constant", "drop") for each in found):
        raise DataError(f"{path}: every column has one value in all rows or is left out, so there is nothing to learn")
    reals = {i: each.values[rows.columns[i].codes] for i, each in enumerate(found) if each.values is not None}
    modes = dict(zip(reals, fit_modes(list(reals.values()), seed), strict=True)) if reals else {}
    table = Table(
        tuple(_with_modes(each, modes.get(i)) for i, each in enumerate(found)),
        rows.names is not None,
        rows.encoding,
        rows.separator,
        fingerprint_of(rows),
    )
    values = [
        reals[i] if i in reals else _values_of(column, cells, str(path))
        for i, (column, cells) in enumerate(zip(table.columns, rows.columns, strict=True))
    ]
    return table, values


def fingerprint_of(rows: Rows) -> str:
    """SHA-256 of the names and cells of a file."""
    digest = hashlib.sha256(repr(rows.names).encode())
    for cells in rows.columns:
        digest.update(repr(cells.texts).encode())
        digest.update(np.ascontiguousarray(cells.codes, dtype="<i8").tobytes())
    return digest.hexdigest()


def _with_modes(found: Found, modes: Any) -> Column:
    return Column(**{**vars(found.column), "modes": modes})


def _values_of(column: Column, cells: Cells, source: str) -> np.ndarray | None:
    if column.kind in ("constant", "drop"):
        return None
    if column.kind == "discrete":
        index = {level: i for i, level in enumerate(column.levels)}
        of_missing = -1 if column.missing is None else len(column.levels) - 1
        levels = np.array([of_missing if text in MISSING else index.get(text, -1) for text in cells.texts])
        of_rows: np.ndarray = levels[cells.codes]
        return of_rows
    values = np.full(len(cells.texts), np.nan)
    for i, text in enumerate(cells.texts):
        if text in MISSING:
            continue
        value = _parsed(column, text)
        if value is None:
            raise DataError(
                f"{source}, line {cells.lines[i]}, holds {text!r} in the column {column.name}, which is {column.kind}"
            )
        values[i] = value
    found: np.ndarray = values[cells.codes]
    return found


def _parsed(column: Column, text: str) -> float | None:
    if isinstance(column.form, DateForm):
        try:
            return column.form.parse(text)
        except ValueError:
            return None
    parsed = numbers.parse_numbers([text], isinstance(column.form, NumberForm) and column.form.comma)
    return None if parsed is None else float(parsed[0])


def _texts_of(column: Column, values: np.ndarray | None, count: int) -> Sequence[str]:
    if values is None:
        return [column.levels[0]] * count
    if column.kind == "discrete":
        return [column.levels[i] for i in values]
    assert column.form is not None
    distinct, codes = np.unique(values, return_inverse=True)
    texts = [(column.missing or "") if np.isnan(value) else column.form.write(value) for value in distinct]
    return [texts[i] for i in codes]
