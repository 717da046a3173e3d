"""`python -m tools.choices`: which way a `TrainStep` chooses on this machine, and whether that was right.

Of the four configurations of the benchmark, and of its sweeps over the batch and the width: the way that was chosen, by
how much, how long the choice took, and the first call of all; then each way of the whole step timed again, in
alternation with the chosen one, by the benchmark's clock. The choice is right where it is at most 3 % slower than the
fastest, beyond the spread of the two. Every choice is made afresh: the cache is a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import cuda
from bench.configurations import CONFIGURATIONS, Configuration, batch_sweep, width_sweep
from bench.step import inputs
from bench.timing import Case, Result, measure
from bench.training import new_train_step
from fastgan import TrainStep, choices
from fastgan.plan_ways import LIBRARY, TILED, Way, parse
from fastgan.tuning import Choice

SLOWER = 1.03  # than the fastest, a choice may be by so much beyond the spread


def ways(step: TrainStep, run: Callable[[TrainStep], object]) -> list[Way]:
    """The ways of a whole step that has chosen: its choice first, the default, and those that concern all products.

    Args:
        step: that has run.
        run: runs one.
    """
    (chosen,) = (parse(choice.way) for choice in step._choices.made.values())  # type: ignore[union-attr]
    found = [chosen, Way()]
    if not step._plan.runs_cuda_kernels():  # type: ignore[union-attr]
        return list(dict.fromkeys([*found, Way(composed="library"), Way(composed="narrow")]))
    for narrow in (True, False):
        start = Way(narrow=narrow)
        other = on_way(step, start)
        run(other)
        products = sorted(other._plan.taken()[1])  # type: ignore[union-attr]
        found += [
            start,
            *(Way(narrow=narrow, products=tuple((p, kind) for p in products)) for kind in (LIBRARY, TILED)),
        ]
    return list(dict.fromkeys(found))


def on_way(step: TrainStep, way: Way) -> TrainStep:
    """A step over the same networks and optimizers that takes a way."""
    parts = step.generator, step.discriminator, step.g_optimizer, step.d_optimizer
    made = TrainStep(*parts, reuse_fake=step.reuse_fake, precision=step.precision)
    (signature,) = step._choices.made  # type: ignore[union-attr]
    made.load_state_dict({"steps_done": 0, "choices": {signature: asdict(Choice(way.name))}})
    return made


def chosen(configuration: Configuration, device: str, precision: str, rounds: int, seconds: float) -> dict[str, Any]:
    """What was chosen for a configuration, and what each way takes, in microseconds."""
    with torch.device(device):
        step = new_train_step(configuration, precision)
        reals, noises = inputs(configuration)

    def run(of: TrainStep) -> object:
        return of.step(reals[0], noise=noises[0][None])

    def timed() -> float:
        start = time.perf_counter()
        run(step)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first, second = timed(), timed()
    (choice,) = step._choices.made.values()  # type: ignore[union-attr]
    labels = {way.name: way for way in ways(step, run)}
    steps = {name: on_way(step, way) for name, way in labels.items()}
    runs: dict[str, Callable[[], object]] = {name: lambda of=of: run(of) for name, of in steps.items()}
    for contender in runs.values():
        for _ in range(3):  # launched, captured, replayed
            contender()
    case = Case(configuration.name, runs, lambda: None, capturable=False)
    clock = cuda.EventClock() if device == "cuda" else time.perf_counter
    result = measure(case, rounds=rounds, seconds=seconds, clock=clock)
    return {
        "configuration": configuration.name,
        "precision": precision,
        "choice": asdict(choice),
        "plan": step.plan,
        "first_call_s": first,
        "second_call_s": second,
        "us": {name: timing.median * 1e6 for name, timing in result.timings.items()},
        **judged(result),
    }


def judged(result: Result) -> dict[str, Any]:
    """The fastest way, how many times as long the first one takes, the spread of both, and whether that is right."""
    label, *_ = result.timings
    fastest = min(result.timings, key=lambda name: result.timings[name].median)
    slower = 1 / result.ratio(label, fastest)
    spread = result.timings[label].spread + result.timings[fastest].spread
    return {"fastest": fastest, "slower": slower, "spread": spread, "right": slower <= SLOWER + spread}


def lines(measured: dict[str, Any]) -> list[str]:
    """One record as text."""
    choice = measured["choice"]
    name, took, tried = parse(choice["way"]).words(), choice["took"], choice["tried"]
    ratio = (
        f"{choice['ratio']:.2f} times as fast as {parse(choice['over']).words()}" if choice["over"] else choice["why"]
    )
    word = "right" if measured["right"] else "WRONG"
    text = [
        f"{measured['configuration']} {measured['precision']}: {name} ({ratio}); {tried} ways timed in {took:.2f} s, "
        f"the first call {measured['first_call_s']:.2f} s",
        f"  {word}: {measured['slower']:.3f} times the fastest, spread {measured['spread']:.3f}",
    ]
    for way, us in sorted(measured["us"].items(), key=lambda item: item[1]):
        text.append(f"  {us:10.1f} us  {'*' if way == choice['way'] else ' '} {parse(way).words()}")
    return text


@contextlib.contextmanager
def fresh_cache() -> Iterator[None]:
    """In a `with` block, the cache is a folder of its own, empty at first."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose, measure and print; returns the exit code: 1 where a choice is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.choices", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--match", default="", help="only configurations whose name holds this")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--tf32", action="store_true", help="float32 products rounded to tf32")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.02, help="length of a turn (default: 0.02)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there too")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and (reason := cuda.unavailable_reason()):
        print(f"tools.choices: {reason}", file=sys.stderr)
        return 2
    if not choices.is_on():
        print("tools.choices: nothing is measured where FASTGAN_TUNE is 0", file=sys.stderr)
        return 2
    if options.tf32:
        torch.set_float32_matmul_precision("high")
    records = []
    for configuration in (*CONFIGURATIONS, *batch_sweep(), *width_sweep()):
        if options.match not in configuration.name:
            continue
        for precision in options.precision:
            with fresh_cache():
                records.append(chosen(configuration, options.device, precision, options.rounds, options.seconds))
            print(*lines(records[-1]), sep="\n", flush=True)
            if options.json:
                options.json.write_text(json.dumps(records, indent=1) + "\n")
    wrong = [record["configuration"] for record in records if not record["right"]]
    longest = max((record["choice"]["took"] for record in records), default=0.0)
    print(f"{len(records) - len(wrong)} of {len(records)} choices are right; the longest took {longest:.2f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
