"""`python -m bench`: time fastgan against plain PyTorch, in one run, and print the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastgan
from bench import bce, linear, logits_loss, mlp, record, step
from bench.timing import Result, measure

OPS = {"bce": bce, "logits_loss": logits_loss, "linear": linear, "mlp": mlp, "step": step}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=OPS, metavar="OP", help=f"of {', '.join(OPS)} (default: all)")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender, at least 1 (default: 9)")
    parser.add_argument("--seconds", type=float, default=0.08, help="length of a turn, over 0 (default: 0.08)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.01 s: whether it runs, not how fast")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there too")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    if not options.seconds > 0:
        parser.error(f"--seconds must be over 0, not {options.seconds}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, not {options.threads}")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.absolute().parent}")
    if options.quick:
        options.rounds, options.seconds = 3, 0.01
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = record.environment()
    print(", ".join(f"{key} {facts[key]}" for key in ("date", "commit", "cpu", "threads", "torch")))
    if fastgan.info()["build"] is None:
        print("fastgan is not compiled here: this times its reference against PyTorch")
    limits = record.ceilings(options.rounds, options.seconds)
    print(f"ceilings: copy {limits['GB/s']:.1f} GB/s, best product {limits['GFLOP/s']:.0f} GFLOP/s\n")
    print(f"{'case':58} {'contender':18} {'median':>12} {'spread':>7} {'vs torch':>9}  rate (of ceiling)")
    results: list[Result] = []
    for name in options.only or OPS:
        for case in OPS[name].cases():
            if options.match in case.name:
                results.append(measure(case, rounds=options.rounds, seconds=options.seconds))
                for row in record.rows(results[-1:], limits):
                    print(line(row), flush=True)
    if not results:
        print(f"no case has {options.match!r} in its name", file=sys.stderr)
        return 2
    table = record.rows(results, limits)
    ours = [row for row in table if row["contender"] != "torch"]
    slower = [row for row in ours if row["times_as_fast"] < 1]
    print(f"\n{len(ours) - len(slower)} of {len(ours)} faster than PyTorch or even")
    for row in slower:
        print(f"  slower: {row['case']} ({row['contender']}): {row['times_as_fast']:.2f}x")
    if options.json:
        record.write_json(options.json, table, limits)
    return 0


def line(row: dict[str, Any]) -> str:
    ratio = "" if row["contender"] == "torch" else f"{row['times_as_fast']:8.2f}x"
    rate = ""
    for unit in ("GB/s", "GFLOP/s"):
        if unit in row:
            rate = f"{row[unit]:7.1f} {unit} ({row['of_ceiling']:.0%})"
    return (
        f"{row['case']:58} {row['contender']:18} {row['median_us']:9.1f} us {row['spread']:6.0%} {ratio:>9}  {rate}"
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
