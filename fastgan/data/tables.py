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
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np

from fastgan.data.dataset import DataError, Dataset, from_array

_SAMPLES = ("samples", "images", "data", "x_train", "X", "x")
_LABELS = ("labels", "y_train", "y")


def load_npy(path: Path, name: str) -> Dataset:
    """A Dataset of one array; see `fastgan.data.load` for its shapes.

    Raises:
        DataError: the file is truncated, corrupted, holds Python objects, or holds unusable values.
    """
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


_SEPARATORS = (",", ";", "\t")
# Numbers of so many digits may be integers that float64 rounds.
_LONG_INTEGER = re.compile(r"\s*[+-]?\d{16,}(\.0*)?\s*")


def load_csv(path: Path, name: str) -> Dataset:
    """A Dataset of a table of numbers, one sample a row; a first row of words names the columns.

    Cells are separated by commas, or by semicolons or tabs where the first line has no comma.

    Raises:
        DataError: a cell is no finite number, or an integer that float64 would round; a row has another length;
            there are no rows; or the first row is of both words and numbers.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    try:
        return _load_text(path, name, re.sub(r"(?m)^ +$", "", text))  # lines of blanks are blank lines
    except csv.Error as error:
        raise DataError(f"{path} is no table of numbers: {error}") from error


def _load_text(path: Path, name: str, text: str) -> Dataset:
    first = next((line for line in text.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", first)
    separator = next((mark for mark in _SEPARATORS if mark in bare), ",")
    line, head = next(_rows(text, separator), (0, None))
    if head is None:
        raise DataError(f"{path} is empty, but at least one row of numbers is needed")
    words = [not _is_number(cell) for cell in head]
    columns = [cell.strip() for cell in head] if all(words) else None
    if columns is None and any(words):
        at = words.index(True)
        raise DataError(
            f"{path}, line {line}, column {at + 1}, holds {head[at]!r}, which is no number, beside numbers: it must "
            "be a row of numbers or of column names"
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
        fault = _csv_fault(path, text, separator, columns)
        raise DataError(fault or f"{path} is no table of numbers: {error}") from error
    if table.size == 0:
        raise DataError(f"{path} has column names but no rows, and at least one row of numbers is needed")
    if np.abs(table).max() >= 2**53:
        _check_integers(path, text, separator, columns)
    labels = None
    if columns is not None:
        if table.shape[1] != len(columns):
            raise DataError(f"{path} names {len(columns)} columns, but its rows have {table.shape[1]}")
        if columns.count("label") > 1:
            raise DataError(f"{path} has {columns.count('label')} columns named label, but one is the most")
        if "label" in columns:
            at = columns.index("label")
            labels, table = table[:, at], np.delete(table, at, axis=1)
    return from_array(table, labels, name, str(path), f"{path}: column 'label'")


def _rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its last line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    return ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row) or len(row) > 1)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _csv_fault(path: Path, text: str, separator: str, columns: list[str] | None) -> str | None:
    """The sentence about the first cell or row that is wrong."""
    rows = _rows(text, separator)
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
    for line, row in list(_rows(text, separator))[columns is not None :]:
        for i, cell in enumerate(row):
            if _LONG_INTEGER.fullmatch(cell) and Decimal(float(cell)) != Decimal(cell.strip()):
                raise DataError(
                    f"{path}, line {line}, column {i + 1}, holds {cell.strip()}, which float64 cannot hold exactly; "
                    "take an offset off first, or round it yourself"
                )
