"""The benchmark's steps with penalties: that the contenders compute the same, and how products are counted."""

from __future__ import annotations

import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import penalty_compiled, penalty_steps, penalty_training, phases, record, step, training
from bench.__main__ import main
from bench.agreement import assert_agree
from bench.configurations import CONFIGURATIONS, Configuration
from bench.penalty_problems import AMP, GAIL, OBJECTIVES, PROBLEMS, R1, RELATIVISTIC, Objective, Problem
from bench.timing import Case, measure
from fastgan import TrainStep

NETWORKS = Configuration("tiny", (3, 8, 4), "relu", "tanh", (4, 8, 6, 1), 6)
ALONE = Problem(AMP.objective, dataclasses.replace(NETWORKS, name="alone", generator=()), AMP.d_activation)
IMITATION = Problem(GAIL.objective, ALONE.configuration, GAIL.d_activation)
TINY = [*(Problem(objective, NETWORKS) for objective in OBJECTIVES), ALONE, IMITATION]
LAZY = next(problem for problem in TINY if problem.objective.r1_every == 16)

every_problem = pytest.mark.parametrize("problem", TINY, ids=[problem.name for problem in TINY])


def compare(problem: Problem, builds: dict[str, penalty_steps.Build]) -> None:
    trainings = {label: build(problem) for label, build in builds.items()}
    penalty_steps.check(trainings, problem, penalty_steps.inputs(problem)[0])


@every_problem
def test_fastgan_and_eager_peers_agree(problem: Problem) -> None:
    builds = penalty_steps.contenders(["torch one batch"])
    assert list(builds) == [
        *("fastgan", "fastgan composed", "fastgan modules"),
        *("torch shared pass", "torch one batch", "torch"),
    ]
    compare(problem, builds)


@every_problem
def test_jax_agrees(problem: Problem) -> None:
    pytest.importorskip("jax")
    compare(problem, penalty_steps.contenders(["jax"]))


@every_problem
def test_the_step_that_is_compiled_is_the_same_uncompiled(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    compare(problem, penalty_steps.contenders(["torch.compile"]))


@pytest.mark.deep
@pytest.mark.full  # test_bench_step.py has a step that is compiled, and the next tests have refusals
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_pytorch_agrees_but_refuses_double_backward() -> None:  # a minute: it compiles
    compare(TINY[1], penalty_steps.contenders(["torch.compile"]))
    assert "double backward" in penalty_steps.refusals(["torch.compile halves"])["torch.compile halves"]


def test_only_a_peer_that_was_chosen_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalty_compiled, "refusal", lambda: "no double backward")
    assert penalty_steps.refusals(["torch.compile"]) == {}
    assert penalty_steps.refusals(["torch.compile halves"]) == {"torch.compile halves": "no double backward"}
    monkeypatch.setattr(penalty_compiled, "refusal", lambda: None)
    assert penalty_steps.refusals(["torch.compile halves"]) == {}


def test_a_refusal_is_what_pytorch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)
    assert penalty_compiled.refusal.__wrapped__() is None

    class Refusing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise RuntimeError("not this\nat all")

    monkeypatch.setattr(torch, "compile", lambda module: Refusing(2, 1))
    assert penalty_compiled.refusal.__wrapped__() == "not this"


@pytest.mark.parametrize("problem", [p for p in TINY if p != IMITATION], ids=lambda problem: problem.name)
def test_a_penalty_of_a_tenth_is_noticed(problem: Problem) -> None:
    o = problem.objective
    others = dataclasses.replace(o, r1_gamma=o.r1_gamma / 10, r2_gamma=o.r2_gamma / 10, gp_weight=o.gp_weight / 10)

    def other(problem: Problem) -> training.Training:
        return penalty_training.shared_pass(dataclasses.replace(problem, objective=others))

    with pytest.raises(AssertionError, match="other"):
        compare(problem, {"other": other, "torch": penalty_training.eager})


def test_a_lazy_penalty_is_timed_over_all_its_steps() -> None:
    count = 0

    def counted(real: Tensor, noise: Tensor) -> tuple[()]:
        nonlocal count
        count += 1
        return ()

    case = penalty_steps.case(LAZY, {"torch": training.Training(counted, lambda: [])})
    case.contenders["torch"]()
    assert count == case.steps == 16
    now = 0.0

    def slow() -> None:
        nonlocal now
        now += 32.0

    result = measure(Case("a case", {"torch": slow}, lambda: None, steps=16), rounds=1, seconds=64.0, clock=lambda: now)
    assert result.timings["torch"].rounds == (2.0,)


