"""fastgan.verify, doctor --verify, and wrong kernels: what is found, what then runs, what is remembered."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from conformance import DTYPES, assert_within_bound, in_double
from extent import rest
from plain_step import Plain, adam
from planted import CPU, KERNELS, Planted, new_process, nothing_verified, plant
from torch import nn
from typer.testing import CliRunner

import fastgan
from fastgan import TrainStep, device_cache, gate, verification
from fastgan import backend as backends
from fastgan.cli import app
from fastgan.verification import Row, Verification

__all__ = ["new_process"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def place(engine_backend: str) -> torch.device:
    """The device of the backend."""
    return torch.device("cuda", torch.cuda.current_device()) if engine_backend == "cuda" else CPU


def layer(place: torch.device, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, nn.Sequential]:
    """An input and a network of plain layers, fused."""
    x = torch.randn(9, 5, device=place, dtype=dtype)
    return x, fastgan.nn.fuse(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(place, dtype))


@pytest.mark.deep_on("simt")
def test_all_kernels_are_right_here(place: torch.device, new_process: Path) -> None:
    state = torch.get_rng_state()
    found = fastgan.verify(place)
    assert found.passed, str(found)
    assert torch.equal(torch.get_rng_state(), state)
    assert {row.family for row in found.rows} == set(gate.FAMILIES)
    assert {row.dtype for row in found.rows} == {str(dtype).removeprefix("torch.") for dtype in DTYPES}
    assert all(0 <= row.error <= row.bound < 0.5 for row in found.rows)  # which a wrong column is not within
    assert len({row.shape for row in found.rows}) > 30
    entries = device_cache.load("verification", place)
    assert set(entries) == {f"{row.family} {row.dtype}" for row in found.rows}
    assert all(entry["passed"] for entry in entries.values())
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["passed"] is True


@pytest.mark.deep_on("simt")  # what is compared is the same, and test_all_kernels_are_right_here has the cases
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wrong_kernel_is_found(
    kernel: str, dtype: torch.dtype, place: torch.device, new_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, kernel)
    family = KERNELS[kernel][0]
    name = str(dtype).removeprefix("torch.")
    with pytest.warns(RuntimeWarning, match=rf"in {name} on {place} are switched off.*shape .*error .*bound") as found:
        assert not gate._first_use(family, place, dtype)
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gate._first_use(family, place, dtype)
        for other in {"layers", "segments", "gan_losses", "cross_entropy"} - {family}:
            assert gate._first_use(other, place, dtype)


def test_what_happens_to_a_wrong_kernel(
    place: torch.device, new_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, network = layer(place)
    exact = in_double(network)(x.double())
    plain = nn.Sequential(*network)(x)
    with monkeypatch.context() as patch:
        calls = plant(patch, "a column of the output")
        with pytest.warns(RuntimeWarning) as found:
            results = [network(x)]
        (warning,) = found
        for words in ("mlp with relu, identity, softplus: ", "33x7-33-9-1", "error", "plain PyTorch runs instead"):
            assert words in str(warning.message)
        assert warning.filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results += [network(x), fastgan.functional.mlp(x, [network[0].weight], [network[0].bias], ["relu"])]
        assert_within_bound(results[:2], [plain] * 2, [exact] * 2)
        assert calls == []
        ((what, instead),) = fastgan.info()["switched_off"].items()
        assert what == f"layers in float32 on {place}"
        assert "plain PyTorch runs instead" in instead
        assert "33x7-33-9-1" in instead
        entry = device_cache.load("verification", place)["layers float32"]
        assert entry["passed"] is False
        assert entry["fault"] in str(warning.message)

        # Another process remembers, and runs neither the check nor the kernel.
        with nothing_verified():
            patch.setattr(gate, "check", lambda *use: pytest.fail("it was checked again"))
            assert fastgan.info()["switched_off"] == {what: instead}
            with pytest.warns(RuntimeWarning, match="layers in float32") as found:
                assert_within_bound(network(x), plain, exact)
            assert len(found) == 1
            assert calls == []

    # The fault is mended; other families than this one are not compared, to be quick.
    assert list(fastgan.info()["switched_off"]) == [what]
    monkeypatch.setattr(verification, "_CASES", {"layers": verification.layers})
    monkeypatch.setattr(verification, "_ALL", (torch.float32,))
    assert fastgan.verify(place).passed
    assert fastgan.info()["switched_off"] == {}
    assert device_cache.load("verification", place)["layers float32"] == {"passed": True, "fault": ""}
    assert gate.known[gate.Key(backends.module, "layers", place, torch.float32)]


def test_a_process_of_its_own_remembers(compiled: None, tmp_path: Path) -> None:
    code = """
import warnings
import pytest, torch, fastgan, planted
from fastgan import gate
checks, check = [], gate.check
gate.check = lambda *use: checks.append(use) or check(*use)
calls = planted.plant(pytest.MonkeyPatch(), "a column of the output")
x, w = torch.ones(9, 5), torch.ones(3, 5)
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    y = fastgan.functional.linear_act(x, w)
assert torch.equal(y, x @ w.t())
print(len(checks), len(calls), sum(w.category is RuntimeWarning for w in found))
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    lines = []
    for _ in range(2):
        done = warm.run(["-c", code], ROOT, environment)
        assert done.returncode == 0, done.stderr
        lines.append(done.stdout.strip())
    assert lines == ["1 0 1", "0 0 1"]
    done = warm.run(["-m", "fastgan", "doctor"], ROOT, environment)
    assert "switched off: layers in float32 on cpu; plain PyTorch runs instead" in done.stdout


