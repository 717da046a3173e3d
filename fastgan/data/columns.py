"""The columns of a table: what each holds, told by its cells or by the user, and how its values are written."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastgan.data import numbers
from fastgan.data.csv_text import MISSING, Cells
from fastgan.data.errors import DataError
from fastgan.data.modes import Modes
from fastgan.data.numbers import DateForm, NumberForm

KINDS = ("discrete", "continuous", "integer", "date", "constant", "drop")
# Numbers are levels where there are so few of them, and so many rows for each on average.
FEW_LEVELS, ROWS_A_LEVEL = 20, 10
# Words of more kinds are hardly a choice among so many, and each is a column of the networks' inputs.
MOST_LEVELS = 1000


@dataclass(frozen=True)
class Column:
    """What a column of a table holds.

    Attributes:
        name: of its header, or "column 1" and so on.
        kind: `discrete`, `continuous`, `integer`, `date`, `constant` or `drop`.
        levels: of a discrete or constant column, the cells as they are written; the missing one among them.
        counts: rows of each level.
        missing: how a missing cell is written; None where there are none.
        form: of numbers or dates.
        low: smallest number, or date in seconds.
        high: largest.
        modes: of a continuous, integer or date column.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    missing: str | None = None
    form: NumberForm | DateForm | None = None
    low: float = 0.0
    high: float = 0.0
    modes: Modes | None = field(default=None)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of its segments: of a real a value and its modes, of a discrete column its levels."""
        if self.modes is not None:
            return (1, self.modes.count)
        return (len(self.levels),) if self.kind == "discrete" else ()

    def in_words(self) -> str:
        """What is shown beside name and kind."""
        parts = []
        if self.kind == "discrete":
            parts.append(f"{len(self.levels)} levels")
        elif self.kind == "constant":
            parts.append(repr(self.levels[0]) if self.levels[0] else "always missing")
        elif self.modes is not None and self.form is not None:
            parts.append(f"{self.form.write(self.low)} to {self.form.write(self.high)}, {self.modes.in_words()}")
        if self.missing is not None and self.kind != "constant":
            parts.append("some missing")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """As JSON has it, without what is not there."""
        form = None if self.form is None else {"is": type(self.form).__name__, **vars(self.form)}
        values = {
            **{"name": self.name, "kind": self.kind, "levels": list(self.levels), "counts": list(self.counts)},
            **{"missing": self.missing, "form": form, "low": self.low, "high": self.high},
            "modes": None if self.modes is None else self.modes.as_json(),
        }
        return {name: value for name, value in values.items() if value not in (None, [])}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Column:
        """The inverse of `as_json`."""
        given = dict(values)
        form = dict(given.pop("form", {}))
        kind = {"NumberForm": NumberForm, "DateForm": DateForm}.get(form.pop("is", ""))
        modes = given.pop("modes", None)
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        return cls(
            **plain,
            form=None if kind is None else kind(**form),
            modes=None if modes is None else Modes.from_json(modes),
        )


class Found(NamedTuple):
    """A column that was told, before its modes are fitted.

    Attributes:
        column: without modes.
        values: (K,) float64 numbers or seconds of each of the cells' texts, NaN where it is missing; None of others.
    """

    column: Column
    values: np.ndarray | None


def read_kinds(text: str, names: Sequence[str]) -> dict[int, str]:
    """What `--columns name=kind,...` says, by the column's index.

    A name or a format with a comma is quoted with its kind: "a,b=discrete". `date:FORMAT` gives the form of
    `datetime.strptime`.

    Raises:
        DataError: a name or a kind is unknown, or a name is that of several columns.
    """
    kinds: dict[int, str] = {}
    for item in next(csv.reader([text], skipinitialspace=True), []):
        name, equals, kind = item.strip().partition("=") if "=date:" in item else item.strip().rpartition("=")
        if not equals:
            raise DataError(f"columns must be name=kind, separated by commas, not {item!r}")
        at = [i for i, known in enumerate(names) if known == name.strip()]
        if len(at) != 1:
            fault = "names no column" if not at else f"names {len(at)} columns: rename them in the file"
            raise DataError(f"columns: {name!r} {fault}; the table has {', '.join(names)}")
        plain = kind.partition(":")[0]
        if plain not in KINDS or plain == "constant" or (":" in kind and plain != "date"):
            allowed = ", ".join(name for name in KINDS if name != "constant")
            raise DataError(f"columns: {name} must be one of {allowed} or date:FORMAT, not {kind!r}")
        kinds[at[0]] = kind
    return kinds


def find_column(path: Any, index: int, name: str, cells: Cells, separator: str, asked: str = "") -> Found:
    """What a column holds.

    Args:
        path: of the file, for messages.
        index: of the column, from 0.
        name: of it.
        cells: of it.
        separator: of the file: decimal commas are known where it is another.
        asked: the kind that the user gave, or nothing.

    Raises:
        DataError: it has numbers beside words, or too many levels, or is not of the kind that was asked for.
    """
    counts = np.bincount(cells.codes, minlength=len(cells.texts))
    present = [i for i, text in enumerate(cells.texts) if text not in MISSING]
    absent = [i for i, text in enumerate(cells.texts) if text in MISSING]
    missing = cells.texts[max(absent, key=lambda i: counts[i])] if absent else None
    texts = [cells.texts[i] for i in present]
    where = f"{path}, column {index + 1} ({name})"
    if asked == "drop":
        return Found(Column(name, "drop"), None)
    if len(present) + bool(absent) == 1:
        level = missing if missing is not None else texts[0]
        return Found(Column(name, "constant", (level,), (len(cells.codes),), missing), None)

    def values_of(parsed: np.ndarray) -> np.ndarray:
        values = np.full(len(cells.texts), np.nan)
        values[present] = parsed
        return values

    def discrete() -> Found:
        """Levels in the order of their numbers or letters, the missing one at the end."""
        parsed = numbers.parse_numbers(texts)
        by = sorted(range(len(texts)), key=lambda i: texts[i] if parsed is None else (parsed[i], texts[i]))
        levels = [texts[i] for i in by] + ([missing] if missing is not None else [])
        of_level = [int(counts[present[i]]) for i in by] + ([int(counts[absent].sum())] if absent else [])
        return Found(Column(name, "discrete", tuple(levels), tuple(of_level), missing), None)

    def ranged(kind: str, parsed: np.ndarray, form: NumberForm | DateForm) -> Found:
        low, high = float(parsed.min()), float(parsed.max())
        return Found(Column(name, kind, missing=missing, form=form, low=low, high=high), values_of(parsed))

    comma = separator != "," and any("," in text for text in texts)
    parsed = numbers.parse_numbers(texts, comma)
    is_few = len(texts) <= FEW_LEVELS and len(cells.codes) >= ROWS_A_LEVEL * len(texts)
    if parsed is not None:
        _check_numbers(path, index, texts, [cells.lines[i] for i in present], parsed)
    kind = asked.partition(":")[0]
    if kind == "discrete" or (not kind and is_few and (parsed is not None or _is_mixed(texts, comma))):
        return discrete()
    if kind in ("continuous", "integer") or (not kind and parsed is not None):
        if parsed is None:
            at = numbers.first_that_is_no_number(texts, comma)
            told = "codes with zeros in front" if at < 0 else f"{texts[at]!r}, line {cells.lines[present[at]]}"
            raise DataError(
                f"{where} must hold numbers to be {kind}, but it holds {told}; give --columns {name}=discrete"
            )
        form, whole = NumberForm.of(texts, comma), bool((parsed == np.floor(parsed)).all())
        if kind == "integer" and not whole:
            at = int((parsed != np.floor(parsed)).argmax())
            raise DataError(
                f"{where} must hold whole numbers to be integer, but it holds {texts[at]}; give --columns "
                f"{name}=continuous"
            )
        return ranged(kind or ("integer" if whole else "continuous"), parsed, form)
    dates = numbers.parse_dates(texts, asked.partition(":")[2]) if kind in ("", "date") else None
    if dates is not None:
        return ranged("date", *dates)
    if kind == "date":
        raise DataError(
            f"{where} must hold dates of one form to be date, but it holds {texts[0]!r}; give their form, as in "
            f"--columns {name}=date:%d/%m/%Y, or {name}=discrete"
        )
    if _is_mixed(texts, comma):
        at = numbers.first_that_is_no_number(texts, comma)
        line = cells.lines[present[at]]
        raise DataError(
            f"{path}, line {line}, column {index + 1} ({name}), holds {texts[at]!r}, which is no number, beside "
            f"numbers: leave the cell empty if the value is missing, or give --columns {name}=discrete if all of them "
            "are names"
        )
    if len(texts) > MOST_LEVELS:
        raise DataError(
            f"{where} holds {len(texts):,} different words, such as {texts[0]!r}, in {len(cells.codes):,} rows, and "
            f"more than {MOST_LEVELS:,} are too many to learn: give --columns {name}=drop to leave it out, or "
            f"{name}=discrete to learn it all the same"
        )
    return discrete()


def _is_mixed(texts: Sequence[str], comma: bool) -> bool:
    """Whether texts are numbers and words, and none of the numbers is a code such as 007."""
    of_number = [numbers.is_number(text, comma) for text in texts]
    return any(of_number) and not all(of_number) and not numbers.are_codes(texts)


def _check_numbers(path: Any, index: int, texts: Sequence[str], lines: Sequence[int], parsed: np.ndarray) -> None:
    """DataError at the first number that is not finite or that float64 rounds."""
    bad = ~(np.abs(parsed) <= np.finfo(np.float32).max)
    if bad.any():
        at = int(bad.argmax())
        fault = "is too large for float32" if np.isfinite(parsed[at]) else "is not finite"
        raise DataError(
            f"{path}, line {lines[at]}, column {index + 1}, holds {texts[at]}, which {fault}: leave the cell empty if "
            "the value is missing"
        )
    for at in np.flatnonzero(np.abs(parsed) >= 2**53).tolist():
        if texts[at].lstrip("+-").isdigit() and int(parsed[at]) != int(texts[at]):
            raise DataError(
                f"{path}, line {lines[at]}, column {index + 1}, holds {texts[at]}, which float64 cannot hold exactly; "
                "take an offset off first, or round it yourself"
            )
