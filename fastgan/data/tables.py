"""Arrays in .npy and .npz files, and tables in .csv files."""

from __future__ import annotations

import csv
import io
import lzma
import re
import tokenize
import warnings
import zipfile
import zlib
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np

from fastgan.data import numbers
from fastgan.data.columns import FEW_LEVELS, ROWS_A_LEVEL, Column
from fastgan.data.csv_text import read_rows, read_text, rows_of, separator_of
from fastgan.data.dataset import DataError, Dataset, from_array
from fastgan.data.mapped import map_npy
from fastgan.data.numbers import NumberForm
from fastgan.data.table import Table, Values, fingerprint_of, make_table

_SAMPLES = ("samples", "images", "data", "x_train", "X", "x")
_LABELS = ("labels", "y_train", "y")


def load_npy(path: Path, name: str) -> Dataset:
    """A Dataset of one array; see `fastgan.data.load` for its shapes.

    Raises:
        DataError: the file is truncated, corrupted, holds Python objects, or holds unusable values.
    """
    mapped = map_npy(path)
    if mapped is not None:
        return from_array(mapped, None, name, str(path))
    with path.open("rb") as file:
        array = _read_array(file, str(path))
        position = file.tell()
    if position != path.stat().st_size:
        raise DataError(f"{path} has bytes left over: its array ends at byte {position} of {path.stat().st_size}")
    return from_array(array, None, name, str(path))


