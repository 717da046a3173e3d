"""Names that users import, and those that pickles hold, lead to what has moved since."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastgan
from fastgan.data import Dataset, from_array, load
from fastgan.data.units import Levels
from fastgan.step_options import StepOptions, names_of
from fastgan.training.config import LATER, TrainConfig

ROOT = Path(__file__).resolve().parent.parent

NAMES = {
    "fastgan.trainer": ("Trainer",),
    "fastgan.sampling": ("sample_run", "write_samples"),
    "fastgan.config": ("TrainConfig",),
    "fastgan.step": ("StepStats", "TrainStep", "average_of"),
    "fastgan.data": ("BUILT_IN", "DataError", "Dataset", "digits", "from_array", "grid25", "load", "ring8"),
    "fastgan.dataset": ("DataError", "Dataset"),
    "fastgan.units": ("Levels",),
    "fastgan.statistics": ("StepStats",),
}


@pytest.mark.parametrize("module", NAMES)
def test_names_that_users_import(module: str) -> None:
    assert all(hasattr(importlib.import_module(module), name) for name in NAMES[module])
    assert importlib.import_module("fastgan.trainer").Trainer is fastgan.Trainer


def former(value: Any, names: dict[str, str]) -> bytes:
    """A pickle as it was when the classes lay in modules of other names."""
    pickled = pickle.dumps(value, protocol=0)
    for now, then in names.items():
        assert f"c{now}\n".encode() in pickled
        pickled = pickled.replace(f"c{now}\n".encode(), f"c{then}\n".encode())
    return pickled


def test_pickles_of_data_sets_and_options() -> None:
    numbers = from_array(torch.tensor([[0.1], [0.7], [123456.789]], dtype=torch.float64).numpy(), None, "x", "x")
    assert isinstance(numbers.levels[0], Levels)
    pickled = former(numbers, {"fastgan.data.dataset": "fastgan.dataset", "fastgan.data.units": "fastgan.units"})
    found = pickle.loads(pickled)
    assert type(found) is Dataset
    assert type(found.levels[0]) is Levels
    assert torch.equal(found.unscale(found.samples), numbers.unscale(numbers.samples))
    config = TrainConfig.for_dataset(load("ring8"), "ring8", g_hidden=[3])
    assert pickle.loads(former(config, {"fastgan.training.config": "fastgan.config"})) == config


def test_a_pickle_needs_no_import_before() -> None:
    pickled = former(TrainConfig(), {"fastgan.training.config": "fastgan.config"})
    code = "import pickle, sys; print(type(pickle.load(sys.stdin.buffer)).__name__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, input=pickled, capture_output=True, check=True)
    assert done.stdout.strip() == b"TrainConfig"


def test_the_version_is_that_of_the_package() -> None:
    assert f'version = "{fastgan.__version__}"' in (ROOT / "pyproject.toml").read_text().splitlines()


def test_a_step_that_was_pickled_before_it_had_choices_and_all_options() -> None:
    networks = fastgan.nn.MLP([3, 4, 2]), fastgan.nn.MLP([2, 4, 1])
    step = fastgan.TrainStep(*networks, *(torch.optim.Adam(network.parameters()) for network in networks))
    later = {"_choices", "_labels", "_planned_options", *LATER}
    later &= {"_choices", "_labels", "_planned_options", *names_of(StepOptions)}  # the others are the trainer's
    state = {name: value for name, value in step.__getstate__().items() if name not in later}
    assert len(state) == len(step.__getstate__()) - len(later)
    before = fastgan.TrainStep.__new__(fastgan.TrainStep)
    before.__setstate__(state)
    assert all(value.isfinite() for value in before.step(torch.randn(5, 2)))
    assert before.state_dict()["steps_done"] == 1
