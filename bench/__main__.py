"""`python -m bench`: time fastgan against PyTorch and others, in one run, and print the tables."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

import fastgan
from fastgan.backend import unavailable_reason

from . import cuda, memory, peers, penalty_steps, phases, record, step
from .options import parse
from .table import print_table
from .timing import Case, measure


def main(arguments: Sequence[str] | None = None, program: str = "python -m bench") -> int:
    """Measure, print, and write the record; returns the exit code: 1 where a case failed, 2 where there is none.

    Args:
        arguments: as on the command line; None takes them from there. `plots` first: bench.plots has the rest.
        program: what the command is called.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["plots"]:
        from .plots import main as plots

        return plots(arguments[1:], f"{program} plots")
    options = parse(arguments, program)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.tf32:
        torch.set_float32_matmul_precision("high")
    labels, notes = peers.chosen(options.peers, options.device)
    facts = _facts(options)
    if set(options.only) & {"step"} or options.sweep:
        facts["warnings"] += notes
    for text in facts["warnings"]:
        print(f"note: {text}")
    on_gpu = options.device == "cuda"
    limits, products = (cuda if on_gpu else record).ceilings(options.rounds, options.seconds)
    print(_ceilings_line(limits))
    if on_gpu:
        print(f"timed by {cuda.LOOP if options.eager else f'{cuda.GRAPHS}; steps by {cuda.LOOP}'}", flush=True)
    timed = functools.partial(cuda.measure_on_gpu, graphs=not options.eager) if on_gpu else measure
    written: dict[str, Any] = {
        "environment": facts,
        "ceilings": limits,
        "products": products,
        "rows": [],
        "failures": [],
        "refusals": [],
    }
    table: list[dict[str, Any]] = written["rows"]
    for cases in _sources(options, labels):
        rows = []
        for case in cuda.on_gpu(cases()) if on_gpu else cases():
            if options.match in case.name:
                _show_progress(case.name)
                if case.flops and not on_gpu and case.name.startswith("step "):
                    case = record.beside_best_product(case, products)
                try:
                    result = timed(case, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
                except (AssertionError, RuntimeError) as error:  # the other cases are still worth their time
                    written["failures"].append(f"{case.name}: {str(error).splitlines()[0]}")
                    print(f"failed: {written['failures'][-1]}")
                    continue
                rows += record.rows(result, limits)
                written["refusals"] += [[case.name, *refused] for refused in case.refusals.items()]
                written["rows"] = table + rows
                _write(options, written)  # after each case: a run that is cut short leaves these
        _show_progress("")
        if rows:
            print_table(rows)
        table += rows
    written["rows"] = table
    if any("sweep" not in row and row["case"].startswith("step ") for row in table):
        print("where the time of a step goes")
        with torch.device(options.device):
            written["profiles"] = phases.profiles()
        print(*phases.lines(written["profiles"]), "", sep="\n")
    if problems := [row["problem"] for row in table if "problem" in row and row["contender"] == "fastgan"]:
        print("where the time of a step with penalties goes")
        with torch.device(options.device):
            written["penalty_profiles"] = phases.penalty_profiles(problems)
        print(*phases.lines(written["penalty_profiles"]), "", sep="\n")
    if options.memory:
        written["memory"] = memory.measure_all(show=_show_progress)
        _show_progress("")
        print(*memory.lines(written["memory"]), "", sep="\n")
    if not table and not options.memory and not written["failures"]:
        print(f"no case has {options.match!r} in its name", file=sys.stderr)
        return 2
    _write(options, written)
    _print_slower(table)
    for name, peer, reason in written["refusals"]:
        print(f"without {peer}: {name}: {reason}")
    for text in written["failures"]:
        print(f"failed: {text}", file=sys.stderr)
    return 1 if written["failures"] else 0


def _sources(options: argparse.Namespace, labels: Sequence[str]) -> Iterable[Callable[[], Iterable[Case]]]:
    """The functions that make the cases, one a table."""
    for name in options.only:
        if name == "step":
            yield functools.partial(step.cases, labels)
            yield functools.partial(penalty_steps.cases, labels, options.match)
        else:
            yield importlib.import_module(f".{name}", __package__).cases
    for name in options.sweep:
        yield functools.partial(step.sweep, name, labels)


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    """What the record says of machine, versions and options; prints the first of it."""
    on_gpu = options.device == "cuda"
    facts = record.environment()
    recorded = ["only", "match", "peers", "sweep", "rounds", "seconds", "budget", "quick"]
    facts["device"] = options.device
    facts["options"] = {name: getattr(options, name) for name in [*recorded, *(["eager", "tf32"] if on_gpu else [])]}
    print(", ".join(f"{key} {facts[key]}" for key in ("date", "commit", "cpu", "threads", "torch", "fastgan")))
    if on_gpu:
        facts["gpu"] = cuda.gpu_facts()
        print(", ".join(f"{key} {value}" for key, value in facts["gpu"].items()))
    warnings = (_backend_warning(options.device), record.busy_warning(facts["busy_cores"]))
    facts["warnings"] = [text for text in warnings if text]
    return facts


def _ceilings_line(limits: dict[str, float]) -> str:
    line = f"ceilings: copy {limits['GB/s']:.1f} GB/s, best product {limits['GFLOP/s float32']:.0f} GFLOP/s"
    for name in ("tf32", "bfloat16"):
        if f"GFLOP/s {name}" in limits:
            line += f", in {name} {limits[f'GFLOP/s {name}']:.0f} GFLOP/s"
    return line


def _write(options: argparse.Namespace, written: dict[str, Any]) -> None:
    if options.json:
        record.write_json(options.json, written)
    if options.csv:
        record.write_csv(options.csv, written)


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


def _print_slower(table: Sequence[dict[str, Any]]) -> None:
    """Name every case that is slower again, against whichever peer: a reader of a long table would miss them."""
    ours = [row for row in table if row["contender"].startswith("fastgan")]
    if not ours:
        return
    slower = [row for row in ours if row["times_as_fast"] < 1]
    print(f"{len(ours) - len(slower)} of {len(ours)} at least as fast as PyTorch; the quartiles of `?` lie around 1")
    for row in slower:
        print(f"  {row['verdict']}: {row['case']} ({row['contender']}): {row['times_as_fast']:.2f}x")
    for row in ours:
        for peer, ratio in row.get("against", {}).items():
            if ratio < 1 and peer != peers.BASELINE and not peer.startswith("fastgan"):
                print(f"  slower than {peer}: {row['case']} ({row['contender']}): {ratio:.2f}x")


if __name__ == "__main__":
    sys.exit(main())
