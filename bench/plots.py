"""`python -m bench plots RECORD --out DIR`: PNG plots of a JSON record.

    batch.png, width.png   time of a step over the sweeps, each contender a line
    roofline.png           FLOP rate of the steps against their arithmetic intensity, under the measured ceilings
    phases.png             where the time of TrainStep goes, configuration by configuration

A plot whose figures the record lacks is not drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZE, DPI = (7.0, 4.5), 150
# One colour a contender in every plot: what is fastgan's in the warm ones.
COLOURS = {
    "fastgan": "tab:red",
    "fastgan bf16": "darkred",
    "fastgan modules": "tab:orange",
    "torch": "tab:blue",
    "torch one batch": "cornflowerblue",
    "torch foreach": "lightsteelblue",
    "torch.compile": "tab:green",
    "torch.compile max-autotune": "yellowgreen",
    "torch.compile halves": "darkseagreen",
    "torch.compile reduce-overhead": "mediumseagreen",
    "CUDA graph of torch": "slateblue",
    "CUDA graph of torch.compile": "teal",
    "jax": "tab:purple",
    "apex": "tab:brown",
}
Record = dict[str, Any]


def draw(record: Record, folder: Path) -> list[Path]:
    """Draw what the record has figures for.

    Args:
        record: as `python -m bench --json` writes it.
        folder: where the files go; it is made.

    Returns:
        The files written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Record, Any], bool]] = {
        "batch": lambda record, figure: _sweep(record, figure, "batch", "the networks of digits"),
        "width": lambda record, figure: _sweep(record, figure, "width", "two hidden layers, batch 256"),
        "roofline": _roofline,
        "phases": _phases,
    }
    files = []
    for name, plot in plots.items():
        figure = pyplot.figure(figsize=SIZE, layout="constrained")
        if plot(record, figure):
            figure.supxlabel(_where(record), fontsize="xx-small", x=0.01, ha="left")
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=DPI)
        pyplot.close(figure)
    return files


def _sweep(record: Record, figure: Any, name: str, about: str) -> bool:
    rows = [row for row in record["rows"] if row.get("sweep") == name]
    if not rows:
        return False
    times, ratios = figure.subplots(2, sharex=True)
    for contender in dict.fromkeys(row["contender"] for row in rows):
        own = sorted((row for row in rows if row["contender"] == contender), key=lambda row: row[name])
        for axes, key in ((times, "median_us"), (ratios, "times_as_fast")):
            points = [row[name] for row in own], [row[key] for row in own]
            axes.plot(*points, marker="o", label=contender, color=COLOURS.get(contender))
    ticks = sorted({row[name] for row in rows})
    times.set(xscale="log", yscale="log", ylabel="microseconds a step", title=f"A training step: {about}")
    ratios.set(xlabel=name, ylabel="times as fast as torch", ylim=(0, None))
    ratios.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    ratios.minorticks_off()
    _finish(times)
    ratios.grid(alpha=0.3)
    return True


def _roofline(record: Record, figure: Any) -> bool:
    rows = [r for r in record["rows"] if "flops_per_byte" in r and "sweep" not in r and "noise" not in r["case"]]
    if not rows:
        return False
    axes = figure.subplots()
    limits = record["ceilings"]
    named = {row["configuration"]: row["flops_per_byte"] for row in rows}
    knee = limits["GFLOP/s float32"] / limits["GB/s"]
    ends = [min(knee, *named.values()) / 4, max(named.values()) * 2]
    for kind, style in (("float32", "-"), ("tf32", "-."), ("bfloat16", "--")):
        if (top := limits.get(f"GFLOP/s {kind}")) is not None:
            knee = top / limits["GB/s"]
            xs = sorted({*ends, min(max(knee, ends[0]), ends[1])})
            ys = [min(top, x * limits["GB/s"]) for x in xs]
            axes.plot(xs, ys, style, color="black", label=f"best {kind} product, copy")
    for contender in dict.fromkeys(row["contender"] for row in rows):
        points = [(r["flops_per_byte"], r["GFLOP/s"]) for r in rows if r["contender"] == contender]
        axes.plot(*zip(*points, strict=True), "o", label=contender, color=COLOURS.get(contender))
    for name, x in named.items():
        axes.annotate(name, (x, 0.01), xycoords=("data", "axes fraction"), ha="center")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte that a step must move", ylabel="GFLOP/s")
    axes.set_title("Training steps under the ceilings of the same run")
    _finish(axes)
    return True


def _phases(record: Record, figure: Any) -> bool:
    measured = {n: p["seconds"] for n, p in record.get("profiles", {}).items() if p.get("seconds")}
    if not measured:
        return False
    axes = figure.subplots()
    bottoms = dict.fromkeys(measured, 0.0)
    for phase in dict.fromkeys(phase for seconds in measured.values() for phase in seconds):
        shares = {name: seconds.get(phase, 0.0) / sum(seconds.values()) for name, seconds in measured.items()}
        axes.bar(list(shares), list(shares.values()), bottom=list(bottoms.values()), label=phase)
        bottoms = {name: bottoms[name] + share for name, share in shares.items()}
    totals = [f"{name}\n{sum(seconds.values()) * 1e6:.0f} us" for name, seconds in measured.items()]
    axes.set_xticks(range(len(measured)), labels=totals)
    axes.set(ylabel="share of the step", title="Where the time of TrainStep goes")
    _finish(axes)
    return True


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _where(record: Record) -> str:
    facts = record["environment"]
    machine = facts.get("gpu", {}).get("name") or f"{facts['threads']} threads of {facts['cpu']}"
    return f"{machine}, PyTorch {facts['torch']}, {facts['date']}"


def read(parser: argparse.ArgumentParser, file: Path) -> Record:
    """A record, or the parser's error that says what is wrong with the file."""
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"RECORD cannot be read: {error}")
    missing = [key for key in ("environment", "ceilings", "rows") if key not in record]
    if missing:
        parser.error(f"RECORD {file} has no {', '.join(missing)}: its benchmark did not get so far")
    return record


def main(arguments: Sequence[str], program: str) -> int:
    """Draw the plots of one record; returns the exit code."""
    parser = argparse.ArgumentParser(prog=program, description="Draw the plots of a record.")
    parser.add_argument("record", type=Path, metavar="RECORD", help="a JSON file of python -m bench or tools/gpu.sh")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="where they go (default: here)")
    options = parser.parse_args(arguments)
    record = read(parser, options.record)
    try:
        files = draw(record, options.out)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        parser.error('the plots need matplotlib: pip install "fastgan[bench]"')
    if not files:
        parser.error(f"RECORD {options.record} has no training steps, so there is nothing to draw")
    print(*files, sep="\n")
    return 0
