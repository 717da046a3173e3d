"""`fastgan.verify()`: every kernel compared with its reference on this machine, and what gate.py asks on first use."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastgan import backend, gate
from fastgan.verification_bounds import allowance, largest_error
from fastgan.verification_cases import Case, cross_entropy, gan_losses, layers, segments
from fastgan.verification_steps import dropout_steps, steps

__all__ = ["Row", "Verification", "verify"]

_CASES: dict[str, Callable[[torch.device, torch.dtype, bool], Iterator[Case]]] = {
    "cross_entropy": cross_entropy,
    "gan_losses": gan_losses,
    "layers": layers,
    "segments": segments,
    "step": steps,
    "step_dropout": dropout_steps,
}
_ALL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DTYPES = {"step": _ALL[:3], "step_dropout": _ALL[:3]}  # bfloat16: precision="bf16"


@dataclass(frozen=True)
class Row:
    """One comparison of a kernel with its reference.

    Attributes:
        family: `cross_entropy`, `gan_losses`, `layers`, `segments`, `step` or `step_dropout`.
        kernel: what was compared, in words.
        dtype: such as `float32`; of a step in precision bf16, `bfloat16`.
        shape: of the input, in words.
        error: the largest error against float64 of the value, its gradients and second gradients, each relative to the
            largest element of its own.
        bound: what that may be: twice PyTorch's own error on the same input, and what rounding adds at most.
        passed: whether it is within the bound.
        note: what was raised, where the kernel raised an error; else empty.
    """

    family: str
    kernel: str
    dtype: str
    shape: str
    error: float
    bound: float
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        found = self.note or f"error {self.error:.2g}, bound {self.bound:.2g}"
        return f"{self.kernel}, shape {self.shape}, {self.dtype}: {found}"


@dataclass(frozen=True)
class Verification:
    """What `fastgan.verify` has found.

    Attributes:
        device: that was verified, such as `cuda:0`.
        rows: the comparisons.
        seconds: that they took.
        left_out: what could not be compared here, and why, as whole steps in bf16 on a CPU that cannot multiply it.
    """

    device: str
    rows: tuple[Row, ...]
    seconds: float
    left_out: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all comparisons are within their bounds."""
        return all(row.passed for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """The same of what JSON has: an error that is no number is None."""
        rows = [{**asdict(row), "error": row.error if math.isfinite(row.error) else None} for row in self.rows]
        facts = {"device": self.device, "passed": self.passed, "seconds": self.seconds, "left_out": [*self.left_out]}
        return {**facts, "rows": rows}

    def __str__(self) -> str:
        """A table: of each family and dtype, what comes nearest to its bound; then each failure; then the sum."""
        lines = [("family", "dtype", "comparisons", "error", "bound", "nearest to its bound", "")]
        for family, dtype in dict.fromkeys((row.family, row.dtype) for row in self.rows):
            rows = [row for row in self.rows if (row.family, row.dtype) == (family, dtype)]
            worst = max(rows, key=lambda row: row.error / row.bound)
            verdict = "passed" if all(row.passed for row in rows) else "FAILED"
            numbers = str(len(rows)), f"{worst.error:.1e}", f"{worst.bound:.1e}"
            lines.append((family, dtype, *numbers, f"{worst.kernel}, {worst.shape}", verdict))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        failed = [f"FAILED: {row}" for row in self.rows if not row.passed]
        return "\n".join([*table, *failed, *(f"not compared: {text}" for text in self.left_out), self.summary()])

    def summary(self) -> str:
        """The line that sums up."""
        passed = sum(row.passed for row in self.rows)
        return f"{self.device}: {passed} of {len(self.rows)} comparisons are within their bounds ({self.seconds:.1f} s)"


def verify(device: torch.device | str | None = None) -> Verification:
    """Compare every compiled kernel with its reference on a device, in seconds.

    Each family of kernels in each dtype, on shapes that leave a rest in every tile: values, gradients and second
    gradients against float64, and a few whole steps of training against the plain loop. A family that fails is
    switched off from now on, in other processes too; one that passes is on again.

    Args:
        device: to verify; None for the current CUDA device where fastgan's CUDA kernels run, else the CPU.

    Returns:
        The comparisons; `passed` says whether all are within their bounds, and printing it shows a table.

    Raises:
        RuntimeError: no compiled kernels run on the device, or memory does not suffice; the message says why.
    """
    if device is None:
        device = "cuda" if backend.unavailable_reason("cuda") is None else "cpu"
    device = gate.with_index(torch.device(device))
    if backend.module is None or backend.current_backend() == "reference" or not backend.has_kernels(device):
        reason = backend.unavailable_reason(device.type) or f"the backend in force is {backend.current_backend()}"
        raise RuntimeError(f"there is nothing to verify on {device}: {reason}")
    begin = time.perf_counter()
    rows: list[Row] = []
    left_out: list[str] = []
    for family in _CASES:
        for dtype in _DTYPES.get(family, _ALL):
            try:
                found = gate.in_fresh_thread(functools.partial(_compare, family, device, dtype, False))
            except gate.Inconclusive as reason:
                if reason.is_passing:
                    raise torch.OutOfMemoryError(f"{device} cannot be verified: {reason}") from None
                left_out.append(f"{family} in {_name(dtype)}: {reason}")
                continue
            rows += found
            gate.store(gate.Key(backend.module, family, device, dtype), _entry(found))
    return Verification(str(device), tuple(rows), time.perf_counter() - begin, tuple(left_out))


def first_use(family: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The same of one family in one dtype, in milliseconds: the entry that gate.py keeps.

    Raises:
        gate.Inconclusive: it cannot be compared.
    """
    return _entry(_compare(family, device, dtype, True))


def _entry(rows: list[Row]) -> dict[str, Any]:
    failed = [row for row in rows if not row.passed]
    return {"passed": not failed, "fault": str(failed[0]) if failed else ""}


def _compare(family: str, device: torch.device, dtype: torch.dtype, is_quick: bool) -> list[Row]:
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if device.type == "cuda":
            with _without_blame():  # an error of kernels before ours would come to light in ours
                torch.cuda.synchronize()
        return [_row(family, case, device, dtype) for case in _CASES[family](device, dtype, is_quick)]


def _row(family: str, case: Case, device: torch.device, dtype: torch.dtype) -> Row:
    with _without_blame():
        exact, theirs = case.exact(), case.torchs()
    rounding = allowance(dtype, case.terms, device)
    error, bound, note = 0.0, rounding, ""
    try:
        for results in case.ours():
            for i, value in enumerate(results):
                found = largest_error(value, exact[i])
                allowed = 2 * largest_error(theirs[i], exact[i]) + rounding
                if found / allowed > error / bound:
                    error, bound = found, allowed
    except gate.Inconclusive:
        raise
    except Exception as raised:
        if _is_out_of_memory(raised):
            raise gate.Inconclusive(str(raised), is_passing=True) from None
        error, note = math.inf, f"{type(raised).__name__}: {' '.join(str(raised).split())[:300]}"
    passed = error <= bound
    return Row(family, case.kernel, _name(dtype), case.shape, error, bound, passed, note)


@contextlib.contextmanager
def _without_blame() -> Iterator[None]:
    """What PyTorch itself cannot do here is no fault of the kernels."""
    try:
        yield
    except Exception as error:
        reason = f"PyTorch's own part of the comparison raised {type(error).__name__}: {error}"
        raise gate.Inconclusive(reason, _is_out_of_memory(error)) from None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_out_of_memory(error: Exception) -> bool:
    phrases = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(phrase in str(error) for phrase in phrases)
