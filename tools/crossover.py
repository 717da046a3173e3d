"""`python -m tools.crossover`: measures on a GPU up to which size fastgan's product kernels beat the library's.

For each precision it times a training layer (forward and backward, bias and leaky ReLU) tiled and by the library, in
alternation, over growing sizes, and takes as crossover the largest m n k up to which tiled was never slower by over
2 %; and for narrow networks the largest batch at which the one-launch kernels win over the tiled ones. With `--write`
it rewrites csrc/cuda/crossover.h, which is compiled in: build again afterwards.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path

import torch

from bench import cuda
from bench.timing import Case, Contender
from fastgan import backend
from fastgan.functional import mlp

HEADER = Path(__file__).parent.parent / "csrc" / "cuda" / "crossover.h"
# (batch, in, out) in order of their product
SHAPES = [
    (64, 64, 64),
    (128, 128, 128),
    (256, 128, 256),
    (128, 256, 512),
    (256, 512, 512),
    (128, 1024, 784),
    (512, 512, 512),
    (512, 1024, 1024),
    (1024, 1024, 1024),
    (1024, 2048, 2048),
    (4096, 2048, 2048),
]
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "half": (torch.bfloat16, "highest"),
    "float64": (torch.float64, "highest"),
}
BATCHES = (64, 128, 256, 512, 1024, 2048, 4096)


def largest_faster_size(sizes: Sequence[float], ratios: Sequence[float]) -> float:
    """The last size before the first whose ratio (how many times faster) is under 0.98; 0 if there is none."""
    largest = 0.0
    for size, ratio in zip(sizes, ratios, strict=True):
        if ratio < 0.98:
            break
        largest = float(size)
    return largest


def header(values: dict[str, float], about: str) -> str:
    """The text of csrc/cuda/crossover.h."""
    lines = [f"constexpr double {name} = {values[name]:.4g};" for name in PRECISIONS]
    lines.append("// Of float operands that the library must first be given as bfloat16.")
    lines.append("constexpr double bf16_operands = 1e+08;")
    batch = int(values["narrow_batch"])
    lines.append(f"constexpr int narrow_batch = {batch};  // largest batch for the narrow network kernels")
    return (
        "// Up to which size this project's product kernels run, and above which the library's: largest m n k of a\n"
        f"// product. Written by `python -m tools.crossover --write`: {about}.\n"
        "#pragma once\n\nnamespace fastgan::cuda::crossover {\n\n"
        + "\n".join(lines)
        + "\n\n}  // namespace fastgan::cuda::crossover\n"
    )


def on_path(path: str, call: Contender) -> Contender:
    """The call with the layers on one path; a captured graph keeps the kernels of that path."""

    def run() -> object:
        backend.module.set_layer_path(path)
        return call()

    return run


def training(sizes: Sequence[int], batch: int, dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward of a stack of layers on fixed tensors."""
    weights = [torch.randn(o, i, dtype=dtype) * i**-0.5 for i, o in pairwise(sizes)]
    biases = [torch.randn(o, dtype=dtype) for o in sizes[1:]]
    leaves = [t.requires_grad_() for t in (torch.randn(batch, sizes[0], dtype=dtype), *weights, *biases)]
    names = ["leaky_relu"] * len(weights)
    grad_output = torch.randn(batch, sizes[-1], dtype=dtype)
    return lambda: torch.autograd.grad(mlp(leaves[0], weights, biases, names), leaves, grad_output)


def ratio(paths: tuple[str, str], call: Callable[[], object], seconds: float) -> float:
    """How many times faster the first path is than the second."""
    contenders = {path: on_path(path, call) for path in paths}
    result = cuda.measure_on_gpu(Case("layer", contenders, lambda: None), rounds=7, seconds=seconds)
    return result.ratio(paths[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the ratios, and with --write rewrite the header."""
    parser = argparse.ArgumentParser(prog="python -m tools.crossover", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"rewrite {HEADER.relative_to(HEADER.parents[2])}")
    parser.add_argument("--seconds", type=float, default=0.02, help="length of a turn (default: 0.02)")
    options = parser.parse_args(arguments)
    if reason := cuda.unavailable_reason() or backend.unavailable_reason("cuda"):
        print(f"the crossover is measured on a GPU: {reason}", file=sys.stderr)
        return 2
    values: dict[str, float] = {}
    with torch.device("cuda"):
        for name, (dtype, precision) in PRECISIONS.items():
            torch.set_float32_matmul_precision(precision)
            ratios = []
            for batch, width_in, width_out in SHAPES:
                call = training((width_in, width_out), batch, dtype)
                ratios.append(ratio(("tiled", "library"), call, options.seconds))
                print(f"{name} {batch}x{width_in}x{width_out}: tiled {ratios[-1]:.2f} times the library's speed")
            values[name] = largest_faster_size([float(a * b * c) for a, b, c in SHAPES], ratios)
        torch.set_float32_matmul_precision("highest")
        networks = [functools.partial(training, (64, 128, 128, 64), batch, torch.float32) for batch in BATCHES]
        ratios = [ratio(("narrow", "tiled"), network(), options.seconds) for network in networks]
        for batch, value in zip(BATCHES, ratios, strict=True):
            print(f"64-128-128-64 on {batch}: narrow {value:.2f} times the tiled kernels' speed")
        values["narrow_batch"] = largest_faster_size(BATCHES, ratios)
    backend.module.set_layer_path("automatic")
    text = header(values, f"measured on {torch.cuda.get_device_name()}, {date.today()}")
    print(text)
    if options.write:
        HEADER.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
