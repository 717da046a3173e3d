"""The benchmark's arithmetic under a fake clock, and a quick run of it as a process. No speed is asserted."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bench import linear, record
from bench.__main__ import main
from bench.agreement import assert_agree
from bench.configurations import CONFIGURATIONS
from bench.pairs import pair
from bench.table import HEADERS, cells, print_plain
from bench.timing import Case, Result, Timing, measure

ROOT = Path(__file__).parent.parent
RING = next(c for c in CONFIGURATIONS if c.name == "ring")


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


def test_a_slow_case_keeps_its_budget_but_has_one_round_at_least() -> None:
    for budget, rounds in ((100.0, 9), (10.0, 2), (0.1, 1)):
        clock = Clock()
        case = Case("a case", {"ours": clock.work("ours", 1.0), "torch": clock.work("torch", 3.0)}, lambda: None)
        result = measure(case, rounds=9, seconds=0.01, budget=budget, clock=clock)
        assert len(result.timings["ours"].rounds) == len(result.timings["torch"].rounds) == rounds


def test_a_slow_first_call_does_not_shorten_the_turns() -> None:
    clock = Clock()
    durations = iter([5.0])

    def warming() -> None:
        clock.now += next(durations, 0.5)
        clock.order.append("ours")

    measure(Case("a case", {"ours": warming}, lambda: None), rounds=1, seconds=2.0, clock=clock)
    assert len(clock.order) == 2 + 4  # two calls to find out that 4 calls fill a turn


def test_turns_on_contended_cores_end() -> None:
    clock = Clock()
    durations = [0.001, 1.0, 1.0, 1.0]  # the fastest call is far from the usual one

    def contended() -> None:
        clock.now += durations[len(clock.order) % 4]
        clock.order.append("ours")

    measure(Case("a case", {"ours": contended}, lambda: None), rounds=1, seconds=8.0, clock=clock)
    assert clock.now < 30


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((1.0, 1.0, 1.0), "faster"),
        ((3.0, 3.0, 3.0), "slower"),
        ((1.0, 1.9, 9.0), "faster?"),
        ((1.0, 2.1, 9.0), "slower?"),
        ((1.0,), "faster?"),
    ],
)
def test_verdicts_doubt_what_the_rounds_do_not_show(ours: tuple[float, ...], verdict: str) -> None:
    result = Result(Case("a case", {}, lambda: None), {"ours": Timing(ours), "torch": Timing((2.0,) * len(ours))})
    assert result.verdict("ours") == verdict


def test_rates_are_held_against_the_ceiling_of_their_dtype() -> None:
    case = Case("a case", {}, lambda: None, flops=4e9, dtype=torch.bfloat16)
    result = Result(case, {"fastgan": Timing((1.0, 2.0, 3.0)), "torch": Timing((4.0, 4.0, 4.0))})
    ours, theirs = record.rows(result, {"GB/s": 1.0, "GFLOP/s float32": 1.0, "GFLOP/s bfloat16": 8.0})
    assert (ours["GFLOP/s"], ours["of_ceiling"], ours["times_as_fast"]) == (2.0, 0.25, 2.0)
    assert (ours["median_us"], ours["min_us"], ours["max_us"]) == (2e6, 1e6, 3e6)
    assert (theirs["times_as_fast"], theirs["verdict"]) == (1.0, "")


def test_a_product_has_its_turn_in_each_round_beside_a_step() -> None:
    """What slows the machine down in a round slows the product in it, so that the share stays."""
    now, slowness = 0.0, 1.0

    def taking(seconds: float) -> Callable[[], None]:
        def work() -> None:
            nonlocal now, slowness
            now, slowness = now + seconds * slowness, slowness * 1.001

        return work

    contenders = {"fastgan": taking(3.0), "torch": taking(6.0)}
    case = Case("step x float32", contenders, lambda: None, flops=4e9, steps=2, beside=taking(2.0), beside_flops=8e9)
    result = measure(case, rounds=9, seconds=0.5, clock=lambda: now)
    assert set(result.timings) == {"fastgan", "torch"}
    assert result.beside is not None
    assert len(result.beside.rounds) == 9
    ours, theirs = record.rows(result, {"GFLOP/s float32": 100.0})
    # 4 GFLOP in 1.5 s against 8 in 2 s; and half of that.
    assert ours["of_product_beside"] == pytest.approx(2 / 3, rel=0.01)
    assert theirs["of_product_beside"] == pytest.approx(1 / 3, rel=0.01)
    assert cells(ours)[-1].endswith(" (67%)")


def test_the_product_beside_a_step_is_the_fastest_of_its_dtype() -> None:
    products = {"float32 at::mm 2x3x4": 5.0, "float32 mkldnn 4x2x2": 4.0, "bfloat16 at::mm 8x8x8": 9.0}
    case = record.beside_best_product(Case("step x float32", {}, lambda: None, flops=1.0), products)
    assert case.beside is not None
    assert case.beside().shape == (2, 4)
    assert case.beside_flops == 2 * 2 * 3 * 4


def test_the_plain_table_has_every_row_and_marks_losses() -> None:
    case = Case("a case", {}, lambda: None)
    result = Result(case, {"fastgan": Timing((3.0, 3.0, 3.0)), "torch": Timing((1.5, 1.5, 1.5))})
    file = io.StringIO()
    print_plain(record.rows(result, {}), file)
    header, ours, theirs, _ = file.getvalue().split("\n", 3)
    assert [name for name in HEADERS if name not in header] == []
    assert ours.split() == [
        "a",
        "case",
        "fastgan",
        "3.00",
        "s",
        "3.00",
        "s",
        "..",
        "3.00",
        "s",
        "0%",
        "0.50x",
        "slower",
    ]
    assert theirs.split()[2:5] == ["torch", "1.50", "s"]


def test_a_busy_machine_is_said() -> None:
    cores = os.cpu_count() or 1
    assert record.busy_warning(None) is None
    assert f"others hold {cores:.1f} of {cores} cores" in (record.busy_warning(float(cores)) or "")


def test_results_are_compared_on_their_own_scale() -> None:
    tiny = torch.tensor([1e-7, -3e-7])
    assert_agree([tiny, tiny], [tiny, tiny * (1 + 1e-6)])
    for wrong in (tiny * 1.01, torch.zeros(2), torch.full((2,), torch.nan), tiny.double(), tiny[:1]):
        with pytest.raises(AssertionError, match="result 0"):
            assert_agree(wrong, tiny)
    with pytest.raises(AssertionError, match="zero everywhere"):
        assert_agree(tiny, torch.zeros(2))
    with pytest.raises(AssertionError, match="1 results against 2"):
        assert_agree([tiny], [tiny, tiny])


def test_a_wrong_gradient_of_a_mean_is_noticed() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x.detach().square().mean() + 3 * (x.square().mean() - x.square().mean().detach())

    forward, both = pair("wrong", wrong, lambda x: x.square().mean(), [(1024, 256)])
    forward.check()
    with pytest.raises(AssertionError, match="result 0"):
        both.check()


def test_no_layer_is_timed_on_gradients_that_vanish() -> None:
    for case in linear.cases():
        if "tanh 128x512x64" in case.name:
            case.check()  # zeros everywhere are an error


def test_contenders_that_disagree_are_not_timed() -> None:
    clock = Clock()

    def check() -> None:
        raise AssertionError("they differ")

    with pytest.raises(AssertionError, match="a case: the contenders disagree: they differ"):
        measure(Case("a case", {"ours": clock.work("ours", 1.0)}, check), rounds=1, seconds=1.0, clock=clock)
    assert clock.order == []


def test_operations_of_a_step_counted_product_by_product() -> None:
    flops = 0
    g, d = (list(pairwise(sizes)) for sizes in (RING.generator, RING.discriminator))
    for i, (a, b) in enumerate(g):
        flops += 2 * a * b * (2 + (i > 0))  # forward, weight gradient, input gradient but for the first layer
    for i, (a, b) in enumerate(d):
        flops += 2 * (2 * a * b) * (2 + (i > 0))  # the D step, on real and on fake
        flops += 2 * a * b * 2  # the G step: forward and input gradient
    assert RING.step_flops == RING.batch * flops


@pytest.mark.deep
def test_quick_run_prints_a_complete_table_and_record(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    result = _run("--quick", "--only", "logits_loss", "--match", "64x1", "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert "generator_loss 64x1 float32 forward+backward" in result.stdout
    written = json.loads(file.read_text())
    assert {"date", "commit", "cpu", "threads", "torch", "build", "busy_cores"} <= set(written["environment"])
    assert set(written["ceilings"]) == {"GB/s", "GFLOP/s float32", "GFLOP/s bfloat16"}
    cases = {(row["case"], row["contender"]) for row in written["rows"]}
    assert len(cases) == len(written["rows"]) == (2 + 4) * 2 * 2  # the kinds of the first loss, and four others
    assert all(row["median_us"] > 0 and row["times_as_fast"] > 0 and row["GB/s"] > 0 for row in written["rows"])
    assert all(name in result.stdout for name, _ in cases)
    kinds = {" ".join(name.split()[:2]) for name in written["products"]}
    assert {"float32 at::mm", "bfloat16 at::mm"} <= kinds


@pytest.mark.deep
def test_the_benchmark_runs_without_the_compiled_module() -> None:
    result = _run("--quick", "--only", "bce", "--match", "64x1", FASTGAN_BACKEND="reference")
    assert result.returncode == 0, result.stderr
    assert "this times fastgan's reference" in result.stdout
    assert "bce 64x1 float32 forward+backward" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "sgd"],
            "--only must name ops of bce, logits_loss, segmented, linear, mlp, host, penalties, step, tutorial, "
            "not 'sgd'",
        ),
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--seconds", "0"], "--seconds must be over 0"),
        (["--budget", "-1"], "--budget must be over 0, not -1.0"),
        (["--peers", "theano"], "--peers must name peers of default, all, none, torch.compile, "),
        (["--sweep", "depth"], "--sweep must name sweeps of batch, width, not 'depth'"),
        (["--csv", "no/such/folder/x.csv"], "--csv: there is no folder"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_bad_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.deep
def test_no_case_of_a_name() -> None:
    result = _run("--quick", "--only", "bce", "--match", "no such case")
    assert result.returncode == 2
    assert "no case has 'no such case' in its name" in result.stderr


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
