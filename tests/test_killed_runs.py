"""A training process that is killed at any instant leaves a run that resumes to the bits of one that was not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from extent import extent
from killed_runs import Killable

OPTIONS: dict[str, Any] = {
    "data": "ring8",
    "g_hidden": [16],
    "d_hidden": [16],
    "batch_size": 32,
    "steps": 30,
    "log_every": 4,
    "sample_every": 15,
    "checkpoint_every": 3,
    "keep_checkpoints": 2,
    "r1_gamma": 0.1,
    "r1_every": 4,
}
TIMES = ("seconds", "samples_per_second")


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[Killable]:
    process = Killable(tmp_path)
    yield process
    process.close()


def outcome(run: Path) -> dict[str, Any]:
    """All that training leaves: the metrics but for the times, and each checkpoint's tensors and facts."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {"rows": [{key: row[key] for key in row if key not in TIMES} for row in rows]}
    for path in sorted((run / "checkpoints").iterdir()):
        found.update({f"{path.name}/{file.name}": file.read_bytes() for file in path.glob("*.safetensors")})
        manifest = json.loads((path / "checkpoint.json").read_text())
        facts = {key: value for key, value in manifest["facts"].items() if "seconds" not in key}
        facts["config"] = {key: value for key, value in facts["config"].items() if key != "runs"}
        found[f"{path.name}/facts"] = facts
    found["pictures"] = {file.name: file.read_bytes() for file in (run / "samples").iterdir()}
    return found


def check(killable: Killable, tmp_path: Path, changes: int, instants: int) -> None:
    """Kill runs at the given number of instants: at changes of the file system, most of them while a checkpoint is
    written, and by the clock."""
    whole = killable.order(options=OPTIONS, runs="whole")
    assert whole["code"] == 0
    expected = outcome(tmp_path / "whole/00000-ring8")
    assert [row["step"] for row in expected["rows"]][-1] == OPTIONS["steps"]
    draw = random.Random(0)
    points = [{"change": draw.randint(1, whole["changes"])} for _ in range(changes)]
    points += [{"seconds": draw.uniform(0.0, whole["seconds"])} for _ in range(instants - changes)]
    for i, point in enumerate(points):
        # One that ended before its instant came is no kill: earlier, then.
        for attempt in range(10):
            runs = f"{i}-{attempt}"
            killed = killable.order(options=OPTIONS, runs=runs, **point)
            if killed["code"] != 0:
                break
            point = {name: value / 2 for name, value in point.items()}
        assert killed["code"] in (-9, -14), (point, killed)
        run = tmp_path / runs / "00000-ring8"
        if not (run / "dataset.json").exists():  # it was killed before it began
            assert not run.exists() or killable.order(resume=str(run))["code"] == 1
            continue
        resumed = killable.order(resume=str(run))
        assert resumed["code"] == 0, (point, resumed)
        found = outcome(run)
        assert found.keys() == expected.keys(), point
        for name, value in expected.items():
            assert found[name] == value, (point, name)


@pytest.mark.deep
def test_three_instants(killable: Killable, tmp_path: Path) -> None:
    check(killable, tmp_path, changes=2, instants=3)


@pytest.mark.deep
def test_many_instants(killable: Killable, tmp_path: Path) -> None:
    check(killable, tmp_path, changes=extent(4, full=12), instants=extent(7, full=20))


@pytest.mark.deep
def test_each_change_of_a_checkpoint(killable: Killable, tmp_path: Path) -> None:
    """Those of a run's folder, options, pictures and checkpoints: in the full extent every one, else one in four."""
    options = {**OPTIONS, "steps": 2, "log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 1}
    whole = killable.order(options=options, runs="whole")
    expected = outcome(tmp_path / "whole/00000-ring8")
    for change in range(1, whole["changes"] + 1, extent(4, full=1)):
        assert killable.order(options=options, runs=str(change), change=change)["code"] == -9
        run = tmp_path / str(change) / "00000-ring8"
        if (run / "dataset.json").exists():
            assert killable.order(resume=str(run))["code"] == 0
            assert outcome(run) == expected, change
