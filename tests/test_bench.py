"""The benchmark's arithmetic under a fake clock, and a quick run of it as a process. No speed is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.configurations import CONFIGURATIONS  # noqa: E402
from bench.timing import Case, Timing, measure  # noqa: E402


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, label: str, seconds: float):
        def run() -> None:
            self.now += seconds
            self.order.append(label)

        return run


def test_contenders_take_turns_and_are_compared_round_by_round() -> None:
    clock = Clock()
    case = Case("a case", {"ours": clock.work("ours", 1.0), "torch": clock.work("torch", 3.0)}, lambda: None)
    result = measure(case, rounds=4, seconds=6.0, clock=clock)
    assert result.timings["ours"].rounds == (1.0,) * 4
    assert result.timings["torch"].rounds == (3.0,) * 4
    assert result.ratio("ours") == 3.0
    assert result.ratio("torch") == 1.0
    measured = clock.order[-4 * (6 + 2) :]
    assert measured == (["ours"] * 6 + ["torch"] * 2 + ["torch"] * 2 + ["ours"] * 6) * 2


def test_a_round_that_was_disturbed_does_not_move_the_ratio() -> None:
    timing = Timing((1.0, 1.0, 50.0, 1.0, 1.0))
    assert timing.median == 1.0
    assert timing.spread == 0.0
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(2 / 3)


def test_contenders_that_disagree_are_not_timed() -> None:
    clock = Clock()

    def check() -> None:
        raise AssertionError("they differ")

    with pytest.raises(AssertionError, match="a case: the contenders disagree: they differ"):
        measure(Case("a case", {"ours": clock.work("ours", 1.0)}, check), rounds=1, seconds=1.0, clock=clock)
    assert clock.order == []


def test_operations_of_a_step_counted_product_by_product() -> None:
    ring = next(c for c in CONFIGURATIONS if c.name == "ring")
    flops = 0
    g, d = (list(pairwise(sizes)) for sizes in (ring.generator, ring.discriminator))
    for i, (a, b) in enumerate(g):
        flops += 2 * a * b * (2 + (i > 0))  # forward, weight gradient, input gradient but for the first layer
    for i, (a, b) in enumerate(d):
        flops += 2 * (2 * a * b) * (2 + (i > 0))  # the D step, on real and on fake
        flops += 2 * a * b * 2  # the G step: forward and input gradient
    assert ring.step_flops == ring.batch * flops


def test_quick_run_prints_a_complete_table_and_record(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    result = _run("--quick", "--only", "logits_loss", "--match", "64x1", "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert "generator_loss 64x1 float32 forward+backward" in result.stdout
    record = json.loads(file.read_text())
    assert {"date", "commit", "cpu", "threads", "torch", "build"} <= set(record["environment"])
    cases = {(row["case"], row["contender"]) for row in record["rows"]}
    assert len(cases) == len(record["rows"]) == 2 * 2 * 2
    assert all(row["median_us"] > 0 and row["times_as_fast"] > 0 for row in record["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "adam"], "invalid choice: 'adam'"),
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--seconds", "0"], "--seconds must be over 0"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
        (["--quick", "--match", "no such case"], "no case has 'no such case' in its name"),
    ],
)
def test_bad_options(arguments: list[str], message: str) -> None:
    result = _run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
