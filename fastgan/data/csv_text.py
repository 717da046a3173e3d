"""The text of a .csv file: its encoding, its separator, its line of names, and its cells column by column."""

from __future__ import annotations

import codecs
import csv
import io
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastgan.data.errors import DataError

SEPARATORS = (",", ";", "\t", "|")
# What people and programs write where there is no value. Pandas reads all of them as missing, but for the last.
MISSING = frozenset(
    ("", "#N/A", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "NaT", "?")
)
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Cells(NamedTuple):
    """A column as it was written: a few different texts, and which of them each row has.

    Attributes:
        texts: (K,) the different cells without the blanks around them, in the order of their first row.
        codes: (N,) int64, the index of each row's text.
        lines: (K,) the line of the file in which each text is first seen.
    """

    texts: tuple[str, ...]
    codes: np.ndarray
    lines: tuple[int, ...]


class Rows(NamedTuple):
    """A .csv file, read.

    Attributes:
        names: of the columns, or None where the file has no line of names.
        columns: the cells.
        encoding: of the file, as Python names it.
        separator: of its cells.
    """

    names: tuple[str, ...] | None
    columns: tuple[Cells, ...]
    encoding: str
    separator: str


def read_text(path: Path) -> tuple[str, str]:
    """The text of a file and its encoding: UTF-8 or UTF-16, with or without a mark; else Windows-1252 or Latin-1.

    Raises:
        DataError: the file is no text.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), "")
    if not encoding:
        head = content[:4096]
        zeros = head[0::2].count(0), head[1::2].count(0)
        if min(zeros) == 0 and max(zeros) > len(head) // 4:  # of UTF-16, every other byte of plain letters is 0
            encoding = "utf-16-be" if zeros[0] else "utf-16-le"
    for attempt in (encoding,) if encoding else ("utf-8", "cp1252", "latin-1"):
        try:
            text = content.decode(attempt)
        except UnicodeDecodeError as error:
            fault = f"{path} is no {attempt} text: byte {error.start} is {content[error.start]:#04x}"
            continue
        if "\0" in text:
            raise DataError(f"{path} is no text: character {text.index(chr(0))} is 0x00; save it as UTF-8")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        return re.sub(r"(?m)^ +$", "", text), attempt  # lines of blanks are blank lines
    raise DataError(fault)


def separator_of(text: str) -> str:
    """The first of the separators that the first line has outside of quotes."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", first)
    return next((mark for mark in SEPARATORS if mark in bare), ",")


def rows_of(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its last line."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator != "\t", strict=False
    )
    return ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row) or len(row) > 1)


def read_rows(path: Path, text: str, encoding: str, is_value: re.Pattern[str]) -> Rows:
    """The cells of a table, column by column.

    Args:
        path: of the file, for messages.
        text: its text.
        encoding: its encoding.
        is_value: matches what is no name: a number, a date. A first row without any names the columns.

    Raises:
        DataError: the file is empty, a row has another length, or the first row may be either names or values.
    """
    separator = separator_of(text)
    try:
        return _read_rows(path, rows_of(text, separator), separator, encoding, is_value)
    except csv.Error as error:
        raise DataError(f"{path} is no table: {error}") from error


def _read_rows(
    path: Path, rows: Iterator[tuple[int, list[str]]], separator: str, encoding: str, is_value: re.Pattern[str]
) -> Rows:
    line, head = next(rows, (0, None))
    if head is None:
        raise DataError(f"{path} is empty, but at least one row is needed")
    width = len(head)
    cells = [cell.strip() for cell in head]
    values = [bool(is_value.fullmatch(cell)) for cell in cells]
    names = None if any(values) else tuple(cells)
    indices: list[dict[str, int]] = [{} for _ in head]
    firsts: list[list[int]] = [[] for _ in head]
    codes = [array("q") for _ in head]

    def take(line: int, row: list[str]) -> None:
        if len(row) != width:
            raise DataError(
                f"{path}, line {line}, has {len(row)} columns, but {width} are needed as in the first line; quote a "
                f"cell that holds a {separator!r}"
            )
        for cell, index, first, codes_of in zip(row, indices, firsts, codes, strict=True):
            cell = cell.strip()
            code = index.setdefault(cell, len(index))
            if code == len(first):
                first.append(line)
            codes_of.append(code)

    if names is None:
        take(line, head)
    for each, row in rows:
        take(each, row)
    if not codes[0]:
        raise DataError(f"{path} has column names but no rows, and at least one row is needed")
    columns = tuple(
        Cells(tuple(index), np.frombuffer(codes_of, dtype=np.int64), tuple(first))
        for index, codes_of, first in zip(indices, codes, firsts, strict=True)
    )
    if names is None and not all(values):
        _refuse_odd_head(path, line, cells, values, columns)
    return Rows(names, columns, encoding, separator)


def _refuse_odd_head(
    path: Path, line: int, cells: Sequence[str], values: Sequence[bool], columns: Sequence[Cells]
) -> None:
    """DataError where a first row of words and numbers looks like names: a word that its column never has again, while
    the column has others again and again."""
    for cell, value, column in zip(cells, values, columns, strict=True):
        counts = np.bincount(column.codes)
        if not value and cell not in MISSING and counts[0] == 1 and len(counts) > 1 and (counts[1:] > 1).all():
            raise DataError(
                f"{path}, line {line}, holds words beside numbers, and {cell!r} is not in its column again: where the "
                f"line names the columns, give each a name that is no number, such as y2019 for 2019"
            )
