"""The benchmark page's tables of whole training steps, from a record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench.penalty_problems import PROBLEMS
from bench.penalty_steps import case_name
from bench.plots import PYTORCH, TORCH_COMPILE, over_fastest
from bench.tutorial import NAME as TUTORIAL

Row = dict[str, Any]
Table = list[list[str]]

CONFIGURATIONS = ("ring", "digits", "mnist", "wide")
# Row titles to the contender and the peers of which the fastest counts.
RATIOS: dict[str, tuple[str, Sequence[str]]] = {
    "`TrainStep` against PyTorch eager with fused Adam": ("fastgan", PYTORCH),
    "`TrainStep` against `torch.compile` of the whole step": ("fastgan", TORCH_COMPILE),
    "`TrainStep` against JAX jit": ("fastgan", ("jax",)),
    '`TrainStep(precision="bf16")` against float32': ("fastgan bf16", ("fastgan",)),
    "your own loop: fastgan's modules and losses against PyTorch's": ("fastgan modules", ("torch",)),
    "your own loop: fastgan's against `torch.compile` of PyTorch's": ("fastgan modules", ("torch.compile halves",)),
}
# The same of steps with penalties.
EAGER_BEST = ("torch", "torch shared pass", "torch one batch")
PENALTY_RATIOS: dict[str, tuple[str, Sequence[str]]] = {
    "fastgan's step against PyTorch eager as people write it": ("fastgan", ("torch",)),
    "against PyTorch eager in its best form": ("fastgan", EAGER_BEST),
    "against `torch.compile` of the whole step": ("fastgan", ("torch.compile",)),
    "against JAX jit": ("fastgan", ("jax",)),
    "composed (`engine=False`), against PyTorch eager as people write it": ("fastgan composed", ("torch",)),
    "your own loop with fastgan's modules, losses and penalties, against the same": ("fastgan modules", ("torch",)),
}
PENALTY_SHARES = {
    "FLOP/s of products that are necessary, of the best single product's": ("fastgan",),
    "the same of PyTorch eager as people write it": ("torch",),
    "the same of PyTorch eager in its best form": EAGER_BEST,
}
SWEPT = {
    "fastgan": "`TrainStep`",
    "fastgan modules": "your own loop with fastgan's modules and losses",
    "torch.compile": "`torch.compile` of the whole step",
}
SWEEPS = {
    "batch": "the networks of `digits`, against PyTorch eager, at batch",
    "width": "two hidden layers at batch 256, against PyTorch eager, at width",
}


def ratios(rows: Iterable[Row]) -> Table:
    """How many times as fast as the fastest of some peers, by configuration."""
    cells = _by_configuration(rows)
    return [
        ["a training step, times as fast", *CONFIGURATIONS],
        *(
            [title, *(number(over_fastest(cells.get((contender, name), {}), peers)) for name in CONFIGURATIONS)]
            for title, (contender, peers) in RATIOS.items()
        ),
    ]


def notes_on_ratios(rows: Iterable[Row]) -> list[str]:
    """What the rows of the user's own loop compare with, where there are any."""
    if not any(contender == "fastgan modules" for contender, _ in _by_configuration(rows)):
        return []
    return [
        "The rows of your own loop compare with the same loop in PyTorch, which takes real and fake as two batches. "
        "Where one batch is faster, it is in the last table."
    ]


def absolute(record: Row) -> Table:
    """Milliseconds of a TrainStep, the share of the machine's best product, and peak memory, by configuration."""
    cells = _by_configuration(record["rows"])
    steps = [cells.get(("fastgan", name), {}) for name in CONFIGURATIONS]
    memory = {row["configuration"]: row for row in record.get("memory", ()) if row["contender"] == "fastgan"}
    return [
        ["`TrainStep`", *CONFIGURATIONS],
        ["milliseconds a step", *(_milliseconds(row or None) for row in steps)],
        ["its FLOP/s, of the best single product's", *(percent(row.get("of_ceiling")) for row in steps)],
        [
            "peak memory of the training process, of PyTorch's",
            *(percent(memory.get(name, {}).get("of_torch")) for name in CONFIGURATIONS),
        ],
    ]


