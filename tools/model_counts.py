"""What the host model counts of steps and ops, for tools/model.py: builds tests/simt/ as `count` and runs it.

Counted is the second of two steps, whose parameters and activations are where the first has left them in the cache.

    PYTHONPATH=tests FASTGAN_TUNE=0 python -m tools.model_counts [TEXT]

prints a line of JSON for each step and op whose name has TEXT in it. `python -m tools.model --count` calls it.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.configurations import CONFIGURATIONS, Configuration
from bench.step import inputs
from bench.training import adam, networks
from fastgan import TrainStep, functional

from .ptxas import KERNELS, demangle, shorten
from .resources import read_table

# By name: what each adds to the options of the step.
PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "R1": {"r1_gamma": 10.0, "r1_every": 1},
    "WGAN-GP": {"loss": "wasserstein", "gp_weight": 10.0},
}
# `default`: what a device's plan begins with (csrc/cuda/crossover.h); `tiled`: products by this project's own kernels.
PATHS = {"default": "automatic", "tiled": "tiled"}
# Of `wide` the tiled products are 134 GFLOP, hours of the host model: counted are layers a quarter as wide, at a
# quarter of the batch.
SMALLER = 4

Launches = list[dict[str, Any]]


class Counter:
    """The module that counts, and the symbols of its kernels."""

    def __init__(self, module: Any) -> None:
        self._library = ctypes.CDLL(module.__file__)
        self._library.simt_count_text.restype = ctypes.c_char_p
        said = subprocess.run(["nm", "--defined-only", module.__file__], capture_output=True, text=True, check=True)
        symbols = [line.split() for line in said.stdout.splitlines()]
        self._symbols = sorted((int(s[0], 16), s[2]) for s in symbols if len(s) == 3 and s[1] in "tTwW")
        self._known = {row[1] for row in read_table(KERNELS / "resources.tsv")[1]}
        self._names: dict[str, str] = {}

    def start(self, cold: bool) -> None:
        """Forgets what was counted; what is in the cache too, where `cold`."""
        self._library.simt_count_start(int(cold))

    def launches(self) -> Launches:
        """What was counted since; `kernel` is the name of the resources table, zeros are left out.

        `after` has the places of the launches that a launch waits for, where that is not the one before alone.
        """
        found = json.loads(self._library.simt_count_text().decode())
        for place, launch in enumerate(found):
            if launch["after"] == [place - 1][:place]:  # what a record without it says
                del launch["after"]
            places = launch.pop("places", [])
            names = [name for place in places if (name := self._name_at(place)) in self._known]
            if names:
                launch["kernel"] = names[0]
        return [_short(launch) for launch in found]

    def _name_at(self, place: int) -> str:
        mangled = self._symbols[bisect.bisect(self._symbols, (place, "~")) - 1][1]
        if mangled not in self._names:
            self._names[mangled] = shorten(demangle([mangled])[0])
        return self._names[mangled]


def _short(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {key: _short(one) for key, one in value.items()}
    return {key: one for key, one in kept.items() if one not in (0, False, {}, [0, 0], [0, 0, 0])}


@contextmanager
def counting() -> Iterator[tuple[Counter, Any]]:
    """The counter and the module that counts, whose kernels are those of torch.ops for the length of the block."""
    import simt_backend  # of tests/, which is on the path

    simt_backend.COUNTS = True
    # A branch's launches run together, when the step waits for them: so the counter knows whose they are.
    os.environ["FASTGAN_SIMT_BRANCHES"] = "late"
    with simt_backend.use_simt():
        module = simt_backend.module()
        try:
            yield Counter(module), module
        finally:
            module.set_layer_path("automatic")
            del os.environ["FASTGAN_SIMT_BRANCHES"]


def count_step(counter: Counter, configuration: Configuration, options: dict[str, Any]) -> Launches:
    """The launches of a step, the second.

    Raises:
        RuntimeError: it ran composed of ops, which is none of the engine's.
    """
    pair = networks(configuration)
    optimizers = [adam(fused=True)(network.parameters()) for network in pair]
    step = TrainStep(*pair, *optimizers, reuse_fake=True, **options)
    (real, *_), (noise, *_) = inputs(configuration)
    for cold in (True, False):
        counter.start(cold)
        step.step(real, noise=noise[None])
    if "one native call" not in step.plan:
        raise RuntimeError(f"the step of {configuration.name} ran otherwise: {step.plan}")
    return counter.launches()


def steps(only: str = "") -> Iterator[dict[str, Any]]:
    """Each configuration by each path with each penalty; those whose name has `only` in it."""
    for configuration in CONFIGURATIONS:
        for path in PATHS if configuration.name != "ring" else ("default",):
            for penalty, options in PENALTIES.items():
                name = f"{configuration.name} {path} {penalty}"
                if only not in name:
                    continue
                scaled = SMALLER if (configuration.name, path) == ("wide", "tiled") else 1
                with counting() as (counter, module):
                    module.set_layer_path(PATHS[path])
                    start = time.perf_counter()
                    launches = count_step(counter, smaller(configuration, scaled), options)
                print(f"{name}: {len(launches)} launches, {time.perf_counter() - start:.0f} s", file=sys.stderr)
                entry = {"configuration": configuration.name, "path": path, "penalty": penalty, "launches": launches}
                yield entry | ({"scaled": scaled} if scaled > 1 else {})


def smaller(configuration: Configuration, times: int) -> Configuration:
    """The same with widths and batch divided, but for an output of one."""
    if times == 1:
        return configuration
    generator, discriminator = (
        tuple(max(1, width // times) for width in widths)
        for widths in (configuration.generator, configuration.discriminator)
    )
    return replace(configuration, generator=generator, discriminator=discriminator, batch=configuration.batch // times)


def ops(only: str = "") -> Iterator[dict[str, Any]]:
    """The ops at some of the benchmark's sizes, forward and backward, those whose name has `only` in it."""
    for name, run in op_cases().items():
        if only not in name:
            continue
        with counting() as (counter, _):
            for cold in (True, False):
                counter.start(cold)
                output = run()
                forward = counter.launches()
                output.sum().backward()
            yield {"case": f"{name} forward", "launches": forward}
            yield {"case": f"{name} forward+backward", "launches": counter.launches()}