def test_the_problems_are_those_of_the_issue() -> None:
    names = [problem.name for problem in PROBLEMS]
    assert len(set(names)) == len(names)
    for name in ("ring", "digits", "mnist"):
        assert {f"{o.title} {name}" for o in OBJECTIVES} <= set(names)
    assert {problem.name for problem in PROBLEMS if problem.configuration.name == "wide"} == {
        "R1 wide",
        "relativistic R1+R2 wide",
    }
    assert (GAIL.configuration.discriminator, GAIL.configuration.batch) == ((23, 100, 100, 1), 1024)
    assert (AMP.configuration.discriminator, AMP.configuration.batch) == ((128, 1024, 512, 1), 4096)


def test_products_of_a_step_without_penalties_are_those_of_the_plain_step() -> None:
    for configuration in CONFIGURATIONS:
        assert Problem(Objective("", "non_saturating"), configuration).step_flops == configuration.step_flops


def test_r1_on_mnist_costs_one_and_a_half_passes_through_the_discriminator() -> None:
    mnist = next(c for c in CONFIGURATIONS if c.name == "mnist")
    passes = 2.0 * mnist.batch * sum(a * b for a, b in pairwise(mnist.discriminator))
    added = [Problem(o, mnist).step_flops - mnist.step_flops for o in (R1, LAZY.objective)]
    assert [round(flops / passes, 2) for flops in added] == [1.55, round(1.55 / 16, 2)]


@pytest.mark.parametrize(
    "problem",
    [p for p in TINY if p.objective.r1_every == 1],
    ids=[p.name for p in TINY if p.objective.r1_every == 1],
)
def test_counted_products_suffice(problem: Problem) -> None:
    """A step written with them alone: D's gradients are autograd's, and it multiplies as much as is counted."""
    objective = problem.objective
    generator, discriminator = (m if m is None else m.double() for m in penalty_training.plain_networks(problem))
    real, noise, points = penalty_steps.inputs(problem)[0]
    real, noise = real.double(), noise.double()
    batches = real[0] if problem.trains_generator else real
    counter = FlopCounterMode(display=False)
    with counter:
        if generator is None:
            fake = noise
        else:
            for z in noise[1:]:
                with torch.no_grad():
                    generator(z)
            fake = generator(noise[0])
        for _ in range(objective.d_steps):
            found = gradients(discriminator, objective, batches, fake.detach(), points if points is None else points[0])
        if generator is not None:
            real_scores = None
            if objective.loss == "relativistic":
                with torch.no_grad():
                    real_scores = discriminator(batches)
            g_loss = penalty_training.TORCH_G_LOSSES[objective.loss](discriminator(fake), real_scores)
            torch.autograd.grad(g_loss, list(generator.parameters()))
    assert counter.get_total_flops() == problem.step_flops
    expected = autograd(discriminator, objective, batches, fake.detach(), points if points is None else points[0])
    assert_agree(found, expected)