class WrongEngine:
    """A StepEngine that spoils the last column of G's first weight."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._weights = engine, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add_parameter(self, network: int, is_bias: bool, parameter: Any, **rest: Any) -> None:
        self._weights.append(parameter)
        self._engine.add_parameter(network, is_bias, parameter, **rest)

    def step(self, *inputs: Any) -> Any:
        statistics = self._engine.step(*inputs)
        with torch.no_grad():
            self._weights[0][:, -1] *= 1.01
        return statistics


def test_a_wrong_step_is_composed(place: torch.device, new_process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)), nn.Sequential(nn.Linear(4, 8), nn.Tanh())]
    networks[1].append(nn.Linear(8, 1))
    of_step, plain, exact = networks, *([in_double(n) for n in networks] for _ in range(2))
    plain = [n.float() for n in plain]
    right = backends.module.StepEngine
    monkeypatch.setattr(backends, "module", Planted(backends.module, StepEngine=lambda **a: WrongEngine(right(**a))))
    with pytest.warns(RuntimeWarning, match="kernels of whole steps in float32 .* the step composed of") as found:
        step = TrainStep(*of_step, *(adam(n.parameters()) for n in of_step))
    assert len(found) == 1
    assert step.plan.startswith("composed")
    assert "because its kernels failed verification: step with" in step.plan
    real, noise = torch.randn(6, 4), torch.randn(2, 6, 3)
    step.step(real, noise=noise)
    Plain(*plain, *(adam(n.parameters()) for n in plain)).step(real, None, noise)
    Plain(*exact, *(adam(n.parameters()) for n in exact)).step(real.double(), None, noise.double())
    assert_within_bound(*([p for n in of for p in n.parameters()] for of in (of_step, plain, exact)))


def test_a_plan_ends_when_its_family_is_switched_off(place: torch.device, new_process: Path) -> None:
    networks = [nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, w)) for w in (3, 1)]
    step = TrainStep(*networks, *(adam(n.parameters()) for n in networks))
    assert step.plan.startswith("the whole step as one native call")
    key = gate.Key(backends.module, "step", place, torch.float32)
    gate.store(key, {"passed": False, "fault": "it was found wrong"})
    step.step(torch.randn(6, 3))
    assert "its kernels failed verification: it was found wrong" in step.plan
    gate.store(key, {"passed": True, "fault": ""})
    assert step.plan.startswith("the whole step as one native call")


@pytest.mark.deep_on("simt")
@pytest.mark.parametrize("is_wrong", [False, True])
def test_doctor(is_wrong: bool, place: torch.device, new_process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_CASES", {"gan_losses": verification.gan_losses})
    if is_wrong:
        plant(monkeypatch, "the generator's loss")
    result = CliRunner().invoke(app, ["doctor", "--verify"])
    assert result.exit_code == (1 if is_wrong else 0), result.output
    line = f"switched off: the losses of D and G in bfloat16 on {place}; plain PyTorch runs instead"
    assert (line in result.output) == is_wrong
    assert ("FAILED: generator's loss" in result.output) == is_wrong
    assert "comparisons are within their bounds" in result.output
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert (line in result.output) == is_wrong


@pytest.mark.deep
@pytest.mark.parametrize(
    "isa", [rest("baseline"), rest("avx2"), "avx512_bf16"]
)  # make check begins by it on the others
def test_every_instruction_set_passes(isa: str, compiled: None, tmp_path: Path) -> None:
    code = """
import torch, fastgan
from fastgan import gate
torch.set_num_threads(1)
torch.set_flush_denormal(True)
torch.set_float32_matmul_precision("medium")
torch.set_default_dtype(torch.float64)
for family in gate.FAMILIES:
    for dtype in fastgan.backend._dtypes:
        assert gate._first_use(family, torch.device("cpu"), dtype), gate.faults
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "FASTGAN_ISA": isa}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_there_must_be_something_to_verify() -> None:
    with fastgan.use_backend("reference"), pytest.raises(RuntimeError, match="nothing to verify on cpu"):
        fastgan.verify("cpu")
    with pytest.raises(RuntimeError, match="nothing to verify on meta"):
        fastgan.verify("meta")


def test_a_verification_shows_what_was_found() -> None:
    rows = (
        Row("layers", "mlp: tiled", "float32", "7x3-1", 1e-7, 1e-6, True),
        Row("layers", "mlp: library", "float32", "1x3-1", math.inf, 1e-6, False, "RuntimeError: no"),
        Row("step", "step", "float64", "6", 1e-3, 1e-10, False),
    )
    found = Verification("cpu", rows, 1.25, ("step in bfloat16: this processor has no AMX",))
    assert not found.passed
    assert Verification("cpu", rows[:1], 0.0).passed
    with pytest.raises(FrozenInstanceError):
        found.device = "cuda"
    lines = str(found).splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["layers", "float32", "2"], ["step", "float64", "1"]]
    assert lines[3:] == [
        "FAILED: mlp: library, shape 1x3-1, float32: RuntimeError: no",
        "FAILED: step, shape 6, float64: error 0.001, bound 1e-10",
        "not compared: step in bfloat16: this processor has no AMX",
        "cpu: 1 of 3 comparisons are within their bounds (1.2 s)",
    ]
    json.dumps(found.as_dict(), allow_nan=False)
