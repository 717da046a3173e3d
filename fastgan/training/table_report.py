"""The report on a run on a table: how near its synthetic rows are to the real ones, in quality and in privacy."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fastgan.data import load
from fastgan.data.columns import Column
from fastgan.data.dataset import DataError, Dataset
from fastgan.data.table import Table, Values, rounded
from fastgan.data.units import unscale
from fastgan.training import run_samples
from fastgan.training.config import TrainConfig
from fastgan.training.run_folder import RunFolder, is_same_data
from fastgan.training.table_metrics import (
    contingency_similarity,
    correlation_similarity,
    ks_complement,
    missing_similarity,
    nearest_distances,
    tv_complement,
)

# Rows of each table whose nearest record is looked for, and that a model is trained on.
MOST_ROWS = 5_000


@dataclass(frozen=True)
class TableReport:
    """What `report` returns; scores are in [0, 1], 1 the best.

    Attributes:
        rows: real and synthetic ones.
        shapes: of each column, KSComplement of numbers and dates, TVComplement of levels.
        missing: of each column with missing values, the likeness of their shares.
        trends: of each pair of columns, CorrelationSimilarity of two of numbers, else ContingencySimilarity.
        shape: the mean of shapes.
        trend: the mean of trends.
        target: the column that a model tells from the others.
        measure: `accuracy`, or `R2` where the target is a number.
        real_score: of a model that is trained on real rows, on other real rows.
        synthetic_score: of one that is trained on synthetic rows, on the same.
        baseline_score: of the most frequent level or the mean.
        distance: of synthetic rows to the nearest real one that the run has learned from: its 5 % quantile and median.
        reference_distance: the same of a holdout, or without one of the real rows among themselves.
        copies: share of the synthetic rows that are a real row.
        nearer_to_training: share of the synthetic rows that are nearer to a row of training than to one of the holdout,
            of as many of both; 0.5 where nothing is learned by heart. None without a holdout.
    """

    rows: tuple[int, int]
    shapes: dict[str, float]
    missing: dict[str, float]
    trends: dict[str, float]
    shape: float
    trend: float
    target: str
    measure: str
    real_score: float
    synthetic_score: float
    baseline_score: float
    distance: tuple[float, float]
    reference_distance: tuple[float, float]
    copies: float
    nearer_to_training: float | None

    def as_json(self) -> dict[str, Any]:
        """As JSON has it: NaN is None."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            return None if isinstance(value, float) and np.isnan(value) else value

        found: dict[str, Any] = plain(asdict(self))
        return found

    def summary(self) -> list[str]:
        """A few lines for a reader."""
        worst = sorted((score, name) for name, score in self.trends.items() if not np.isnan(score))[:3]
        of_worst = ", ".join(f"{name} {score:.2f}" for score, name in worst)
        against = "a holdout" if self.nearer_to_training is not None else "real rows among themselves"
        lines = [
            f"{self.rows[1]:,} synthetic rows beside {self.rows[0]:,} real ones; scores from 0 to 1, 1 the best",
            f"column shapes {self.shape:.3f}, pair trends {self.trend:.3f}"
            + (f" (the lowest: {of_worst})" if worst else ""),
            f"a model of {self.target}, tested on real rows: {self.measure} {self.synthetic_score:.3f} trained on "
            f"synthetic rows, {self.real_score:.3f} on real ones, {self.baseline_score:.3f} without a model",
            f"distance to the nearest record of training, 5 % quantile and median: {self.distance[0]:.3f} and "
            f"{self.distance[1]:.3f}; of {against}: {self.reference_distance[0]:.3f} and "
            f"{self.reference_distance[1]:.3f}; copies {self.copies:.1%}",
        ]
        if self.nearer_to_training is not None:
            lines.append(f"nearer to training than to the holdout: {self.nearer_to_training:.1%}, of 50 % at best")
        return lines


