"""`fastgan eval`: the scores are those that SDMetrics publishes, and the report says what it should of known tables."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fastgan
from bench.mixed_table import mixed_table, write_csv
from fastgan.cli import app
from fastgan.data import load
from fastgan.data.columns import Column
from fastgan.data.table import Table, Values
from fastgan.training import table_metrics
from fastgan.training.table_report import TableReport, report

RNG = np.random.default_rng(0)


def level_column(name: str, count: int, missing: bool = False) -> Column:
    levels = tuple(map(str, range(count - missing))) + (("",) if missing else ())
    return Column(name, "discrete", levels, (1,) * count, "" if missing else None)


def number_column(name: str) -> Column:
    return Column(name, "continuous")


# Known values.


def test_scores_of_known_tables() -> None:
    first, second = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 5.0, np.nan, 5.0])
    assert table_metrics.ks_complement(first, first) == 1.0
    assert table_metrics.ks_complement(first, first + 10) == 0.0
    assert table_metrics.ks_complement(first, second) == 0.5  # 2 of 4 are below 5
    assert np.isnan(table_metrics.ks_complement(first, np.full(3, np.nan)))
    assert table_metrics.tv_complement(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])) == 0.75
    assert table_metrics.tv_complement(np.array([0]), np.array([1])) == 0.0
    assert table_metrics.missing_similarity(np.array([True, False]), np.array([True, True])) == 0.5
    rising, falling = np.arange(4.0), -np.arange(4.0)
    assert table_metrics.correlation_similarity((rising, rising), (rising, falling)) == pytest.approx(0.0, abs=1e-12)
    assert table_metrics.correlation_similarity((rising, rising), (rising, rising)) == pytest.approx(1.0, abs=1e-12)
    assert np.isnan(table_metrics.correlation_similarity((rising, rising), (rising, np.ones(4))))
    pair = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert table_metrics.contingency_similarity(pair, (pair[0], pair[0])) == 0.5
    assert table_metrics.contingency_similarity(pair, pair) == 1.0


def test_distances_to_the_nearest() -> None:
    points, others = RNG.normal(size=(50, 3)), RNG.normal(size=(70, 3)) + 1e3
    plain = np.linalg.norm(points[:, None] - others[None], axis=2).min(axis=1)
    assert np.abs(table_metrics.nearest_distances(points, others) - plain).max() < 1e-9
    assert (table_metrics.nearest_distances(others, others) == 0).all()
    among = np.linalg.norm(others[:, None] - others[None], axis=2) + np.diag(np.full(70, np.inf))
    found = table_metrics.nearest_distances(others, others, leave_out_self=True)
    assert np.abs(found - among.min(axis=1)).max() < 1e-9


# Beside the package.


@pytest.fixture(scope="module")
def tables() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Real and synthetic columns: numbers with missing ones, mostly zero, far from zero; levels with -1 for missing."""
    found = []
    for rows, shift in ((700, 0.0), (500, 0.3)):
        x = RNG.normal(size=rows) + shift
        gaps = np.where(RNG.random(rows) < 0.2, np.nan, 1e6 + x + RNG.normal(size=rows))
        zeros = np.where(RNG.random(rows) < 0.8, 0.0, x * x)
        levels = np.clip(np.floor(x + 2 + shift), 0, 6).astype(np.int64)
        few = RNG.integers(0, 3, rows)
        found.append([x, gaps, zeros, levels, few])
    return found[0], found[1]


def frames(tables: tuple[list[np.ndarray], list[np.ndarray]], columns: Sequence[int]) -> list:
    pandas = pytest.importorskip("pandas")
    return [pandas.DataFrame({str(i): table[i] for i in columns}) for table in tables]


