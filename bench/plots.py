"""`python -m bench plots RECORD --out DIR`: plots of a JSON record, as PNG or SVG.

    speed          how fast a training step is, configuration by configuration: the chart of the README
    batch, width   time of a step over the sweeps, each contender a line
    roofline       FLOP rate of the steps against their arithmetic intensity, under the measured ceilings
    phases         where the time of TrainStep goes, configuration by configuration

A plot whose figures the record lacks is not drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZE, DPI = (8.0, 4.5), 150  # inches; an SVG is 768 pixels wide
FORMATS = ("png", "svg")
# A record's plot does not change from run to run: no date, and no random identifiers.
REPEATABLE = {"png": {"Software": None}, "svg": dict.fromkeys(("Date", "Creator", "Format", "Type"))}
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
# Of several forms of a peer the fastest counts: PyTorch takes real and fake through D as two batches or as one.
PYTORCH = ("torch", "torch one batch")
TORCH_COMPILE = ("torch.compile", "torch.compile max-autotune")
# Bars of the chart of speed beside fastgan's own: label to the forms.
SPEEDS = {
    "PyTorch eager, fused Adam": PYTORCH,
    "PyTorch's step in a CUDA graph": ("CUDA graph of torch", "CUDA graph of torch.compile"),
    "torch.compile of the whole step": TORCH_COMPILE,
    "JAX jit": ("jax",),
}
Record = dict[str, Any]
Plot = Callable[[Record, Any], bool]


def draw(record: Record, folder: Path, names: Sequence[str] = (), kind: str = "png") -> list[Path]:
    """Draw what the record has figures for.

    Args:
        record: as `python -m bench --json` writes it.
        folder: where the files go; it is made.
        names: of PLOTS; all of them where none is named.
        kind: of FORMATS.

    Returns:
        The files written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in names or PLOTS:
        figure = pyplot.figure(figsize=SIZE, layout="constrained")
        if PLOTS[name](record, figure):
            figure.supxlabel(_where(record), fontsize="x-small", x=0.01, ha="left")
            files.append(folder / f"{name}.{kind}")
            with matplotlib.rc_context({"svg.hashsalt": "fastgan", "svg.fonttype": "none"}):
                figure.savefig(files[-1], dpi=DPI, facecolor="white", metadata=REPEATABLE[kind])
        pyplot.close(figure)
    return files


def over_fastest(row: Record, peers: Sequence[str]) -> float | None:
    """How many times as fast a row's contender is as the fastest of the peers that were measured."""
    return min((ratio for peer, ratio in row.get("against", {}).items() if peer in peers), default=None)


def _speed(record: Record, figure: Any) -> bool:
    rows = [r for r in record["rows"] if r["contender"] == "fastgan" and "configuration" in r and "against" in r]
    rows = [row for row in rows if "sweep" not in row and over_fastest(row, PYTORCH)]
    if not rows:
        return False
    speeds = {label: [_speed_of(row, peers) for row in rows] for label, peers in SPEEDS.items()}
    speeds["fastgan TrainStep"] = [over_fastest(row, PYTORCH) for row in rows]
    speeds = {label: values for label, values in speeds.items() if any(values)}
    axes = figure.subplots()
    width = 0.84 / len(speeds)
    for i, (label, values) in enumerate(speeds.items()):
        places = [at + (i - (len(speeds) - 1) / 2) * width for at in range(len(rows))]
        colour = COLOURS["fastgan"] if label.startswith("fastgan") else COLOURS[SPEEDS[label][0]]
        bars = axes.bar(places, [value or 0 for value in values], width * 0.94, label=label, color=colour)
        axes.bar_label(bars, [f"{value:.2f}" if value else "" for value in values], padding=1, fontsize="small")
    names = [f"{row['configuration']}\nlayers up to {row['width']} wide\nbatch of {row['batch']}" for row in rows]
    axes.set_xticks(range(len(rows)), labels=names)
    axes.set(
        ylabel="times as fast as PyTorch eager", title="A training step of an MLP GAN in float32 (higher is faster)"
    )
    axes.margins(y=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return True


def _speed_of(row: Record, peers: Sequence[str]) -> float | None:
    """How many times as fast as eager PyTorch the fastest of the peers is: the quotient of fastgan's ratios to both."""
    behind = over_fastest(row, peers)
    return over_fastest(row, PYTORCH) / behind if behind else None


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
    _grid_and_legend(times)
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
    _grid_and_legend(axes)
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
    _grid_and_legend(axes)
    return True


def _grid_and_legend(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


PLOTS: dict[str, Plot] = {
    "speed": _speed,
    "batch": lambda record, figure: _sweep(record, figure, "batch", "the networks of digits"),
    "width": lambda record, figure: _sweep(record, figure, "width", "two hidden layers, batch 256"),
    "roofline": _roofline,
    "phases": _phases,
}


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
    parser.add_argument("--only", nargs="+", default=[], metavar="PLOT", help=f"of {', '.join(PLOTS)} (default: all)")
    parser.add_argument("--format", default="png", help=f"{' or '.join(FORMATS)} (default: png)")
    options = parser.parse_args(arguments)
    for name in options.only:
        if name not in PLOTS:
            parser.error(f"--only must name plots of {', '.join(PLOTS)}, not {name!r}")
    if options.format not in FORMATS:
        parser.error(f"--format must be {' or '.join(FORMATS)}, not {options.format!r}")
    record = read(parser, options.record)
    try:
        files = draw(record, options.out, options.only, options.format)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        parser.error('the plots need matplotlib: pip install "fastgan[bench]"')
    if not files:
        parser.error(f"RECORD {options.record} has no training steps, so there is nothing to draw")
    print(*files, sep="\n")
    return 0