def report(
    columns: Sequence[Column],
    real: Values,
    synthetic: Values,
    *,
    holdout: Values | None = None,
    target: str | None = None,
    seed: int = 0,
) -> TableReport:
    """Compare a synthetic table with the real one.

    Args:
        columns: of all tables.
        real: the values that the run has learned from.
        synthetic: those that it draws.
        holdout: real ones that it has not seen.
        target: the column that a model is to tell from the others; by default the last one.
        seed: of the rows that are taken of long tables.

    Returns:
        The TableReport. A column that is constant in one of the tables has no correlation: NaN, left out of the mean.

    Raises:
        ValueError: there is no such target.
    """
    at = [i for i, values in enumerate(real) if values is not None]
    names = [columns[i].name for i in at]
    if len(set(names)) < len(names):
        names = [f"{columns[i].name} ({i + 1})" for i in at]
    if target is not None and target not in names:
        raise ValueError(f"target must be one of {', '.join(names)}, not {target!r}")
    kept = [columns[i] for i in at]
    of_real, of_synthetic = _some(real, at), _some(synthetic, at)
    of_holdout = None if holdout is None else _some(holdout, at)
    shapes, missing = {}, {}
    for name, column, x, y in zip(names, kept, of_real, of_synthetic, strict=True):
        x_missing, y_missing = _is_missing(column, x), _is_missing(column, y)
        if x_missing.any():
            missing[name] = missing_similarity(x_missing, y_missing)
        if column.kind != "discrete":
            shapes[name] = ks_complement(x, y)
        elif not x_missing.all() and not y_missing.all():
            shapes[name] = tv_complement(x[~x_missing], y[~y_missing])
    trends = {}
    for i, j in itertools.combinations(range(len(at)), 2):
        is_of_numbers = "discrete" not in (kept[i].kind, kept[j].kind)
        similarity = correlation_similarity if is_of_numbers else contingency_similarity
        trends[f"{names[i]} x {names[j]}"] = similarity((of_real[i], of_real[j]), (of_synthetic[i], of_synthetic[j]))
    aim = names.index(target) if target is not None else len(at) - 1
    rng = np.random.default_rng(seed)
    return TableReport(
        rows=(len(of_real[0]), len(of_synthetic[0])),
        shapes=shapes,
        missing=missing,
        trends=trends,
        shape=_mean(shapes.values()),
        trend=_mean(trends.values()),
        target=names[aim],
        **_of_models(kept, of_real, of_synthetic, of_holdout, aim, rng),
        **_of_distances(kept, of_real, of_synthetic, of_holdout, rng),
    )


def report_of_run(
    run: str | os.PathLike[str] | int | None,
    *,
    count: int | None = None,
    holdout: str | os.PathLike[str] | None = None,
    target: str | None = None,
    seed: int = 0,
    runs: str = "runs",
) -> TableReport:
    """The report on a run's newest checkpoint; the run stays as it is.

    Args:
        run: a run folder, the number of one in runs, or None for the newest.
        count: number of synthetic rows; by default as many as the data has.
        holdout: a .csv file with the columns of the data, of rows that the run has not seen.
        target: see `report`.
        seed: of the synthetic rows, and see `report`.
        runs: the folder of run folders.

    Raises:
        CheckpointError: the run or its checkpoint cannot be used.
        DataError: the data is not what the run began with, or the holdout has other columns.
        TypeError, ValueError: an argument is out of range, or the run is not on a table.
    """
    folder = RunFolder.find(run, runs)
    config, facts = folder.read_config(), folder.read_dataset()
    if "table" not in facts and "layout" not in facts:
        raise ValueError(f"run must be one on a .csv table, which {folder.path} is not")
    dataset = load_again(config, facts)
    if not is_same_data(dataset.describe(), facts):
        raise DataError(f"{config.data} must hold the data that {folder.path} began with, but it has changed")
    layout = dataset.table or dataset.layout
    assert layout is not None
    samples, _ = run_samples.sample_run(folder.path, count or len(dataset), seed=seed, runs=runs)
    unseen = None
    if holdout is not None:
        of_holdout = load(holdout, known=dataset.table, columns=None if dataset.table else "plain")
        if of_holdout.width != dataset.width:
            raise DataError(f"{os.fsdecode(holdout)} must have the columns of {config.data}")
        unseen = values_of(of_holdout, of_holdout.samples)
    return report(
        layout.columns,
        values_of(dataset, dataset.samples),
        values_of(dataset, samples),
        holdout=unseen,
        target=target,
        seed=seed,
    )


def values_of(dataset: Dataset, samples: torch.Tensor) -> Values:
    """The values of samples of a table, or of a table of numbers that were scaled column by column."""
    if dataset.table is not None:
        return dataset.table.decode(samples)
    assert dataset.layout is not None
    values = unscale(samples, dataset.scale, dataset.offset, dataset.levels).numpy()
    return [rounded(column, of_column) for column, of_column in zip(dataset.layout.columns, values.T, strict=True)]


def load_again(config: TrainConfig, facts: dict[str, Any]) -> Dataset:
    """The data of a run, read as it was when the run began: what its columns are is kept in dataset.json."""
    if not config.data.lower().endswith(".csv"):
        return load(config.data, config.seed)
    if "table" not in facts:  # of numbers, which earlier versions read as numbers whatever they were
        return load(config.data, config.seed, columns="plain")
    return load(config.data, config.seed, known=Table.from_json(facts["table"]))


