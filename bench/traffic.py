"""The bytes that a step moves through memory, counted: `python -m bench.traffic`.

The walk of the engine on a CPU (csrc/cpu/step_phases.h) through weights, moments and activations, in its order, goes
through a model of the last-level cache: the least recently used piece leaves first, and is written back where it was
changed. Beside each count stand the seconds that it takes at the bandwidth of a copy, measured in the same process, and
those of the phase. Where the first are far fewer, no other order of tiles or kind of store can win much.
"""

from __future__ import annotations

import argparse
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from .configurations import CONFIGURATIONS, Configuration
from .phases import profile
from .record import copy_bandwidth

PIECE = 4096  # bytes: what the model keeps or drops as one
CACHES = (32, 16, 8)  # MiB: a whole one, and what neighbours leave of it
FLOAT = 4


class Touch(NamedTuple):
    """One matrix that a phase reads, writes or both."""

    phase: str
    matrix: str
    size: int  # bytes
    reads: bool = True
    writes: bool = False
    streamed: bool = False  # past the cache, where moments are


def walk(configuration: Configuration, streaming: bool = False) -> Iterator[Touch]:
    """What a plain step touches, which reuses the fake batch.

    Args:
        configuration: of the networks and the batch.
        streaming: moments are written past the cache, and so never found in it.
    """
    batch = configuration.batch
    generator, discriminator = configuration.generator, configuration.discriminator

    def forward(name: str, widths: tuple[int, ...], samples: int) -> Iterator[Touch]:
        phase = f"{name} forward"
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            yield Touch(phase, f"{name} weight {layer}", FLOAT * inputs * outputs)
            yield Touch(phase, f"{name} output {layer - 1}", FLOAT * samples * inputs)
            yield Touch(phase, f"{name} output {layer}", FLOAT * samples * outputs, reads=False, writes=True)

    def backward(name: str, widths: tuple[int, ...], samples: int, to_inputs: bool, updates: bool) -> Iterator[Touch]:
        phase = f"{name} backward"
        for layer, (inputs, outputs) in reversed([*enumerate(pairwise(widths))]):
            yield Touch(phase, f"{name} gradient {layer}", FLOAT * samples * outputs)
            if layer > 0 or to_inputs:
                yield Touch(phase, f"{name} weight {layer}", FLOAT * inputs * outputs)
                yield Touch(phase, f"{name} output {layer - 1}", FLOAT * samples * inputs)
                yield Touch(phase, f"{name} gradient {layer - 1}", FLOAT * samples * inputs, reads=False, writes=True)
            if updates:
                yield Touch(phase, f"{name} output {layer - 1}", FLOAT * samples * inputs)
                yield Touch(phase, f"{name} rows {layer}", FLOAT * samples * inputs, reads=False, writes=True)

    def update(name: str, widths: tuple[int, ...], samples: int) -> Iterator[Touch]:
        phase = f"{name} update"
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            size = FLOAT * inputs * outputs
            yield Touch(phase, f"{name} rows {layer}", FLOAT * samples * inputs)
            yield Touch(phase, f"{name} gradient {layer}", FLOAT * samples * outputs)
            yield Touch(phase, f"{name} weight {layer}", size, writes=True)
            for moment in ("first", "second"):
                yield Touch(phase, f"{name} {moment} moment {layer}", size, writes=True, streamed=streaming)

    yield from forward("generator", generator, batch)
    yield from forward("discriminator", discriminator, 2 * batch)
    yield from backward("discriminator", discriminator, 2 * batch, to_inputs=False, updates=True)
    yield from update("discriminator", discriminator, 2 * batch)
    yield from forward("discriminator", discriminator, batch)
    yield from backward("discriminator", discriminator, batch, to_inputs=True, updates=False)
    yield from backward("generator", generator, batch, to_inputs=False, updates=True)
    yield from update("generator", generator, batch)


class Cache:
    """A last-level cache, fully associative."""

    def __init__(self, size: int) -> None:
        self.pieces = size // PIECE
        self.held: OrderedDict[tuple[str, int], bool] = OrderedDict()  # to whether it was changed
        self.read: Counter[str] = Counter()  # bytes from memory, by phase
        self.written: Counter[str] = Counter()

    def touch(self, touch: Touch) -> None:
        """Moves a matrix through it, from its beginning to its end."""
        for at in range(0, touch.size, PIECE):
            size, key = min(PIECE, touch.size - at), (touch.matrix, at)
            if touch.streamed:
                self.read[touch.phase] += size * touch.reads
                self.written[touch.phase] += size * touch.writes
                continue
            changed = self.held.pop(key, None)
            if changed is None and touch.reads:
                self.read[touch.phase] += size
            self.held[key] = bool(changed) or touch.writes
            if len(self.held) > self.pieces:
                _, was_changed = self.held.popitem(last=False)
                self.written[touch.phase] += PIECE * was_changed


def traffic(touches: Iterable[Touch], cache: int) -> dict[str, tuple[int, int]]:
    """By phase the bytes that the second of two steps reads from memory and writes to it.

    Args:
        touches: of one step.
        cache: its size in bytes.
    """
    touches, model = list(touches), Cache(cache)
    for touch in touches:
        model.touch(touch)
    model.read.clear(), model.written.clear()
    for touch in touches:
        model.touch(touch)
    return {phase: (model.read[phase], model.written[phase]) for phase in dict.fromkeys(t.phase for t in touches)}


def main() -> None:
    """Prints the counts of each configuration, and the seconds."""
    parser = argparse.ArgumentParser(prog="python -m bench.traffic", description=__doc__)
    names = [configuration.name for configuration in CONFIGURATIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="configurations (default: all)")
    options = parser.parse_args()
    bandwidth = copy_bandwidth()
    print(f"copy {bandwidth:.1f} GB/s; MB from memory + to memory, in a cache of {', '.join(map(str, CACHES))} MiB;")
    print("in brackets where moments are written past the cache; then milliseconds at that bandwidth, and measured")
    for configuration in CONFIGURATIONS:
        if configuration.name not in options.only:
            continue
        print(f"{configuration.name}: at least {configuration.step_bytes / 1e6:.1f} MB, from memory and to it together")
        seconds = profile(configuration, 7).get("seconds", {})
        counts = [
            [traffic(walk(configuration, streaming), mebibytes << 20) for streaming in (False, True)]
            for mebibytes in CACHES
        ]
        for phase in counts[0][0]:
            cells = [
                f"{plain[phase][0] / 1e6:6.1f} + {plain[phase][1] / 1e6:5.1f} ({sum(past[phase]) / 1e6:6.1f})"
                for plain, past in counts
            ]
            most = sum(counts[-1][0][phase]) / bandwidth / 1e6  # ms, of bytes and GB/s
            print(f"  {phase:<24}{'   '.join(cells)}   {most:6.2f} ms of {seconds.get(phase, 0) * 1e3:8.2f}")


if __name__ == "__main__":
    main()
