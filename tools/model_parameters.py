"""What `python -m tools.model` takes for an H100: one table of published figures, each with its source."""

from __future__ import annotations

from typing import NamedTuple

STUDY = "github.com/ahmadsharif1/cuda_study, README.md, measured on an H100 SXM5 at 1.98 GHz"
MT4G = "github.com/caps-tum/mt4g, report of an H100 80GB HBM3"
DATASHEET = "NVIDIA H100 Tensor Core GPU datasheet, SXM5"
GUIDE = "CUDA C++ Programming Guide, compute capability 9.0"
PYTORCH = "github.com/pytorch/pytorch, issue 161104: 1.1 us a kernel of 1024 sums within a graph of 2000, GPU not named"
ASSUMED = "assumed: no public figure was found"
HOPPER = "arXiv 2402.13499, measured on an H800 PCIe"
RECORD = "bench/results/gpu-2026-11-26.json, this project's own, of an H200"
MEASURED = "measured: bench/results/gpu-2026-11-27-tiled.json, this project's own, of an H200"


class Parameter(NamedTuple):
    """A figure with its unit and where it is from."""

    value: float
    unit: str
    source: str


H100 = {
    "multiprocessors": Parameter(132, "", DATASHEET),
    "clock": Parameter(1.98, "GHz", f"{DATASHEET}: 66.9 TFLOPS of float32 are 132 x 128 FMAs at that"),
    "launch": Parameter(0.95, "us", f"{PYTORCH}, less the 0.15 us that this model has for what it does"),
    "shared latency": Parameter(29, "cycles", f"{STUDY}; {MT4G}: 30"),
    "L2 latency": Parameter(260, "cycles", f"{STUDY}; {MT4G}: 219"),
    "memory latency": Parameter(571, "cycles", f"{STUDY}; {MT4G}: 834"),
    "barrier": Parameter(29, "cycles", f"{ASSUMED}; as long as a shared access"),
    "collective": Parameter(29, "cycles", f"{ASSUMED}; as long as a shared access"),
    "issue": Parameter(
        1.45, "cycles an instruction of a warp alone inside a loop along k", f"{MEASURED}: the loop of FMAs"
    ),
    "issue outside": Parameter(
        5,
        "cycles an instruction of a warp alone elsewhere",
        f"fitted; {MEASURED}: epilogues 5, whole kernels of products 2.2 to 5, step_head 10",
    ),
    "Adam": Parameter(
        58,
        "instructions of an element in a weight update, beside those of its accesses",
        f"fitted to what ncu counted; {MEASURED}: 2640 a warp outside the loop for 32 elements a thread",
    ),
    "fence": Parameter(260, "cycles", f"{ASSUMED}; a round trip to L2"),
    "grid barrier": Parameter(1040, "cycles", f"{ASSUMED}; an atomic, two fences and a wait, a trip each"),
    "SM-to-SM latency": Parameter(180, "cycles", HOPPER),
    "SM-to-SM bandwidth": Parameter(2650, "GB/s", f"{HOPPER}, clusters of 4 blocks; 3270 of 2 blocks"),
    "cluster barrier": Parameter(
        1200, "cycles", f"{MEASURED}: with the fence that it has in machine code, 1150 to 1480 where blocks are in step"
    ),
    "cluster wait": Parameter(
        180, "cycles", "as long as a trip to another block's shared memory; an H200: 118 to 300 (bench/results/gpu.md)"
    ),
    "multiprocessors of clusters": Parameter(
        104,
        "that have no more than a block of a cluster of four or more",
        f"{MEASURED}: 4.0 warps on each where there were 26 clusters of 4, 8 of 8 or 64 of 2, 4.3 to 4.4 where there "
        "were 32 of 4 or 16 of 8; it is the least that agrees with that",
    ),
    "FMA": Parameter(128, "a cycle and multiprocessor", DATASHEET),
    "tf32": Parameter(946, "FMAs a cycle and multiprocessor", f"{DATASHEET}: 494.7 TFLOPS"),
    "16 bit": Parameter(1893, "FMAs a cycle and multiprocessor", f"{DATASHEET}: 989.4 TFLOPS"),
    "share of mma": Parameter(
        0.62, "of these rates", f"{ASSUMED} at hand; studies such as arXiv 2402.13499 find mma well below wgmma"
    ),
    "shared bandwidth": Parameter(128, "bytes a cycle and multiprocessor", f"{GUIDE}: 32 banks of 4 bytes"),
    "L1 bandwidth": Parameter(128, "bytes a cycle and multiprocessor", f"{GUIDE}"),
    "L2 bandwidth": Parameter(4863, "GB/s", f"{MT4G}: 4529 GiB/s read; {STUDY}: 3574 GB/s copied"),
    "memory bandwidth": Parameter(2750, "GB/s", f"{MT4G}: 2561 GiB/s read; {DATASHEET}: 3350 GB/s"),
    "registers": Parameter(65536, "a multiprocessor", GUIDE),
    "shared memory": Parameter(228 * 1024, "bytes a multiprocessor, 1 KB of them a block's own", GUIDE),
    "threads": Parameter(2048, "a multiprocessor", GUIDE),
    "blocks": Parameter(32, "a multiprocessor", GUIDE),
    "library": Parameter(0.76, "of the FMAs", f"{RECORD}: 51.1 TFLOPS of float32 at 4096 x 4096 x 4096"),
    "copy": Parameter(0.9, "us", f"{RECORD}: the copies of a step's inputs, 0.8 to 1.6 us"),
}


def value(name: str) -> float:
    """One figure.

    Raises:
        KeyError: there is none of that name.
    """
    return H100[name].value
