"""Arrays in .npy and .npz files, and tables in .csv files."""

from __future__ import annotations

import csv
import io
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fastgan.dataset import DataError, Dataset, from_array

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
            for member in filter(None, (key, label_name)):
                # All of the member is read, so that the archive's own checksum of it is verified.
                content = archive.read(f"{member}.npy")
                arrays[member] = _read_array(io.BytesIO(content), f"{path}: array {member!r}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
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


def load_csv(path: Path, name: str) -> Dataset:
    """A Dataset of a table of numbers, one sample a row; a first row of words names the columns.

    Raises:
        DataError: a cell is no finite number, a row has another length, or there are no rows.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    head = next((row for row in csv.reader(io.StringIO(text, newline="")) if row), None)
    if head is None:
        raise DataError(f"{path} is empty, but at least one row of numbers is needed")
    columns = None if all(_is_number(cell) for cell in head) else [cell.strip() for cell in head]
    try:
        # numpy's parser: some twenty times faster than a loop over cells, which is left to explain a failure.
        table = np.loadtxt(
            io.StringIO(text),
            delimiter=",",
            comments=None,
            quotechar='"',
            ndmin=2,
            skiprows=_lines_to(text, columns),
        )
    except (ValueError, OverflowError) as error:
        raise DataError(_csv_fault(path, text, columns) or f"{path} is no table of numbers: {error}") from error
    if table.size == 0:
        raise DataError(f"{path} has column names but no rows, and at least one row of numbers is needed")
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


def _lines_to(text: str, columns: list[str] | None) -> int:
    """Lines before the first row of numbers: none, or those up to the end of the column names."""
    if columns is None:
        return 0
    reader = csv.reader(io.StringIO(text, newline=""))
    next(row for row in reader if row)
    return reader.line_num


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _csv_fault(path: Path, text: str, columns: list[str] | None) -> str | None:
    """The sentence about the first cell or row that is wrong."""
    reader = csv.reader(io.StringIO(text, newline=""))
    rows = ((reader.line_num, row) for row in reader if row)
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
