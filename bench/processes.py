"""Two processes of one thread each against one process of two threads, on the same batch of both together.

    python -m bench.processes [--configuration mnist] [--batches 512 128] [--rounds 15] [--json FILE.json]

Every round times both, one right after the other, and the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Adam

import fastgan

from .configurations import CONFIGURATIONS
from .record import environment
from .training import BETA1, BETA2, LEARNING_RATE, networks

SIZE = 2
_LEAST_SECONDS = 0.5  # of a round's steps


class Timed:
    """A TrainStep of a configuration, with data for one size of batch at a time."""

    def __init__(self, name: str, group: Any = None) -> None:
        configuration = next(each for each in CONFIGURATIONS if each.name == name)
        generator, discriminator = networks(configuration)
        own: list[nn.Module] = [generator, discriminator]
        optimizers = [Adam(n.parameters(), lr=LEARNING_RATE, betas=(BETA1, BETA2), fused=True) for n in own]
        self.width = configuration.discriminator[0]
        self.step = fastgan.TrainStep(generator, discriminator, *optimizers, reuse_fake=True, process_group=group)
        self.real = torch.empty(0, self.width)

    def run(self, batch: int, steps: int) -> float:
        """Seconds of so many steps."""
        if len(self.real) != batch:
            self.real = torch.rand(batch, self.width) * 2 - 1
            for _ in range(3):
                self.step.step(self.real)
        if self.step.processes is not None:
            self.step.processes.gather(None)  # begin together
        began = time.perf_counter()
        for _ in range(steps):
            self.step.step(self.real)
        return time.perf_counter() - began


def serve(rank: int, store: str, configuration: str) -> None:
    """One of the processes: runs what it reads, `batch steps`, and answers with the seconds."""
    torch.set_num_threads(1)
    limit = datetime.timedelta(minutes=30)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE, timeout=limit)
    timed = Timed(configuration, dist.group.WORLD)
    print("ready", flush=True)
    for line in sys.stdin:
        batch, steps = map(int, line.split())
        seconds = timed.run(batch, steps)
        print(seconds, flush=True)
    timed.step.check_processes()
    dist.destroy_process_group()


def measure(configuration: str, batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """For each batch of a process, samples a second of both, and the median of their ratios."""
    torch.set_num_threads(SIZE)
    alone = Timed(configuration)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-m", __spec__.name, "--configuration", configuration]
        store = str(Path(folder) / "store")
        together = [
            subprocess.Popen(
                [*program, "--rank", str(rank), "--store", store],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(SIZE)
        ]

        def answers(question: str = "") -> list[str]:
            for process in together if question else ():
                print(question, file=process.stdin, flush=True)
            return [process.stdout.readline() for process in together if process.stdout is not None]

        answers()
        try:
            for batch in batches:
                steps = max(2, round(_LEAST_SECONDS / (alone.run(SIZE * batch, 3) / 3)))
                answers(f"{batch} {steps}")
                times = []
                for _ in range(rounds):
                    one = alone.run(SIZE * batch, steps)
                    times.append((one, max(map(float, answers(f"{batch} {steps}")))))
                ratios = sorted(one / both for one, both in times)
                one, both = (statistics.median(each) / steps for each in zip(*times, strict=True))
                rows.append(
                    {
                        "configuration": configuration,
                        "batch": batch,
                        "one": SIZE * batch / one,
                        "together": SIZE * batch / both,
                        "ratio": statistics.median(ratios),
                        "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
                    }
                )
        finally:
            for process in together:  # all of them, since they end together
                if process.stdin is not None:
                    process.stdin.close()
            for process in together:
                process.wait(timeout=100)
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.processes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--configuration", default="mnist", choices=[each.name for each in CONFIGURATIONS])
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 128], help="samples of each process")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        serve(options.rank, options.store, options.configuration)
        return
    facts = environment()  # how busy the machine is before
    rows = measure(options.configuration, options.batches, options.rounds)
    print(f"{SIZE} processes of one thread against one of {SIZE} threads; samples a second")
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"{row['configuration']:8} {row['batch']:5} a process: one {row['one']:8,.0f}  together "
            f"{row['together']:8,.0f}  ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        )
    if options.json is not None:
        record = {"environment": facts, "rounds": options.rounds, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