def load_npz(path: Path, name: str) -> Dataset:
    """A Dataset of the arrays of an .npz; see `fastgan.data.load` for their names.

    Raises:
        DataError: the file is truncated, corrupted, or lacks an array of a known name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member[:-4] for member in archive.namelist() if member.endswith(".npy")]
            label_name = next((key for key in _LABELS if key in members), None)
            others = [key for key in members if key != label_name]
            key = next((key for key in _SAMPLES if key in members), others[0] if len(others) == 1 else None)
            if key is None:
                raise DataError(
                    f"{path} holds the arrays {', '.join(members) or '(none)'}, but the samples must be in "
                    f"the only one or in one named {', '.join(_SAMPLES)}"
                )
            arrays = {}
            for member in [key, *([] if label_name is None else [label_name])]:
                # All of the member is read, so that the archive's own checksum of it is verified.
                content = io.BytesIO(archive.read(f"{member}.npy"))
                arrays[member] = _read_array(content, f"{path}: array {member!r}")
                if content.read(1):
                    raise DataError(f"{path}: array {member!r} has bytes left over")
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is no intact .npz file: {error}") from error
    labels = arrays[label_name] if label_name else None
    return from_array(arrays[key], labels, name, f"{path}: array {key!r}", f"{path}: array {label_name!r}")


def _read_array(file: io.BufferedIOBase, source: str) -> np.ndarray:
    start = file.tell()
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except (
        ValueError,
        EOFError,
        TypeError,
        SyntaxError,
        KeyError,
        OverflowError,
        tokenize.TokenError,
    ) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise DataError(
            f"{source} is no intact .npy array of numbers: {reason} (read up to byte {file.tell() - start})"
        ) from error


# Numbers of so many digits may be integers that float64 rounds.
_LONG_INTEGER = re.compile(r"\s*[+-]?\d{16,}(\.0*)?\s*")
# What `columns` says to have a table of numbers scaled column by column, whatever its columns hold.
PLAIN = "plain"


def load_csv(path: Path, name: str, columns: str = "", seed: int = 0, known: Table | None = None) -> Dataset:
    """A Dataset of a table, one sample a row; a first row of words names the columns.

    Cells are separated by the first of comma, semicolon, tab and | that the first line has. A table of numbers alone is
    scaled column by column and its column `label` holds labels, unless a column is plainly discrete: of at most 20
    numbers, with ten rows or more for each. Such a table without a column `label`, and any with words, dates or missing
    values, becomes segments (see `fastgan.data.table`).

    Args:
        path: of the file.
        name: of the Dataset.
        columns: `name=kind,...`; `plain` for numbers that are scaled whatever they are.
        seed: of the mixtures that are fitted to reals.
        known: the Table of a run, for data that has its columns.

    Raises:
        DataError: a cell cannot be used, a row has another length, there are no rows, or nothing can be learned.
    """
    text, encoding = read_text(path)
    if known is None and columns in ("", PLAIN):
        try:
            plain = _load_numbers(path, name, text, encoding, must=columns == PLAIN)
        except csv.Error as error:
            raise DataError(f"{path} is no table of numbers: {error}") from error
        if plain is not None:
            return plain
    rows = read_rows(path, text, encoding, numbers.VALUE)
    if known is None:
        table, values = make_table(path, rows, columns, seed)
    else:
        table = replace(known, fingerprint=fingerprint_of(rows), _exact={})
        values = table.values(rows, str(path))
        _check_levels(path, table, values)
    samples = table.encode(values, seed)
    table.keep_exact(samples, values)
    return Dataset(name, samples, table=table)


def _check_levels(path: Path, table: Table, values: Values) -> None:
    for column, found in zip(table.columns, values, strict=True):
        if found is not None and column.kind == "discrete" and (found < 0).any():
            raise DataError(
                f"{path}, row {int((found < 0).argmax())}, has a level of {column.name} that the run does not know"
            )


def _load_numbers(path: Path, name: str, text: str, encoding: str, must: bool) -> Dataset | None:
    """The Dataset of a table of finite numbers; None where it has others, unless it must be one, or where a column is
    plainly discrete."""
    separator = separator_of(text)
    line, head = next(rows_of(text, separator), (0, None))
    if head is None:
        raise DataError(f"{path} is empty, but at least one row of numbers is needed")
    words = [not _is_number(cell) for cell in head]
    columns = [cell.strip() for cell in head] if all(words) else None
    if columns is None and any(words):
        if not must:
            return None
        word = words.index(True)
        raise DataError(
            f"{path}, line {line}, column {word + 1}, holds {head[word]!r}, which is no number, beside numbers: it "
            "must be a row of numbers or of column names"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of a table without rows
            # numpy's parser: some twenty times faster than a loop over cells, which is left to explain a failure.
            table = np.loadtxt(
                io.StringIO(text),
                delimiter=separator,
                comments=None,
                quotechar='"',
                ndmin=2,
                skiprows=line if columns else 0,
            )
    except (ValueError, OverflowError) as error:
        if not must:
            return None
        fault = _csv_fault(path, text, separator, columns)
        raise DataError(fault or f"{path} is no table of numbers: {error}") from error
    if table.size == 0:
        raise DataError(f"{path} has column names but no rows, and at least one row of numbers is needed")
    if np.isnan(table).any() and not must:
        return None
    if np.abs(table).max() >= 2**53:
        _check_integers(path, text, separator, columns)
    labels: np.ndarray | None = None
    at: int | None = None
    if columns is not None:
        if table.shape[1] != len(columns):
            raise DataError(f"{path} names {len(columns)} columns, but its rows have {table.shape[1]}")
        if columns.count("label") > 1:
            raise DataError(f"{path} has {columns.count('label')} columns named label, but one is the most")
        if "label" in columns:
            at = columns.index("label")
            labels, table = table[:, at], np.delete(table, at, axis=1)
    if labels is None and not must and any(map(_is_discrete, table.T)):
        return None
    dataset = from_array(table, labels, name, str(path), f"{path}: column 'label'")
    names = columns if columns is not None else [f"column {i + 1}" for i in range(table.shape[1])]
    layout = [_written(each, of) for each, of in zip([n for i, n in enumerate(names) if i != at], table.T, strict=True)]
    return replace(dataset, layout=Table(tuple(layout), columns is not None, encoding, separator, ""))


def _is_discrete(column: np.ndarray) -> bool:
    """Whether a column of numbers is plainly one of levels."""
    few = np.unique(column[: ROWS_A_LEVEL * FEW_LEVELS * 10])
    if len(few) > FEW_LEVELS:
        return False
    count = len(np.unique(column))
    return 1 < count <= FEW_LEVELS and len(column) >= ROWS_A_LEVEL * count


def _written(name: str, column: np.ndarray) -> Column:
    """How a column of numbers is written, as far as some of its numbers tell."""
    some = np.unique(column[:1000])
    whole = bool((column == np.floor(column)).all())
    form = NumberForm.of([f"{value:.0f}" if whole else repr(float(value)) for value in some], comma=False)
    form = replace(form, fixed=whole)
    kind = "integer" if whole else "continuous"
    return Column(name, kind, form=form, low=float(column.min()), high=float(column.max()))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _csv_fault(path: Path, text: str, separator: str, columns: list[str] | None) -> str | None:
    """The sentence about the first cell or row that is wrong."""
    rows = rows_of(text, separator)
    width = len(columns or ())
    if columns is not None:
        next(rows)
    for line, row in rows:
        width = width or len(row)
        if len(row) != width:
            return f"{path}, line {line}, has {len(row)} columns, but {width} are needed as in the first line"
        for i, cell in enumerate(row):
            if not _is_number(cell):
                return f"{path}, line {line}, column {i + 1}, holds {cell!r}, which is no number"
    return None


def _check_integers(path: Path, text: str, separator: str, columns: list[str] | None) -> None:
    """DataError at the first whole number that float64 would round."""
    for line, row in list(rows_of(text, separator))[columns is not None :]:
        for i, cell in enumerate(row):
            if _LONG_INTEGER.fullmatch(cell) and Decimal(float(cell)) != Decimal(cell.strip()):
                raise DataError(
                    f"{path}, line {line}, column {i + 1}, holds {cell.strip()}, which float64 cannot hold exactly; "
                    "take an offset off first, or round it yourself"
                )
