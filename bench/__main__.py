"""`python -m bench`: time fastgan against plain PyTorch, in one run, and print the tables."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastgan
from bench import adam, bce, cuda, linear, logits_loss, mlp, penalties, record, step
from bench.table import print_table
from bench.timing import measure
from fastgan.backend import unavailable_reason

OPS = {
    "bce": bce,
    "logits_loss": logits_loss,
    "linear": linear,
    "mlp": mlp,
    "adam": adam,
    "penalties": penalties,
    "step": step,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; a bad one ends the process with exit code 2 and a sentence."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="OP", help=f"of {', '.join(OPS)} (default: all)")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender, at least 1 (default: 9)")
    parser.add_argument("--seconds", type=float, default=0.06, help="length of a turn, over 0 (default: 0.06)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.01 s: whether it runs, not how fast")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--eager", action="store_true", help="with cuda: time loops of calls, capture no CUDA graphs")
    parser.add_argument("--tf32", action="store_true", help="with cuda: float32 products rounded to tf32, of both")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there too")
    options = parser.parse_args(arguments)
    for name in options.only or ():
        if name not in OPS:
            parser.error(f"--only must name ops of {', '.join(OPS)}, not {name!r}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    if not options.seconds > 0:
        parser.error(f"--seconds must be over 0, not {options.seconds}")
    if options.device not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu or cuda, not {options.device!r}")
    if options.device == "cuda" and (reason := cuda.missing()):
        parser.error(f"--device cuda cannot be had: {reason}")
    for name in ("eager", "tf32"):
        if getattr(options, name) and options.device != "cuda":
            parser.error(f"--{name} needs --device cuda")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, not {options.threads}")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.absolute().parent}")
    options.budget = 25.0  # keeps the default run under 4 minutes on 2 cores, where one step of `wide` takes 1.5 s
    if options.quick:
        options.rounds, options.seconds, options.budget = 3, 0.01, 1.0
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record; returns the exit code."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    if options.tf32:
        torch.set_float32_matmul_precision("high")
    facts = record.environment()
    recorded = ("only", "match", "rounds", "seconds", "quick", *(("eager", "tf32") if on_gpu else ()))
    facts["options"] = {name: getattr(options, name) for name in recorded}
    print(", ".join(f"{key} {facts[key]}" for key in ("date", "commit", "cpu", "threads", "torch", "fastgan")))
    if on_gpu:
        facts["gpu"] = cuda.gpu_facts()
        print(", ".join(f"{key} {value}" for key, value in facts["gpu"].items()))
    warnings = (_backend_warning(options.device), record.busy_warning(facts["busy_cores"]))
    facts["warnings"] = [text for text in warnings if text]
    for text in facts["warnings"]:
        print(f"note: {text}")
    limits = (cuda if on_gpu else record).ceilings(options.rounds, options.seconds)
    print(f"ceilings: copy {limits['GB/s']:.1f} GB/s, best product {limits['GFLOP/s float32']:.0f} GFLOP/s", end="")
    for name in ("tf32", "bfloat16"):
        if f"GFLOP/s {name}" in limits:
            print(f", in {name} {limits[f'GFLOP/s {name}']:.0f} GFLOP/s", end="")
    print(flush=True)
    if on_gpu:
        print(f"timed by {cuda.LOOP if options.eager else f'{cuda.GRAPHS}; steps by {cuda.LOOP}'}", flush=True)
    timed = functools.partial(cuda.measure_on_gpu, graphs=not options.eager) if on_gpu else measure
    table: list[dict[str, Any]] = []
    for name in options.only or OPS:
        rows = []
        for case in cuda.on_gpu(OPS[name].cases()) if on_gpu else OPS[name].cases():
            if options.match in case.name:
                _show_progress(case.name)
                result = timed(case, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
                rows += record.rows(result, limits)
        _show_progress("")
        if rows:
            print_table(rows)
        table += rows
        if options.json and table:
            record.write_json(options.json, facts, table, limits)  # after each op: a run that is cut short leaves these
    if not table:
        print(f"no case has {options.match!r} in its name", file=sys.stderr)
        return 2
    _print_losses(table)
    return 0


def _backend_warning(device: str) -> str | None:
    if fastgan.current_backend() == "reference":
        return "FASTGAN_BACKEND=reference: this times fastgan's reference, plain PyTorch, against PyTorch"
    if fastgan.info()["build"] is None:
        return "fastgan is not compiled here: this times its reference, plain PyTorch, against PyTorch"
    if device == "cuda" and (reason := unavailable_reason("cuda")):
        return f"this times fastgan's reference, plain PyTorch, against PyTorch: {reason}"
    return None


def _show_progress(name: str) -> None:
    """The case under way, on a terminal only; not a moving display, which would take time from what is timed."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{name}", end="", file=sys.stderr, flush=True)


def _print_losses(table: Sequence[dict[str, Any]]) -> None:
    """Name every loss again: a reader of a long table would miss them."""
    ours = [row for row in table if row["contender"].startswith("fastgan")]
    slower = [row for row in ours if row["times_as_fast"] < 1]
    print(f"{len(ours) - len(slower)} of {len(ours)} at least as fast as PyTorch; the quartiles of `?` lie around 1")
    for row in slower:
        print(f"  {row['verdict']}: {row['case']} ({row['contender']}): {row['times_as_fast']:.2f}x")


if __name__ == "__main__":
    sys.exit(main())