def autograd(d: nn.Module, objective: Objective, real: Tensor, fake: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
    """The gradients of D's weights by the loss and the penalties."""
    weights = [p for p in d.parameters() if p.dim() == 2]
    total = penalty_training.torch_d_loss(objective)(d(real), d(fake))
    for weight, samples in zip(objective.slopes_of, (real, fake), strict=True):
        total = total + weight * penalty_training.torch_r1_penalty(d, samples)
    if u is not None:
        x = (u * real + (1 - u) * fake).requires_grad_()
        (slopes,) = torch.autograd.grad(d(x).sum(), x, create_graph=True)
        total = total + objective.gp_weight * (slopes.norm(dim=1) - 1).square().mean()
    return torch.autograd.grad(total, weights)


@torch.no_grad()
def gradients(d: nn.Module, objective: Objective, real: Tensor, fake: Tensor, u: Tensor | None) -> list[Tensor]:
    """The same, as Problem.step_flops says it."""
    linears = [layer for layer in d if isinstance(layer, nn.Linear)]
    negative_slope = next((layer.negative_slope for layer in d if isinstance(layer, nn.LeakyReLU)), 0.0)
    is_tanh = isinstance(d[1], nn.Tanh)
    found = [torch.zeros_like(layer.weight) for layer in linears]

    def forward(x: Tensor, to_the_end: bool = True) -> tuple[list[Tensor], list[Tensor]]:
        """Activations, with the scores at the end, and act'(z) of each hidden layer."""
        values, slopes = [x], []
        for layer in linears[:-1]:
            z = layer(values[-1])
            slopes.append(1 - z.tanh().square() if is_tanh else torch.where(z > 0, torch.ones_like(z), negative_slope))
            values.append(z.tanh() if is_tanh else z * slopes[-1])
        return [*values, linears[-1](values[-1])] if to_the_end else values, slopes

    def chain(slopes: list[Tensor]) -> list[Tensor]:
        deltas = [torch.ones(len(slopes[0]), 1, dtype=torch.float64)]
        for layer, act in zip(linears[:0:-1], slopes[::-1], strict=True):
            deltas.insert(0, deltas[0] @ layer.weight * act)
        return deltas

    def tangents(start: Tensor, slopes: list[Tensor]) -> list[Tensor]:
        values = [start]
        for layer, act in zip(linears[:-1], slopes, strict=True):
            values.append(values[-1] @ layer.weight.t() * act)
        return values

    passes = [forward(samples) for samples in (real, fake)]
    with torch.enable_grad():  # no products
        scores = [values[-1].detach().requires_grad_() for values, _ in passes]
        by_score = torch.autograd.grad(penalty_training.torch_d_loss(objective)(*scores), scores)
    for weight, c, (values, slopes) in zip(objective.slopes_of, by_score, passes, strict=True):
        deltas = chain(slopes)
        rows = [c * h for h in values[:-1]]
        if weight:
            start = 2 * weight / len(real) * (deltas[0] @ linears[0].weight)
            rows = [h + t for h, t in zip(rows, tangents(start, slopes), strict=True)]
        found = [g + delta.t() @ row for g, delta, row in zip(found, deltas, rows, strict=True)]
    if u is not None:
        _, slopes = forward(u * real + (1 - u) * fake, to_the_end=False)
        deltas = chain(slopes)
        by_data = deltas[0] @ linears[0].weight
        norms = by_data.norm(dim=1, keepdim=True)
        start = 2 * objective.gp_weight / len(real) * (norms - 1) / norms * by_data
        found = [g + delta.t() @ t for g, delta, t in zip(found, deltas, tangents(start, slopes), strict=True)]
    return found


def test_a_run_over_them_alone_writes_rows_refusals_and_profiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def profile(self: TrainStep, real: Tensor, labels: Any = None, noise: Any = None) -> dict[str, float]:
        self.step(real, labels, noise)
        return {"discriminate": 1e-3}

    limits = {"GB/s": 10.0, "GFLOP/s float32": 100.0, "GFLOP/s bfloat16": 200.0}
    monkeypatch.setattr(TrainStep, "profile", profile)
    monkeypatch.setattr(record, "ceilings", lambda rounds, seconds: (limits, {}))
    monkeypatch.setattr(step, "CONFIGURATIONS", ())
    for module in (penalty_steps, phases):
        monkeypatch.setattr(module, "PROBLEMS", TINY)
    monkeypatch.setattr(penalty_compiled, "refusal", lambda: "there is no double backward")
    file = tmp_path / "record.json"
    peers = ["--peers", "torch-one-batch", "torch.compile-halves"]
    options = ["--quick", "--only", "step", "--match", "float32 step", *peers, "--json", str(file)]
    assert main(options) == 0
    written = json.loads(file.read_text())
    assert {row["case"] for row in written["rows"]} == {f"{problem.name} float32 step" for problem in TINY}
    rows = {(row["case"], row["contender"]): row for row in written["rows"]}
    first = rows["R1 tiny float32 step", "fastgan"]
    assert set(first["against"]) == {
        *("fastgan composed", "fastgan modules"),
        *("torch shared pass", "torch one batch", "torch"),
    }
    assert (first["objective"], first["batch"]) == ("R1", 6)
    assert first["GFLOP/s"] == pytest.approx(TINY[1].step_flops / first["median_us"] / 1e3)
    assert first["of_ceiling"] == pytest.approx(first["GFLOP/s"] / 100)
    assert ["R1 tiny float32 step", "torch.compile halves", "there is no double backward"] in written["refusals"]
    assert "without torch.compile halves: R1 tiny float32 step: there is no double backward" in capsys.readouterr().out
    assert "profiles" not in written
    assert set(written["penalty_profiles"]) == {"WGAN-GP tiny", "R1 tiny", f"{RELATIVISTIC.title} tiny"}
    assert written["penalty_profiles"]["R1 tiny"]["seconds"] == {"discriminate": 1e-3}
    assert main([*options[:4], "R1 tiny", "--json", str(file)]) == 0
    assert {row["case"] for row in json.loads(file.read_text())["rows"]} == {"R1 tiny float32 step"}
