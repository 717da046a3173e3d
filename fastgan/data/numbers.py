"""Numbers and dates as people write them: read, and written back in the same form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.IGNORECASE)
COMMA_NUMBER = re.compile(r"[+-]?\d+(,\d+)?")
# 007 is a name: as a number it would come back as 7.
_CODE = re.compile(r"[+-]?0\d+")
# What looks like a date, to be tried by the formats below.
_DATE = re.compile(r"(?=.*\d)(?=.*[-/.: ])[\w/.,:+ -]{4,40}")
# What no line of names has.
VALUE = re.compile(
    rf"{NUMBER.pattern}|[+-]?[\d_.,]*\d|\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}([ T].*)?|\d\d?:\d\d.*", re.IGNORECASE
)

# In the order of trial: of two that read all dates, the first. Of 01/02/2024 the month comes first, of 01.02.2024 the
# day.
_DAYS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%y", "%m/%d/%y"),
    *("%d/%m/%y", "%b %d, %Y", "%d %b %Y", "%B %d, %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y"),
)
_TIMES = ("", "%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p")
_FORMATS = (
    *(
        day + (joint + time if time else "")
        for time in _TIMES
        for day in _DAYS
        for joint in (" ", "T")[: 2 if time else 1]
    ),
    *(f"%Y-%m-%dT{time}{zone}" for time in _TIMES[1:4] for zone in ("Z", "%z")),
    *(f"%Y-%m-%d {time}{zone}" for time in _TIMES[2:4] for zone in ("Z", "%z")),
    *_TIMES[1:4],
    "%Y-%m",
)
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True)
class NumberForm:
    """How a column writes its numbers.

    Attributes:
        decimals: most digits after the point.
        fixed: every number has so many.
        pointed: every number has a point, whole ones too.
        comma: the point is a comma.
    """

    decimals: int = 0
    fixed: bool = True
    pointed: bool = False
    comma: bool = False

    @classmethod
    def of(cls, texts: Sequence[str], comma: bool) -> NumberForm:
        """The form of some numbers, at least one."""
        plain = [text.replace(",", ".") if comma else text for text in texts]
        mantissas = [re.split("[eE]", text) for text in plain]
        digits = []
        for mantissa in mantissas:
            exponent = int(mantissa[1]) if len(mantissa) > 1 else 0
            digits.append(max(0, len(mantissa[0].partition(".")[2]) - exponent))
        return cls(
            decimals=min(max(digits), 300),
            fixed=min(digits) == max(digits) and all(len(mantissa) == 1 for mantissa in mantissas),
            pointed=all("." in mantissa[0] or len(mantissa) > 1 for mantissa in mantissas),
            comma=comma,
        )

    def round(self, values: np.ndarray) -> np.ndarray:
        """Values with so many decimals."""
        return values if self.decimals > 17 else np.round(values, self.decimals)

    def write(self, value: float) -> str:
        """A rounded value as text."""
        if self.decimals == 0:
            text = f"{value:.0f}"
        elif self.fixed and self.decimals <= 17:
            text = f"{value:.{self.decimals}f}"
        else:
            text = repr(float(value))
            if text.endswith(".0") and not self.pointed:
                text = text[:-2]
        text = text[1:] if float(text) == 0 and text.startswith("-") else text
        return text.replace(".", ",") if self.comma else text


@dataclass(frozen=True)
class DateForm:
    """How a column writes its dates.

    Attributes:
        format: of `datetime.strptime`.
        written: of `datetime.strftime`; without leading zeros where the dates have none.
        unit: seconds that all dates are multiples of.
        digits: of the fraction of a second.
        offset: seconds from UTC, of a format with %z.
    """

    format: str
    written: str
    unit: float = 1.0
    digits: int = 6
    offset: int = 0

    def write(self, seconds: float) -> str:
        """Seconds since 1970, local to the column, as text."""
        moment = _EPOCH + timedelta(seconds=round(float(seconds) / self.unit) * self.unit)
        if "%z" in self.format:
            moment = moment.replace(tzinfo=timezone(timedelta(seconds=self.offset)))
        return moment.strftime(self.written.replace("%f", f"{moment.microsecond:06d}"[: self.digits]))

    def parse(self, text: str) -> float:
        """Text as seconds since 1970; ValueError where it has another form."""
        moment = datetime.strptime(text, self.format)
        if "%z" in self.format and moment.utcoffset() != timedelta(seconds=self.offset):
            raise ValueError(f"{text} has another offset from UTC")
        return (moment.replace(tzinfo=None) - _EPOCH).total_seconds()


def parse_numbers(texts: Sequence[str], comma: bool = False) -> np.ndarray | None:
    """Numbers (K,) in float64 of texts, at least one; None where one is no number, or a code such as 007."""
    pattern = COMMA_NUMBER if comma else NUMBER
    if not texts or not all(pattern.fullmatch(text) for text in texts):
        return None
    if any(_CODE.fullmatch(text) for text in texts):
        return None
    if comma:
        texts = [text.replace(",", ".") for text in texts]
    return np.array([float(text) for text in texts])


def is_number(text: str, comma: bool) -> bool:
    """Whether a text is a number, with a point or, where commas are known, with a comma."""
    return bool(NUMBER.fullmatch(text) or (comma and COMMA_NUMBER.fullmatch(text)))


def first_that_is_no_number(texts: Sequence[str], comma: bool) -> int:
    """The index of the first text that is no number; -1 where all are, or are codes such as 007."""
    return next((i for i, text in enumerate(texts) if not is_number(text, comma)), -1)


def are_codes(texts: Sequence[str]) -> bool:
    """Whether a text is a code such as 007."""
    return any(_CODE.fullmatch(text) for text in texts)


def parse_dates(texts: Sequence[str], format: str = "") -> tuple[np.ndarray, DateForm] | None:
    """Seconds since 1970 (K,) in float64 of texts, at least one, and their form; None where they are no dates.

    Args:
        texts: the dates.
        format: of `datetime.strptime`; without it, the first one known that reads all of them.
    """
    if not texts or (not format and not all(_DATE.fullmatch(text) for text in texts)):
        return None
    for attempt in (format,) if format else _FORMATS:
        form = DateForm(attempt, attempt)
        try:
            moment = datetime.strptime(texts[0], attempt)
            offset = moment.utcoffset() if "%z" in attempt else None
            form = DateForm(attempt, attempt, offset=0 if offset is None else int(offset.total_seconds()))
            seconds = np.array([form.parse(text) for text in texts])
        except ValueError:
            continue
        return seconds, _completed(form, texts, seconds)
    return None


def _completed(form: DateForm, texts: Sequence[str], seconds: np.ndarray) -> DateForm:
    """The form with its unit, and as the dates are written: %z, leading zeros and digits of a second."""
    whole = (float(unit) for unit in (86400, 3600, 60, 1))
    unit = next((unit for unit in whole if (seconds % unit == 0).all()), 1e-6)
    fraction = re.search(r":\d\d\.(\d+)", texts[0])
    digits = len(fraction[1]) if fraction else 6
    unpadded = re.sub(r"%([dmHI])", r"%-\1", form.format)
    zone = re.search(r"[+-]\d\d:?\d\d$", texts[0])
    for written in (form.format, unpadded, re.sub("%m", "%-m", form.format), re.sub("%d", "%-d", form.format)):
        if zone and "%z" in written:
            written = written.replace("%z", zone[0])
        found = DateForm(form.format, written, unit, digits, form.offset)
        if all(found.write(at) == text for at, text in zip(seconds[:1000], texts[:1000], strict=True)):
            return found
    written = form.format.replace("%z", zone[0]) if zone else form.format
    return DateForm(form.format, written, unit, digits, form.offset)
