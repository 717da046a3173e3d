"""The figures of docs/benchmark.md from a record, one made up and the committed one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from made_up_record import made_up_record

from bench import tutorial
from tools import benchmark_page, step_tables

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "bench" / "results" / "cpu-2026-11-23.json"
PAGE = ROOT / "docs" / "benchmark.md"

needs_record = pytest.mark.skipif(not RECORD.exists(), reason="the records are not part of the source distribution")


@pytest.fixture
def made_up() -> dict[str, Any]:
    return made_up_record()


def test_the_page_has_what_was_measured(made_up: dict[str, Any]) -> None:
    text = benchmark_page.markdown(made_up, "cpu.json")
    for line in (
        "| a training step, times as fast | ring | digits | mnist | wide |",
        "| `TrainStep` against PyTorch eager with fused Adam | 2.75 | | 2.75 | |",
        "| `TrainStep` against `torch.compile` of the whole step | 1.50 | | 1.50 | |",
        "| `TrainStep` against JAX jit | 0.90 | | 0.90 | |",
        '| `TrainStep(precision="bf16")` against float32 | | | 1.80 | |',
        "| milliseconds a step | 0.333 | | 0.333 | |",
        "| its FLOP/s, of the best single product's | 61% | | 61% | |",
        "| peak memory of the training process, of PyTorch's | 97% | | | |",
        "| the networks of `digits`, against PyTorch eager, at batch | 32 | 64 |",
        "| two hidden layers at batch 256, against PyTorch eager, at width | 32 | 64 |",
        "| `TrainStep` | 0.97 | 1.40 |",
        "| discriminator_loss 64x1 float32 | | 2.25 |",
    ):
        assert line in text.splitlines()
    assert "your own loop" not in text  # not measured
    flowing = " ".join(text.split())
    assert "In the tables over batches and widths PyTorch eager takes real and fake as two batches." in flowing
    assert flowing.startswith(
        "Measured on 2026-11-23 on 2 threads of a CPU (avx512), with PyTorch 2.13.0, at commit abc"
    )
    assert "products reached 150 GFLOP/s in float32, 1.2 TFLOP/s in bfloat16" in flowing
    assert "aim" not in text


def test_what_a_loop_of_ones_own_compares_with(made_up: dict[str, Any]) -> None:
    whole = next(row for row in made_up["rows"] if row["case"] == "step ring float32" and row["contender"] == "fastgan")
    made_up["rows"].append(
        {**whole, "contender": "fastgan modules", "against": {"torch": 1.5, "torch one batch": 0.99}}
    )
    text = benchmark_page.markdown(made_up, "cpu.json")
    lines = text.splitlines()
    assert "| your own loop: fastgan's modules and losses against PyTorch's | 1.50 | | | |" in lines
    assert "The rows of your own loop compare with the same loop in PyTorch, which takes" in text
    assert "| step ring float32, own loop | `torch one batch` | 0.99 |" in lines
    made_up["rows"] = [row for row in made_up["rows"] if "sweep" not in row]
    assert "In the tables over batches" not in benchmark_page.markdown(made_up, "cpu.json")


def test_tables_of_steps_with_penalties(made_up: dict[str, Any]) -> None:
    text = benchmark_page.markdown(made_up, "cpu.json")
    assert "R1" not in text  # not measured
    whole = made_up["rows"][0]
    shares = {"fastgan": 0.7, "fastgan composed": 0.5, "torch shared pass": 0.35, "torch one batch": 0.4, "torch": 0.3}
    for case in ("R1 ring float32 step", "R1 each 16th ring float32 step", "AMP discriminator float32 step"):
        for contender, share in shares.items():
            against = {peer: share / other for peer, other in shares.items() if peer != contender}
            facts = {"case": case, "contender": contender, "of_ceiling": share, "times_as_fast": share / 0.3}
            made_up["rows"].append({**whole, **facts, "against": {**against, "jax": 1.25}})
    made_up["refusals"] = [[case, "torch.compile halves", "no double backward."] for case in ("R1 ring", "R1 digits")]
    lines = benchmark_page.markdown(made_up, "cpu.json").splitlines()
    start = lines.index("| R1, times as fast | ring | digits | mnist | wide |")
    assert lines[start + 2 : start + 10] == [
        "| fastgan's step against PyTorch eager as people write it | 2.33 | | | |",
        "| against PyTorch eager in its best form | 1.75 | | | |",
        "| against JAX jit | 1.25 | | | |",
        "| composed (`engine=False`), against PyTorch eager as people write it | 1.67 | | | |",
        "| milliseconds a step of fastgan's | 0.333 | | | |",
        "| FLOP/s of products that are necessary, of the best single product's | 70% | | | |",
        "| the same of PyTorch eager as people write it | 30% | | | |",
        "| the same of PyTorch eager in its best form | 40% | | | |",
    ]
    assert "| R1 each 16th, times as fast | ring | digits | mnist |" in lines
    assert "| AMP, times as fast | discriminator |" in lines
    assert not any(line.startswith("| WGAN-GP, times") for line in lines)
    assert lines.count("`torch.compile halves` was tried with penalties and refused: no double backward.") == 1
    assert "| a training step, times as fast | ring | digits | mnist | wide |" in lines


def test_the_table_of_the_tutorial_gan(made_up: dict[str, Any]) -> None:
    assert "tutorial" not in benchmark_page.markdown(made_up, "cpu.json")  # not measured
    whole = made_up["rows"][0]
    times = {"fastgan": 2.5, "fastgan modules": 1.25, "torch fused Adam": 1.25, "torch": 1.0}
    for contender, ratio in times.items():
        against = {peer: ratio / other for peer, other in times.items() if peer != contender}
        facts = {"case": tutorial.NAME, "contender": contender, "times_as_fast": ratio, "against": against}
        made_up["rows"].append({**whole, **facts})
    lines = benchmark_page.markdown(made_up, "cpu.json").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| the classic tutorial GAN, times as fast"))
    assert lines[start + 2 : start + 4] == [
        "| `TrainStep` | 2.50 | 2.00 |",
        "| the tutorial's loop with `fuse` alone | 1.25 | 1.00 |",
    ]


def test_all_that_is_slower_is_told(made_up: dict[str, Any]) -> None:
    made_up["rows"][0]["against"]["torch.compile"] = 0.9996
    lines = benchmark_page.markdown(made_up, "cpu.json").splitlines()
    assert "Slower than PyTorch eager: 2 cases of 8." in lines
    assert "| step batch 32 float32 | 0.97 |" in lines
    assert "| step width 32 float32 | 0.97 |" in lines
    assert lines[lines.index("Steps that another peer runs faster:") + 4 :] == [
        "| step ring float32 | `jax` | 0.90 |",
        "| step ring float32 | `torch.compile` | 0.9996 |",
        "| step mnist float32 | `jax` | 0.90 |",
    ]
    for row in made_up["rows"]:
        row["against"] = {}
        row["times_as_fast"] = max(1.0, row["times_as_fast"])
    text = benchmark_page.markdown(made_up, "cpu.json")
    assert text.endswith("No case of 8 is slower than PyTorch eager.\n")


@needs_record
def test_all_that_is_slower_in_the_record_is_on_the_page() -> None:
    rows = json.loads(RECORD.read_text())["rows"]
    lines = PAGE.read_text().splitlines()
    lost = [row for row in rows if row["contender"].startswith("fastgan") and row["times_as_fast"] < 1]
    assert len(lost) == 14
    for row in lost:
        assert any(line.startswith(f"| {step_tables.named(row)} | 0.") for line in lines), row["case"]
    steps = [row for row in rows if row["contender"].startswith("fastgan") and "against" in row]
    peers = [(row, peer, ratio) for row in steps for peer, ratio in row["against"].items() if peer != "torch"]
    beaten = [(row, peer) for row, peer, ratio in peers if ratio < 1 and not peer.startswith("fastgan")]
    assert len(beaten) == 20
    for row, peer in beaten:
        assert any(line.startswith(f"| {step_tables.named(row)} | `{peer}` | 0.") for line in lines), row["case"]


@needs_record
def test_the_page_is_that_of_the_record() -> None:
    text = PAGE.read_text()
    figures = benchmark_page.markdown(json.loads(RECORD.read_text()), RECORD.relative_to(ROOT).as_posix())
    assert benchmark_page.rewritten(text, figures, "cpu") == text
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))


@needs_record
def test_the_figures_of_a_gpu_record() -> None:
    measured = copy.deepcopy(json.loads(RECORD.read_text()))
    measured["environment"]["gpu"] = {
        "name": "NVIDIA H100",
        "driver": "580.1",
        "cuda": "13.0",
        "float32_products": "strict",
    }
    measured["ceilings"] = {"GB/s": 3000.0, "GFLOP/s float32": 5e4, "GFLOP/s tf32": 4e5, "GFLOP/s bfloat16": 8e5}
    measured["rows"] = [row for row in measured["rows"] if row["case"].startswith("bce 64x1 float32")]
    text = benchmark_page.markdown(measured, "gpu.json")
    flowing = " ".join(text.split())
    assert "on an NVIDIA H100 (driver 580.1, CUDA 13.0, float32 products strict), with PyTorch" in flowing
    assert "| `binary_cross_entropy_with_logits` | 1.10 | | | | |" in text
    assert "generator_loss" not in text
    assert "training step" not in text
    assert "moved 3000 GB/s (read and written)" in flowing
    assert "400.0 TFLOP/s in tf32" in flowing
    assert text.endswith("No case of 2 is slower than PyTorch eager.\n")


def test_the_figures_are_written_between_the_marks(made_up: dict[str, Any], tmp_path: Path) -> None:
    file, page = tmp_path / "record.json", tmp_path / "page.md"
    file.write_text(json.dumps(made_up))
    page.write_text("before\n<!-- benchmark: cpu -->\nold\n<!-- end of benchmark: cpu -->\nafter\n")
    for _ in range(2):
        assert benchmark_page.main([str(file), "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- benchmark: cpu -->\n\nMeasured on 2026-11-23 on 2 threads of a CPU (avx512)")
    assert text.endswith("\n\n<!-- end of benchmark: cpu -->\nafter\n")
    assert "old" not in text
    assert text.count("Measured on") == 1


def test_a_page_without_marks_is_refused(
    made_up: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "record.json", tmp_path / "page.md"
    file.write_text(json.dumps(made_up))
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="2"):
        benchmark_page.main([str(file), "--write", str(page)])
    assert "there must be one line <!-- benchmark: cpu --> and after it one" in capsys.readouterr().err
    assert page.read_text() == "nothing\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "RECORD cannot be read"),
        ('{"parts": []}', "has no environment, ceilings, rows: its benchmark did not get so far"),
    ],
)
def test_what_is_no_record_is_refused(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.json"
    file.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        benchmark_page.main([str(file)])
    assert message in capsys.readouterr().err