def _some(values: Values, at: Sequence[int]) -> list[np.ndarray]:
    return [np.asarray(values[i]) for i in at]


def _is_missing(column: Column, values: np.ndarray) -> np.ndarray:
    last = len(column.levels) - 1 if column.missing is not None else -2
    found: np.ndarray = values == last if column.kind == "discrete" else np.isnan(values)
    return found


def _mean(scores: Any) -> float:
    known = [score for score in scores if not np.isnan(score)]
    return float(np.mean(known)) if known else float("nan")


def _of_models(
    columns: Sequence[Column],
    real: list[np.ndarray],
    synthetic: list[np.ndarray],
    holdout: list[np.ndarray] | None,
    aim: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """How well models tell the target of real rows: of the holdout, or of half of the real ones."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    is_class = columns[aim].kind == "discrete"
    kind = HistGradientBoostingClassifier if is_class else HistGradientBoostingRegressor
    measure = "accuracy" if is_class else "R2"

    def parts(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        inputs = [each.astype(np.float64) for i, each in enumerate(values) if i != aim]
        known = ~np.isnan(values[aim].astype(np.float64))
        features = np.stack(inputs, axis=1) if inputs else np.zeros((len(values[aim]), 1))
        return features[known], values[aim][known]

    x, y = parts(real)
    order = rng.permutation(len(x))
    if holdout is None:
        half = max(1, len(x) // 2)
        x_test, y_test, order = x[order[half:]], y[order[half:]], order[:half]
    else:
        x_test, y_test = parts(holdout)
    size = min(len(order), MOST_ROWS)
    x_synthetic, y_synthetic = parts(synthetic)
    drawn = rng.permutation(len(x_synthetic))[:size]

    def score(features: np.ndarray, answers: np.ndarray) -> float:
        if len(features) < 2 or len(x_test) < 2 or len(np.unique(answers)) < 2:
            return float("nan")
        # A column that is always missing has no values to be cut into bins.
        features = np.where(np.isnan(features).all(axis=0), 0.0, features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = kind(max_iter=50, random_state=0).fit(features, answers)
            return float(model.score(x_test, y_test))

    if is_class:
        baseline = float((y_test == np.bincount(y[order]).argmax()).mean()) if len(y_test) else float("nan")
    else:
        baseline = 0.0
    return {
        "measure": measure,
        "real_score": score(x[order[:size]], y[order[:size]]),
        "synthetic_score": score(x_synthetic[drawn], y_synthetic[drawn]),
        "baseline_score": baseline,
    }


def _of_distances(
    columns: Sequence[Column],
    real: list[np.ndarray],
    synthetic: list[np.ndarray],
    holdout: list[np.ndarray] | None,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Distances to the nearest real row; numbers by their standard deviation, two levels are 1 apart."""
    spreads = [float(np.nanstd(values)) or 1.0 if values.dtype.kind == "f" else 1.0 for values in real]

    def points(values: list[np.ndarray], most: int = MOST_ROWS) -> np.ndarray:
        rows = rng.permutation(len(values[0]))[:most]
        found = []
        for column, of_column, of_real, spread in zip(columns, values, real, spreads, strict=True):
            if column.kind == "discrete":
                one_hot = np.zeros((len(rows), len(column.levels)))
                known = of_column[rows] >= 0
                one_hot[np.flatnonzero(known), of_column[rows][known]] = np.sqrt(0.5)
                found.append(one_hot)
                continue
            missing = np.isnan(of_column[rows])
            centred = np.where(missing, 0.0, (of_column[rows] - np.nanmean(of_real)) / spread)
            found.append(np.stack([centred, missing.astype(np.float64)], axis=1))
        return np.concatenate(found, axis=1)

    def quantiles(distances: np.ndarray) -> tuple[float, float]:
        low, middle = np.quantile(distances, [0.05, 0.5])
        return float(low), float(middle)

    training, drawn = points(real, 10 * MOST_ROWS), points(synthetic)
    own = nearest_distances(drawn, training)
    nearer = None
    if holdout is not None:
        unseen = points(holdout)
        reference = nearest_distances(unseen, training)
        size = min(len(unseen), len(training))
        nearer = float((nearest_distances(drawn, training[:size]) < nearest_distances(drawn, unseen[:size])).mean())
    else:
        reference = nearest_distances(training[:MOST_ROWS], training, leave_out_self=True)
    return {
        "distance": quantiles(own),
        "reference_distance": quantiles(reference),
        "copies": float((own == 0).mean()),
        "nearer_to_training": nearer,
    }
