"""Plots of training steps, from a record made up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up_record import made_up_record, row

from bench import plots
from bench.__main__ import main

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def made_up() -> dict[str, Any]:
    return made_up_record()


def test_every_plot_is_drawn(made_up: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "record.json"
    file.write_text(json.dumps(made_up))
    assert main(["plots", str(file), "--out", str(tmp_path / "plots")]) == 0
    drawn = [tmp_path / "plots" / f"{name}.png" for name in plots.PLOTS]
    assert capsys.readouterr().out.split() == [str(path) for path in drawn]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


def test_what_a_record_lacks_is_not_drawn(made_up: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    del made_up["profiles"]
    made_up["rows"] = [r for r in made_up["rows"] if r.get("sweep") != "width"]
    assert [path.name for path in plots.draw(made_up, tmp_path)] == ["speed.png", "batch.png", "roofline.png"]


def test_a_record_without_steps_is_refused(
    made_up: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "record.json"
    file.write_text(json.dumps({**made_up, "rows": [], "profiles": {}}))
    with pytest.raises(SystemExit, match="2"):
        main(["plots", str(file), "--out", str(tmp_path)])
    assert "has no training steps, so there is nothing to draw" in capsys.readouterr().err


def texts(file: Path) -> list[str]:
    return [element.text for element in ElementTree.parse(file).iter(f"{SVG}text")]


def bars(file: Path) -> list[str]:
    """The figures over the bars; those of the axis are set in another size."""
    found = [(element.get("style"), element.text) for element in ElementTree.parse(file).iter(f"{SVG}text")]
    return [text for style, text in found if "font-size: 8.33px" in style and re.fullmatch(r"\d+\.\d\d", text)]


def test_the_chart_of_speed_says_what_was_measured(made_up: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "record.json"
    file.write_text(json.dumps(made_up))
    for folder in ("a", "b"):
        assert main(["plots", str(file), "--only", "speed", "--format", "svg", "--out", str(tmp_path / folder)]) == 0
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["speed.svg"]
    drawn = texts(tmp_path / "a" / "speed.svg")
    # Of 2.75 times PyTorch's speed, 1.5 times torch.compile's and 0.9 times JAX's; for both configurations.
    assert bars(tmp_path / "a" / "speed.svg") == ["1.00"] * 2 + ["1.83"] * 2 + ["3.06"] * 2 + ["2.75"] * 2
    labels = ["PyTorch eager, fused Adam", "torch.compile of the whole step", "JAX jit", "fastgan TrainStep"]
    assert [text for text in drawn if text in labels] == labels
    assert {"ring", "mnist", "times as fast as PyTorch eager"} <= set(drawn)
    assert "2 threads of a CPU, PyTorch 2.13.0, 2026-11-23" in drawn
    assert (tmp_path / "a" / "speed.svg").read_bytes() == (tmp_path / "b" / "speed.svg").read_bytes()


def test_a_peer_that_was_not_measured_has_no_bar(made_up: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made_up["rows"] = [row("step ring float32", "fastgan", 2.0, configuration="ring", width=8, batch=4)]
    assert plots.draw(made_up, tmp_path, ["speed"], "svg") == []
    made_up["rows"][0]["against"] = {"torch": 2.0, "CUDA graph of torch": 1.25}
    (file,) = plots.draw(made_up, tmp_path, ["speed"], "svg")
    drawn = texts(file)
    assert bars(file) == ["1.00", "1.60", "2.00"]
    assert "PyTorch's step in a CUDA graph" in drawn
    assert "JAX jit" not in drawn


def test_the_chart_of_the_documentation_is_the_record_s() -> None:
    """Its figures are those of the record; it is small, and holds nothing but the picture."""
    record = ROOT / "bench" / "results" / "cpu-2026-11-23.json"
    if not record.exists():
        pytest.skip("the records are not part of the source distribution")
    rows = {(r["case"], r["contender"]): r for r in json.loads(record.read_text())["rows"]}
    steps = [rows[f"step {name} float32", "fastgan"] for name in ("ring", "digits", "mnist", "wide")]
    ours = [f"{plots.over_fastest(step, plots.PYTORCH):.2f}" for step in steps]
    chart = ROOT / "docs" / "speed.svg"
    assert bars(chart)[-4:] == ours
    assert chart.stat().st_size < 40_000
    assert "metadata" not in chart.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "pie"], "--only must name plots of speed, batch, width, roofline, phases, not 'pie'"),
        (["--format", "gif"], "--format must be png or svg, not 'gif'"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, made_up: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps(made_up))
    with pytest.raises(SystemExit, match="2"):
        main(["plots", str(file), *arguments])
    assert message in capsys.readouterr().err
