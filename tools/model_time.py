"""From the counts of a launch to modelled microseconds on an H100, and where they go.

A block's time is what the thread with the most round trips waits for, one after the other, and what its multiprocessor
does for it and for the blocks beside it; a launch's is that of as many rounds of blocks as there are, or what its bytes
take, whichever is longer, after what a launch itself takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .model_parameters import value

Launch = Mapping[str, Any]

SCHEDULERS = 4  # a multiprocessor
# Where the time goes.
PARTS = ("launch", "products", "epilogues", "memory", "reductions", "other")
# Launches that are a product with its epilogue, and those that add up; of the rest, `memory`.
PRODUCTS = ("linear", "mlp_forward", "mlp_backward", "mlp_tangent")
REDUCTIONS = (
    "step_loss",
    "step_head",
    "column_sums",
    "clip",
    "penalty_start",
    "bce_sum",
    "logits_loss_sum",
    "batch_norm_forward",
)
# FMAs of the narrow kernels for each 16 bytes that a thread reads from shared memory: 4 x 4 sums take 8 for 4 of k.
FMAS_A_READ = {"mlp_forward": 4 * 16 / 8, "mlp_backward": 4 * 16 / 8, "mlp_tangent": 4 * 16 / 8}
# A product's kernel: its arithmetic, its elements, the sides of its tile, and the number of its pass (Pass of
# csrc/cuda/product.h).
PRODUCT = re.compile(r"product_kernel<(\w+)<(\w+), (\d+), (\d+), \d+, \d+(?:, \w+)?>, \d+, \d+, (\d+)>")
WEIGHT_UPDATE = 3
BYTES = {"double": 8, "float": 4}  # others are of 16 bits
FMAS_OF = {
    "mma.m16n8k8.tf32": ("tf32", 1024),
    "mma.m16n8k16.bf16": ("16 bit", 2048),
    "mma.m16n8k16.f16": ("16 bit", 2048),
}


class Work(NamedTuple):
    """Microseconds that the whole device takes for a launch's work at the least, by what it has of each.

    Attributes:
        room: for blocks: those that wait take it from others.
        units: the multiprocessors' FMAs, tensor cores, and wavefronts of shared memory.
        network: between the blocks of clusters.
        cache: L2's bandwidth.
        memory: the memory's.
    """

    room: float
    units: float
    network: float
    cache: float
    memory: float


class Time(NamedTuple):
    """Microseconds of a launch: all of it, and its parts by PARTS; blocks a multiprocessor, and rounds of them."""

    total: float
    parts: dict[str, float]
    resident: int
    rounds: int
    work: Work


def resident_blocks(launch: Launch, registers: int) -> int:
    """How many of a launch's blocks a multiprocessor has room for, by the resources table's registers a thread."""
    warps = math.ceil(launch["threads"] / 32)
    by_registers = value("registers") // (math.ceil(registers / 8) * 8 * 32 * warps) if registers else value("blocks")
    by_shared = value("shared memory") // (launch["shared_bytes"] + launch.get("static_bytes", 0) + 1024)
    return int(max(1, min(by_registers, by_shared, value("threads") // (32 * warps), value("blocks"))))


class Tile(NamedTuple):
    """Of a launch of product kernels, along k.

    Attributes:
        fmas: all that its blocks do, without those of tensor cores.
        step: bytes of k a step.
        updates: whether its epilogue updates the weight.
    """

    fmas: float
    step: float
    updates: bool


def tile_of(launch: Launch) -> Tile | None:
    """What a product's kernel says of its launch; None where it is none.

    FMAs follow from what blocks copy, each element of which is used once for each row, or column, of the tile: they are
    the same however the threads share the tile out.
    """
    if (found := PRODUCT.match(launch.get("kernel", ""))) is None:
        return None
    rows, columns = int(found[3]), int(found[4])
    bytes_copied = 4 * launch["copies"][0] + 16 * launch["copies"][1]
    elements = bytes_copied / BYTES.get(found[2], 2)
    fmas = elements * rows * columns / (rows + columns) if found[1] == "Fma" else 0.0
    step = bytes_copied / (launch["blocks"] * max(1, launch["steps"]) * (rows + columns))
    return Tile(fmas, step, int(found[5]) == WEIGHT_UPDATE)


def time_of_library(launch: Launch) -> Time:
    """A product of the library: launches, loads, FMAs; where its 64 x 64 tiles are few, k is split and added up."""
    m, n, k = (launch["note"][key] for key in "mnk")
    thin = min(m, n) < 16  # a matrix and a vector
    tiles = 1 if thin else math.ceil(m / 64) * math.ceil(n / 64)
    splits = 1 if thin else max(1, min(int(value("multiprocessors") // tiles), k // 128))
    launches = 1 + (splits > 1)
    cycles = launches * 2 * value("L2 latency") * (1 + bool(launch["hbm_read"]))
    used = min(value("multiprocessors"), tiles * splits) if not thin else value("multiprocessors")
    fmas = m * n * k / (value("FMA") * value("library"))
    cycles += fmas / used
    busy = max(_microseconds(cycles), *_bytes(launch))
    room = busy * used / value("multiprocessors")
    work = Work(room, _microseconds(fmas / value("multiprocessors")), *_bytes(launch))
    parts = {"launch": launches * value("launch"), "products": busy}
    return Time(launches * value("launch") + busy, parts, 1, 1, work)


def time_of(launch: Launch, registers: int = 0, instructions: float = 10.0) -> Time:
    """One launch.

    Args:
        launch: its counts.
        registers: a thread, on sm_90a; 0 where they are not known.
        instructions: all that its machine code has, for each access of memory that it has.
    """
    if "note" in launch:
        return time_of_library(launch)
    resident = resident_blocks(launch, registers)
    processors = value("multiprocessors")
    rounds = math.ceil(launch["blocks"] / (resident * processors))
    # The groups of multiprocessors are not filled by clusters of four or more.
    filled = value("multiprocessors of clusters") if launch["cluster"] >= 4 else processors
    beside = math.ceil(min(launch["blocks"], resident * processors) / filled)

    missing = launch["hbm_read"] / max(1, launch["l2"])
    trip = value("L2 latency") + missing * (value("memory latency") - value("L2 latency"))
    waits = [
        launch["trips"][i] * trip
        + launch["shared_trips"][i] * value("shared latency")
        + launch["barriers"][i] * value("barrier")
        + launch["collectives"][i] * value("collective")
        for i in (0, 1)
    ]
    waits[0] += launch["atomics"] * value("L2 latency") + launch["fences"] * value("fence")
    waits[0] += launch["grid_barriers"] * value("grid barrier")
    waits[0] += launch["cluster_barriers"] * value("cluster barrier")
    waits[0] += launch["cluster_waits"] * value("cluster wait")
    waits[0] += launch["remote_trips"] * value("SM-to-SM latency")
    waits[1] += launch["fills"] * trip
    # Of the warps that share a scheduler each issues in its turn.
    warps = max(1, beside * math.ceil(launch["threads"] / 32) / SCHEDULERS)
    threads = launch["blocks"] * launch["threads"]
    copies = sum(launch["copies"]) / threads  # count as two, one on either side
    tile = tile_of(launch)
    fmas = launch["vectors"] * FMAS_A_READ.get(launch["name"], 0) if tile is None else tile.fmas
    inner = max(0, launch["accesses"][1] - copies)
    made = [launch["accesses"][0] * instructions, max(inner * instructions, inner + fmas / threads)]
    if tile is not None and tile.updates:  # three values written of each element
        made[0] += launch["written"]["requested"] * 32 / (3 * BYTES["float"]) / threads * value("Adam")
    issue = made[0] * max(value("issue outside"), warps), made[1] * max(value("issue"), warps)
    # A step begins with its copies, and what is read after them waits until they have had their turns.
    copying = launch["copy_wavefronts"] / launch["blocks"]
    reading = launch["wavefronts"][1] / launch["blocks"] - copying
    own_issue = made[1] * max(value("issue"), launch["threads"] / 32 / SCHEDULERS)
    fmas /= value("FMA")
    for shape, times in launch["products"].items():
        rate, each = FMAS_OF[shape]
        fmas += times * each / (value(rate) * value("share of mma"))
    inside = max(fmas, launch["wavefronts"][1] * 128 / value("shared bandwidth"))
    sectors = sum(launch[way]["requested"] for way in ("read", "written"))
    outside = launch["wavefronts"][0] + sectors * 32 / value("L1 bandwidth")
    units = _microseconds((inside + outside) / processors)
    inside, outside = inside / launch["blocks"], outside / launch["blocks"]
    own = copying + max(fmas / launch["blocks"], reading, own_issue)
    # Three steps of k are under way at a time, or two of 128 bytes.
    under_way = 2 if tile is not None and tile.step >= 128 else 3
    loop = max(waits[1] + max(beside * inside, issue[1], own), launch["steps"] * trip / under_way)
    rest = waits[0] + max(beside * outside, issue[0])
    busy = max(rounds * _microseconds(loop + rest), *_bytes(launch))
    room = _microseconds(loop + rest) * launch["blocks"] / (resident * processors)
    parts = {"launch": value("launch")}
    if launch["name"] in PRODUCTS:
        share = loop / (loop + rest) if loop + rest > 0 else 0
        parts |= {"products": busy * share, "epilogues": busy * (1 - share)}
    else:
        parts |= {"reductions" if launch["name"] in REDUCTIONS else "memory": busy}
    return Time(value("launch") + busy, parts, resident, rounds, Work(room, units, *_bytes(launch)))


def _microseconds(cycles: float) -> float:
    return cycles * 1e-3 / value("clock")


def _bytes(launch: Launch) -> tuple[float, float, float]:
    """Microseconds that its bytes take at least: between blocks of clusters, in L2, and in the device's memory."""
    memory = 32e-3 * (launch["hbm_read"] + launch["hbm_written"]) / value("memory bandwidth")
    between = 1e-3 * launch.get("remote_bytes", 0) / value("SM-to-SM bandwidth")
    return between, 32e-3 * launch["l2"] / value("L2 bandwidth"), memory
