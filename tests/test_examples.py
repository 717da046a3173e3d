"""Every example runs as it stands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import warm
from extent import extent

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[!_]*.py"))


@pytest.mark.deep
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    if example.stem == "lightning_gan":
        pytest.importorskip("lightning")
    # Small networks gain nothing from a second thread, and on a busy machine wait for it: 27 s became 200 s.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    # A part of the steps: test_example_models.py holds what the models learn to their data.
    steps = re.search(r'"--steps", type=int, default=(\d+)', example.read_text(encoding="utf-8"))
    options = ["--steps", str(max(2, int(steps[1]) // extent(50, full=10)))] if steps else []
    result = warm.run([str(example), *options], tmp_path, environment, warm.OF_TRAINING)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "nan" not in result.stdout


def test_there_are_examples() -> None:
    assert EXAMPLES
