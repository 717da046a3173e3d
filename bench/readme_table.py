"""The README's tables in Markdown, from a record: `python -m bench.readme_table bench/results/cpu-2026-11-23.json`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
    "training step, `TrainStep`": ("step {} float32", "fastgan TrainStep"),
    "training step, fastgan's modules and losses in your own loop": ("step {} float32", "fastgan modules"),
    "training step, PyTorch that skips D's weight gradients in the G step, as `TrainStep` does": (
        "step {} float32",
        "torch lean",
    ),
}
CONFIGURATIONS = ("ring", "digits", "mnist", "wide")


def markdown(record: dict[str, Any], file: str) -> str:
    """What the README says of a measurement: a sentence on where, two tables, the ceilings, and every loss.

    Args:
        record: as `python -m bench --json` and bench/gpu.sh write it.
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
    parts += _table(["loss, forward and backward", *SIZES], losses)
    parts += _table(["", *CONFIGURATIONS], networks)
    parts += [_ceilings(record["ceilings"]), _slower(record["rows"])]
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
        f"{value / 1e3:.1f} TFLOP/s in {name.removeprefix('GFLOP/s ')}"
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of one record; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme_table", description=__doc__)
    parser.add_argument("record", type=Path, metavar="RECORD", help="a JSON file of python -m bench or bench/gpu.sh")
    options = parser.parse_args(arguments)
    try:
        record = json.loads(options.record.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"RECORD cannot be read: {error}")
    missing = [key for key in ("environment", "ceilings", "rows") if key not in record]
    if missing:
        parser.error(f"RECORD {options.record} has no {', '.join(missing)}: its benchmark did not get so far")
    root = Path(__file__).resolve().parent.parent
    file = options.record.resolve()
    name = file.relative_to(root).as_posix() if file.is_relative_to(root) else options.record.name
    print(markdown(record, name), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
