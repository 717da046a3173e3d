"""The README's tables of whole training steps, from a record: what was measured beside what was aimed for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

CONFIGURATIONS = ("ring", "digits", "mnist", "wide")
# Row titles to the contender, the peers of which the fastest counts, and the targets by configuration.
STEPS: dict[str, tuple[str, tuple[str, ...], tuple[float | None, ...]]] = {
    "times as fast as PyTorch, eager, fused Adam": ("fastgan", ("torch", "torch one batch"), (4, 2.5, 1.7, 1.4)),
    "than `torch.compile`, default or max-autotune": (
        "fastgan",
        ("torch.compile", "torch.compile max-autotune"),
        (4, 2.5, 1.7, 1.4),
    ),
    "than JAX jit": ("fastgan", ("jax",), (2, 1.6, 1.2, 1.05)),
    '`precision="bf16"` than our float32': ("fastgan bf16", ("fastgan",), (None, None, 1.6, 1.7)),
    "our modules and losses in your own loop, than PyTorch's in it": (
        "fastgan modules",
        ("torch",),
        (1.5, 1.5, 1, 1),
    ),
}
OF_CEILING = (0.75, 0.75, 0.8, 0.9)
# Of single cases: title to case, and least ratio.
CASES = {
    "`discriminator_loss` at 64x1, forward and backward: host cost, times as cheap": (
        "host discriminator_loss 64x1 float32 forward+backward",
        2.0,
    ),
    "WGAN-GP critic step through `MLP` on digits, times as fast": ("penalties WGAN-GP digits D float32 step", 1.3),
}


def step_rows(rows: Iterable[Row]) -> list[list[str]]:
    """Lines of the table by configuration; a line without any figure is empty but for its title.

    Args:
        rows: of the record.
    """
    found = {(row["case"], row["contender"]): row for row in rows if "against" in row}

    def cell(contender: str, name: str) -> Row:
        return found.get((f"step {name} float32", contender), {})

    shares = [cell("fastgan", name).get("of_ceiling") for name in CONFIGURATIONS]
    lines = [["FLOP/s of a `TrainStep`, of the best single product's", *_cells(shares, OF_CEILING)]]
    for title, (contender, peers, targets) in STEPS.items():
        ratios = [slowest(cell(contender, name), peers) for name in CONFIGURATIONS]
        lines.append([title, *_cells(ratios, targets)])
    return lines


def case_rows(record: dict[str, Any]) -> list[list[str]]:
    """Lines of title, measured and aimed for, where measured: single cases, the sweeps' worst cells, and memory."""
    ratios = {(row["case"], row["contender"]): row["times_as_fast"] for row in record["rows"]}
    lines = [
        [title, _number(ratios.get((case, "fastgan"))), f"at least {target:g}"]
        for title, (case, target) in CASES.items()
    ]
    for axis in ("batch", "width"):
        cells = [row for row in record["rows"] if row.get("sweep") == axis]
        for contender, name in (("fastgan", "`TrainStep`"), ("fastgan modules", "our modules in your own loop")):
            worst = min((r["times_as_fast"] for r in cells if r["contender"] == contender), default=None)
            values = sorted({row[axis] for row in cells})
            span = f"{axis} {values[0]} to {values[-1]}" if values else axis
            lines.append([f"{name}, {span}: times as fast as PyTorch, worst cell", _number(worst), "at least 1"])
    peaks = {row["configuration"]: row["of_torch"] for row in record.get("memory", ()) if row["contender"] == "fastgan"}
    named = ", ".join(f"{name} {ratio:.2f}" for name, ratio in peaks.items())
    lines.append(["peak memory of a training process, of PyTorch's", named, "at most 1"])
    return [line for line in lines if line[1]]


def slowest(row: Row, peers: Sequence[str]) -> float | None:
    """The ratio to the fastest of the peers that were measured."""
    return min((ratio for peer, ratio in row.get("against", {}).items() if peer in peers), default=None)


def lost_to_others(rows: Iterable[Row]) -> list[str]:
    """Every step of `TrainStep` that a peer other than eager PyTorch runs faster."""
    return [
        f"{row['case']} than {peer} ({ratio:.2f})"
        for row in rows
        if row["contender"] == "fastgan"
        for peer, ratio in row.get("against", {}).items()
        if ratio < 1 and peer != "torch" and not peer.startswith("fastgan")
    ]


def _cells(values: Sequence[float | None], targets: Sequence[float | None]) -> list[str]:
    """Measured, and in brackets what was aimed for."""
    return [
        _number(value) + (f" ({target:g})" if value is not None and target is not None else "")
        for value, target in zip(values, targets, strict=True)
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
