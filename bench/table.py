"""The rows of a measurement as text: a rich table where rich is installed, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

HEADERS = ("case", "contender", "median", "min .. max", "IQR", "vs torch", "", "rate", "of ceiling")
_LEFT_ALIGNED = ("case", "contender", "")  # the others are figures, set to the right
# Wide enough for every row, where output goes to a file and has no width of its own.
_FILE_WIDTH = 200


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The text of a row, one string for each of HEADERS."""
    is_torch = row["contender"] == "torch"
    unit = next((unit for unit in ("GB/s", "GFLOP/s") if unit in row), None)
    return (
        row["case"],
        row["contender"],
        _duration(row["median_us"]),
        f"{_duration(row['min_us'])} .. {_duration(row['max_us'])}",
        f"{row['spread']:.0%}",
        "" if is_torch else f"{row['times_as_fast']:.2f}x",
        row["verdict"],
        _rate(row[unit], unit) if unit else "",
        (f"{row['of_ceiling']:.0%}" if unit else "")
        + (f" ({row['of_product_beside']:.0%})" if "of_product_beside" in row else ""),
    )


def print_table(rows: Sequence[dict[str, Any]], file: TextIO = sys.stdout) -> None:
    """Print the rows of one op.

    Args:
        rows: as `bench.record.rows` makes them.
        file: where to.
    """
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print_plain(rows, file)
        return
    console = Console(file=file) if file.isatty() else Console(file=file, width=_FILE_WIDTH)
    table = Table(box=box.SIMPLE_HEAD)
    for header in HEADERS:
        table.add_column(header, justify="left" if header in _LEFT_ALIGNED else "right", no_wrap=header != "case")
    style = {"faster": "green", "slower": "bold red"}
    for row in rows:
        table.add_row(*cells(row), style=style.get(row["verdict"]))
    console.print(table)


def print_plain(rows: Sequence[dict[str, Any]], file: TextIO) -> None:
    """The same as aligned lines."""
    lines = [HEADERS, *(cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        aligned = [
            text.ljust(width) if header in _LEFT_ALIGNED else text.rjust(width)
            for header, text, width in zip(HEADERS, line, widths, strict=True)
        ]
        print("  ".join(aligned).rstrip(), file=file)
    print(file=file, flush=True)


def _rate(value: float, unit: str) -> str:
    if unit == "GFLOP/s" and value >= 1e4:
        return f"{value / 1e3:.1f} TFLOP/s"
    return f"{value:.1f} {unit}"


def _duration(microseconds: float) -> str:
    if microseconds < 1e3:
        return f"{microseconds:.1f} us"
    if microseconds < 1e6:
        return f"{microseconds / 1e3:.2f} ms"
    return f"{microseconds / 1e6:.2f} s"
