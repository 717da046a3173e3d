"""The processes of a job of torch.distributed take the same choice, whatever each of them would have measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from fastgan import tuning_job

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this PyTorch has no gloo"
)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    shared = dist.HashStore()
    monkeypatch.setattr(tuning_job, "_store", lambda: shared)
    return shared


def in_threads(*finds: Any) -> list[Any]:
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i, find=find: found.update({i: tuning_job.agreed("a step", find)}))
        for i, find in enumerate(finds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[i] for i in range(len(finds))]


def finder(value: int, seconds: float = 0.0) -> Any:
    def find() -> dict[str, Any]:
        time.sleep(seconds)
        return {"way": value}

    return find


def test_the_first_decides(store: dist.Store) -> None:
    found = in_threads(*(finder(i, 0.1) for i in range(4)))
    assert all(value == found[0] for value in found)
    assert tuning_job.agreed("a step", finder(9)) == found[0]  # one that comes later
    assert tuning_job.agreed("another step", finder(9)) == {"way": 9}


def test_one_that_takes_too_long_is_not_waited_for(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then all take the default, the one that took so long as well."""
    monkeypatch.setattr(tuning_job, "_PATIENCE", 0.2)
    assert in_threads(finder(1, 1.5), finder(2, 1.5), finder(3, 1.5)) == [{}, {}, {}]


def test_one_that_died_is_not_waited_for(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_job, "_PATIENCE", 0.2)

    def die() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuning_job.agreed("a step", die)
    assert in_threads(finder(1), finder(2)) == [{}, {}]


def test_a_store_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def compare_set(self, *of: str) -> bytes:
            raise dist.DistNetworkError("the connection was closed")

    monkeypatch.setattr(tuning_job, "_store", Gone)
    assert tuning_job.agreed("a step", finder(1)) == {}


def test_without_a_job() -> None:
    assert tuning_job.agreed("a step", finder(1)) == {"way": 1}


RANK = """
import json, sys, torch
from made_up_clock import MadeUpClock, favourite
from plain_step import adam, inputs, networks, state_of, twin
from fastgan import TrainStep, tuning
rank, store, steps = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
best = ("composed library", "composed narrow")[rank]
clock = MadeUpClock(favourite(best))
tuning.clock_of = lambda device: clock
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
group = torch.distributed.group.WORLD
torch.manual_seed(0)
step = twin(TrainStep, *networks(dtype=torch.float32), adam)
for i in range(steps[rank]):
    step.step(*inputs({}, torch.float32))
ways = [choice["way"] for choice in step.state_dict()["choices"].values()]
print(json.dumps([ways, [t.double().sum().item() for t in state_of(step)], bool(clock.turns)]), flush=True)
torch.distributed.barrier()
"""


def job(tmp_path: Path, steps: tuple[int, int]) -> list[Any]:
    """Two processes, each with a cache and a clock of its own, which say opposite things."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store"), json.dumps(steps)],
            cwd=ROOT,
            env={
                **os.environ,
                "FASTGAN_TUNE": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT / "tests"),
                "XDG_CACHE_HOME": str(tmp_path / str(rank)),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    return [json.loads(output.splitlines()[-1]) if output else errors for output, errors in outputs]


@pytest.mark.deep
def test_two_processes(tmp_path: Path) -> None:
    first, second = job(tmp_path, (5, 5))
    assert first[:2] == second[:2]
    assert first[0] in (["composed library"], ["composed narrow"])
    assert {first[2], second[2]} == {True, False}  # one has measured


@pytest.mark.deep
def test_one_of_them_never_steps(tmp_path: Path) -> None:
    first, second = job(tmp_path, (0, 5))
    assert (first[0], second[0]) == ([], ["composed narrow"])