@pytest.mark.deep
def test_column_scores_are_those_of_sdmetrics(tables: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    sdmetrics = pytest.importorskip("sdmetrics.single_column")
    for i in range(5):
        kind, own = (
            (sdmetrics.KSComplement, table_metrics.ks_complement)
            if i < 3
            else (sdmetrics.TVComplement, table_metrics.tv_complement)
        )
        real, synthetic = (frame[str(i)] for frame in frames(tables, [i]))
        assert abs(kind.compute(real, synthetic) - own(tables[0][i], tables[1][i])) < 1e-6


@pytest.mark.deep
def test_pair_scores_are_those_of_sdmetrics(tables: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    sdmetrics = pytest.importorskip("sdmetrics.column_pairs")
    for i in range(5):
        for j in range(i + 1, 5):
            real, synthetic = frames(tables, [i, j])
            pairs = tuple((table[i], table[j]) for table in tables)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if j < 3:
                    wanted = sdmetrics.CorrelationSimilarity.compute(real, synthetic)
                    found = table_metrics.correlation_similarity(*pairs)
                else:
                    continuous = [str(k) for k in (i, j) if k < 3] or None
                    wanted = sdmetrics.ContingencySimilarity.compute(
                        real, synthetic, continuous_column_names=continuous, num_discrete_bins=10
                    )
                    found = table_metrics.contingency_similarity(*pairs)
            assert abs(wanted - found) < 1e-6, (i, j)


# The report.


def made(rows: int, seed: int) -> Values:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    group = (x + 0.1 * rng.normal(size=rows) > 0).astype(np.int64)
    gaps = np.where(rng.random(rows) < 0.3, np.nan, x + rng.normal(size=rows))
    return [x, gaps, None, group]


COLUMNS = (
    number_column("x"),
    number_column("gaps"),
    Column("same", "constant", ("a",), (1,)),
    level_column("group", 2),
)


def test_a_table_of_the_same_distribution() -> None:
    found = report(COLUMNS, made(1500, 0), made(1500, 1), holdout=made(1500, 2))
    assert set(found.shapes) == {"x", "gaps", "group"}
    assert set(found.missing) == {"gaps"}
    assert set(found.trends) == {"x x gaps", "x x group", "gaps x group"}
    assert found.shape > 0.95
    assert found.trend > 0.93
    assert (found.target, found.measure) == ("group", "accuracy")
    assert min(found.real_score, found.synthetic_score) > 0.9
    assert found.baseline_score < 0.6
    assert found.copies == 0
    assert 0.4 < found.nearer_to_training < 0.6
    assert found.distance[1] == pytest.approx(found.reference_distance[1], rel=0.2)
    assert json.loads(json.dumps(found.as_json()))["rows"] == [1500, 1500]


def test_a_table_that_was_learned_by_heart_and_one_of_noise() -> None:
    real = made(800, 0)
    copied = report(COLUMNS, real, real, holdout=made(800, 2))
    assert (copied.shape, copied.trend, copied.copies) == (1.0, pytest.approx(1.0), 1.0)
    assert copied.distance == (0.0, 0.0)
    assert copied.nearer_to_training > 0.99
    assert "copies 100.0%" in "\n".join(copied.summary())
    rng = np.random.default_rng(5)
    noise: Values = [rng.uniform(-9, 9, 800), np.full(800, np.nan), None, rng.integers(0, 2, 800)]
    poor = report(COLUMNS, real, noise, target="x")
    assert poor.nearer_to_training is None
    assert poor.measure == "R2"
    assert poor.synthetic_score < 0.2 < 0.6 < poor.real_score
    assert np.isnan(poor.shapes["gaps"])
    assert poor.as_json()["shapes"]["gaps"] is None
    assert "real rows among themselves" in "\n".join(poor.summary())
    with pytest.raises(ValueError, match="target must be one of x, gaps, group, not 'y'"):
        report(COLUMNS, real, noise, target="y")


def test_missing_levels_are_left_out_of_shapes_alone() -> None:
    column = level_column("plan", 3, missing=True)
    real, synthetic = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 1])
    numbers = np.arange(4.0)
    found = report((column, number_column("n")), [real, numbers], [synthetic, numbers])
    assert found.shapes["plan"] == 0.75
    assert found.missing["plan"] == 0.5
    assert found.trends["plan x n"] == 0.5


# The command.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    columns = {name: cells for name, cells in mixed_table(400).items() if name in ("age", "score", "job", "plan")}
    path = write_csv(folder / "people.csv", columns)
    options = {"steps": 2, "batch_size": 100, "g_hidden": (8,), "d_hidden": (8,), "runs": str(folder / "runs")}
    return fastgan.Trainer(path, **options).train(quiet=True)


def evaluate(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["eval", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output if code == 0 else result.stderr


def test_the_command(trained: Path, tmp_path: Path) -> None:
    columns = {
        name: cells for name, cells in mixed_table(200, seed=9).items() if name in ("age", "score", "job", "plan")
    }
    holdout = write_csv(tmp_path / "holdout.csv", columns)
    shown = evaluate(trained, "--holdout", holdout, "--target", "job", "--out", tmp_path / "x.json", "-n", 300)
    assert "300 synthetic rows beside 400 real ones" in shown
    assert "a model of job, tested on real rows: accuracy" in shown
    assert "nearer to training than to the holdout" in shown
    saved = json.loads((tmp_path / "x.json").read_text())
    assert set(saved) == {field for field in TableReport.__dataclass_fields__}
    assert set(saved["shapes"]) == {"age", "score", "job", "plan"}
    again = evaluate(trained, "--holdout", holdout, "--target", "job", "-n", 300)
    assert again == shown


def test_what_the_command_refuses(trained: Path, tmp_path: Path) -> None:
    digits = fastgan.Trainer("digits", steps=1, g_hidden=(8,), d_hidden=(8,), runs=str(tmp_path)).train(quiet=True)
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,x\n2,y\n")
    for words, sentence in (
        ([digits, "--target", "pay"], "run must be one on a .csv table"),
        ([trained, "--target", "pay"], "target must be one of age, score, job, plan, not 'pay'"),
        ([trained, "--holdout", other], "must have the columns age, score, job, plan"),
        ([trained, "--holdout", tmp_path / "none.csv"], "none.csv"),
        ([trained, "-n", 1], "number must be at least 2, not 1"),
    ):
        assert sentence in evaluate(*words, code=2)


def test_numbers_alone_are_evaluated_too(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i * 0.25}\n" for i in range(60)))
    run = fastgan.Trainer(path, steps=2, g_hidden=(8,), d_hidden=(8,), runs=str(tmp_path)).train(quiet=True)
    assert "a model of b, tested on real rows: R2" in evaluate(run)


def test_a_drawn_table_of_the_data_itself_has_full_scores(tmp_path: Path) -> None:
    """What the transformation gives back of its own samples is the table: nothing is lost on the way."""
    data = load(write_csv(tmp_path / "x.csv", mixed_table(300)))
    assert isinstance(data.table, Table)
    assert isinstance(data.samples, torch.Tensor)
    values = data.table.decode(data.samples)
    found = report(data.table.columns, values, data.table.decode(data.samples))
    assert found.shape == 1.0
    assert found.trend == pytest.approx(1.0, abs=1e-12)
