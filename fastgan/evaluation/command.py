"""The command `fastgan eval`: a table's report, a run's measures, or a protocol over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastgan import checks
from fastgan.evaluation import running
from fastgan.evaluation import runs as of_runs
from fastgan.evaluation.protocols import PROTOCOLS
from fastgan.output import say
from fastgan.training.table_report import report_of_run

SEEDS = 10
RUNS = "runs"


def evaluate(
    name: str | None,
    of_run: Mapping[str, Any],
    of_protocol: Mapping[str, Any],
    *,
    seed: int,
    out: Path | None,
    runs: str,
) -> None:
    """Measure, print, and write what was asked for.

    Args:
        name: of a protocol, or what RunFolder.find takes.
        of_run: `number`, `holdout` and `target`, None where they are not given.
        of_protocol: `seeds`, `entrant`, `data`, `processes` and `steps`, likewise.
        seed: of a run's samples.
        out: a .json file, or of a protocol a folder.
        runs: the folder of run folders.

    Raises:
        CheckpointError, DataError, OSError: see `fastgan.evaluation.runs.measure_run` and `running.run_protocol`.
        TypeError, ValueError: an option is out of range, or is given where it has no meaning.
    """
    if name in PROTOCOLS:
        _refuse(of_run, f"the protocol {name}", "a run")
        _refuse({"seed": seed, "runs": runs if runs != RUNS else None}, f"the protocol {name}", "a run")
        if of_protocol["data"] and not PROTOCOLS[name].where:
            raise ValueError(
                f"data must be left out for the protocol {name}, whose data is made or comes with a package"
            )
        _protocol(name, out or Path("eval") / name, **of_protocol)
        return
    _refuse(of_protocol, "a run", f"a protocol ({', '.join(PROTOCOLS)})")
    count, holdout, target = of_run["number"], of_run["holdout"], of_run["target"]
    if count is not None:
        checks.integer("number", count, 2)
    found: Any
    if target is not None or of_runs.is_on_table(name, runs):
        found = report_of_run(name, count=count, holdout=holdout, target=target, seed=seed, runs=runs)
        for column, score in found.shapes.items():
            say(f"  {score:.3f}  {column}")
        lines, content = found.summary(), found.as_json()
    else:
        if count is not None:
            checks.integer("number", count, 10)
        found = of_runs.measure_run(name, count=count, holdout=holdout, seed=seed, runs=runs)
        lines = found.lines()
        content = {**vars(found), "generated": _plain(found.generated), "real": _plain(found.real)}
    for line in lines:
        say(line)
    if out is not None:
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _refuse(options: Mapping[str, Any], given: str, needed: str) -> None:
    for name, value in options.items():
        if value:
            raise ValueError(f"{name} must be given for {needed} alone, not for {given}")


def _protocol(
    name: str,
    folder: Path,
    *,
    seeds: int | None,
    entrant: list[str] | None,
    data: str | None,
    processes: int | None,
    steps: int | None,
) -> None:
    seeds = SEEDS if seeds is None else seeds
    checks.integer("seeds", seeds, 1)
    for option, value in (("processes", processes), ("steps", steps)):
        if value is not None:
            checks.integer(option, value, 1)
    protocol = PROTOCOLS[name]
    say(f"{name}: {protocol.source}")
    say(protocol.note)
    options = None if steps is None else {"steps": steps}

    def save(rows: dict[str, running.Row]) -> None:
        running.write(name, rows, folder)

    rows = running.run_protocol(
        name, seeds, entrants=entrant, where=data, processes=processes, options=options, say=say, save=save
    )
    cells = running.table(name, rows)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    running.write_picture(name, rows, folder)
    say(f"mean ± standard error over {seeds} seeds; results.json, results.csv and samples.png are in {folder}")