def op_cases() -> dict[str, Callable[[], torch.Tensor]]:
    """By the benchmark's names (python -m bench --only bce logits_loss linear mlp segmented)."""

    def tensor(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, requires_grad=True)

    cases: dict[str, Callable[[], torch.Tensor]] = {}
    for rows, columns in ((64, 1), (4096, 1), (1024, 256)):
        x, y, target = tensor(rows, columns), tensor(rows, columns), torch.rand(rows, columns)
        size = f"{rows}x{columns} float32"
        cases[f"bce {size}"] = lambda x=x, t=target: functional.binary_cross_entropy_with_logits(x, t)
        cases[f"discriminator_loss {size}"] = lambda x=x, y=y: functional.discriminator_loss(x, y)
        cases[f"generator_loss {size}"] = lambda x=x: functional.generator_loss(x)
    for batch, fan_in, fan_out, activation in ((256, 128, 128, "relu"), (128, 256, 512, "leaky_relu")):
        x, weight, bias = tensor(batch, fan_in), tensor(fan_out, fan_in), tensor(fan_out)
        cases[f"linear_act {activation} {batch}x{fan_in}x{fan_out} float32"] = (
            lambda x=x, w=weight, b=bias, a=activation: functional.linear_act(x, w, b, a)
        )
    ring = next(c for c in CONFIGURATIONS if c.name == "ring")
    for letter, network in zip("GD", networks(ring), strict=True):
        x = tensor(ring.batch, next(m for m in network if isinstance(m, nn.Linear)).in_features)
        cases[f"mlp ring {letter} float32"] = lambda x=x, network=network: network(x)
    x, kinds = tensor(500, 150), ("tanh", "softmax") * 5
    widths = (1, 29) * 5
    cases["segmented 500x150 float32"] = lambda x=x: functional.segmented_activation(x, widths, kinds)
    return cases


if __name__ == "__main__":
    for entry in itertools.chain(steps(*sys.argv[1:2]), ops(*sys.argv[1:2])):
        print(json.dumps(entry), flush=True)
