"""Two processes of one thread each against one process of two threads, on the same batch of both together.

They exchange in memory that they share, as processes of one computer do, or by sockets, as those of several do: in
parts that are sent while the next ones are computed, or for comparison all at once.

    python -m bench.processes [--configuration mnist] [--batches 512 128] [--rounds 15] [--link 10gbit] [--json FILE]

Every round times all, one right after the other, and a ratio is the median over the rounds. With `--link` the sockets
have no more than that rate, for both directions together, as between computers (Linux, by its token bucket filter, in
a network of this program's own; as root).
"""

from __future__ import annotations

import argparse
import ctypes
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
from fastgan.processes import Processes

from .configurations import CONFIGURATIONS
from .record import environment
from .training import BETA1, BETA2, LEARNING_RATE, networks

SIZE = 2
WAYS = ("shared memory", "sockets", "sockets at once")
_CLONE_NEWNET = 0x40000000  # unshare(2); Python has it from 3.12 on
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


def serve(rank: int, store: str, configuration: str, way: str) -> None:
    """One of the processes: runs what it reads, `batch steps`, and answers with the seconds."""
    torch.set_num_threads(1)
    Processes.shares_memory = way == WAYS[0]
    if way == WAYS[2]:
        Processes.part_bytes = 2**62
    limit = datetime.timedelta(minutes=30)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE, timeout=limit)
    timed = Timed(configuration, dist.group.WORLD)
    processes = timed.step.processes
    if (processes is not None and processes.shared is not None) != (way == WAYS[0]):
        raise RuntimeError(f"these processes cannot exchange by {way}")
    print("ready", flush=True)
    for line in sys.stdin:
        batch, steps = map(int, line.split())
        seconds = timed.run(batch, steps)
        print(seconds, flush=True)
    timed.step.check_processes()
    dist.destroy_process_group()


class Together:
    """The processes of one way, which wait for what to run."""

    def __init__(self, configuration: str, way: str, store: Path) -> None:
        options = ["--configuration", configuration, "--way", way, "--store", str(store)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, *options, "--rank", str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(SIZE)
        ]
        self._answers()

    def _answers(self) -> list[str]:
        answers = [process.stdout.readline() for process in self.processes if process.stdout is not None]
        if "" in answers:
            raise RuntimeError("a process has ended; what it said is above")
        return answers

    def run(self, batch: int, steps: int) -> float:
        """Seconds of so many steps."""
        for process in self.processes:
            print(f"{batch} {steps}", file=process.stdin, flush=True)
        return max(map(float, self._answers()))

    def end(self) -> None:
        """All of them, since they end together."""
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self.processes:
            process.wait(timeout=100)


def limit_loopback(rate: str) -> None:
    """Give this process, and those that it starts, a loopback device of their own with such a rate.

    Raises:
        OSError: the system does not allow it, which takes root on Linux.
        subprocess.CalledProcessError: tc does not know such a rate; what it says has been printed.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "--link needs a network of its own, which only root may make")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    queue = ["burst", "256kb", "latency", "50ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", rate, *queue], check=True)


def measure(configuration: str, batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """For each batch of a process and each way, samples a second of both, and the median of their ratios."""
    torch.set_num_threads(SIZE)
    alone = Timed(configuration)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Together] = {}
        try:
            for way in WAYS:
                ways[way] = Together(configuration, way, Path(folder) / way.replace(" ", "_"))
            for batch in batches:
                steps = max(2, round(_LEAST_SECONDS / (alone.run(SIZE * batch, 3) / 3)))
                for together in ways.values():
                    together.run(batch, steps)
                ones, others = [], {way: [] for way in ways}
                for _ in range(rounds):
                    ones.append(alone.run(SIZE * batch, steps))
                    for way, together in ways.items():
                        others[way].append(together.run(batch, steps))
                for way, times in others.items():
                    ratios = sorted(one / both for one, both in zip(ones, times, strict=True))
                    one, both = statistics.median(ones) / steps, statistics.median(times) / steps
                    rows.append(
                        {
                            "configuration": configuration,
                            "batch": batch,
                            "way": way,
                            "one": SIZE * batch / one,
                            "together": SIZE * batch / both,
                            "ratio": statistics.median(ratios),
                            "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
                        }
                    )
        finally:
            for together in ways.values():
                together.end()
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.processes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--configuration", default="mnist", choices=[each.name for each in CONFIGURATIONS])
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 128], help="samples of each process")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--link", help="rate of the sockets, as tc-tbf(8) has it, such as 1gbit")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        serve(options.rank, options.store, options.configuration, options.way)
        return
    facts = environment()  # how busy the machine is before
    if options.link is not None:
        limit_loopback(options.link)
    rows = measure(options.configuration, options.batches, options.rounds)
    print(f"{SIZE} processes of one thread against one of {SIZE} threads; samples a second")
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"{row['configuration']:8} {row['batch']:5} a process, by {row['way']:15}: one {row['one']:8,.0f}  "
            f"together {row['together']:8,.0f}  ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        )
    if options.json is not None:
        record = {"environment": facts, "rounds": options.rounds, "link": options.link, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
