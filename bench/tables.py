"""`fastgan train` on tables beside ctgan, with its defaults: `python -m bench.tables`, with the package ctgan.

Three tables of scikit-learn and the mixed one of 30,000 rows, each as a .csv file; from that file to a synthetic one.
The seconds are those of reading, training and writing, on all threads of this process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from fastgan.data import Dataset, load
from fastgan.integrations.ctgan import accelerate
from fastgan.training.table_report import report, values_of
from fastgan.training.trainer import Trainer

from .mixed_table import mixed_table, write_csv
from .record import environment

SKLEARN = ("breast_cancer", "wine", "diabetes")


def written_table(name: str, folder: Path, rows: int) -> Path:
    """The .csv file of a table, made in a folder; `rows` are those of `mixed`."""
    if name == "mixed":
        return write_csv(folder / "mixed.csv", mixed_table(rows))
    import sklearn.datasets

    table = getattr(sklearn.datasets, f"load_{name}")(
        as_frame=True, **({"scaled": False} if name == "diabetes" else {})
    )
    path = folder / f"{name}.csv"
    frame = table.frame
    if name != "diabetes":
        frame["target"] = table.target_names[table.target]
    frame.to_csv(path, index=False)
    return path


def by_fastgan(path: Path, out: Path, steps: int | None, seed: int) -> None:
    """What `fastgan train` and `fastgan sample --out` do."""
    with tempfile.TemporaryDirectory() as runs:
        trainer = Trainer(str(path), seed=seed, steps=steps, runs=runs)
        trainer.train(quiet=True)
        samples = trainer.sample(len(trainer.dataset), seed=seed + 1)
    table = trainer.dataset.table
    assert table is not None
    out.write_bytes(table.write(table.decode(samples), len(samples)))


def by_ctgan(path: Path, out: Path, epochs: int, seed: int, discrete: list[str], numbers: list[str]) -> None:
    """The package's own way. It takes no missing number: those are the column's median."""
    import pandas
    from ctgan import CTGAN

    frame = pandas.read_csv(path, keep_default_na=False, dtype={name: str for name in discrete})
    for name in numbers:
        column = pandas.to_numeric(frame[name])
        frame[name] = column.fillna(column.median())
    model = CTGAN(epochs=epochs)
    model.set_random_state(seed)
    model.fit(frame, discrete)
    model.sample(len(frame)).to_csv(out, index=False)


def kinds(path: Path) -> list[str]:
    """Of the columns as pandas reads them."""
    import pandas

    return [str(kind) for kind in pandas.read_csv(path).dtypes]


def compare(name: str, folder: Path, options: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each contender and seed: seconds, kinds of columns, and the scores of the report on tables."""
    path = written_table(name, folder, options.rows)
    real = load(path)
    assert real.table is not None
    columns = [column for column in real.table.columns if column.kind not in ("constant", "drop")]
    discrete = [column.name for column in columns if column.kind == "discrete"]
    numbers = [column.name for column in columns if column.kind != "discrete"]
    # Of the large table fewer than by default, which are many more than it takes to be ahead of ctgan.
    steps = 3000 if options.steps is None and name == "mixed" else options.steps
    found = []
    for seed in range(options.seeds):
        for contender in options.contenders:
            out = folder / f"{name}-{contender}.csv"
            began = time.perf_counter()
            if contender == "fastgan":
                by_fastgan(path, out, steps, seed)
            else:
                with accelerate() if contender == "ctgan accelerated" else nullcontext():
                    by_ctgan(path, out, options.epochs, seed, discrete, numbers)
            seconds = time.perf_counter() - began
            row = {
                "table": name,
                "rows": len(real),
                "columns": len(real.table.columns),
                "contender": contender,
                "seed": seed,
                "seconds": round(seconds, 2),
                "same_kinds": kinds(out) == kinds(path),
                **_scores(real, out),
            }
            say(json.dumps(row))
            found.append(row)
    return found


def _scores(real: Dataset, synthetic: Path) -> dict[str, float]:
    assert real.table is not None
    drawn = load(synthetic, known=real.table)
    scores = report(real.table.columns, values_of(real, real.samples), values_of(drawn, drawn.samples)).as_json()
    names = ("shape", "trend", "real_score", "synthetic_score", "copies")
    return {name: round(scores[name], 4) for name in names if scores[name] is not None}


def main() -> None:
    """Prints a line for each fit."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=(*SKLEARN, "mixed"), default=[*SKLEARN, "mixed"])
    parser.add_argument("--rows", type=int, default=30_000, help="of the mixed table (default: 30000)")
    parser.add_argument("--steps", type=int, help="of fastgan (default: 3000 of mixed, its own of the others)")
    parser.add_argument("--epochs", type=int, default=300, help="of ctgan (default: 300, its own)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: 1)")
    contenders = ("fastgan", "ctgan", "ctgan accelerated")
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=["fastgan", "ctgan"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there too")
    options = parser.parse_args()
    facts = {"environment": environment(), "threads": torch.get_num_threads()}
    record: dict[str, Any] = {**facts, "steps": options.steps, "epochs": options.epochs, "fits": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.tables:
            record["fits"] += compare(name, Path(folder), options, lambda line: print(line, flush=True))
            if options.json is not None:
                options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