def penalties(rows: Sequence[Row]) -> Iterator[Table]:
    """A table an objective: how many times as fast, milliseconds, and shares of the best product."""
    cells = {(row["contender"], row["case"]): row for row in rows}
    for objective in dict.fromkeys(problem.objective for problem in PROBLEMS):
        problems = [problem for problem in PROBLEMS if problem.objective == objective]
        cases = [case_name(problem) for problem in problems]
        yield [
            [f"{objective.title}, times as fast", *(problem.configuration.name for problem in problems)],
            *(
                [title, *(number(over_fastest(cells.get((contender, case), {}), peers)) for case in cases)]
                for title, (contender, peers) in PENALTY_RATIOS.items()
            ),
            ["milliseconds a step of fastgan's", *(_milliseconds(cells.get(("fastgan", case))) for case in cases)],
            *(
                [title, *(percent(_largest_share(cells.get((c, case)) for c in contenders)) for case in cases)]
                for title, contenders in PENALTY_SHARES.items()
            ),
        ]


def tutorial(rows: Iterable[Row]) -> Table:
    """How many times as fast the classic tutorial GAN trains."""
    cells = {row["contender"]: row for row in rows if row["case"] == TUTORIAL}
    peers = {"as it is written": ("torch",), "the same with PyTorch's fused Adam": ("torch fused Adam",)}
    ways = {"`TrainStep`": "fastgan", "the tutorial's loop with `fuse` alone": "fastgan modules"}
    return [
        ["the classic tutorial GAN, times as fast as its loop", *peers],
        *(
            [title, *(number(over_fastest(cells.get(way, {}), p)) for p in peers.values())]
            for title, way in ways.items()
        ),
    ]


def notes_on_refusals(record: Row) -> list[str]:
    """Which peers could not train with penalties, in their own words."""
    reasons = dict.fromkeys((peer, reason) for _, peer, reason in record.get("refusals", ()))
    return [f"`{peer}` was tried with penalties and refused: {reason.rstrip('.')}." for peer, reason in reasons]


def _milliseconds(row: Row | None) -> str:
    return "" if row is None else f"{row['median_us'] / 1e3:.3g}"


def _largest_share(rows: Iterable[Row | None]) -> float | None:
    return max((row["of_ceiling"] for row in rows if row is not None), default=None)


def sweep(rows: Iterable[Row], axis: str) -> Table:
    """How many times as fast as eager PyTorch over a sweep, `batch` or `width`."""
    cells = {(row["contender"], row[axis]): row["times_as_fast"] for row in rows if row.get("sweep") == axis}
    values = sorted({value for _, value in cells})
    return [
        [SWEEPS[axis], *map(str, values)],
        *([title, *(number(cells.get((contender, value))) for value in values)] for contender, title in SWEPT.items()),
    ]


def notes_on_sweeps(rows: Iterable[Row]) -> list[str]:
    """How PyTorch's step takes its batches there, where there is a sweep."""
    if not any("sweep" in row for row in rows):
        return []
    return ["In the tables over batches and widths PyTorch eager takes real and fake as two batches."]


def slower_than_peers(rows: Iterable[Row]) -> Iterator[tuple[str, str, float]]:
    """Case with contender, peer and ratio of each step that a peer other than plain eager PyTorch runs faster."""
    for row in rows:
        if row["contender"].startswith("fastgan"):
            for peer, ratio in row.get("against", {}).items():
                if ratio < 1 and peer != "torch" and not peer.startswith("fastgan"):
                    yield named(row), peer, ratio


def named(row: Row) -> str:
    """The case, and which of fastgan's ways it was where there is more than one."""
    ways = {"fastgan modules": ", own loop", "fastgan composed": ", composed", "fastgan bf16": ", bf16"}
    return row["case"] + ways.get(row["contender"], "")


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def under_one(value: float) -> str:
    """A ratio under 1, with as many digits as show that it is."""
    digits = 2
    while round(value, digits) >= 1:
        digits += 1
    return f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _by_configuration(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Rows of whole steps, by contender and configuration."""
    return {
        (row["contender"], name): row
        for row in rows
        for name in CONFIGURATIONS
        if row["case"] == f"step {name} float32"
    }
