"""What bench/runs.py measures: the diagnosis of whole runs, and data that is mapped."""

from __future__ import annotations

from typing import Any

import pytest

from bench import runs
from fastgan.trainer import Trainer


@pytest.mark.usefixtures("compiled")
def test_the_calls_of_the_diagnosis_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 3))  # so that a call, and all between two readings of it, takes 3 seconds
    monkeypatch.setattr(runs.time, "perf_counter", lambda: float(next(clock)))
    own = Trainer._diagnose
    row = runs.diagnosis("ring8", 200)  # a reading each 100 steps
    assert Trainer._diagnose is own
    assert row["diagnoses"] == 2
    assert row["of_diagnosis"] == 6
    assert row["share"] == 6 / row["seconds"]


@pytest.mark.deep
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_file_is_mapped_and_read(dtype: str) -> None:
    row: dict[str, Any] = runs.mapped_data(dtype, 8, 2, 3, 10**6)
    assert row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]
    assert row["mapped"] > 0 < row["in_memory"]
