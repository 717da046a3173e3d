"""The benchmark of training steps: that its contenders compute the same, and what it writes. No speed is asserted."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bench import compiled, jax_training, memory, peers, phases, record, step, training
from bench.__main__ import main
from bench.configurations import Configuration, batch_sweep, width_sweep
from bench.timing import Case, Result, Timing, measure
from fastgan import TrainStep
from fastgan.cli import app

ROOT = Path(__file__).parent.parent
TINY = Configuration("tiny", (3, 8, 4), "relu", "tanh", (4, 8, 1), 6)
EAGER = {"torch foreach", "torch one batch"}


def inputs(configuration: Configuration = TINY) -> tuple[torch.Tensor, torch.Tensor]:
    reals, noises = step.inputs(configuration)
    return reals[0], noises[0]


def compare(builds: dict[str, training.Build], configuration: Configuration = TINY) -> None:
    step.check({label: build(configuration) for label, build in builds.items()}, configuration, *inputs(configuration))


def test_fastgan_and_eager_peers_agree() -> None:
    compare(peers.contenders(list(peers.OURS), [label for label in peers.PEERS if label in EAGER]))


def test_jax_agrees() -> None:
    pytest.importorskip("jax")
    compare(peers.contenders(["fastgan"], ["jax"]))


@pytest.mark.deep
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_pytorch_agrees() -> None:  # 15 s: the one test that compiles
    compare(peers.contenders(["fastgan"], ["torch.compile"]))


def test_the_step_that_is_compiled_is_the_same_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    compare(peers.contenders(["fastgan"], ["torch.compile", "torch.compile halves"]))


def test_reset_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for build in (training.eager, compiled.whole):
        fresh, used = build(TINY), build(TINY)
        for _ in range(3):
            used.step(*inputs())
        used.reset()
        torch.testing.assert_close(fresh.parameters(), used.parameters(), rtol=0, atol=0)
        step.check({"used": used, "torch": fresh}, TINY, *inputs())


def test_a_step_that_does_not_train_is_noticed() -> None:
    def idle(configuration: Configuration) -> training.Training:
        trained = training.eager(configuration)

        def and_undo(real: torch.Tensor, noise: torch.Tensor) -> Any:
            losses = trained.step(real, noise)
            trained.reset()
            return losses

        return dataclasses.replace(trained, step=and_undo)

    with pytest.raises(AssertionError, match="idle"):
        compare({"idle": idle, "torch": training.eager})


def test_an_optimizer_of_another_rate_is_noticed() -> None:
    def hasty(configuration: Configuration) -> training.Training:
        return training.eager(configuration, lambda p: torch.optim.Adam(p, lr=2.2e-4, betas=(0.5, 0.999)))

    with pytest.raises(AssertionError, match=r"hasty moves the parameters otherwise: by (9|10)\.\d%"):
        compare({"hasty": hasty, "torch": training.eager})


def test_what_returns_early_is_waited_for_once_a_turn() -> None:
    order: list[str] = []
    now = 0.0

    def run() -> None:
        order.append("call")

    def wait() -> None:
        nonlocal now
        now += 1.0
        order.append("wait")

    case = Case("a case", {"jax": run}, lambda: None, synchronize={"jax": wait})
    result = measure(case, rounds=2, seconds=4.0, clock=lambda: now)
    calls = order[-5:].count("call")
    assert order[-calls - 1 :] == ["call"] * calls + ["wait"]
    assert result.timings["jax"].rounds == (1.0 / calls,) * 2


def test_the_sweeps_are_those_of_the_issue() -> None:
    assert [c.batch for c in batch_sweep()] == [32, 64, 128, 256, 512, 1024]
    assert {c.generator for c in batch_sweep()} == {(64, 256, 512, 64)}
    assert [c.generator[1:3] for c in width_sweep()] == [(w, w) for w in (32, 64, 128, 256, 512, 1024)]
    assert {c.batch for c in width_sweep()} == {256}


def test_peers_that_cannot_run_are_named_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_training, "unavailable_reason", lambda device: "jax is not installed")
    assert peers.chosen(["default"], "cpu") == (
        ["torch foreach", "torch one batch"],
        ["without jax: jax is not installed"],
    )
    assert peers.chosen(["none"], "cpu") == ([], [])
    labels, notes = peers.chosen(["apex", "torch-foreach"], "cpu")
    assert labels == ["torch foreach"]
    assert notes == ["without apex: it needs --device cuda"]
    assert "torch.compile max-autotune" in peers.chosen(["all"], "cpu")[0]


def profile(self: TrainStep, real: torch.Tensor, labels: Any = None, noise: Any = None) -> dict[str, float]:
    self.step(real, labels, noise)
    return {"generate": 1e-3, "update": 3e-3}


def test_phases_of_the_engine_and_reasons_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainStep, "profile", profile, raising=False)
    measured = {"tiny": phases.profile(TINY, 3)}
    assert measured["tiny"]["seconds"] == {"generate": 1e-3, "update": 3e-3}
    assert any("update" in line and "75%" in line for line in phases.lines(measured))

    def composed(self: TrainStep, real: torch.Tensor, labels: Any = None, noise: Any = None) -> dict[str, float]:
        raise RuntimeError("the plan is composed")

    monkeypatch.setattr(TrainStep, "profile", composed)
    assert phases.profile(TINY, 3)["reason"] == "the plan is composed"


def test_a_run_over_the_steps_writes_json_and_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainStep, "profile", profile, raising=False)
    monkeypatch.setattr(
        record,
        "ceilings",
        lambda rounds, seconds: (
            {"GB/s": 10.0, "GFLOP/s float32": 100.0, "GFLOP/s bfloat16": 200.0},
            {"float32 at::mm 128x128x128": 100.0},
        ),
    )
    monkeypatch.setattr(step, "CONFIGURATIONS", (TINY, dataclasses.replace(TINY, name="mnist")))
    monkeypatch.setattr(phases, "CONFIGURATIONS", (TINY,))
    monkeypatch.setitem(step.SWEEPS, "batch", lambda: [dataclasses.replace(TINY, name="tiny batch 6")])
    files = [tmp_path / "record.json", tmp_path / "record.csv"]
    options = [
        "--quick",
        "--only",
        "step",
        "--match",
        "step ",
        "--sweep",
        "batch",
        "--peers",
        "torch-foreach",
        "torch-one-batch",
    ]
    assert main([*options, "--json", str(files[0]), "--csv", str(files[1])]) == 0
    written = json.loads(files[0].read_text())
    assert written["products"] == {"float32 at::mm 128x128x128": 100.0}
    assert written["profiles"]["tiny"]["seconds"]["update"] == 3e-3
    rows = {(row["case"], row["contender"]): row for row in written["rows"]}
    first = rows["step tiny float32", "fastgan"]
    assert set(first["against"]) == {"fastgan modules", "torch foreach", "torch one batch", "torch"}
    assert first["against"]["torch"] == first["times_as_fast"]
    assert first["GFLOP/s"] == pytest.approx(TINY.step_flops / first["median_us"] / 1e3)
    assert first["flops_per_byte"] == TINY.step_flops / TINY.step_bytes
    assert ("step tiny float32", "fastgan bf16") not in rows
    sixteen = rows["step mnist float32", "fastgan bf16"]
    assert sixteen["of_ceiling"] == pytest.approx(sixteen["GFLOP/s"] / 200)
    assert ("step tiny float32, noise inside", "fastgan") in rows
    assert [row["contender"] for row in written["rows"] if row.get("sweep")] == ["fastgan", "fastgan modules", "torch"]
    with files[1].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(written["rows"])
    assert {"date", "commit", "cpu", "threads", "torch", "device", "case", "contender", "median_us"} <= set(lines[0])
    assert float(lines[0]["times_as_fast_as torch foreach"]) == first["against"]["torch foreach"]
    assert lines[0]["device"] == "cpu"


def test_rows_of_two_contenders_need_no_matrix() -> None:
    result = Result(Case("a case", {}, lambda: None), {"fastgan": Timing((1.0,)), "torch": Timing((2.0,))})
    assert all("against" not in row for row in record.rows(result, {}))


@pytest.mark.deep
def test_peak_memory_of_processes() -> None:
    rows = memory.measure_all([TINY])
    assert [row["contender"] for row in rows] == ["fastgan", "torch"]
    assert all(50 < row["peak_mib"] < 5000 for row in rows)
    assert rows[1]["of_torch"] == 1.0
    assert "memory tiny" in memory.lines(rows)[0]
    with pytest.raises(RuntimeError, match="the process that trains broken with torch failed: KeyError: 'no such'"):
        memory.peak_mib("torch", dataclasses.replace(TINY, name="broken", activation="no such"))


def test_fastgan_bench_is_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["bench", "--help"])
    assert result.exit_code == 0
    assert "usage: fastgan bench" in result.output
    assert "--sweep" in result.output
    result = CliRunner().invoke(app, ["bench", "--rounds", "0"])
    assert result.exit_code == 2
    assert "fastgan bench: error: --rounds must be at least 1, not 0" in result.stderr
