"""What the tests of a step's choices share: the surroundings that measure, or must not, and small steps in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_on_or_skip
from made_up_clock import MadeUpClock, favourite
from plain_step import adam, inputs, networks, twin
from torch import Tensor

from fastgan import TrainStep, choices, device_cache, tuning

STEPS = 4


@pytest.fixture
def on_cpu() -> Iterator[None]:
    with run_on_or_skip("auto"):
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with the tuning on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choices, "_is_on", True)
    return tmp_path / "fastgan"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MadeUpClock]:
    """Makes the clock that ways are timed by; with names, those are the fastest."""

    def make(*names: str, seconds: Callable[[str], float] | None = None) -> MadeUpClock:
        made = MadeUpClock(seconds or favourite(*names))
        monkeypatch.setattr(tuning, "clock_of", lambda device: made)
        return made

    return make


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be timed."""

    def refuse(device: torch.device) -> None:
        raise AssertionError("something is timed")

    monkeypatch.setattr(tuning, "clock_of", refuse)


def trained(steps: int = STEPS, **options: Any) -> TrainStep:
    """A step of its own, after some steps on its own data."""
    torch.manual_seed(3)
    step = twin(TrainStep, *options.pop("networks", networks(options.get("num_classes", 0))), adam, **options)
    run(step, steps, **options)
    return step


def run(step: Any, steps: int = STEPS, **options: Any) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.stack(list(step.step(*inputs(options)))) for _ in range(steps)]


def the_choice(step: TrainStep) -> tuning.Choice:
    (choice,) = step._choices.made.values()
    return choice


def clear() -> None:
    """As on a machine that has measured nothing."""
    for file in device_cache.folder().glob("choices*"):
        file.unlink()
