"""Plots and README tables of training steps, from a record made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import plots
from bench.__main__ import main
from tools import benchmark_page

ROOT = Path(__file__).parent.parent


def row(case: str, contender: str, times: float, **more: Any) -> dict[str, Any]:
    return {
        "case": case,
        "contender": contender,
        "median_us": 1000.0 / times,
        "rounds": 9,
        "times_as_fast": times,
        "verdict": "" if contender == "torch" else ("faster" if times >= 1 else "slower"),
        **more,
    }


@pytest.fixture
def made_up() -> dict[str, Any]:
    rows = []
    for name, intensity in (("ring", 100.0), ("mnist", 20.0)):
        facts = {"configuration": name, "batch": 128, "width": 256, "flops_per_byte": intensity}
        against = {"torch": 3.0, "torch one batch": 2.75, "torch foreach": 4.0, "jax": 0.9, "torch.compile": 1.5}
        rows.append(
            row(f"step {name} float32", "fastgan", 3.0, **facts, against=against, of_ceiling=0.61, **{"GFLOP/s": 90.0})
        )
        rows.append(
            row(
                f"step {name} float32",
                "torch",
                1.0,
                **facts,
                against={"fastgan": 0.33},
                of_ceiling=0.2,
                **{"GFLOP/s": 30.0},
            )
        )
    rows.append(row("step mnist float32", "fastgan bf16", 6.0, against={"fastgan": 1.8, "torch": 6.0}, of_ceiling=0.1))
    for axis in ("batch", "width"):
        for value, ratio in ((32, 0.97), (64, 1.4)):
            case = f"step {axis} {value} float32"
            rows.append(row(case, "fastgan", ratio, sweep=axis, against={"torch": ratio}, **{axis: value}))
            rows.append(row(case, "torch", 1.0, sweep=axis, against={"fastgan": 1 / ratio}, **{axis: value}))
    rows.append(row("host discriminator_loss 64x1 float32 forward+backward", "fastgan", 2.25))
    rows.append(row("host discriminator_loss 64x1 float32 forward+backward", "torch", 1.0))
    return {
        "environment": {
            "date": "2026-11-23",
            "commit": "abc123",
            "cpu": "a CPU",
            "threads": 2,
            "torch": "2.13.0",
            "build": {"cpu_instructions": "avx512"},
        },
        "ceilings": {"GB/s": 20.0, "GFLOP/s float32": 150.0, "GFLOP/s bfloat16": 1200.0},
        "rows": rows,
        "profiles": {
            "ring": {"plan": "fused", "seconds": {"generate": 1e-4, "update": 3e-4}},
            "wide": {"plan": "composed", "reason": "R1"},
        },
        "memory": [
            {
                "case": "memory ring",
                "contender": "fastgan",
                "configuration": "ring",
                "peak_mib": 300.0,
                "of_torch": 0.97,
            }
        ],
    }


def test_every_plot_is_drawn(made_up: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "record.json"
    file.write_text(json.dumps(made_up))
    assert main(["plots", str(file), "--out", str(tmp_path / "plots")]) == 0
    drawn = [tmp_path / "plots" / f"{name}.png" for name in ("batch", "width", "roofline", "phases")]
    assert capsys.readouterr().out.split() == [str(path) for path in drawn]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


def test_what_a_record_lacks_is_not_drawn(made_up: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    del made_up["profiles"]
    made_up["rows"] = [r for r in made_up["rows"] if r.get("sweep") != "width"]
    assert [path.name for path in plots.draw(made_up, tmp_path)] == ["batch.png", "roofline.png"]


def test_a_record_without_steps_is_refused(
    made_up: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "record.json"
    file.write_text(json.dumps({**made_up, "rows": [], "profiles": {}}))
    with pytest.raises(SystemExit, match="2"):
        main(["plots", str(file), "--out", str(tmp_path)])
    assert "has no training steps, so there is nothing to draw" in capsys.readouterr().err


def test_the_readme_has_what_was_measured_beside_what_was_aimed_for(made_up: dict[str, Any]) -> None:
    text = benchmark_page.markdown(made_up, "cpu.json")
    for line in (
        "| a training step; in brackets what was aimed for | ring | digits | mnist | wide |",
        "| FLOP/s of a `TrainStep`, of the best single product's | 0.61 (0.75) | | 0.61 (0.8) | |",
        "| times as fast as PyTorch, eager, fused Adam | 2.75 (4) | | 2.75 (1.7) | |",
        "| than `torch.compile`, default or max-autotune | 1.50 (4) | | 1.50 (1.7) | |",
        "| than JAX jit | 0.90 (2) | | 0.90 (1.2) | |",
        '| `precision="bf16"` than our float32 | | | 1.80 (1.6) | |',
        "| `discriminator_loss` at 64x1, forward and backward: host cost, times as cheap | 2.25 | at least 2 |",
        "| `TrainStep`, batch 32 to 64: times as fast as PyTorch, worst cell | 0.97 | at least 1 |",
        "| peak memory of a training process, of PyTorch's | ring 0.97 | at most 1 |",
    ):
        assert line in text.splitlines()
    assert "our modules and losses in your own loop" not in text  # not measured
    flowing = " ".join(text.split())
    assert "Slower than PyTorch: step batch 32 float32 (0.97), step width 32 float32 (0.97)." in flowing
    assert "Slower than others: step ring float32 than jax (0.90), step mnist float32 than jax (0.90)." in flowing
    assert "products reached 150 GFLOP/s in float32, 1.2 TFLOP/s in bfloat16" in flowing


def test_the_tables_are_written_between_the_marks(made_up: dict[str, Any], tmp_path: Path) -> None:
    file, readme = tmp_path / "record.json", tmp_path / "README.md"
    file.write_text(json.dumps(made_up))
    readme.write_text("before\n<!-- benchmark: cpu -->\nold\n<!-- end of benchmark: cpu -->\nafter\n")
    for _ in range(2):
        assert benchmark_page.main([str(file), "--write", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- benchmark: cpu -->\n\nMeasured on 2 threads of a CPU (avx512)")
    assert text.endswith("\n\n<!-- end of benchmark: cpu -->\nafter\n")
    assert "old" not in text
    assert text.count("Measured on") == 1


def test_a_readme_without_marks_is_refused(
    made_up: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, readme = tmp_path / "record.json", tmp_path / "README.md"
    file.write_text(json.dumps(made_up))
    readme.write_text("nothing\n")
    with pytest.raises(SystemExit, match="2"):
        benchmark_page.main([str(file), "--write", str(readme)])
    assert "there must be one line <!-- benchmark: cpu --> and after it one" in capsys.readouterr().err
    assert readme.read_text() == "nothing\n"


def test_the_readme_has_the_marks() -> None:
    assert "tables" in benchmark_page.rewritten((ROOT / "README.md").read_text(), "tables", "cpu")
