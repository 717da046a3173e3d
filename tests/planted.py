"""Wrong kernels, planted to be found, and a process that has verified nothing yet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan import backend, gate

CPU = torch.device("cpu")


class Planted:
    """What another object has, but for some attributes."""

    def __init__(self, of: Any, **attributes: Any) -> None:
        self.__dict__.update(attributes, _of=of)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def spoilt(place: int, spoil: Callable[[Tensor], None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An op one of whose results is spoilt."""

    def plant(op: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            results = op(*arguments)
            with torch.no_grad():
                spoil(results if isinstance(results, Tensor) else results[place])
            return results

        return run

    return plant


def last_column(x: Tensor) -> None:
    x[..., -1] = x[..., 0].clone() + 0.25


def last_row(x: Tensor) -> None:
    x[-1] = 0


def without_bias(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, weights, biases, *rest: op(x, weights, [None] * len(biases), *rest)


# By name: the family, the op, what is done to it.
KERNELS: dict[str, tuple[str, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "a column of the output": ("layers", "mlp", spoilt(0, last_column)),
    "a bias": ("layers", "mlp_forward", without_bias),
    "a row of a weight's gradient": ("layers", "mlp_backward", spoilt(3, last_row)),
    "a bias's gradient": ("layers", "mlp_backward", spoilt(6, lambda x: x.mul_(1.25))),
    "a row of a second gradient": ("layers", "mlp_double_backward", spoilt(1, last_row)),
    "the last column of a segment": ("segments", "segmented_activation", spoilt(0, last_column)),
    "a row of a segment's gradient": ("segments", "segmented_activation_backward", spoilt(0, last_row)),
    "a segment's second gradient": (
        "segments",
        "segmented_activation_double_backward",
        spoilt(1, lambda x: x.mul_(1.25)),
    ),
    "the cross-entropy's last row": ("cross_entropy", "bce_with_logits", spoilt(0, lambda x: x.mul_(1.25))),
    "the generator's loss": ("gan_losses", "logits_loss", lambda op: lambda x, k, t, s, r: op(x, k, 1 - t, s, r)),
    "the discriminator's last sample": (
        "gan_losses",
        "discriminator_loss",
        lambda op: lambda real, fake, *rest: op(real[:-1], fake, *rest),
    ),
}


def plant(patch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Plant a kernel; the list grows by its name at each call from anywhere but the check."""
    _, op, wrong = KERNELS[name]
    calls: list[str] = []
    planted = wrong(getattr(backend.ops, op))

    def run(*arguments: Any) -> Any:
        if not gate._is_checking():
            calls.append(op)
        return planted(*arguments)

    patch.setattr(backend, "ops", Planted(backend.ops, **{op: run}))
    return calls


@contextlib.contextmanager
def nothing_verified() -> Iterator[None]:
    """As in a process that has just begun."""
    before = gate.known, gate.faults
    gate.known, gate.faults = {}, {}
    direct = getattr(backend.module, "set_verified", lambda *verified: None)
    for family in gate.FAMILIES:
        for dtype in backend._dtypes:
            direct(family, "cpu", dtype, False)
    try:
        yield
    finally:
        gate.known, gate.faults = before
        for key, passed in gate.known.items():
            if key.module is backend.module:
                direct(key.family, str(key.device), key.dtype, passed)


@pytest.fixture
def new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A process that has verified nothing, of a user for whom nothing was; the cache's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with nothing_verified():
        yield tmp_path / "fastgan"
