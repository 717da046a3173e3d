"""tools/choices.py: what it calls right, and its run over small networks, on the CPU and on the host model of CUDA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_on_or_skip

from bench.configurations import Configuration
from bench.timing import Case, Result, Timing
from fastgan import choices
from tools import choices as tool

SMALL = Configuration("small", (4, 16, 3), "relu", "tanh", (3, 16, 1), 32)


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choices, "_is_on", True)
    monkeypatch.setattr(tool, "CONFIGURATIONS", (SMALL,))
    for name in ("batch_sweep", "width_sweep"):
        monkeypatch.setattr(tool, name, list)


def result(**seconds: tuple[float, ...]) -> Result:
    names = {name: lambda: None for name in seconds}
    return Result(Case("a case", names, lambda: None), {name: Timing(times) for name, times in seconds.items()})


@pytest.mark.parametrize(
    ("seconds", "fastest", "slower", "right"),
    [
        ({"chosen": (1.0, 1.0, 1.0), "other": (2.0, 2.0, 2.0)}, "chosen", 1.0, True),
        ({"chosen": (1.02, 1.02, 1.02), "other": (1.0, 1.0, 1.0)}, "other", 1.02, True),
        ({"chosen": (1.04, 1.04, 1.04), "other": (1.0, 1.0, 1.0)}, "other", 1.04, False),
        ({"chosen": (1.0, 1.04, 1.1), "other": (1.0, 1.0, 1.0)}, "other", 1.04, True),  # within its spread
        ({"chosen": (2.0, 2.0, 2.0), "a": (1.5, 1.5, 1.5), "b": (1.0, 1.0, 1.0)}, "b", 2.0, False),
    ],
)
def test_what_is_right(seconds: Any, fastest: str, slower: float, right: bool) -> None:
    found = tool.judged(result(**seconds))
    assert (found["fastest"], found["right"]) == (fastest, right)
    assert found["slower"] == pytest.approx(slower)


@pytest.mark.parametrize("place", ["auto", "simt"])
def test_small_networks(place: str, tuned: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a real clock. What the machine says is not asserted: others may be busy on it."""
    file = tmp_path / "record.json"
    with run_on_or_skip(place):
        code = tool.main(["--match", "small", "--rounds", "3", "--seconds", "0.001", "--json", str(file)])
    (record,) = json.loads(file.read_text())
    assert code == (0 if record["right"] else 1)
    assert record["choice"]["way"] == next(iter(record["us"]))
    composed = {"composed library", "composed narrow"}
    assert composed <= set(record["us"]) if place == "auto" else not composed & set(record["us"])
    assert len(record["us"]) >= 3
    assert record["choice"]["took"] <= record["first_call_s"]
    output = capsys.readouterr().out
    assert output.startswith("small fp32: ")
    assert "choices are right; the longest took " in output


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("/somewhere", None):
        if value is None:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", value)
        with tool.fresh_cache():
            assert tool.os.environ["XDG_CACHE_HOME"] != value
        assert tool.os.environ.get("XDG_CACHE_HOME") == value


def test_nothing_to_measure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(choices, "_is_on", False)
    assert tool.main([]) == 2
    assert capsys.readouterr().err == "tools.choices: nothing is measured where FASTGAN_TUNE is 0\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("tools.choices: ")
