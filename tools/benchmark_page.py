"""The figures of docs/benchmark.md, from a record: `python -m tools.benchmark_page bench/results/cpu-2026-11-23.json`.

`--write docs/benchmark.md` puts them there, between the lines `<!-- benchmark: cpu -->` (of a GPU's record, `gpu`) and
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

from . import step_tables
from .step_tables import CONFIGURATIONS, Row, Table, named, number, under_one

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
# Row titles to the case, with the configuration's name open.
NETWORKS = {
    "`MLP` generator, forward and backward": "mlp {} G float32 forward+backward",
    "`MLP` discriminator, forward and backward": "mlp {} D float32 forward+backward",
    "WGAN-GP critic step": "penalties WGAN-GP {} D float32 step",
    "D step with R1": "penalties R1 {} D float32 step",
}
PASSES = {"forward": " forward", "forward and backward": " forward+backward"}


def markdown(record: dict[str, Any], file: str) -> str:
    """What the page says of a measurement: a sentence on where, tables, the ceilings, and all that is slower.

    Args:
        record: as `python -m bench --json` and tools/gpu.sh write it.
        file: its name, for the sentence.
    """
    rows = record["rows"]
    parts = [
        _where(record, file),
        *_table(step_tables.ratios(rows)),
        *map(_filled, step_tables.notes_on_ratios(rows)),
        *_table(step_tables.absolute(record)),
        *(text for axis in step_tables.SWEEPS for text in _table(step_tables.sweep(rows, axis))),
        *map(_filled, step_tables.notes_on_sweeps(rows)),
        *(text for table in step_tables.penalties(rows) for text in _table(table)),
        *map(_filled, step_tables.notes_on_refusals(record)),
        *_table(step_tables.tutorial(rows)),
        *_table(_losses(rows)),
        *_table(_networks(rows)),
        *_table(_by_pass(rows, "linear_act ", "`linear_act`, batch x in x out")),
        *_table(_by_pass(rows, "host ", "one call on 64 samples of one value: the cost on the host")),
        _ceilings(record["ceilings"]),
        *_slower(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _where(record: dict[str, Any], file: str) -> str:
    facts = record["environment"]
    if gpu := facts.get("gpu"):
        where = f"an {gpu['name']}" if gpu["name"].startswith("NVIDIA") else f"a {gpu['name']}"
        where += f" (driver {gpu['driver']}, CUDA {gpu['cuda']}, float32 products {gpu['float32_products']})"
    else:
        build = facts["build"] or {}
        where = f"{facts['threads']} threads of {facts['cpu']} ({build.get('cpu_instructions', 'not compiled')})"
    rounds = max((row["rounds"] for row in record["rows"]), default=0)
    return _filled(
        f"Measured on {facts['date']} on {where}, with PyTorch {facts['torch']}, at commit {facts['commit']}; the "
        f"record is `{file}`. A figure is how many times as fast as PyTorch fastgan is, unless the table says "
        f"otherwise: the median over {rounds} rounds. Under 1 it is slower."
    )


def _losses(rows: Iterable[Row]) -> Table:
    ratios = _ratios(rows)
    return [
        ["loss, forward and backward", *SIZES],
        *(
            [title, *(number(ratios.get(f"{case} {size} forward+backward")) for size in SIZES.values())]
            for title, case in LOSSES.items()
        ),
    ]


def _networks(rows: Iterable[Row]) -> Table:
    ratios = _ratios(rows)
    return [
        ["networks", *CONFIGURATIONS],
        *(
            [title, *(number(ratios.get(case.format(name))) for name in CONFIGURATIONS)]
            for title, case in NETWORKS.items()
        ),
    ]


def _by_pass(rows: Iterable[Row], start: str, title: str) -> Table:
    """Both passes of each case whose name begins so."""
    ratios = _ratios(rows)
    ends = tuple(PASSES.values())
    cases = dict.fromkeys(case.rpartition(" ")[0] for case in ratios if case.startswith(start) and case.endswith(ends))
    return [
        [title, *PASSES],
        *(
            [case.removeprefix(start), *(number(ratios.get(f"{case}{end}")) for end in PASSES.values())]
            for case in cases
        ),
    ]


def _ratios(rows: Iterable[Row]) -> dict[str, float]:
    """How many times as fast fastgan is, by case."""
    return {row["case"]: row["times_as_fast"] for row in rows if row["contender"] == "fastgan"}


def _table(lines: Table) -> list[str]:
    """The table of the rows that have a figure; nothing without any."""
    header, *rows = lines
    filled = [row for row in rows if any(row[1:])]
    if not filled:
        return []
    return ["\n".join([_line(header), "|" + "---|" * len(header), *map(_line, filled)])]


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


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


def _slower(rows: Sequence[Row]) -> list[str]:
    """Every case that is slower, by name: tables of the good ones alone would be half the truth."""
    ours = [row for row in rows if row["contender"].startswith("fastgan")]
    lost = [row for row in ours if row["times_as_fast"] < 1]
    beaten = list(step_tables.slower_than_peers(rows))
    parts = [f"No case of {len(ours)} is slower than PyTorch eager."]
    if lost:
        doubt = {"slower?": ", within what the rounds vary"}
        parts = [f"Slower than PyTorch eager: {len(lost)} cases of {len(ours)}."]
        parts += _table(
            [
                ["case", "times as fast"],
                *([named(row), under_one(row["times_as_fast"]) + doubt.get(row["verdict"], "")] for row in lost),
            ]
        )
    if beaten:
        cells = [[case, f"`{peer}`", under_one(ratio)] for case, peer, ratio in beaten]
        parts += ["Steps that another peer runs faster:", *_table([["case", "peer", "times as fast"], *cells])]
    return parts


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def rewritten(text: str, figures: str, kind: str) -> str:
    """A page with the figures between its marks.

    Args:
        text: the page's.
        figures: what goes there.
        kind: of the marks, such as `cpu` or `gpu`.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    start, end = f"<!-- benchmark: {kind} -->\n", f"<!-- end of benchmark: {kind} -->\n"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed or start in rest or end in after:
        raise ValueError(f"there must be one line {start.strip()} and after it one {end.strip()}")
    return f"{before}{start}\n{figures}\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of one record, or write them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark_page", description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, metavar="RECORD", help="a JSON file of python -m bench or tools/gpu.sh")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put them into this file, between its marks")
    parser.add_argument("--as", dest="kind", metavar="NAME", help="of the marks (default: cpu or gpu, as the record)")
    options = parser.parse_args(arguments)
    record = read(parser, options.record)
    root = Path(__file__).resolve().parent.parent
    file = options.record.resolve()
    name = file.relative_to(root).as_posix() if file.is_relative_to(root) else options.record.name
    figures = markdown(record, name)
    if options.write is None:
        print(figures, end="")
        return 0
    kind = options.kind or ("gpu" if "gpu" in record["environment"] else "cpu")
    try:
        text = rewritten(options.write.read_text(), figures, kind)
    except (OSError, ValueError) as error:
        parser.error(f"--write {options.write}: {error}")
    options.write.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
