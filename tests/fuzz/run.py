"""Runs the differential fuzzer, for a number of examples or for minutes; says each fault in a line that repeats it.

PYTHONPATH=tests python -m fuzz.run --minutes 60 --seed 1
PYTHONPATH=tests python -m fuzz.run --replay '{"description": {}, "statements": [["step", 0]], "backend": "auto"}'
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import simt_backend

import fastgan

from . import machine, reduce
from .example import BACKENDS, NAMES

_SILENCE = 120.0  # seconds without a statement after which a worker hangs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="run batches for so long, each with a seed of its own")
    parser.add_argument("--examples", type=int, default=200, help="examples a batch; without --minutes there is one")
    parser.add_argument("--seed", type=int, help="of the first batch; the next have the numbers that follow")
    parser.add_argument("--same", action="store_true", help="the same examples at each run, whatever the seed")
    parser.add_argument("--backends", default="auto,cpu", help=f"of {','.join(BACKENDS)}; one a batch, in turn")
    parser.add_argument("--without", default="", help="names to leave out, or name=text, with commas; see README.md")
    parser.add_argument("--reduce", type=float, default=60.0, help="seconds to reduce a fault")
    parser.add_argument("--log", type=Path, help="append each fault and the tally as lines of JSON")
    parser.add_argument("--replay", help="one example, as a fault's line gives it")
    parser.add_argument("--list", action="store_true", help="the names of all statements")
    chosen = parser.parse_args()
    if chosen.list:
        print(*NAMES, sep="\n")
        return 0
    if chosen.replay:
        return _replay(json.loads(chosen.replay), chosen.without.split(","))
    without = [name for name in chosen.without.split(",") if name]
    backends = chosen.backends.split(",")
    for name in without:
        if name.split("=")[0] not in (*NAMES, "build", "check"):
            parser.error(f"--without must name statements (see --list), not {name!r}")
    for name in backends:
        if name not in BACKENDS:
            parser.error(f"--backends must be of {', '.join(BACKENDS)}, not {name!r}")
    if "simt" in backends:
        simt_backend.module()  # built before the first worker needs it
    return Campaign(chosen, backends, without).run()


def _replay(example: dict[str, Any], without: list[str]) -> int:
    given = example["description"], [tuple(s) for s in example["statements"]], example.get("backend", "auto"), without
    print(reduce.words(*given).replace(" | ", "\n"))
    message = reduce.replay(*given)
    print(f"=> {message or 'no fault'}")
    return int(bool(message))


class Campaign:
    """Batches of examples, each in a worker process; the faults found so far."""

    def __init__(self, chosen: argparse.Namespace, backends: list[str], without: list[str]) -> None:
        self.chosen, self.backends, self.without = chosen, backends, without
        self.tally = dict.fromkeys(("examples", "steps", "native", "faults"), 0)
        self.kinds: dict[str, int] = {}
        self.known: dict[tuple[str, frozenset[str]], int] = {}  # a kind and what it takes, as reduced: how often

    def run(self) -> int:
        """1 where there was a fault, else 0."""
        chosen, begun = self.chosen, time.monotonic()
        first = int(time.time()) if chosen.seed is None else chosen.seed
        print(f"{fastgan.__file__}; first seed {'none' if chosen.same else first}; without {self.without or 'nothing'}")
        batch = 0
        while True:
            backend = self.backends[batch % len(self.backends)]
            self.batch(backend, None if chosen.same else first + batch)
            batch += 1
            minutes = (time.monotonic() - begun) / 60
            last = "the same" if chosen.same else f"last seed {first + batch - 1}"
            summary = f"{batch} batches, {last}, {minutes:.1f} minutes: " + ", ".join(
                f"{count} {name}" for name, count in self.tally.items()
            )
            print(f"{summary}, {len(self.kinds)} kinds", flush=True)
            if chosen.minutes is None and batch >= len(self.backends):
                break
            if chosen.minutes is not None and minutes >= chosen.minutes:
                break
        self.write({"summary": summary, "kinds": self.kinds})
        for (kind, names), count in sorted(self.known.items(), key=lambda item: -item[1]):
            print(f"{count:5} x {kind[:100]} [{', '.join(sorted(names)) or 'a step alone'}]")
        return int(self.tally["faults"] > 0)

    def batch(self, backend: str, seed: int | None) -> None:
        """Run one batch; where an example takes the worker with it, another goes on with another seed."""
        until = self.tally["examples"] + self.chosen.examples
        while (left := until - self.tally["examples"]) > 0:
            if not self.worker(backend, seed, left) or seed is None:
                break
            seed += 1_000_000

    def worker(self, backend: str, seed: int | None, examples: int) -> bool:
        """Run examples in a worker, and look at what it left; whether it died."""
        with tempfile.TemporaryDirectory() as folder:
            trace, results = Path(folder) / "trace", Path(folder) / "results"
            worker = os.fork()
            if worker == 0:
                status = 1
                try:
                    self.work(backend, seed, examples, trace, results)
                    status = 0
                finally:
                    os._exit(status)
            death = self.wait(worker, trace)
            lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
            for line in lines:
                if "tally" in line:
                    for name, count in line["tally"].items():
                        self.tally[name] += count
                else:
                    self.fault(line["description"], line["statements"], backend, line["message"], seed)
            if death:
                description, statements = self.last(trace)
                self.tally["examples"] += sum(line.startswith('["build"') for line in trace.read_text().splitlines())
                self.fault(description, statements, backend, death, seed)
            return bool(death)

    def work(self, backend: str, seed: int | None, examples: int, trace: Path, results: Path) -> None:
        """In the worker: the state machine."""
        tally = dict.fromkeys(("examples", "steps", "native"), 0)
        with trace.open("w") as traced, results.open("w") as written:

            def write(line: dict[str, Any]) -> None:
                written.write(json.dumps(line) + "\n")
                written.flush()

            def found(description: dict[str, Any], statements: list[tuple[str, int]], message: str) -> None:
                write({"description": description, "statements": statements, "message": message})

            kind = machine.machine(backend, self.without, traced, found, tally)
            machine.run(kind, examples, seed)
            write({"tally": tally})

    def wait(self, worker: int, trace: Path) -> str:
        """How a worker died; "" where it ended as it should."""
        size, since = -1, time.monotonic()
        while True:
            done, status = os.waitpid(worker, os.WNOHANG)
            if done:
                return reduce.ended(status)
            now = trace.stat().st_size if trace.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > _SILENCE:
                os.kill(worker, 9)
                os.waitpid(worker, 0)
                return "hangs"
            time.sleep(0.02)

    def last(self, trace: Path) -> tuple[dict[str, Any], list[Any]]:
        """The example that was running."""
        lines = [json.loads(line) for line in trace.read_text().splitlines()]
        at = max(i for i, line in enumerate(lines) if line[0] == "build")
        return lines[at][1], lines[at + 1 :]

    def fault(self, description: Any, statements: Any, backend: str, message: str, seed: int | None) -> None:
        """Count a fault; unless it takes what another of its kind took, it is reduced and told."""
        self.tally["faults"] += 1
        kind = reduce.kind_of(message)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        statements = [tuple(statement) for statement in statements]
        for (known, names), count in self.known.items():
            if known == kind and (names or count > 2) and names <= taken(statements):
                self.known[known, names] += 1
                return
        again = reduce.replay(description, statements, backend, self.without)
        if not again:
            self.tell(description, statements, backend, f"{message} [does not repeat by itself]", seed, "")
            return
        description, statements, message = reduce.reduced(
            description, statements, backend, self.without, again, self.chosen.reduce
        )
        takes = kind, taken(statements)
        self.known[takes] = self.known.get(takes, 0) + 1
        if self.known[takes] == 1 or not takes[1]:
            words = reduce.words(description, statements, backend, self.without)
            self.tell(description, statements, backend, message, seed, words)

    def tell(self, description: Any, statements: Any, backend: str, message: str, seed: Any, words: str) -> None:
        line = {"description": description, "statements": statements, "backend": backend}
        print(f"FAULT (seed {seed}) {message}\n    {words}\n    --replay '{json.dumps(line)}'", flush=True)
        self.write({**line, "message": message, "words": words, "seed": seed})

    def write(self, line: dict[str, Any]) -> None:
        if self.chosen.log is not None:
            with self.chosen.log.open("a") as log:
                log.write(json.dumps(line) + "\n")


def taken(statements: Any) -> frozenset[str]:
    """The names of the statements that do more than train as usual."""
    return frozenset(name for name, _ in statements) - {"step", "read_plan"}


if __name__ == "__main__":
    sys.exit(main())
