"""The benchmark's CUDA part under a clock that only work moves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cuda, record
from bench.__main__ import main
from bench.agreement import assert_agree
from bench.pairs import INPUT_SETS, pair
from bench.table import cells
from bench.timing import Case, Result, Timing

ROOT = Path(__file__).parent.parent


class Gpu:
    """Stands in for torch.cuda.Event: work moves its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.now

            def synchronize(self) -> None: ...

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1e3

        monkeypatch.setattr(torch.cuda, "Event", Event)

    def work(self, seconds: float):
        def run() -> None:
            self.now += seconds

        return run


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def a_case(gpu: Gpu, **options: Any) -> Case:
    return Case("a case", {"fastgan": gpu.work(1.0), "torch": gpu.work(3.0)}, lambda: None, **options)


def test_events_are_read_as_seconds(gpu: Gpu) -> None:
    clock = cuda.EventClock()
    assert clock() == 0.0
    gpu.now = 1.5
    assert clock() == 1.5
    gpu.now = 1000.0
    assert clock() == 1000.0


def test_a_replay_counts_for_all_its_calls(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(contender, clock):
        start = gpu.now
        contender()
        return gpu.work(6 * (gpu.now - start)), 6

    monkeypatch.setattr(cuda, "_capture", capture)
    result = cuda.measure_on_gpu(a_case(gpu), rounds=4, seconds=30.0)
    assert result.timed_by == cuda.GRAPHS
    assert result.timings["fastgan"].rounds == (1.0,) * 4
    assert result.timings["torch"].rounds == (3.0,) * 4
    assert list(result.case.contenders) == ["fastgan", "torch"]
    assert record.rows(result, {})[0]["timing"] == cuda.GRAPHS


def test_where_one_contender_cannot_be_captured_both_are_looped(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = iter([True, False])

    def capture(contender, clock):
        if next(turns):
            return contender, 1
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(cuda, "_capture", capture)
    result = cuda.measure_on_gpu(a_case(gpu), rounds=2, seconds=6.0)
    assert result.timed_by == cuda.LOOP
    assert result.ratio("fastgan") == 3.0
    assert "a case: torch cannot be captured, so loops are timed: operation not permitted\n" in capsys.readouterr().out


@pytest.mark.parametrize(("capturable", "graphs"), [(False, True), (True, False)])
def test_nothing_is_captured_that_must_not_be(gpu: Gpu, capturable: bool, graphs: bool) -> None:
    # torch.cuda.CUDAGraph is absent here, and would fail.
    result = cuda.measure_on_gpu(a_case(gpu, capturable=capturable), rounds=2, seconds=6.0, graphs=graphs)
    assert result.timed_by == cuda.LOOP
    assert result.timings["torch"].rounds == (3.0,) * 2


def test_what_disagrees_is_not_captured(gpu: Gpu) -> None:
    def check() -> None:
        raise AssertionError("they differ")

    case = Case("a case", {"fastgan": gpu.work(1.0)}, check)
    with pytest.raises(AssertionError, match="a case: the contenders disagree: they differ"):
        cuda.measure_on_gpu(case, rounds=1, seconds=1.0)
    assert gpu.now == 0.0


def test_the_gpu_is_the_default_device_only_while_a_case_is_built_and_checked() -> None:
    seen = []

    def cases():
        for _ in range(2):
            built = torch.empty(1)
            yield Case("a case", {"torch": lambda built=built: built}, lambda: seen.append(torch.empty(1).device.type))

    for case in cuda.on_gpu(cases(), "meta"):
        assert case.contenders["torch"]().device.type == "meta"
        assert torch.empty(1).device.type == "cpu"
        case.check()
    assert seen == ["meta", "meta"]


def test_rates_of_tf32_are_held_against_its_ceiling() -> None:
    limits = {"GB/s": 1.0, "GFLOP/s float32": 4.0, "GFLOP/s tf32": 8.0, "GFLOP/s bfloat16": 16.0}
    result = Result(Case("a case", {}, lambda: None, flops=4e9), {"torch": Timing((1.0,))})
    assert record.rows(result, limits)[0]["of_ceiling"] == 1.0
    torch.set_float32_matmul_precision("high")
    try:
        assert record.rows(result, limits)[0]["of_ceiling"] == 0.5
        # On a CPU tf32 does not exist, and the tolerance is what it was.
        assert record.rows(result, {k: v for k, v in limits.items() if "tf32" not in k})[0]["of_ceiling"] == 1.0
        with pytest.raises(AssertionError, match="result 0"):
            assert_agree(torch.tensor([1.001]), torch.tensor([1.0]))
    finally:
        torch.set_float32_matmul_precision("highest")


def test_large_rates_are_in_tflops() -> None:
    result = Result(Case("a case", {}, lambda: None, flops=5e13), {"torch": Timing((1.0,))})
    row = record.rows(result, {"GFLOP/s float32": 1e5})[0]
    assert cells(row)[-2:] == ("50.0 TFLOP/s", "50%")


def test_the_commit_that_the_environment_names_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_COMMIT", "abc123")
    assert record.environment()["commit"] == "abc123"


def test_a_commit_that_neither_the_environment_nor_git_tells_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTGAN_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert record.environment()["commit"] == "unknown"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device must be cpu or cuda, not 'tpu'"),
        (["--tf32"], "--tf32 needs --device cuda"),
        (["--eager"], "--eager needs --device cuda"),
    ],
)
def test_bad_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit:
        main(["--device", "cuda"])
    assert exit.value.code == 2
    assert f"--device cuda cannot be had: {cuda.unavailable_reason()}" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_calls_are_captured_and_compared(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    options = ("--quick", "--device", "cuda", "--match", "64x1", "--json", str(file))
    result = _run(*options, "--only", "logits_loss")
    assert result.returncode == 0, result.stderr
    written = json.loads(file.read_text())
    assert {row["timing"] for row in written["rows"]} == {cuda.GRAPHS}
    assert {"name", "driver", "cuda"} <= set(written["environment"]["gpu"])
    assert set(written["ceilings"]) == {"GB/s", "GFLOP/s float32", "GFLOP/s tf32", "GFLOP/s bfloat16"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_graph_takes_every_input_set_alike() -> None:
    turns = []
    forward, _ = cuda.on_gpu(pair("x", lambda x: x.square().mean(), lambda x: x.square().mean(), [(64, 64)]))
    counted = {label: lambda run=run: (turns.append(1), run()) for label, run in forward.contenders.items()}
    _, calls = cuda._capture(counted["torch"], cuda.EventClock())
    assert calls % INPUT_SETS == 0
    assert len(turns) == 2 * INPUT_SETS + calls


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
