"""The README's tables in Markdown, from a record: `python -m tools.benchmark_page bench/results/cpu-2026-11-23.json`.

`--write README.md` puts them there, between the lines `<!-- benchmark: cpu -->` (of a GPU's record, `gpu`) and
`<!-- end of benchmark: cpu -->`.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.plots import read

from .step_tables import CONFIGURATIONS, case_rows, lost_to_others, step_rows

# Row titles to the first word of the cases, and columns to what follows it there.
LOSSES = {
    "`binary_cross_entropy_with_logits`": "bce",
    "`discriminator_loss`": "discriminator_loss",
    "`generator_loss`": "generator_loss",
}
SIZES = {
    "64x1": "64x1 float32",
    "4096x1": "4096x1 float32",
    "1024x256": "1024x256 float32",
    "4096x1024": "4096x1024 float32",
    "1024x256 bfloat16": "1024x256 bfloat16",
}
# Row titles to case, with the configuration's name open, and contender.
NETWORKS = {
    "`MLP` discriminator, forward and backward": ("mlp {} D float32 forward+backward", "fastgan"),
    "WGAN-GP critic step": ("penalties WGAN-GP {} D float32 step", "fastgan"),
    "R1": ("penalties R1 {} D float32 step", "fastgan"),
}


def markdown(record: dict[str, Any], file: str) -> str:
    """What the README says of a measurement: a sentence on where, tables, the ceilings, and every loss.

    Args:
        record: as `python -m bench --json` and tools/gpu.sh write it.
        file: its name, for the sentence.
    """
    ratios = {(row["case"], row["contender"]): row["times_as_fast"] for row in record["rows"]}
    losses = [
        [title, *(_ratio(ratios, f"{case} {size} forward+backward", "fastgan") for size in SIZES.values())]
        for title, case in LOSSES.items()
    ]
    networks = [
        [title, *(_ratio(ratios, case.format(name), contender) for name in CONFIGURATIONS)]
        for title, (case, contender) in NETWORKS.items()
    ]
    parts = [_sentence(record, file)]
    steps = _table(["a training step; in brackets what was aimed for", *CONFIGURATIONS], step_rows(record["rows"]))
    if steps:
        parts += steps + _table(["", "measured", "aimed for"], case_rows(record))
    parts += _table(["loss, forward and backward", *SIZES], losses)
    parts += _table(["", *CONFIGURATIONS], networks)
    parts += [_ceilings(record["ceilings"]), _slower(record["rows"])]
    if others := lost_to_others(record["rows"]):
        parts.append(_filled(f"Slower than others: {', '.join(others)}."))
    return "\n\n".join(parts) + "\n"


def _sentence(record: dict[str, Any], file: str) -> str:
    facts = record["environment"]
    if gpu := facts.get("gpu"):
        where = f"an {gpu['name']}" if gpu["name"].startswith("NVIDIA") else f"a {gpu['name']}"
        where += f" (driver {gpu['driver']}, CUDA {gpu['cuda']}, float32 products {gpu['float32_products']})"
    else:
        build = facts["build"] or {}
        where = f"{facts['threads']} threads of {facts['cpu']} ({build.get('cpu_instructions', 'not compiled')})"
    rounds = max((row["rounds"] for row in record["rows"]), default=0)
    return _filled(
        f"Measured on {where}, PyTorch {facts['torch']}, commit {facts['commit']} (`{file}`; medians of {rounds} "
        "rounds; how many times faster than plain PyTorch):"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The table of the rows that have a figure; nothing without any."""
    filled = [row for row in rows if any(row[1:])]
    if not filled:
        return []
    lines = [header, ["---"] * len(header), *filled]
    return ["\n".join(_line(cells) for cells in lines)]


def _line(cells: Sequence[str]) -> str:
    if set(cells) == {"---"}:
        return "|" + "|".join(cells) + "|"
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _ratio(ratios: dict[tuple[str, str], float], case: str, contender: str) -> str:
    value = ratios.get((case, contender))
    return "" if value is None else f"{value:.2f}"


def _ceilings(limits: dict[str, float]) -> str:
    products = ", ".join(
        (f"{value / 1e3:.1f} TFLOP/s" if value >= 1e3 else f"{value:.0f} GFLOP/s")
        + f" in {name.removeprefix('GFLOP/s ')}"
        for name, value in limits.items()
        if name.startswith("GFLOP/s")
    )
    return _filled(
        f"In the same run a copy moved {limits['GB/s']:.0f} GB/s (read and written), and products reached {products}."
    )


def _slower(rows: Iterable[dict[str, Any]]) -> str:
    """Every loss by name: a table of the good cases alone would be half the truth."""
    slower = [row for row in rows if row["contender"].startswith("fastgan") and row["verdict"] == "slower"]
    if not slower:
        return "No case is slower than PyTorch."
    named = ", ".join(
        row["case"]
        + row["contender"].removeprefix("fastgan").replace(" ", " by ", 1)
        + f" ({row['times_as_fast']:.2f})"
        for row in slower
    )
    return _filled(f"Slower than PyTorch: {named}.")


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def rewritten(text: str, tables: str, kind: str) -> str:
    """A README with the tables between its marks.

    Args:
        text: the README's.
        tables: what goes there.
        kind: `cpu` or `gpu`.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    start, end = f"<!-- benchmark: {kind} -->\n", f"<!-- end of benchmark: {kind} -->\n"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed or start in rest or end in after:
        raise ValueError(f"there must be one line {start.strip()} and after it one {end.strip()}")
    return f"{before}{start}\n{tables}\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of one record, or write them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark_page", description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, metavar="RECORD", help="a JSON file of python -m bench or tools/gpu.sh")
    parser.add_argument("--write", type=Path, metavar="README", help="put them into this file, between its marks")
    options = parser.parse_args(arguments)
    record = read(parser, options.record)
    root = Path(__file__).resolve().parent.parent
    file = options.record.resolve()
    name = file.relative_to(root).as_posix() if file.is_relative_to(root) else options.record.name
    tables = markdown(record, name)
    if options.write is None:
        print(tables, end="")
        return 0
    try:
        text = rewritten(options.write.read_text(), tables, "gpu" if "gpu" in record["environment"] else "cpu")
    except (OSError, ValueError) as error:
        parser.error(f"--write {options.write}: {error}")
    options.write.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
